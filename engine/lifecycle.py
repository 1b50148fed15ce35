"""The life of a grant: its states, the steps between them, and who may take which.

    request -> REQUESTED -> approve -> APPROVED -> activate -> ACTIVE <-> SUSPENDED
                   |                      |                      |           |
                reject                 reject            expire, lapse, revoke

Pure: `step` says what becomes of a grant when somebody does something to it at a time, or why that is refused. Grants whose class
needs no approval pass REQUESTED in one step. Only ACTIVE waives anything, and a sidecar checks times, review and approvals
once more with every decision.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from engine.errors import SidestepError

ANONYMOUS = "anonymous"
"""The actor of whom nothing is known, not even a name that is only said."""


class State(StrEnum):
    """Where a grant stands. Names as in sidestep.v1.GrantState."""

    REQUESTED = "REQUESTED"
    APPROVED = "APPROVED"
    ACTIVE = "ACTIVE"
    SUSPENDED = "SUSPENDED"
    # For good.
    REVOKED = "REVOKED"
    EXPIRED = "EXPIRED"
    LAPSED = "LAPSED"
    REJECTED = "REJECTED"


class Transition(StrEnum):
    """What may be done to a grant."""

    REQUEST = "request"
    APPROVE = "approve"
    REJECT = "reject"
    ACTIVATE = "activate"
    SUSPEND = "suspend"
    RESUME = "resume"
    REVOKE = "revoke"
    # What the control plane does by itself when the time has come.
    EXPIRE = "expire"
    LAPSE = "lapse"
    # Confirm that it is still needed: the next review is due a period later.
    RENEW = "renew"


class Refused(StrEnum):
    """Why a transition is refused."""

    WRONG_STATE = "WRONG_STATE"
    SELF_APPROVAL = "SELF_APPROVAL"
    APPROVED_BEFORE = "APPROVED_BEFORE"
    # Nobody knows who it is.
    NOBODY = "NOBODY"
    APPROVALS_MISSING = "APPROVALS_MISSING"
    ENDED = "ENDED"
    REVIEW_OVERDUE = "REVIEW_OVERDUE"
    NOT_DUE = "NOT_DUE"
    REASON_MISSING = "REASON_MISSING"
    NO_REVIEW = "NO_REVIEW"
    REVIEW_TOO_LATE = "REVIEW_TOO_LATE"


class TransitionRefusedError(SidestepError):
    """A transition that the rules forbid. `code` says which rule."""

    def __init__(self, code: Refused, problem: str) -> None:
        super().__init__(problem)
        self.code = code


@dataclass(frozen=True, slots=True)
class Life:
    """What the lifecycle knows of a grant. Times are seconds since the epoch; `end_at` is the earlier of the grant's own end and
    that of its class. `state` None: there is no such grant yet."""

    state: State | None
    end_at: float
    requester: str = ""
    # Who approved it and when, in order.
    approvals: tuple[tuple[str, float], ...] = ()
    review_at: float | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """What somebody does. `actor` empty: nobody knows who it is. `review_at`: when the next review is due (RENEW)."""

    transition: Transition
    actor: str
    reason: str = ""
    review_at: float | None = None


_FROM: dict[Transition, tuple[State | None, ...]] = {
    # Asking for other bounds takes a grant out of force until they are approved.
    Transition.REQUEST: (None, *(state for state in State if state is not State.REVOKED)),
    # An approved one too: its class may want more people than when it was approved.
    Transition.APPROVE: (State.REQUESTED, State.APPROVED),
    Transition.REJECT: (State.REQUESTED, State.APPROVED),
    Transition.ACTIVATE: (State.APPROVED,),
    Transition.SUSPEND: (State.ACTIVE,),
    Transition.RESUME: (State.SUSPENDED,),
    Transition.REVOKE: (State.REQUESTED, State.APPROVED, State.ACTIVE, State.SUSPENDED, State.LAPSED, State.EXPIRED),
    Transition.EXPIRE: (State.REQUESTED, State.APPROVED, State.ACTIVE, State.SUSPENDED),
    Transition.LAPSE: (State.ACTIVE, State.SUSPENDED),
    Transition.RENEW: (State.ACTIVE, State.SUSPENDED, State.LAPSED),
}
_STATED = frozenset({Transition.REJECT, Transition.SUSPEND, Transition.REVOKE})


def allowed_from(transition: Transition) -> tuple[State | None, ...]:
    """The states in which a transition may be taken; None: before there is a grant."""
    return _FROM[transition]


def counted(requester: str, approvers: Iterable[str]) -> int:
    """How many people besides the requester agreed. Case does not make another person.

    None, if nobody knows who requested it: it may have been any of them.
    """
    if not _is_somebody(requester):
        return 0
    people = {name.casefold() for name in approvers if _is_somebody(name)}
    return len(people - {requester.casefold()})


def step(life: Life, taken: Step, now: float, *, approvals: int = 0, review_every_s: float | None = None) -> Life:
    """The grant after a step at `now`. `approvals`: how many people its class wants; `review_every_s`: how often it is reviewed,
    None: only if somebody says so.

    Raises TransitionRefusedError. A refused step changes nothing.
    """
    transition = taken.transition
    if life.state not in _FROM[transition]:
        raise TransitionRefusedError(Refused.WRONG_STATE, _wrong_state(life.state, transition))
    if transition in _STATED and not taken.reason:
        raise TransitionRefusedError(Refused.REASON_MISSING, f"a reason is required to {transition.value} a grant")
    have = counted(life.requester, (actor for actor, _ in life.approvals))
    match transition:
        case Transition.REQUEST:
            if approvals and not _is_somebody(taken.actor):
                raise TransitionRefusedError(
                    Refused.NOBODY, "needs approval by a second person, and nobody knows who you, the first, are"
                )
            _check_running(life, now)
            state = State.REQUESTED if approvals else State.APPROVED
            return replace(life, state=state, requester=taken.actor, approvals=(), review_at=taken.review_at)
        case Transition.APPROVE:
            if life.state is State.APPROVED and have >= approvals:
                raise TransitionRefusedError(Refused.WRONG_STATE, "has all the approvals it needs")
            _check_second_person(life, taken.actor)
            _check_running(life, now)
            approved = (*life.approvals, (taken.actor, now))
            state = State.APPROVED if have + 1 >= approvals else State.REQUESTED
            return replace(life, state=state, approvals=approved)
        case Transition.ACTIVATE | Transition.RESUME:
            _check_approved(have, approvals)
            _check_running(life, now)
            review_at = life.review_at
            if review_at is None and review_every_s is not None:
                review_at = now + review_every_s
            if review_at is not None and now >= review_at:
                raise TransitionRefusedError(Refused.REVIEW_OVERDUE, "its review is overdue; renew it")
            return replace(life, state=State.ACTIVE, review_at=review_at)
        case Transition.RENEW:
            return _renewed(life, taken, now, approvals, have, review_every_s)
        case Transition.EXPIRE if now < life.end_at:
            raise TransitionRefusedError(Refused.NOT_DUE, "has not expired")
        case Transition.LAPSE if life.review_at is None or now < life.review_at:
            raise TransitionRefusedError(Refused.NOT_DUE, "its review is not overdue")
        case _:
            return replace(life, state=_TO[transition])


_TO = {
    Transition.REJECT: State.REJECTED,
    Transition.SUSPEND: State.SUSPENDED,
    Transition.REVOKE: State.REVOKED,
    Transition.EXPIRE: State.EXPIRED,
    Transition.LAPSE: State.LAPSED,
}


def due(life: Life, now: float) -> Transition | None:
    """What the control plane has to do to a grant by itself at `now`; None: nothing."""
    if life.state in _FROM[Transition.EXPIRE] and now >= life.end_at:
        return Transition.EXPIRE
    if life.state in _FROM[Transition.LAPSE] and life.review_at is not None and now >= life.review_at:
        return Transition.LAPSE
    return None


def due_at(life: Life) -> float | None:
    """When `due` will say something next; None: never, as things stand."""
    times = []
    if life.state in _FROM[Transition.EXPIRE]:
        times.append(life.end_at)
    if life.state in _FROM[Transition.LAPSE] and life.review_at is not None:
        times.append(life.review_at)
    return min(times, default=None)


def _renewed(life: Life, taken: Step, now: float, approvals: int, have: int, review_every_s: float | None) -> Life:
    """Where grants are approved by a second person, they are reviewed by one."""
    if approvals:
        _check_person(life, taken.actor)
        _check_approved(have, approvals)
    _check_running(life, now)
    latest = None if review_every_s is None else now + review_every_s
    review_at = latest if taken.review_at is None else taken.review_at
    if review_at is None:
        raise TransitionRefusedError(
            Refused.NO_REVIEW, "its class sets no review period: say when the next review is due"
        )
    if latest is not None and review_at > latest:
        raise TransitionRefusedError(Refused.REVIEW_TOO_LATE, "the next review would be later than its class allows")
    if review_at <= now:
        raise TransitionRefusedError(Refused.REVIEW_OVERDUE, "the next review has to be in the future")
    state = State.ACTIVE if life.state is State.LAPSED else life.state
    return replace(life, state=state, review_at=review_at)


def _check_person(life: Life, actor: str) -> None:
    if not _is_somebody(actor):
        raise TransitionRefusedError(Refused.NOBODY, "needs a second person, and nobody knows who you are")
    if not _is_somebody(life.requester):
        raise TransitionRefusedError(
            Refused.NOBODY, "needs a second person, and nobody knows who requested it; request it again by name"
        )
    if actor.casefold() == life.requester.casefold():
        raise TransitionRefusedError(Refused.SELF_APPROVAL, f"needs a second person, and {actor} requested it")


def _is_somebody(name: str) -> bool:
    return bool(name) and name.casefold() != ANONYMOUS


def _check_second_person(life: Life, actor: str) -> None:
    _check_person(life, actor)
    if actor.casefold() in {other.casefold() for other, _ in life.approvals}:
        raise TransitionRefusedError(Refused.APPROVED_BEFORE, f"{actor} has approved it already")


def _check_approved(have: int, wanted: int) -> None:
    if have < wanted:
        raise TransitionRefusedError(Refused.APPROVALS_MISSING, f"has {have} of the {wanted} approvals its class needs")


def _check_running(life: Life, now: float) -> None:
    if now >= life.end_at:
        raise TransitionRefusedError(Refused.ENDED, "its time is over; request it again with a later end")


def _wrong_state(state: State | None, transition: Transition) -> str:
    if state is None:
        return f"there is no such grant to {transition.value}"
    if state is State.REVOKED:
        return "is revoked; a revoked grant does not come back"
    return f"is {state.value}: cannot {transition.value} it"
