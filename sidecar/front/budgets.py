"""Budgets in the worker's loops: decides with what is held of them, takes what a decision spends, and waits for slices.

A spend goes with its record. It is taken before the next request is decided, committed once the record is in the journal, and
undone if that fails; so is what the pod remembers of the request, for repeats in any worker, and of the spend, to be settled.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

import msgspec
from msgspec.structs import replace

from engine.budget import ample
from engine.decide import awaits_lease, decide
from engine.decision import Decision, Spend
from engine.escrow import Account
from engine.facts import BudgetHeld, Facts, Grant
from engine.rules import TenantRules
from sidecar.clock import Clock
from sidecar.front.repeats import Kept, different
from sidecar.lease.leases import Leases, Taken, Wait
from sidecar.lease.reservations import (
    MAX_ANSWER_BYTES,
    REPEAT_S,
    Answered,
    Reservation,
    Reservations,
    ReservationsError,
    Spending,
)

_TRIES: Final = 4

_log = logging.getLogger(__name__)


class Decided(NamedTuple):
    """A decision, the facts it rests on, and what it takes of a budget."""

    facts: Facts
    decision: Decision
    taken: Taken | None


class Spent(NamedTuple):
    """A decision that spent and whose record is in the journal. `key`, `content`: of its request, empty if that has no id."""

    taken: Taken
    decision_id: bytes
    decision: Decision
    caller: str
    answer: bytes
    key: bytes = b""
    content: bytes = b""


class Budgets:
    """What the loops of a worker share of budgets. Thread-safe."""

    def __init__(self, leases: Leases, reservations: Reservations, clock: Clock) -> None:
        self.leases = leases
        self._reservations = reservations
        self._clock = clock

    def decide(self, facts: Facts, rules: TenantRules, subject: str, *, patient: bool) -> Decided | Wait:
        """Decides, and takes what that spends. `patient`: if only a slice is wanting, returns what to wait for."""
        for _ in range(_TRIES):
            decision = decide(facts, rules)
            spend = decision.spend
            if spend is None:
                wait = self._want(facts, rules, subject, decision) if patient else None
                return Decided(facts, decision, None) if wait is None else wait
            seen = _held(facts, spend.grant)
            if seen is not None:
                taken = self.leases.take(Account(facts.tenant, spend.grant, subject), spend, seen)
                if taken is not None:
                    return Decided(facts, decision, taken)
            # Another loop was quicker: with what it has left.
            facts = self.renewed(facts, subject)
        facts = _holding(facts, lambda _: None)
        return Decided(facts, decide(facts, rules), None)

    def renewed(self, facts: Facts, subject: str) -> Facts:
        """The facts with what is held by now."""
        return _holding(facts, lambda grant: self.leases.held(Account(facts.tenant, grant.id, subject)))

    def _want(self, facts: Facts, rules: TenantRules, subject: str, decision: Decision) -> Wait | None:
        wanted = awaits_lease(facts, rules, decision)
        return None if wanted is None else self.leases.want(Account(facts.tenant, wanted.grant, subject), wanted)

    def first(self, key: bytes, content: bytes, facts: Facts) -> Kept | None:
        """The request of any worker that spent, and that a request is a repeat of. Looked for only where a budget could be spent.

        Raises InvalidInputError if it asked something else, ReservationsError.
        """
        if not any(grant.budget is not None for grant in _grants(facts)):
            return None
        found = self._reservations.repeat(key, self._clock.boottime())
        if found is None:
            return None
        if found.content != content:
            raise different()
        if not found.answer:
            return Kept(key, content, 0.0, None)
        return Kept(key, content, 0.0, msgspec.msgpack.decode(found.decision, type=Decision), found.answer)

    def claim(self, key: bytes, content: bytes, instead_of: bytes) -> bool:
        """Whether a request may spend: no other with its key did, or is about to, but for one whose answer no longer holds.
        Raises ReservationsError."""
        return self._reservations.claim(key, content, self._clock.boottime(), instead_of)

    def another(self, key: bytes) -> Wait:
        """Waits until the request that has claimed the key is answered, or has made way."""

        def over() -> bool:
            found = self._reservations.repeat(key, self._clock.boottime())
            return found is None or bool(found.answer)

        return over

    def commit(self, spent: list[Spent]) -> None:
        """Their records are in the journal; they are about to be answered."""
        self.leases.commit(each.taken for each in spent)
        now = self._clock.boottime()
        try:
            self._reservations.keep([_spending(each, now) for each in spent], now)
        except ReservationsError as error:
            # They stay spent, and a repeat of them is told to wait.
            _log.error("leases: %s; some spends cannot be settled", error)

    def undo(self, taken: Taken, key: bytes = b"") -> None:
        """It has no record. `key`: what was claimed for it."""
        self.leases.undo(taken)
        if key:
            try:
                self._reservations.release([key])
            except ReservationsError as error:
                _log.error("leases: %s", error)


def credited(facts: Facts, spend: Spend | None) -> Facts:
    """The facts for a repeat of a request that spent: what it spent is there for it, until the period is too long ago."""
    if spend is None or (spend.expires_at is not None and facts.now > spend.expires_at):
        return facts
    return _replaced(facts, lambda grant: ample(grant, facts.now) if grant.id == spend.grant else grant)


def _spending(spent: Spent, now: float) -> Spending:
    spend, account = spent.decision.spend, spent.taken.account
    assert spend is not None
    reservation = Reservation(
        account.tenant,
        account.grant,
        account.subject,
        spent.taken.period,
        spend.holder,
        spend.uses,
        spend.nanos,
        now,
        spent.caller,
        spend.currency,
        key=spent.key,
    )
    if not spent.key:
        return Spending(spent.decision_id, reservation)
    decision = msgspec.msgpack.encode(spent.decision)
    if len(decision) + len(spent.answer) > MAX_ANSWER_BYTES:
        return Spending(spent.decision_id, reservation)
    answered = Answered(spent.content, now + REPEAT_S, decision, spent.answer, spent.decision_id)
    return Spending(spent.decision_id, reservation, spent.key, answered)


def _grants(facts: Facts) -> Iterable[Grant]:
    yield from facts.grants
    for candidate in facts.candidates:
        yield from candidate.grants


def _held(facts: Facts, grant_id: str) -> BudgetHeld | None:
    for grant in _grants(facts):
        if grant.id == grant_id and grant.budget is not None:
            return grant.budget.held
    return None


def _holding(facts: Facts, held: Callable[[Grant], BudgetHeld | None]) -> Facts:
    """The facts with what is held now."""

    def renewed(grant: Grant) -> Grant:
        return grant if grant.budget is None else replace(grant, budget=replace(grant.budget, held=held(grant)))

    return _replaced(facts, renewed)


def _replaced(facts: Facts, change: Callable[[Grant], Grant]) -> Facts:
    candidates = tuple(
        replace(candidate, grants=tuple(map(change, candidate.grants))) for candidate in facts.candidates
    )
    return replace(facts, grants=tuple(map(change, facts.grants)), candidates=candidates)
