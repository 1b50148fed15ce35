"""Where addresses are, by a file in MaxMind's DB format (GeoLite2 City and the like), and how far it is between places."""

from __future__ import annotations

import logging
import socket
import time
from math import asin, cos, inf, radians, sin, sqrt
from pathlib import Path
from typing import Any, Final

import maxminddb

_log = logging.getLogger(__name__)

EARTH_HALFWAY_KM: Final = 20_016.0
"""No two places are farther apart."""
_EARTH_RADIUS_KM: Final = 6371.0
LOOK_EVERY_S: Final = 5.0
"""How often it is looked whether the file has changed."""
_MAX_KEPT: Final = 8192


def distance_km(latitude: float, longitude: float, other_latitude: float, other_longitude: float) -> float:
    """Along a great circle (haversine), degrees in."""
    phi, other_phi = radians(latitude), radians(other_latitude)
    half = sin((other_phi - phi) / 2) ** 2
    half += cos(phi) * cos(other_phi) * sin(radians(other_longitude - longitude) / 2) ** 2
    return 2 * _EARTH_RADIUS_KM * asin(min(1.0, sqrt(half)))


class Places:
    """The file of SIDESTEP_GEO_FILE, read again when it changes. `follow` is for one thread, `find` for any.

    A file that cannot be read changes nothing; if none ever could be, no address has a place.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._reader: Any = None
        self._kept: dict[bytes, tuple[float, float] | None] = {}
        self._look_at = -inf
        self.follow()

    def follow(self) -> None:
        """Looks, every few seconds, whether the file has changed. To be called often."""
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + LOOK_EVERY_S
        try:
            status = self._path.stat()
            stamp = (status.st_ino, status.st_size, status.st_mtime_ns)
            if stamp == self._stamp:
                return
            # In memory, so that a file written over under us cannot change or fault what is being read.
            reader = maxminddb.open_database(self._path, maxminddb.MODE_MEMORY)
        except (OSError, ValueError, maxminddb.InvalidDatabaseError) as error:
            _log.error("SIDESTEP_GEO_FILE: %s cannot be used: %s", self._path, error)
            return
        self._stamp = stamp
        self._reader, self._kept = reader, {}
        _log.info("SIDESTEP_GEO_FILE: read %s", self._path)

    def find(self, address: bytes) -> tuple[float, float] | None:
        """Latitude and longitude of a packed address in degrees; None if the file does not say."""
        kept, reader = self._kept, self._reader
        if address in kept:
            return kept[address]
        place = _place(reader, address) if reader is not None else None
        if len(kept) >= _MAX_KEPT:
            kept.clear()
        kept[address] = place
        return place


def _place(reader: Any, address: bytes) -> tuple[float, float] | None:
    family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
    try:
        found = reader.get(socket.inet_ntop(family, address))
    except (ValueError, maxminddb.InvalidDatabaseError):
        return None
    location = found.get("location") if isinstance(found, dict) else None
    if not isinstance(location, dict):
        return None
    latitude, longitude = location.get("latitude"), location.get("longitude")
    if isinstance(latitude, int | float) and isinstance(longitude, int | float):
        return float(latitude), float(longitude)
    return None
