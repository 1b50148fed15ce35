"""Durations as people write them: `90s`, `5m`, `1h30m`, `30d`."""

from __future__ import annotations

import re

from engine.errors import InvalidInputError

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
MAX_DURATION_S = 315_576_000_000.0  # 10,000 years, as far as google.protobuf.Duration reaches
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")


def parse_duration(text: str, field: str = "duration") -> float:
    """Seconds. Raises InvalidInputError for anything but numbers with units, greatest first or not."""
    position, total = 0, 0.0
    for match in _PART.finditer(text):
        if match.start() != position:
            break
        total += float(match[1]) * _UNITS[match[2]]
        position = match.end()
    if not text or position != len(text):
        raise InvalidInputError(field, f"{text!r} is not a duration such as 90s, 5m, 1h30m or 30d")
    if total > MAX_DURATION_S:
        raise InvalidInputError(field, "is longer than 10,000 years")
    return total


def format_duration(seconds: float) -> str:
    """The shortest form parse_duration reads back; fractions of a millisecond are dropped."""
    if seconds < 0:
        return "-" + format_duration(-seconds)
    rest_ms = round(seconds * 1000)
    parts = []
    for unit, size_ms in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        count, rest_ms = divmod(rest_ms, size_ms)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"
