"""What a record may say of a person (DESIGN section 12). Decisions are made on everything that is known; only this leaves."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final, Literal

from msgspec.structs import replace

from engine.facts import Candidate, Facts, Grant
from engine.pseudonym import user_hash
from sidecar.config import DEFAULT_VALUES

_RESOURCE_ID: Final = "resource.id"
# In the place of a condition that may name a resource, and with it a person's account: it reads the id, and says nothing.
_WITHHELD_CONDITION: Final = "resource.id == ''"


class Disclosure:
    """The settings SIDESTEP_TELEMETRY_*, applied. One per worker loop: it holds caches.

    `user`: `hash` names users by their keyed hash, `raw` by their id as well, `none` not at all. `address`: of the client's
    address its network (`truncated`), all of it (`raw`) or nothing (`none`). `values`: names of the request values that may be
    recorded; a `*` ends a name for all that begin so.
    """

    def __init__(
        self,
        user: Literal["hash", "raw", "none"] = "hash",
        address: Literal["truncated", "raw", "none"] = "truncated",
        values: Sequence[str] = DEFAULT_VALUES,
    ) -> None:
        self._user = user
        self._names = frozenset(name for name in values if not name.endswith("*"))
        self._prefixes = tuple(name[:-1] for name in values if name.endswith("*"))
        self._shows_resource_id = self._may_show(_RESOURCE_ID)
        self._address = _ADDRESSES[address]
        self._hash = lru_cache(8192)(user_hash)
        self._hidden = lru_cache(1024)(self._hidden_of)

    def user(self, secret: bytes | None, subject: str) -> tuple[str, str]:
        """`user_hash` and `user_id` of a record. `secret`: the tenant's; without one there is no hash."""
        if self._user == "none":
            return "", ""
        return self._hash(secret, subject) if secret else "", subject if self._user == "raw" else ""

    def address(self, text: str) -> str:
        """`client_address` of a record."""
        return self._address(text) if text else ""

    def facts(self, facts: Facts) -> tuple[Facts, tuple[str, ...]]:
        """The facts as they may be recorded, and the names of the values that were taken out."""
        hidden = self._hidden(tuple(facts.values)) if facts.values else ()
        named = not self._shows_resource_id and _names_resources(facts)
        if not hidden and not named:
            return facts, ()
        values = {name: value for name, value in facts.values.items() if name not in hidden}
        if not named:
            return replace(facts, values=values), hidden
        shown = replace(
            facts,
            values=values,
            grants=_without_resources(facts.grants),
            candidates=tuple(_candidate_without_resources(candidate) for candidate in facts.candidates),
        )
        return shown, hidden if _RESOURCE_ID in hidden else (*hidden, _RESOURCE_ID)

    def _hidden_of(self, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name for name in names if not self._may_show(name))

    def _may_show(self, name: str) -> bool:
        return name in self._names or name.startswith(self._prefixes)


def _names_resources(facts: Facts) -> bool:
    """Whether a grant's condition may name a resource."""
    for grant in facts.grants:
        if _RESOURCE_ID in grant.condition:
            return True
    for candidate in facts.candidates:
        for grant in candidate.grants:
            if _RESOURCE_ID in grant.condition:
                return True
    return False


def _without_resources(grants: tuple[Grant, ...]) -> tuple[Grant, ...]:
    return tuple(
        replace(grant, condition=_WITHHELD_CONDITION) if _RESOURCE_ID in grant.condition else grant for grant in grants
    )


def _candidate_without_resources(candidate: Candidate) -> Candidate:
    return replace(candidate, grants=_without_resources(candidate.grants))


@lru_cache(4096)
def network_of(address: str) -> str:
    """An address cut to what does not tell one household from another: /24 of IPv4, /48 of IPv6; empty if it is none."""
    family, packed = _packed(address)
    kept = 3 if family is socket.AF_INET else 6
    return socket.inet_ntop(family, packed[:kept] + bytes(len(packed) - kept)) if packed else ""


@lru_cache(4096)
def canonical(address: str) -> str:
    """An address as it is usually written (RFC 5952), a v4-mapped one as IPv4; empty if it is none."""
    family, packed = _packed(address)
    return socket.inet_ntop(family, packed) if packed else ""


def _packed(address: str) -> tuple[socket.AddressFamily, bytes]:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            packed = socket.inet_pton(family, address)
        except (OSError, ValueError):
            continue
        if family is socket.AF_INET6 and packed.startswith(bytes(10) + b"\xff\xff"):
            return socket.AF_INET, packed[12:]
        return family, packed
    return socket.AF_INET, b""


_ADDRESSES: Final[dict[str, Callable[[str], str]]] = {"truncated": network_of, "raw": canonical, "none": lambda _: ""}
