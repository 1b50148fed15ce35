"""Budgets in the worker's loops: decides with what is held of them, takes what a decision spends, and waits for slices.

A spend goes with its record. It is taken before the next request is decided, committed once the record is in the journal, and
undone if that fails; so is what the pod remembers of the request, for repeats in any worker, and of the spend, to be settled.

Where the pod cannot remember, no grant with a budget applies: the call that notices it is decided as if nothing were held, and so
are all others for a second. Everything else goes on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
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
from sidecar.page import LOCAL_STORES, WorkerSlot, WorkerWord

_TRIES: Final = 4
_BROKEN_S: Final = 1.0
# Spends that could not be kept, to be tried again.
_MAX_UNKEPT: Final = 1_000
_PART: Final = LOCAL_STORES.index("reservations")

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

    def __init__(
        self, leases: Leases, reservations: Reservations, clock: Clock, slot: WorkerSlot | None = None
    ) -> None:
        """`slot`: where failures are counted."""
        self._leases = leases
        self._reservations = reservations
        self._clock = clock
        self._slot = slot
        # Until when nothing is spent, by time.monotonic(); 0: the last use of the reservations went well.
        self._broken_until = 0.0
        self._unkept: deque[Spending] = deque(maxlen=_MAX_UNKEPT)
        self._keeping = threading.Lock()

    def held(self, account: Account) -> BudgetHeld | None:
        """What may be spent of an account now; None: nothing is known of it, or nothing may be spent."""
        return None if self._broken() else self._leases.held(account)

    def decide(self, facts: Facts, rules: TenantRules, subject: str, *, patient: bool) -> Decided | Wait:
        """Decides, and takes what that spends. `patient`: if only a slice is wanting, returns what to wait for."""
        if self._broken():
            facts = _holding(facts, lambda _: None)
            return Decided(facts, decide(facts, rules), None)
        for _ in range(_TRIES):
            decision = decide(facts, rules)
            spend = decision.spend
            if spend is None:
                wait = self._want(facts, rules, subject, decision) if patient else None
                return Decided(facts, decision, None) if wait is None else wait
            seen = _held(facts, spend.grant)
            if seen is not None:
                taken = self._leases.take(Account(facts.tenant, spend.grant, subject), spend, seen)
                if taken is not None:
                    return Decided(facts, decision, taken)
            # Another loop was quicker: with what it has left.
            facts = self.renewed(facts, subject)
        facts = _holding(facts, lambda _: None)
        return Decided(facts, decide(facts, rules), None)

    def renewed(self, facts: Facts, subject: str) -> Facts:
        """The facts with what is held by now."""
        return _holding(facts, lambda grant: self.held(Account(facts.tenant, grant.id, subject)))

    def lacking(self, facts: Facts, rules: TenantRules, decision: Decision) -> bool:
        """Whether the decision lacks nothing but a slice: then it is no answer to a repeat, for there may be one by now."""
        return not self._broken() and awaits_lease(facts, rules, decision) is not None

    def _want(self, facts: Facts, rules: TenantRules, subject: str, decision: Decision) -> Wait | None:
        wanted = awaits_lease(facts, rules, decision)
        return None if wanted is None else self._leases.want(Account(facts.tenant, wanted.grant, subject), wanted)

    def first(self, key: bytes, content: bytes, facts: Facts) -> Kept | None:
        """The request of any worker that spent, and that a request is a repeat of. Looked for only where a budget could be spent.

        None too where that cannot be told, and then nothing is spent. Raises InvalidInputError if it asked something else.
        """
        if not any(grant.budget is not None for grant in _grants(facts)):
            return None
        try:
            found = self._reservations.repeat(key, self._clock.boottime())
        except ReservationsError as error:
            self._fail(error)
            return None
        self._mend()
        if found is None:
            return None
        if found.content != content:
            raise different()
        if not found.decision:
            return Kept(key, content, 0.0, None)
        decision = msgspec.msgpack.decode(found.decision, type=Decision)
        return Kept(key, content, 0.0, decision, found.answer, decision_id=found.decision_id)

    def claim(self, key: bytes, content: bytes, instead_of: bytes, decision_id: bytes, taken: Taken) -> bool:
        """Whether a request may spend: no other with its key did, or is about to, but for a decision that no longer holds.
        Raises ReservationsError if that cannot be told; from then on nothing is spent for a while."""
        try:
            claimed = self._reservations.claim(
                key,
                content,
                self._clock.boottime(),
                instead_of,
                decision_id=decision_id,
                holder=taken.book.holder.id,
            )
        except ReservationsError as error:
            self._fail(error)
            raise
        self._mend()
        return claimed

    def another(self, key: bytes) -> Wait:
        """Waits until the request that has claimed the key is answered, or has made way."""

        def over() -> bool:
            try:
                found = self._reservations.repeat(key, self._clock.boottime())
            except ReservationsError as error:
                self._fail(error)
                return True  # it is decided without
            return found is None or bool(found.decision)

        return over

    def commit(self, spent: list[Spent]) -> None:
        """Their records are in the journal; they are about to be answered."""
        self._leases.commit(each.taken for each in spent)
        now = self._clock.boottime()
        self._keep([_spending(each, now) for each in spent], now)

    def undo(self, taken: Taken, key: bytes = b"") -> None:
        """It has no record. `key`: what was claimed for it."""
        self._leases.undo(taken)
        if key:
            try:
                self._reservations.release([key])
            except ReservationsError as error:
                self._fail(error)

    def _keep(self, spendings: list[Spending], now: float) -> None:
        """Keeps these, and those that could not be kept before: until then they cannot be settled, and a repeat of them is told
        to wait."""
        with self._keeping:
            self._unkept.extend(spendings)
            try:
                self._reservations.keep(list(self._unkept), now)
            except ReservationsError as error:
                self._fail(error)
            else:
                self._unkept.clear()
                self._mend()

    def _broken(self) -> bool:
        if not self._broken_until:
            return False
        if time.monotonic() >= self._broken_until:
            # Not by a spend: whether it goes again.
            self._keep([], self._clock.boottime())
        return self._broken_until > 0.0

    def _fail(self, error: ReservationsError) -> None:
        if not self._broken_until:  # once, not once per call
            _log.error("leases: %s; meanwhile no grant with a budget applies", error)
        self._broken_until = time.monotonic() + _BROKEN_S
        if self._slot is not None:
            self._slot.set(WorkerWord.LOCAL_UNUSABLE, 1, _PART)
            self._slot.add(WorkerWord.LOCAL_FAILURES, 1, _PART)

    def _mend(self) -> None:
        if not self._broken_until or time.monotonic() < self._broken_until:
            return
        self._broken_until = 0.0
        _log.info("leases: reservations can be used again")
        if self._slot is not None:
            self._slot.set(WorkerWord.LOCAL_UNUSABLE, 0, _PART)


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
