"""Grants as records: what a put or a transition makes of one, under its class and the lifecycle.

Pure. The steps are engine.lifecycle's; here they meet the message, the class it names, and the person who acts.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from sidestep.v1 import resources_pb2 as pb

from controlplane.budgets import widens
from controlplane.errors import RefusedError
from engine import facts
from engine.acr import AcrOrder
from engine.classes import GrantClass, class_name, read_class
from engine.errors import InvalidInputError
from engine.facts import GrantScope
from engine.lifecycle import Life, State, Step, Transition, TransitionRefusedError, counted, step

_NANOS = 10**9
_NUMBERS = {
    State.REQUESTED: pb.GRANT_STATE_REQUESTED,
    State.APPROVED: pb.GRANT_STATE_APPROVED,
    State.ACTIVE: pb.GRANT_STATE_ACTIVE,
    State.SUSPENDED: pb.GRANT_STATE_SUSPENDED,
    State.REVOKED: pb.GRANT_STATE_REVOKED,
    State.EXPIRED: pb.GRANT_STATE_EXPIRED,
    State.LAPSED: pb.GRANT_STATE_LAPSED,
    State.REJECTED: pb.GRANT_STATE_REJECTED,
}
_STATES = {number: state for state, number in _NUMBERS.items()}
# What says nothing about how much a grant allows.
_MARKS = ("state", "state_reason", "requester", "approvals", "update_time", "reason", "owner", "ticket")
# What a put may do to a grant whose bounds it leaves alone.
_BY_PUT = {
    (State.APPROVED, State.ACTIVE): Transition.ACTIVATE,
    (State.ACTIVE, State.SUSPENDED): Transition.SUSPEND,
    **{
        (state, State.REVOKED): Transition.REVOKE
        for state in (State.REQUESTED, State.APPROVED, State.ACTIVE, State.SUSPENDED, State.LAPSED, State.EXPIRED)
    },
}
# Wanted and current state. A document in a repository goes on saying what was asked for while the grant lives on: with unchanged
# bounds it changes nothing. Least of all does it resume what somebody has suspended.
_STAYS = frozenset(
    {(State.REQUESTED, state) for state in State}
    | {(State.ACTIVE, state) for state in (State.SUSPENDED, State.EXPIRED, State.LAPSED)}
)


class Terms(NamedTuple):
    """What a tenant's settings say about grants."""

    classes: Mapping[str, GrantClass]
    order: AcrOrder

    def of(self, grant: pb.Grant) -> GrantClass | None:
        """The class of a grant. None: it has none, because the tenant has no classes, or because there is none such."""
        return self.classes.get(class_name(grant.grant_class))


@lru_cache(64)
def read_terms(settings: bytes | None) -> Terms:
    """The terms in stored settings; None: the tenant has no settings."""
    record = pb.Settings()
    if settings is not None:
        record.ParseFromString(settings)
    order = AcrOrder((edge.higher, edge.lower) for edge in record.acr_edges)
    return Terms({stated.id: read_class(stated) for stated in record.grant_classes}, order)


def life_of(grant: pb.Grant, terms: Terms) -> Life:
    """Where a stored grant stands."""
    end_at = _at(grant.expire_time)
    bounds = terms.of(grant)
    if bounds is not None and grant.HasField("start_time"):
        end_at = min(end_at, _at(grant.start_time) + bounds.max_validity_s)
    return Life(
        state=state_of(grant),
        end_at=end_at,
        requester=grant.requester,
        approvals=tuple((approval.actor, _at(approval.time)) for approval in grant.approvals),
        review_at=_at(grant.review_time) if grant.HasField("review_time") else None,
    )


def state_of(grant: pb.Grant) -> State | None:
    """The state of a grant; None for one that this version does not know."""
    return _STATES.get(grant.state)


def facts_of(grant: pb.Grant) -> facts.Grant:
    """A stored grant as decisions see it, but for what its budget limits."""
    scope = grant.WhichOneof("scope")
    return facts.Grant(
        id=grant.name.rpartition("/")[2],
        scope=facts.GrantScope(scope or "subject"),
        actions=tuple(grant.actions),
        ceiling_acr=grant.ceiling.acr,
        ceiling_max_age_s=grant.ceiling.max_age.ToNanoseconds() / _NANOS,
        active=grant.state == pb.GRANT_STATE_ACTIVE,
        start_at=_at(grant.start_time) if grant.HasField("start_time") else None,
        expire_at=_at(grant.expire_time) if grant.HasField("expire_time") else None,
        condition=grant.condition,
        grant_class=class_name(grant.grant_class),
        review_at=_at(grant.review_time) if grant.HasField("review_time") else None,
        approvals=counted(grant.requester, (approval.actor for approval in grant.approvals)),
        # Whether there is one is all that is asked here; what is left of it only sidecars know.
        budget=facts.Budget() if grant.HasField("budget") else None,
    )


def put_grant(record: pb.Grant, old: pb.Grant | None, terms: Terms, actor: str, now: float, field: str) -> None:
    """Completes a grant that somebody puts in the place of `old`: state, requester, approvals, start and review.

    A put changes the bounds of a grant freely where its class wants no approval; where it does, a change of bounds is a new
    request, unless it only narrows the budget. A suspended grant stays suspended.

    Raises InvalidInputError for what the class does not allow or the control plane sets itself; RefusedError for a transition
    that is not allowed.
    """
    wanted = state_of(record)
    if wanted is None:
        raise InvalidInputError(f"{field}.state", f"{record.state} is no state of a grant")
    _keep_marks(record, old, field)
    bounds = terms.of(record)
    if not record.HasField("start_time"):
        # How long it is valid counts from here.
        if old is not None and old.HasField("start_time"):
            record.start_time.CopyFrom(old.start_time)
        else:
            record.start_time.FromNanoseconds(int(now * _NANOS))
    if bounds is not None and not record.HasField("review_time") and old is not None and old.HasField("review_time"):
        record.review_time.CopyFrom(old.review_time)
    before = None if old is None else state_of(old)
    if old is not None and _allows_no_more(record, old):
        _put_state(record, old, wanted, before, terms, actor, now)
        return
    if before is State.REVOKED and wanted is not State.REVOKED:
        raise RefusedError(f"{record.name}: is revoked; a revoked grant does not come back")
    if wanted is State.REVOKED:
        return
    check_bounds(record, terms, now, field)
    approvals = 0 if bounds is None else bounds.approvals
    record.ClearField("approvals")
    record.requester = actor
    if wanted is State.REQUESTED:
        review_at = _at(record.review_time) if record.HasField("review_time") else None
        life = Life(before, life_of(record, terms).end_at)
        # A review that was due before this request says nothing about it.
        kept = review_at if review_at is not None and review_at > now else None
        write_life(record, _take(record.name, life, Step(Transition.REQUEST, actor, "", kept), now, bounds))
        return
    fresh = {State.ACTIVE, State.SUSPENDED} | ({before} if before is not None else set())
    if wanted not in fresh:
        raise RefusedError(f"{record.name}: a put cannot make it {wanted}")
    if approvals and wanted in (State.ACTIVE, State.SUSPENDED, State.APPROVED):
        raise RefusedError(
            f"{record.name}: its class {class_name(record.grant_class)!r} needs {approvals} approvals, also for a change of what "
            "it allows: request it (state GRANT_STATE_REQUESTED)"
        )
    if wanted is State.ACTIVE and before is State.SUSPENDED and old is not None:
        record.state, record.state_reason = old.state, old.state_reason
    if wanted is State.ACTIVE and bounds is not None and bounds.review_every_s is not None:
        overdue = before is not State.ACTIVE and _at(record.review_time) <= now
        if overdue or not record.HasField("review_time"):
            record.review_time.FromNanoseconds(int((now + bounds.review_every_s) * _NANOS))


def change_grant(grant: pb.Grant, taken: Step, terms: Terms, now: float) -> pb.Grant:
    """The grant after a transition. Raises RefusedError; a refused transition changes nothing."""
    life = life_of(grant, terms)
    if life.state is None:
        raise RefusedError(f"{grant.name}: is in no known state: put it anew")
    after = _take(grant.name, life, taken, now, terms.of(grant))
    changed = pb.Grant()
    changed.CopyFrom(grant)
    if after.state in (State.ACTIVE, State.APPROVED, State.REQUESTED) and taken.transition is not Transition.APPROVE:
        _check_still_allowed(changed, terms, now)
    write_life(changed, after)
    changed.state_reason = taken.reason
    return changed


def write_life(grant: pb.Grant, life: Life) -> None:
    """Writes into the record what the lifecycle decides."""
    assert life.state is not None
    grant.state = _NUMBERS[life.state]
    grant.requester = life.requester
    kept = list(grant.approvals)
    grant.ClearField("approvals")
    for index, (actor, at) in enumerate(life.approvals):
        approval = grant.approvals.add(actor=actor)
        # To the nanosecond what it was: a float does not hold it.
        if index < len(kept) and kept[index].actor == actor:
            approval.CopyFrom(kept[index])
        else:
            approval.time.FromNanoseconds(int(at * _NANOS))
    if life.review_at is None:
        grant.ClearField("review_time")
    elif not grant.HasField("review_time") or _at(grant.review_time) != life.review_at:
        grant.review_time.FromNanoseconds(int(life.review_at * _NANOS))


def check_bounds(grant: pb.Grant, terms: Terms, now: float, field: str) -> None:
    """Raises InvalidInputError naming the field that the grant's class does not allow."""
    bounds = terms.of(grant)
    if bounds is None:
        if terms.classes or grant.grant_class:
            known = ", ".join(sorted(terms.classes)) or "none"
            raise InvalidInputError(
                f"{field}.grant_class",
                f"{class_name(grant.grant_class)!r} is no class of this tenant (there are: {known})",
            )
        return
    whose = f"class {bounds.id!r}"
    if not terms.order.implies(bounds.ceiling.acr, grant.ceiling.acr):
        raise InvalidInputError(
            f"{field}.ceiling.acr", f"{grant.ceiling.acr!r} is not within what {whose} allows ({bounds.ceiling.acr!r})"
        )
    max_age_s = grant.ceiling.max_age.ToNanoseconds() / _NANOS
    if max_age_s < bounds.ceiling.max_age_s:
        raise InvalidInputError(
            f"{field}.ceiling.max_age",
            f"{max_age_s:g} s is shorter than what {whose} allows ({bounds.ceiling.max_age_s:g} s)",
        )
    if not grant.HasField("start_time"):
        raise InvalidInputError(f"{field}.start_time", f"is required by {whose}")
    valid_s = (grant.expire_time.ToNanoseconds() - grant.start_time.ToNanoseconds()) / _NANOS
    if valid_s > bounds.max_validity_s:
        raise InvalidInputError(
            f"{field}.expire_time", f"is {valid_s:g} s after the start, {whose} allows {bounds.max_validity_s:g} s"
        )
    scope = grant.WhichOneof("scope")
    if bounds.scopes and (scope is None or GrantScope(scope) not in bounds.scopes):
        raise InvalidInputError(f"{field}.{scope}", f"{whose} is not for a {scope}")
    for name, required, present in (
        ("ticket", bounds.ticket_required, bool(grant.ticket)),
        ("condition", bounds.condition_required, bool(grant.condition)),
        ("budget", bounds.budget_required, grant.HasField("budget")),
    ):
        if required and not present:
            raise InvalidInputError(f"{field}.{name}", f"is required by {whose}")
    every_s = bounds.review_every_s
    if every_s is not None and grant.HasField("review_time") and _at(grant.review_time) > now + every_s:
        raise InvalidInputError(f"{field}.review_time", f"is further away than the {every_s:g} s of {whose}")


def _put_state(
    record: pb.Grant,
    old: pb.Grant,
    wanted: State,
    before: State | None,
    terms: Terms,
    actor: str,
    now: float,
) -> None:
    """A put that leaves the bounds alone and perhaps moves the state."""
    if wanted is before:
        return
    if before is not None and (wanted, before) in _STAYS:
        record.state = old.state
        record.state_reason = old.state_reason
        return
    if before is None:
        raise RefusedError(f"{record.name}: is in no known state: delete it, and put it anew")
    transition = _BY_PUT.get((before, wanted))
    if transition is None:
        problem = "a revoked grant does not come back" if before is State.REVOKED else f"a put cannot make it {wanted}"
        raise RefusedError(f"{record.name}: is {before.lower()}; {problem}")
    reason = record.state_reason if record.state_reason != old.state_reason else ""
    after = change_grant(_in_state_of(record, old), Step(transition, actor, reason or "put"), terms, now)
    record.CopyFrom(after)
    record.state_reason = reason


def _in_state_of(record: pb.Grant, old: pb.Grant) -> pb.Grant:
    """The record in the state of the old one."""
    copy = pb.Grant()
    copy.CopyFrom(record)
    copy.state = old.state
    return copy


def _keep_marks(record: pb.Grant, old: pb.Grant | None, field: str) -> None:
    """Who requested and approved a grant is what the control plane saw, not what somebody writes."""
    before = pb.Grant() if old is None else old
    for mark in ("requester", "approvals"):
        stated = getattr(record, mark)
        if stated and stated != getattr(before, mark):
            raise InvalidInputError(f"{field}.{mark}", "is set by the control plane alone")
    record.requester = before.requester
    record.ClearField("approvals")
    record.approvals.extend(before.approvals)
    if not record.state_reason and record.state == before.state:
        record.state_reason = before.state_reason


def _take(name: str, life: Life, taken: Step, now: float, bounds: GrantClass | None) -> Life:
    try:
        return step(
            life,
            taken,
            now,
            approvals=0 if bounds is None else bounds.approvals,
            review_every_s=None if bounds is None else bounds.review_every_s,
        )
    except TransitionRefusedError as error:
        raise RefusedError(f"{name}: {error} ({error.code})") from None


def _check_still_allowed(grant: pb.Grant, terms: Terms, now: float) -> None:
    """A grant whose class was tightened since it was written does not come into force."""
    try:
        check_bounds(grant, terms, now, "grant")
    except InvalidInputError as error:
        raise RefusedError(f"{grant.name}: its class does not allow it: {error}") from None


def _allows_no_more(record: pb.Grant, old: pb.Grant) -> bool:
    """Whether all that differs is a budget, and that is not wider: it may be lowered at any time."""
    if _content(record) == _content(old):
        return True
    return _content(record, "budget") == _content(old, "budget") and not widens(old, record)


def _content(grant: pb.Grant, *besides: str) -> bytes:
    """The bytes of what a grant allows, some fields left out."""
    copy = pb.Grant()
    copy.CopyFrom(grant)
    for mark in (*_MARKS, *besides):
        copy.ClearField(mark)
    return copy.SerializeToString(deterministic=True)


def _at(moment: object) -> float:
    nanoseconds: int = moment.ToNanoseconds()  # type: ignore[attr-defined]
    return nanoseconds / _NANOS
