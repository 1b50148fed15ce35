"""Classes of grants: the bounds a tenant sets for all grants of a kind."""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

from engine.clauses import Ceiling
from engine.errors import InvalidInputError
from engine.facts import GrantScope

DEFAULT_CLASS = "default"
MAX_CLASSES = 64
MAX_APPROVALS = 8
_ID: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


class GrantClass(NamedTuple):
    """One class. Fields as in sidestep.v1.GrantClass; durations in seconds."""

    id: str
    ceiling: Ceiling
    # From the start of a grant to its end.
    max_validity_s: float
    # None: grants of it need no review.
    review_every_s: float | None = None
    # People besides the requester who have to agree.
    approvals: int = 0
    ticket_required: bool = False
    budget_required: bool = False
    condition_required: bool = False
    # Empty: all.
    scopes: frozenset[GrantScope] = frozenset()


def check_class_id(value: str, field: str) -> str:
    """Returns the id of a class, or raises InvalidInputError."""
    if not _ID.fullmatch(value):
        raise InvalidInputError(
            field, f"{value[:64]!r} is not a class id (lower-case letters, digits, hyphens; at most 63)"
        )
    return value


def class_name(stated: str) -> str:
    """The class of a grant that states this one; empty: it states none."""
    return stated or DEFAULT_CLASS


# By number of sidestep.v1.GrantScope.
_SCOPES = {1: GrantScope.SUBJECT, 2: GrantScope.ROLE, 3: GrantScope.DEVICE}


def read_class(stated: Any) -> GrantClass:
    """A class from its message, sidestep.v1.GrantClass.

    Raises InvalidInputError where a part is missing or unknown to this version: what is not read may be a bound.
    """
    field = f"grant_classes[{stated.id}]"
    known = type(stated)()
    known.CopyFrom(stated)
    known.DiscardUnknownFields()
    if known.ByteSize() != stated.ByteSize():
        raise InvalidInputError(field, "has fields that this version does not know")
    for name in ("ceiling", "max_validity"):
        if not stated.HasField(name):
            raise InvalidInputError(f"{field}.{name}", "is required")
    if not stated.ceiling.HasField("max_age"):
        raise InvalidInputError(f"{field}.ceiling.max_age", "is required")
    unknown = [scope for scope in stated.scopes if scope not in _SCOPES]
    if unknown:
        raise InvalidInputError(f"{field}.scopes", f"{unknown[0]} is not a scope that this version knows")
    return GrantClass(
        id=stated.id,
        ceiling=Ceiling(stated.ceiling.acr, _seconds(stated.ceiling.max_age)),
        max_validity_s=_seconds(stated.max_validity),
        review_every_s=_seconds(stated.review_every) if stated.HasField("review_every") else None,
        approvals=stated.approvals,
        ticket_required=stated.ticket_required,
        budget_required=stated.budget_required,
        condition_required=stated.condition_required,
        scopes=frozenset(_SCOPES[scope] for scope in stated.scopes),
    )


def _seconds(duration: Any) -> float:
    return float(duration.seconds + duration.nanos / 1e9)
