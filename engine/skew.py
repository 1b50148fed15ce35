"""Which versions of two programs work together: those whose minor versions are close enough, within one major version.

Versions are those of Semantic Versioning 2.0, as far as the two numbers that matter are read.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final

_VERSION: Final = re.compile(r"(0|[1-9][0-9]{0,5})\.(0|[1-9][0-9]{0,5})(?:[.+-].*)?")

WINDOW: Final = 2
"""Minor versions that two programs may be apart, either way."""


class Skew(StrEnum):
    """How a version stands to another."""

    WITHIN = "within"
    OUTSIDE = "outside"
    UNKNOWN = "unknown"
    """One of them is no version that can be compared."""


def skew(own: str, other: str, window: int = WINDOW) -> Skew:
    """How two versions stand to each other; the same, whichever comes first."""
    ours, theirs = _VERSION.fullmatch(own), _VERSION.fullmatch(other)
    if ours is None or theirs is None:
        return Skew.UNKNOWN
    if ours[1] != theirs[1] or abs(int(ours[2]) - int(theirs[2])) > window:
        return Skew.OUTSIDE
    return Skew.WITHIN


def describe(own: str, window: int = WINDOW) -> str:
    """The versions that work with one's own, for people: `0.1 to 0.5`."""
    match = _VERSION.fullmatch(own)
    if match is None:
        return "any"
    major, minor = int(match[1]), int(match[2])
    return f"{major}.{max(0, minor - window)} to {major}.{minor + window}"
