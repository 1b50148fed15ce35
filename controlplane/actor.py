"""Who does something to the control plane, and the rule of two people."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from controlplane.errors import RefusedError
from engine.errors import InvalidInputError
from engine.lifecycle import ANONYMOUS as ANONYMOUS

SYSTEM = "controlplane"
# Names that nobody may take.
RESERVED = frozenset({ANONYMOUS, SYSTEM})

UNVERIFIED = "nobody is verified here (development mode): that these are two people is only said"
"""What is told to whoever agrees as a second person by an asserted name."""

_ASSERTED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,127}")


class Permission(StrEnum):
    """What an operator may do. `write` and `approve` include `read`."""

    READ = "read"
    WRITE = "write"
    # Agree, as a second person, to what another one wants.
    APPROVE = "approve"


@dataclass(frozen=True, slots=True)
class Actor:
    """One who acts. `verified`: a token proved it; otherwise it is only said. `tenants` None: all."""

    name: str
    verified: bool
    tenants: frozenset[str] | None
    permissions: frozenset[Permission]

    def may(self, permission: Permission, tenant: str | None) -> bool:
        """Whether it may, for a tenant; None: for all tenants at once."""
        if permission not in self.permissions and not (permission is Permission.READ and self.permissions):
            return False
        return self.tenants is None or (tenant is not None and tenant in self.tenants)


def asserted(name: str) -> Actor:
    """Whoever it is in development mode: may do everything. Raises InvalidInputError for what is no name; empty: anonymous."""
    if name and (not _ASSERTED.fullmatch(name) or name.casefold() in RESERVED):
        raise InvalidInputError(
            "x-sidestep-actor", "not a name (letters, digits, '.', '_', '@', '+' and '-', at most 128)"
        )
    return Actor(name or ANONYMOUS, False, None, frozenset(Permission))


def system() -> Actor:
    """The control plane itself, for what falls due."""
    return Actor(SYSTEM, True, None, frozenset(Permission))


def check_second_person(actor: Actor, others: Iterable[str], what: str) -> None:
    """Raises RefusedError unless the actor is somebody, and none of `others`. Case does not make another person."""
    if actor.name == ANONYMOUS:
        raise RefusedError(f"{what}: needs a second person, and nobody knows who you are")
    if actor.name.casefold() in {other.casefold() for other in others}:
        raise RefusedError(f"{what}: needs a second person, not {actor.name} again")
