"""What one request shows the guards. Lives in memory only: it holds addresses and fingerprints as they came."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
from typing import Any

import msgspec

from engine.facts import Device, Facts
from sidecar.gather.request import Checked

MAX_KEPT = 4096
MAX_KEPT_BYTES = 8 << 20
"""Of fingerprints as they came: 4096 of the longest there may be would be a hundred MiB and more."""
_COMPONENT_BYTES = 160
"""What a component takes besides its text."""


class Shown(msgspec.Struct, eq=False):
    """A fingerprint. `packed`: what it shows, as a hash of eight bytes for each component with its value, in this process and
    sorted; `key`: of them all. `kept`: what detectors found out about it, by the settings they did so with."""

    values: dict[str, str]
    packed: bytes
    key: int
    kept: dict[int, tuple[object, Any]] = msgspec.field(default_factory=dict)


NOTHING = Shown({}, b"", 0)


def show(fingerprint: Mapping[str, str]) -> Shown:
    """A fingerprint as guards remember it."""
    values = dict(fingerprint)
    if not values:
        return NOTHING
    packed = array("q", sorted(map(hash, values.items()))).tobytes()
    return Shown(values, packed, hash(packed))


def shows_no_more(packed: bytes, other: bytes) -> bool:
    """Whether nothing is shown but what `other` shows, both as in `Shown.packed`."""
    if packed == other or not packed:
        return True
    if len(packed) >= len(other):
        return False
    return frozenset(memoryview(packed).cast("q")).issubset(memoryview(other).cast("q"))


class Seen(msgspec.Struct, frozen=True, eq=False, gc=False):
    """One request, at one time."""

    now: float
    tenant: str
    subject: str
    action: str
    # The id the request names, and the devices it was found to be, the likeliest first.
    device_id: str
    devices: tuple[Device, ...]
    shown: Shown
    # Packed; None: not stated.
    address: bytes | None
    # Latitude and longitude in degrees, as the caller states them; None: not stated, or impossible.
    place: tuple[float, float] | None


class Fingerprints:
    """Fingerprints by the bytes they came in: most requests show one that was seen before. Not thread-safe."""

    def __init__(self) -> None:
        self._kept: dict[bytes, Shown] = {}
        self._bytes = 0

    def get(self, encoded: bytes, fingerprint: Mapping[str, str]) -> Shown:
        """The fingerprint whose device evidence is `encoded`."""
        shown = self._kept.get(encoded)
        if shown is None:
            shown = show(fingerprint)
            # The key of it and the text of its components.
            size = 2 * len(encoded) + _COMPONENT_BYTES * len(shown.values)
            self._bytes += size
            if len(self._kept) >= MAX_KEPT or self._bytes > MAX_KEPT_BYTES:
                self._kept.clear()
                self._bytes = size
            self._kept[encoded] = shown
        return shown


def seen(asked: Checked, facts: Facts, shown: Shown) -> Seen:
    """What the request shows. `facts`: those made of it."""
    return Seen(
        facts.now,
        facts.tenant,
        asked.subject,
        facts.action,
        asked.device,
        (facts.device, *(candidate.device for candidate in facts.candidates)) if facts.candidates else (facts.device,),
        shown,
        asked.address,
        place_of(asked),
    )


def place_of(asked: Checked) -> tuple[float, float] | None:
    """Where the caller states it comes from, in degrees; None: it does not, or that cannot be."""
    latitude, longitude = asked.values.get("context.lat"), asked.values.get("context.lon")
    if latitude is None or longitude is None:
        return None
    if type(latitude) is float and type(longitude) is float and -90 <= latitude <= 90 and -180 <= longitude <= 180:
        return latitude, longitude
    for degrees, most in ((latitude, 90.0), (longitude, 180.0)):
        if isinstance(degrees, bool) or not isinstance(degrees, int | float) or not math.fabs(degrees) <= most:
            return None
    assert isinstance(latitude, int | float)
    assert isinstance(longitude, int | float)
    return float(latitude), float(longitude)
