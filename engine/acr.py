"""The partial order of assurance levels.

An acr is a string (OpenID Connect Core, RFC 9470). `implies(a, b)` says that a demand for `b` is met by `a`: either they are
equal, or a chain of edges leads from `a` to `b`. An acr nobody declared implies only itself, and demands can only be met by it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from engine.errors import InvalidInputError

# NIST SP 800-63B-4 assurance levels, and the phishing-resistant pair of OpenID EAP ACR Values.
PRESETS: tuple[tuple[str, str], ...] = (
    ("nist-aal3", "nist-aal2"),
    ("nist-aal2", "nist-aal1"),
    ("phrh", "phr"),
)

MAX_ACR_CHARS = 128
# What an OAuth scope token may hold (RFC 6749 section 3.3), so that it can stand in a WWW-Authenticate header as it is.
ACR_PATTERN = r"^[!#-\[\]-~]+$"


def check_acr(acr: str, field: str) -> str:
    """Returns an acr, or raises InvalidInputError: 1-128 visible ASCII characters but `"` and `\\`."""
    if not 0 < len(acr) <= MAX_ACR_CHARS or not re.fullmatch(ACR_PATTERN[1:-1], acr):
        raise InvalidInputError(
            field,
            f"{acr[:64]!r} is not an acr (at most {MAX_ACR_CHARS} visible ASCII characters, no quotes, backslashes)",
        )
    return acr


class AcrOrder:
    """`implies` over the presets and a tenant's own edges (higher, lower). Raises InvalidInputError on a cycle."""

    __slots__ = ("_below",)

    def __init__(self, edges: Iterable[tuple[str, str]] = ()) -> None:
        direct: dict[str, set[str]] = {}
        for higher, lower in (*PRESETS, *edges):
            if higher == lower:
                raise InvalidInputError("acr_edges", f"{higher!r} cannot be above itself")
            direct.setdefault(higher, set()).add(lower)
        self._below: dict[str, frozenset[str]] = {acr: frozenset(_reach(acr, direct)) for acr in direct}

    def implies(self, held: str, demanded: str) -> bool:
        """Whether an authentication at `held` meets a demand for `demanded`. The empty acr meets nothing but itself."""
        return held == demanded or (held in self._below and demanded in self._below[held])

    def implies_all(self, held: str, demanded: Iterable[str]) -> bool:
        """Whether `held` meets every demand."""
        return all(self.implies(held, acr) for acr in demanded)

    def known(self) -> frozenset[str]:
        """Every acr that stands in an edge."""
        return frozenset(self._below).union(*self._below.values())


def _reach(start: str, direct: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    frontier = list(direct.get(start, ()))
    while frontier:
        acr = frontier.pop()
        if acr == start:
            raise InvalidInputError("acr_edges", f"a cycle leads from {start!r} back to itself")
        if acr not in seen:
            seen.add(acr)
            frontier.extend(direct.get(acr, ()))
    return seen
