"""What bounds the grants of a class, as records: whether a change of it lets more pass. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from sidestep.v1 import resources_pb2 as pb

from controlplane.breakers import limits_of
from engine.acr import AcrOrder
from engine.classes import GrantClass, read_class
from engine.errors import InvalidInputError
from engine.facts import GrantScope

_ALL_SCOPES: Final = frozenset(GrantScope)
_HELD = (pb.CLASS_STATE_ACTIVE, pb.CLASS_STATE_REOPENING)


def loosens_classes(before: pb.Settings | None, after: pb.Settings | None) -> bool:
    """Whether grants of some class may allow what none could before, or with fewer people.

    A class must stay within what it was, a new one within one there was; without any, grants are bounded by nothing. A class
    that wants approvals does not go alone either: what it bounded could come back as another.
    """
    if before is None:
        return False
    left = after if after is not None else pb.Settings()
    if _loosens_breakers(before, left):
        return True
    if not before.grant_classes:
        return False
    if not left.grant_classes:
        return True
    kept = {stated.id for stated in left.grant_classes}
    if any(stated.approvals for stated in before.grant_classes if stated.id not in kept):
        return True
    # A new edge lets a ceiling cover a level that it did not.
    edges = {(edge.higher, edge.lower) for edge in before.acr_edges}
    if any((edge.higher, edge.lower) not in edges for edge in left.acr_edges):
        return True
    changed = [stated for stated in left.grant_classes if stated not in before.grant_classes]
    if not changed:
        return False
    try:
        order = AcrOrder(edges)
        was = {stated.id: read_class(stated) for stated in before.grant_classes}
        will = {stated.id: read_class(stated) for stated in changed}
    except InvalidInputError:
        # Of a newer version: what is not understood may be a bound.
        return True
    return not all(
        _is_within(bounds, [was[name]] if name in was else was.values(), order) for name, bounds in will.items()
    )


def reopens_class(before: pb.GrantClassState | None, after: pb.GrantClassState | None) -> bool:
    """Whether a change of a class's state lets its grants apply sooner or with fewer spot checks, or forgets what tripped it.

    Suspending it does not, nor making a suspension last longer; everything else a breaker or a second person has to do.
    """
    old = before if before is not None else pb.GrantClassState(state=pb.CLASS_STATE_ACTIVE)
    if after is None:
        return old.state != pb.CLASS_STATE_ACTIVE or old.trips > 0
    if after.state in _HELD or after.trips < old.trips:
        return after != old
    if old.state in _HELD:
        return False
    # It is suspended, and stays so. When it began says when it ends.
    return (old.held and not after.held) or after.since_time.ToNanoseconds() < old.since_time.ToNanoseconds()


def _is_within(bounds: GrantClass, others: Iterable[GrantClass], order: AcrOrder) -> bool:
    """Whether one of the others allows all that these bounds allow."""
    return any(_narrows(bounds, other, order) for other in others)


def _narrows(bounds: GrantClass, other: GrantClass, order: AcrOrder) -> bool:
    scopes = bounds.scopes or _ALL_SCOPES
    return (
        order.implies(other.ceiling.acr, bounds.ceiling.acr)
        and bounds.ceiling.max_age_s >= other.ceiling.max_age_s
        and bounds.max_validity_s <= other.max_validity_s
        and _at_least_as_often(bounds.review_every_s, other.review_every_s)
        and bounds.approvals >= other.approvals
        and bounds.ticket_required >= other.ticket_required
        and bounds.budget_required >= other.budget_required
        and bounds.condition_required >= other.condition_required
        and scopes <= (other.scopes or _ALL_SCOPES)
    )


def _at_least_as_often(every_s: float | None, other_s: float | None) -> bool:
    return other_s is None or (every_s is not None and every_s <= other_s)


def _loosens_breakers(before: pb.Settings, after: pb.Settings) -> bool:
    """Whether a breaker goes, or would trip later or reopen sooner."""
    left = limits_of(after)
    for name, was in limits_of(before).items():
        will = left.get(name)
        if will is None or will.max_rate > was.max_rate or will.min_samples > was.min_samples:
            return True
        if will.reopen_after_s < was.reopen_after_s or will.window_s != was.window_s or will.steps != was.steps:
            return True
    return False
