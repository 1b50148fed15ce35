"""Detectors that look at a request before it is decided. Each is a function of what is remembered, the request and its time.

What a request leaves out counts as the worst it could have been, so that leaving it out cannot lead to a kinder answer: an
address that is not stated as one more network, a place as the far side of the earth, a component of a fingerprint as whatever
makes it suspicious. Traps alone are sprung only by what is there.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from engine.facts import Binding, Facts
from engine.fingerprint import parse_version
from engine.plan import Plan
from engine.policy.guards import Canary, ImpossibleTravel, InconsistentFingerprint, ManyNetworks, SharedFingerprint
from sidecar.gather.request import Checked
from sidecar.guard.networks import Networks, network_key
from sidecar.guard.places import EARTH_HALFWAY_KM, Places, distance_km
from sidecar.guard.seen import Seen, Shown
from sidecar.guard.track import Place, Track

MAX_FAMILIAR: Final = 8
_MAX_RESULTS: Final = 64


class Detected(NamedTuple):
    """What a detector found. `fresh`: evidence that was not there before."""

    code: str
    confidence: float
    fresh: bool = False


_CAUGHT: Final = Detected("CANARY", 1.0, fresh=True)


def excess(count: float, limit: float) -> float:
    """Confidence by how far a count is above its limit: above 0.5, and 1 from twice the limit."""
    return min(1.0, 0.5 + 0.5 * (count - limit) / limit)


def forget(last: dict[Any, float], before: float) -> None:
    """Drops what was last seen before a time. `last` is in the order of its times."""
    while last:
        oldest = next(iter(last))
        if last[oldest] >= before:
            return
        del last[oldest]


class ManyNetworksDetector:
    """A subject's device on many networks."""

    def detect(self, settings: ManyNetworks, seen: Seen, judging: Sequence[Track], own: Track) -> Detected | None:
        """Whether the networks of any track, with this one, are too many."""
        network = None if seen.address is None else network_key(seen.address, settings.prefix4, settings.prefix6)
        held = own.networks
        if len(judging) == 1 and held is not None and network in held and len(held) <= settings.max_networks:
            return None  # as it was, and not too many
        most, new = 0, False
        for track in judging:
            held = track.networks
            if held is None:
                continue
            held.forget(seen.now - settings.window)
            unseen = network is None or network not in held
            count = len(held) + unseen
            most = max(most, count)
            new = new or (unseen and count > settings.max_networks)
        if most <= settings.max_networks:
            return None
        code = "MANY_NETWORKS" if network is not None else "NETWORK_MISSING"
        return Detected(code, excess(most, settings.max_networks), new)

    def record(self, settings: ManyNetworks, seen: Seen, own: Track) -> None:
        """Remembers the network."""
        if seen.address is None:
            return
        if own.networks is None:
            own.networks = Networks()
        key = network_key(seen.address, settings.prefix4, settings.prefix6)
        own.networks.add(key, seen.now, 2 * settings.max_networks)


class ImpossibleTravelDetector:
    """A subject's device here, and too soon after far away. Places that callers state and those of addresses are never mixed."""

    def __init__(self, places: Places | None) -> None:
        self._places = places

    def detect(self, settings: ImpossibleTravel, seen: Seen, judging: Sequence[Track], own: Track) -> Detected | None:
        """Whether the way from the last place of any track is too far for the time."""
        found: Detected | None = None
        for track in judging:
            if track.place is not None:
                found = _worse(found, _leap(settings, seen.now, track, track.place, seen.place))
            if track.place_of_address is not None and self._places is not None:
                here = None if seen.address is None else self._places.find(seen.address)
                if here is None and seen.address is not None:
                    continue  # the file does not know: nothing was left out
                found = _worse(found, _leap(settings, seen.now, track, track.place_of_address, here))
        return found

    def record(self, settings: ImpossibleTravel, seen: Seen, own: Track) -> None:
        """Remembers the place."""
        if seen.place is not None:
            own.place = _moved(own.place, seen.now, seen.place)
        if self._places is not None and seen.address is not None:
            here = self._places.find(seen.address)
            if here is not None:
                own.place_of_address = _moved(own.place_of_address, seen.now, here)

    def allowed(
        self, settings: ImpossibleTravel, seen: Seen, own: Track, judging: Sequence[Track], answered: bool
    ) -> None:
        """Where it was let through it is at home. `answered`: although it had leapt, by an authentication after that; then the
        subject is there, and the tracks it leapt from know."""
        for place in (own.place, own.place_of_address):
            if place is not None and place.at == seen.now:
                for track in judging if answered else (own,):
                    _settle(settings, track, place)
        if answered and seen.place is None:
            own.place = None


def _moved(last: Place | None, now: float, here: tuple[float, float]) -> Place:
    """The last place, brought up to date."""
    if last is None:
        return Place(now, *here)
    last.at = now
    last.latitude, last.longitude = here
    return last


def _settle(settings: ImpossibleTravel, track: Track, place: Place) -> None:
    familiar = track.familiar
    if familiar is None:
        familiar = track.familiar = array("d")
    for at in range(0, len(familiar), 3):
        latitude, longitude = familiar[at + 1], familiar[at + 2]
        if (latitude == place.latitude and longitude == place.longitude) or _near(
            settings, latitude, longitude, place.latitude, place.longitude
        ):
            familiar[at] = place.at
            return
    familiar.extend((place.at, place.latitude, place.longitude))
    if len(familiar) > 3 * MAX_FAMILIAR:
        del familiar[:3]


def _leap(
    settings: ImpossibleTravel, now: float, track: Track, last: Place, here: tuple[float, float] | None
) -> Detected | None:
    if here is not None and here[0] == last.latitude and here[1] == last.longitude:
        return None
    hours = max(0.0, now - last.at) / 3600.0
    reach_km = settings.tolerance + settings.max_speed * hours
    if reach_km >= EARTH_HALFWAY_KM:
        return None
    if here is None:
        return Detected("LOCATION_MISSING", 1.0, fresh=True)
    apart_km = distance_km(last.latitude, last.longitude, *here)
    if apart_km <= reach_km:
        return None
    familiar = track.familiar or ()
    for at in range(0, len(familiar), 3):
        if familiar[at] >= now - settings.familiar_for and _near(settings, familiar[at + 1], familiar[at + 2], *here):
            return None
    return Detected("IMPOSSIBLE_TRAVEL", min(1.0, 0.6 + 0.4 * (apart_km - reach_km) / 1000.0), fresh=True)


def _near(settings: ImpossibleTravel, latitude: float, longitude: float, *here: float) -> bool:
    return distance_km(latitude, longitude, *here) <= max(settings.tolerance, 1.0)


def _worse(one: Detected | None, other: Detected | None) -> Detected | None:
    if one is None or other is None:
        return one or other
    worse = max(one, other, key=lambda found: found.confidence)
    return worse._replace(fresh=one.fresh or other.fresh)


class SharedFingerprintDetector:
    """One fingerprint with many subjects. Only of devices that are unknown for their subjects: whoever shows the fingerprint of
    somebody's own device cannot turn it against them."""

    def __init__(self, entries: int) -> None:
        self._entries = entries
        # Those of one subject, and those of several: a flood of made-up fingerprints displaces only the former.
        self._single: OrderedDict[object, tuple[str, float]] = OrderedDict()
        self._shared: OrderedDict[object, dict[str, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._single) + len(self._shared)

    def detect(
        self, settings: SharedFingerprint, seen: Seen, judging: Sequence[Track] = (), own: Track | None = None
    ) -> Detected | None:
        """Whether its subjects, with this one, are too many."""
        if _known(seen):
            return None
        key = _fingerprint_key(settings, seen)
        if key is None:
            return Detected("FINGERPRINT_MISSING", 1.0, fresh=True)
        subjects = self._shared.get(key)
        if subjects is None:
            return None
        forget(subjects, seen.now - settings.window)
        count = len(subjects) + (seen.subject not in subjects)
        if count <= settings.max_subjects:
            return None
        return Detected("SHARED_FINGERPRINT", excess(count, settings.max_subjects))

    def record(self, settings: SharedFingerprint, seen: Seen, own: Track | None = None) -> None:
        """Remembers whose it is."""
        if _known(seen):
            return
        key = _fingerprint_key(settings, seen)
        if key is None:
            return
        subjects = self._shared.get(key)
        if subjects is None:
            alone = self._single.pop(key, None)
            if alone is None or alone[0] == seen.subject:
                self._single[key] = (seen.subject, seen.now)
                _bound(self._single, self._entries)
                return
            subjects = self._shared[key] = {alone[0]: alone[1]}
            _bound(self._shared, self._entries)
        else:
            self._shared.move_to_end(key)
        subjects.pop(seen.subject, None)
        subjects[seen.subject] = seen.now
        if len(subjects) > 2 * settings.max_subjects:
            del subjects[next(iter(subjects))]


def _known(seen: Seen) -> bool:
    return seen.devices[0].binding is not Binding.UNKNOWN


def _fingerprint_key(settings: SharedFingerprint, seen: Seen) -> object | None:
    """None if a component is missing."""
    kept = seen.shown.kept.get(id(settings))
    if kept is None:
        parts = tuple(seen.shown.values.get(component) for component in settings.components)
        kept = _keep(seen.shown, settings, None if None in parts else hash(parts))
    return None if kept[1] is None else (seen.tenant, kept[1])


def _keep(shown: Shown, settings: object, value: object) -> tuple[object, Any]:
    """Keeps what was found out. The settings are kept with it, so that their id stays theirs."""
    if len(shown.kept) >= _MAX_RESULTS:
        shown.kept.clear()
    kept = shown.kept[id(settings)] = (settings, value)
    return kept


def _bound(table: OrderedDict[object, Any], entries: int) -> None:
    if len(table) > entries:
        table.popitem(last=False)


class InconsistentFingerprintDetector:
    """Components that cannot belong together."""

    def detect(
        self, settings: InconsistentFingerprint, seen: Seen, judging: Sequence[Track], own: Track
    ) -> Detected | None:
        """Whether what is shown does not rule out every impossible combination."""
        kept = seen.shown.kept.get(id(settings))
        if kept is None:
            kept = _keep(seen.shown, settings, _inconsistent(settings, seen.shown.values))
        found: Detected | None = kept[1]
        return found

    def record(self, settings: InconsistentFingerprint, seen: Seen, own: Track) -> None:
        """Nothing to remember."""


def _inconsistent(settings: InconsistentFingerprint, values: dict[str, str]) -> Detected | None:
    missing = False
    for combination in settings.impossible:
        if any(name in values and not _matches(values[name], wanted) for name, wanted in combination.items()):
            continue
        if all(name in values for name in combination):
            return Detected("INCONSISTENT_FINGERPRINT", 1.0)
        missing = True
    return Detected("COMPONENT_MISSING", 1.0, fresh=True) if missing else None


def _matches(value: str, wanted: str) -> bool:
    """Equal, or a version within a bound; one that cannot be read is."""
    if wanted[0] not in "<>":
        return value == wanted
    ordinal = parse_version(value)
    if ordinal is None:
        return True
    bound = int(wanted.lstrip("<>="))
    if "=" in wanted and ordinal == bound:
        return True
    return ordinal < bound if wanted[0] == "<" else ordinal > bound


class Traps:
    """The canary guard of a plan."""

    def __init__(self, settings: Canary, plan: Plan) -> None:
        self._subjects = frozenset(settings.subjects)
        self._actions = frozenset(settings.actions)
        self._devices = frozenset(settings.devices)
        self._conditions = plan.canaries

    def names(self, asked: Checked, facts: Facts) -> bool:
        """Whether a subject, action or device is one."""
        return (
            asked.subject in self._subjects
            or facts.action in self._actions
            or asked.device in self._devices
            or facts.device.id in self._devices
        )

    def sprung(self, facts: Facts, seen: Seen) -> Detected | None:
        """Whether one is."""
        if seen.subject in self._subjects or seen.action in self._actions:
            return _CAUGHT
        devices = self._devices
        if devices and (seen.device_id in devices or any(device.id in devices for device in seen.devices)):
            return _CAUGHT
        for trap in self._conditions:
            data = trap.language.activation(facts, trap.folded.variables)
            if any(truly for _, truly in trap.folded.evaluate(data)):
                return _CAUGHT
        return None


Detect = Callable[[Any, Seen, Sequence[Track], Track], Detected | None]
Record = Callable[[Any, Seen, Track], None]
