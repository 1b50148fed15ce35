"""What is remembered of subjects: a track for each of their devices, all of it bounded.

A track is one of three kinds, in falling order of how sure it is whose it is: BOUND (a key proved the registered device),
RECOGNISED (its fingerprint did), UNKNOWN (some device, told by all that its fingerprint shows). A request is recorded in the
track it belongs to, and judged by every track it *could* belong to: its own and the surer ones, as the evidence that makes
the difference may simply have been left out. So what somebody does with another's name on a device of their own is never
held against that person's devices, and leaving evidence out never sheds a finding.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from enum import IntEnum
from typing import Final

import msgspec

from engine.facts import Binding, Device, Finding
from sidecar.guard.networks import Networks
from sidecar.guard.seen import Shown, shows_no_more

MAX_KNOWN: Final = 8
"""Tracks of registered devices per subject."""
MAX_UNKNOWN: Final = 4
"""Tracks of unknown devices per subject. More of them never displace those of registered ones."""


INCIDENT_S: Final = 600.0
"""New evidence within this time of a finding belongs to it: who answers it with an authentication can go on."""


class Kind(IntEnum):
    """What a track is of."""

    BOUND = 0
    RECOGNISED = 1
    UNKNOWN = 2


_KINDS: Final = {
    Binding.BOUND: Kind.BOUND,
    Binding.RECOGNISED: Kind.RECOGNISED,
    Binding.UNKNOWN: Kind.UNKNOWN,
}
Label = tuple[Kind, str | int]


class Raised:
    """A finding on a track, and until when it holds."""

    __slots__ = ("code", "confidence", "since", "until")

    def __init__(self, code: str, confidence: float, since: float, until: float) -> None:
        self.code = code
        self.confidence = confidence
        self.since = since
        self.until = until


class Place:
    """Where a track was last seen, in degrees."""

    __slots__ = ("at", "latitude", "longitude")

    def __init__(self, at: float, latitude: float, longitude: float) -> None:
        self.at = at
        self.latitude = latitude
        self.longitude = longitude


class Rate:
    """Uses counted twice, fading fast and slowly: their number of late, and as usual."""

    __slots__ = ("at", "began_at", "fast", "slow")

    def __init__(self, at: float) -> None:
        self.at = self.began_at = at
        self.fast = self.slow = 0.0


class Track:
    """One device of one subject. What a guard has not needed yet is None."""

    __slots__ = ("familiar", "findings", "kind", "misses", "networks", "packed", "place", "place_of_address", "uses")

    def __init__(self, kind: Kind, packed: bytes | None) -> None:
        self.kind = kind
        # Of an unknown device's fingerprint: what it shows.
        self.packed = packed
        self.findings: dict[str, Raised] | None = None
        self.networks: Networks | None = None
        self.place: Place | None = None
        self.place_of_address: Place | None = None
        # Where it was let through: when last, latitude and longitude of each place.
        self.familiar: array[float] | None = None
        # When it nearly passed.
        self.misses: array[float] | None = None
        self.uses: Rate | None = None

    def raise_(self, name: str, code: str, confidence: float, now: float, hold_s: float, *, fresh: bool) -> bool:
        """Raises a finding or keeps one up. `fresh`: there is new evidence, which authentications before it do not answer, unless
        it belongs to what was found just before.

        Whether it is news.
        """
        if self.findings is None:
            self.findings = {}
        held = self.findings.get(name)
        if held is None or held.until <= now:
            self.findings[name] = Raised(code, confidence, now, now + hold_s)
            return True
        news = fresh and now - held.since >= INCIDENT_S
        if news:
            held.since, held.code = now, code
        held.confidence = max(held.confidence, confidence)
        held.until = max(held.until, now + hold_s)
        return news


class Calm(msgspec.Struct, eq=False):
    """What a subject's only device last showed, when there was nothing to find: what shows the same again need not be looked at.
    `at`: when it last did."""

    track: Track
    # What it was examined by.
    program: object
    device_id: str
    binding: Binding
    # The device evidence, encoded.
    evidence: bytes
    address: bytes
    place: tuple[float, float] | None
    at: float
    # It was let through there.
    home: bool = False

    def settle(self) -> None:
        """Brings the track up to date."""
        track = self.track
        for place in (track.place, track.place_of_address):
            if place is not None:
                place.at = self.at
        if track.networks is not None:
            track.networks.touch(self.at)


class SubjectState:
    """The tracks of one subject, the longest unseen first."""

    __slots__ = ("_tracks", "calm")

    def __init__(self) -> None:
        self._tracks: dict[Label, Track] = {}
        self.calm: Calm | None = None

    @property
    def single(self) -> bool:
        """Whether it has one track only."""
        return len(self._tracks) == 1

    def own(self, device: Device, shown: Shown) -> Track:
        """The track of a device; makes one if there is none."""
        kind = _KINDS[device.binding]
        label: Label = (kind, shown.key if kind is Kind.UNKNOWN else device.id)
        tracks = self._tracks
        if len(tracks) == 1 and label in tracks:
            return tracks[label]
        track = tracks.pop(label, None)
        if track is None:
            self._make_room(unknown=kind is Kind.UNKNOWN)
            track = Track(kind, shown.packed if kind is Kind.UNKNOWN else None)
        tracks[label] = track
        return track

    def judging(self, device: Device, shown: Shown, own: Track) -> list[Track]:
        """The tracks a request is judged by: `own`, and the surer ones it could belong to."""
        if len(self._tracks) == 1:
            return [own]
        kind = _KINDS[device.binding]
        if kind is Kind.UNKNOWN:
            return [
                track
                for track in self._tracks.values()
                if track.packed is None or shows_no_more(shown.packed, track.packed)
            ]
        surer = self._tracks.get((Kind.BOUND, device.id)) if kind is Kind.RECOGNISED else None
        return [own] if surer is None else [own, surer]

    def _make_room(self, *, unknown: bool) -> None:
        same = [label for label in self._tracks if (label[0] is Kind.UNKNOWN) is unknown]
        if len(same) >= (MAX_UNKNOWN if unknown else MAX_KNOWN):
            del self._tracks[same[0]]


def findings(tracks: list[Track], now: float) -> tuple[Finding, ...]:
    """What is in force on any of the tracks: of each guard the latest evidence and the greatest confidence."""
    if not any(track.findings for track in tracks):
        return ()
    merged: dict[str, Finding] = {}
    for track in tracks:
        if not track.findings:
            continue
        for name in [name for name, raised in track.findings.items() if raised.until <= now]:
            del track.findings[name]
        for name, raised in track.findings.items():
            held = merged.get(name)
            if held is None or raised.since > held.since:
                confidence = raised.confidence if held is None else max(raised.confidence, held.confidence)
                merged[name] = Finding(name, confidence, raised.code, raised.since)
            elif raised.confidence > held.confidence:
                merged[name] = Finding(name, raised.confidence, held.code, held.since)
    return tuple(merged[name] for name in sorted(merged))


class SubjectTable:
    """Subjects by tenant and id: `entries` that the control plane knows and as many that it does not, so that made-up names
    displace nobody. The longest unseen goes first."""

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._known: OrderedDict[tuple[str, str], SubjectState] = OrderedDict()
        self._others: OrderedDict[tuple[str, str], SubjectState] = OrderedDict()
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._known) + len(self._others)

    def get(self, tenant: str, subject: str, *, known: bool) -> SubjectState:
        """The subject's state; makes one if there is none."""
        table = self._known if known else self._others
        key = (tenant, subject)
        state = table.get(key)
        if state is not None:
            table.move_to_end(key)
            return state
        # The control plane may have come to know it, or to forget it.
        state = (self._others if known else self._known).pop(key, None) or SubjectState()
        if len(table) >= self._entries:
            table.popitem(last=False)
            self.evicted += 1
        table[key] = state
        return state
