"""Comparing a device's fingerprint with a registered one.

Components are weighted. EXACT ones are compared as keyed hashes; VERSION ones as ordinals that may rise by a bounded step but
never fall, since a browser is updated and not rolled back. `must_match` components (an operating system, say) must be shown
and equal, whatever the rest says.

The same evidence answers two questions, and missing components are unfavourable in both:
- *is it this device?* `similarity`: the weight that matches over the weight registered; what is missing does not match;
- *can it be ruled out that it is this (blocked) device?* `excluded`: only what is present and differs speaks against it.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple


class Kind(Enum):
    """How a component is compared."""

    EXACT = "exact"
    VERSION = "version"


class Component(NamedTuple):
    """One component of the catalogue. `weight` > 0; `max_rise` is for VERSION."""

    id: str
    kind: Kind
    weight: int
    must_match: bool = False
    max_rise: int = 0


DEFAULT_CATALOGUE: tuple[Component, ...] = (
    Component("os", Kind.EXACT, 15, must_match=True),
    Component("platform", Kind.EXACT, 10, must_match=True),
    Component("browser", Kind.EXACT, 10),
    Component("os_version", Kind.VERSION, 5, max_rise=3),
    Component("browser_version", Kind.VERSION, 5, max_rise=12),
    Component("canvas", Kind.EXACT, 15),
    Component("webgl", Kind.EXACT, 10),
    Component("audio", Kind.EXACT, 5),
    Component("fonts", Kind.EXACT, 5),
    Component("screen", Kind.EXACT, 5),
    Component("timezone", Kind.EXACT, 5),
    Component("language", Kind.EXACT, 5),
    Component("hardware", Kind.EXACT, 5),
)
# Registered components that together weigh less than this share of the catalogue recognise nothing.
MIN_REGISTERED_SHARE = 0.3
DEFAULT_MIN_SIMILARITY = 0.85


HASH_BYTES = 16
MAX_VERSION = 2**32 - 1


def hash_component(key: bytes, name: str, value: str) -> bytes:
    """The stored form of an EXACT component: the first 16 bytes of HMAC-SHA-256(key, name || 0x00 || value)."""
    return hmac.digest(key, b"%s\0%s" % (name.encode(), value.encode()), "sha256")[:HASH_BYTES]


def parse_version(value: str) -> int | None:
    """The ordinal of a VERSION component: the digits before the first dot. None if there are none."""
    major = value.split(".", 1)[0]
    if not major.isascii() or not major.isdigit() or len(major) > 10 or int(major) > MAX_VERSION:
        return None
    return int(major)


class Observed(NamedTuple):
    """A fingerprint after normalisation: hashed exact components and version ordinals."""

    components: Mapping[str, bytes]
    versions: Mapping[str, int]


class Comparison(NamedTuple):
    """`similarity` 0-1; `excluded`: it cannot be this device."""

    similarity: float
    excluded: bool


class Catalogue:
    """A tenant's components, ready for comparison."""

    __slots__ = ("components", "min_similarity", "total")

    def __init__(
        self,
        components: tuple[Component, ...] = DEFAULT_CATALOGUE,
        min_similarity: float = DEFAULT_MIN_SIMILARITY,
    ) -> None:
        self.components = {component.id: component for component in components}
        self.min_similarity = min_similarity
        self.total = sum(component.weight for component in components)

    def compare(self, registered: Observed, seen: Observed) -> Comparison:
        """Compares what was seen with what was registered, over the components registered."""
        weight = matched = differing = 0
        unfit = ruled_out = False
        for component in self.components.values():
            verdict = _compare(component, registered, seen)
            if verdict == _ABSENT:
                continue
            weight += component.weight
            if verdict == _EQUAL:
                matched += component.weight
                continue
            unfit = unfit or component.must_match
            if verdict == _DIFFERENT:
                differing += component.weight
                ruled_out = ruled_out or component.must_match
        if weight == 0:
            return Comparison(0.0, False)
        unfit = unfit or weight < MIN_REGISTERED_SHARE * self.total
        similarity = 0.0 if unfit else matched / weight
        return Comparison(similarity, ruled_out or differing > (1.0 - self.min_similarity) * weight)


_ABSENT, _EQUAL, _DIFFERENT, _UNSEEN = range(4)


def _compare(component: Component, registered: Observed, seen: Observed) -> int:
    """_ABSENT: not registered; _UNSEEN: registered, but the request does not show it."""
    if component.kind is Kind.EXACT:
        stored = registered.components.get(component.id)
        if stored is None:
            return _ABSENT
        shown = seen.components.get(component.id)
        if shown is None:
            return _UNSEEN
        return _EQUAL if shown == stored else _DIFFERENT
    ordinal = registered.versions.get(component.id)
    if ordinal is None:
        return _ABSENT
    now = seen.versions.get(component.id)
    if now is None:
        return _UNSEEN
    return _EQUAL if ordinal <= now <= ordinal + component.max_rise else _DIFFERENT
