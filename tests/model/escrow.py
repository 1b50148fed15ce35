"""A world in which the lease protocol has to hold: workers that crash, a network that loses, repeats and reorders, one book.

Everything is driven by one random generator, so a schedule is its seed. The rules that run are those of `engine.escrow` and
`engine.books`; the world only carries messages, keeps what is durable, and knows the truth: what was really spent.

What holds after every step, for each account and period:

- what was spent, less what was given back, is at most the greatest limit there was;
- the books count as taken at least what was spent and what may yet be spent;
- the totals are the sums of the rows;
- a call that is repeated changes nothing;
- after a slice was granted no more is taken than the limit of that moment.

And once all is calm: what is left is the limit less what was spent, to the last use, but for the slices of workers whose state
was lost. So nothing leaks either.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from functools import reduce
from random import Random
from typing import Any

from engine.books import Ledger, Period, Row, Settling, Terms, Totals
from engine.escrow import NOTHING, Account, Answer, EscrowError, Holder, Message, Room, Standing

ACCOUNTS = (Account("t", "g", "ada"), Account("t", "g", "bob"), Account("t", "h", "ada"))
MAX_STEPS = 50
# Of terms that limit nothing: more than anybody spends.
_UNLIMITED = 10**9


class ViolationError(AssertionError):
    """A rule of the protocol does not hold."""


@dataclass(slots=True)
class Worker:
    """One process. `journal` survives a crash, unless its state is lost."""

    holder: Holder
    journal: dict[tuple[Account, int], Room] = field(default_factory=lambda: defaultdict(Room))
    unanswered: Message | None = None


@dataclass(slots=True)
class Tables:
    """What the control plane's database keeps."""

    periods: dict[tuple[str, str], Period] = field(default_factory=dict)
    terms: dict[tuple[str, str], Terms | None] = field(default_factory=dict)
    totals: dict[tuple[Account, int], Totals] = field(default_factory=dict)
    rows: dict[tuple[str, Account, int], Row] = field(default_factory=dict)
    closed: set[tuple[str, str]] = field(default_factory=set)
    settlements: dict[tuple[str, str], bool] = field(default_factory=dict)


class World:
    """One schedule's state."""

    def __init__(
        self, seed: int, holder_type: type[Holder] = Holder, ledger_type: type[Ledger] = Ledger, **faults: bool
    ) -> None:
        self.random = Random(seed)
        self.faults = faults
        self._holder_type = holder_type
        self._ledger_type = ledger_type
        self._ids = 0
        self.tables = Tables()
        self.wire: list[Callable[[], None]] = []
        self.workers = [self._worker() for _ in range(self.random.choice((1, 2, 2, 3)))]
        # Dead ones whose journal is still there, and those whose is not.
        self.dead: list[Worker] = []
        self.lost: list[Worker] = []
        self.greatest: dict[tuple[Account, int], Room] = defaultdict(Room)
        # Whose totals have changed since they were last checked.
        self._unchecked: set[tuple[Account, int]] = set()
        self.accounts = self.random.sample(ACCOUNTS, self.random.choice((1, 1, 2, 3)))
        self.spent: dict[tuple[Account, int], Room] = defaultdict(Room)
        self.given_back: dict[tuple[Account, int], Room] = defaultdict(Room)
        # Decisions that spent: (decision id, holder, account, period, room).
        self.decisions: list[tuple[str, str, Account, int, Room]] = []
        # As they were after the last ask.
        self._before: dict[tuple[Account, int], Totals] = {}
        for grant in ("g", "h"):
            self._set_terms(grant)

    # The schedule

    def run(self) -> None:
        """Steps at random, then calm. Raises ViolationError."""
        steps = (
            [self._spend] * 8
            + [self._send] * 2
            + [self._deliver] * 6
            + [self._settle] * 2
            + [self._give_back] * 2
            + [self._crash, self._close, self._lose, self._change_limit, self._authenticate]
        )
        for _ in range(self.random.randint(5, MAX_STEPS)):
            self.random.choice(steps)()
            self._check()
        self._calm()

    def _spend(self) -> None:
        worker = self.random.choice(self.workers)
        account = self.random.choice(self.accounts)
        room = Room(1, self.random.choice((0, 1, 2, 5)))
        left = worker.holder.left(account)
        terms = self.tables.terms[account.tenant, account.grant]
        # What `engine.budget.refusal` looks at.
        short = left is None or (
            terms is not None
            and (
                (terms.uses is not None and left.remaining.uses < room.uses)
                or (terms.nanos is not None and left.remaining.nanos < room.nanos)
            )
        )
        if left is None or short or terms is None:
            worker.holder.ask(account, room, Room(self.random.choice((1, 1, 4)), self.random.choice((0, 5, 20))))
            self._send(worker)
            return
        worker.holder.spend(account, left.period, room)
        if self.random.random() < 0.1:
            # Its record could not be written.
            worker.holder.undo(account, left.period, room)
            return
        key = (account, left.period)
        worker.journal[key] = worker.journal[key].plus(room)
        self.spent[key] = self.spent[key].plus(room)
        self.decisions.append((f"d{len(self.decisions)}", worker.holder.id, account, left.period, room))

    def _send(self, worker: Worker | None = None) -> None:
        worker = worker or self.random.choice(self.workers)
        if worker.unanswered is not None and self.random.random() < 0.5:
            self._call(worker, worker.unanswered)
            return
        if worker.unanswered is not None:
            worker.holder.failed(worker.unanswered)
        worker.unanswered = worker.holder.message()
        if worker.unanswered is not None:
            self._call(worker, worker.unanswered)

    def _deliver(self) -> None:
        """Some of what is on its way arrives, mostly the newest first; some is lost, and some will come again."""
        for _ in range(self.random.randint(1, 4)):
            if not self.wire:
                return
            at = -1 if self.random.random() < 0.6 else self.random.randrange(len(self.wire))
            fate = self.random.random()
            arrive = self.wire[at]
            if fate < 0.9:
                self.wire.pop(at)
            if fate > 0.1:
                arrive()

    def _give_back(self) -> None:
        worker = self.random.choice(self.workers)
        worker.holder.give_back(self.random.choice(self.accounts), Room(self.random.choice((0, 0, 1))))

    def _crash(self) -> None:
        """The process ends; what it did not write is gone, its journal is not. Another one starts."""
        at = self.random.randrange(len(self.workers))
        self.dead.append(self.workers[at])
        holder = self.workers[at].holder
        self.workers[at] = self._worker()
        if self.faults.get("reuse_id"):
            self.workers[at].holder.id = holder.id

    def _lose(self) -> None:
        if self.dead and self.random.random() < 0.5:
            self.lost.append(self.dead.pop())

    def _close(self) -> None:
        if self.dead:
            worker = self.random.choice(self.dead)
            totals = _totals(worker)
            self.wire.append(lambda: self._serve_close(worker.holder.id, totals))

    def _settle(self) -> None:
        if not self.decisions:
            return
        decision_id, holder, account, period, room = self.random.choice(self.decisions)
        settling = Settling(decision_id, self.random.random() < 0.5, holder, account, period, room)
        self.wire.append(lambda: self._serve_settle(settling))

    def _change_limit(self) -> None:
        self._set_terms(self.random.choice(self.accounts).grant)

    def _authenticate(self) -> None:
        subject = self.random.choice(self.accounts).subject
        before = self.tables.periods.get(("t", subject)) or Period()
        self.tables.periods["t", subject] = Period(before.number + 1, float(before.number))
        for account in ACCOUNTS:
            if account.subject == subject:
                self._note_limit(account)

    def _calm(self) -> None:
        """The network works, dead workers are closed by their journals, the living return everything."""
        for arrive in self.wire:
            arrive()
        self.wire.clear()
        for worker in self.dead:
            self._serve_close(worker.holder.id, _totals(worker))
        for _ in range(2):
            for worker in self.workers:
                for account in worker.holder.accounts():
                    worker.holder.give_back(account)
                if worker.unanswered is not None:
                    worker.holder.failed(worker.unanswered)
                    worker.unanswered = None
                if message := worker.holder.message():
                    self._serve_lease(worker, message)
            for arrive in self.wire:
                arrive()
            self.wire.clear()
        self._check()
        self._check_nothing_leaked()

    # The network and the control plane

    def _worker(self) -> Worker:
        self._ids += 1
        return Worker(self._holder_type(f"h{self._ids}"))

    def _call(self, worker: Worker, message: Message) -> None:
        self.wire.append(lambda: self._serve_lease(worker, message))

    def _serve_lease(self, worker: Worker, message: Message) -> None:
        try:
            named = {spoken.account for spoken in (*message.standings, *message.asks)}
            answer = self._transact(lambda ledger: ledger.lease(message), message.holder, named)
        except EscrowError:
            return
        for ask in message.asks:
            self._check_granted(ask.account)
        self.wire.append(lambda: self._absorb(worker, message, answer))

    def _absorb(self, worker: Worker, message: Message, answer: Answer) -> None:
        if worker in self.workers:
            worker.holder.absorb(answer)
            if worker.unanswered is message:
                worker.unanswered = None

    def _serve_close(self, holder: str, totals: list[Standing]) -> None:
        self._transact(lambda ledger: ledger.close("t", holder, totals), holder, ACCOUNTS)

    def _serve_settle(self, settling: Settling) -> None:
        known = settling.decision_id in {key[1] for key in self.tables.settlements}
        self._transact(lambda ledger: ledger.settle([settling]), settling.holder, (settling.account,))
        if not known and not settling.executed:
            key = (settling.account, settling.period)
            self.given_back[key] = self.given_back[key].plus(settling.spent)

    def _transact(self, call: Callable[[Ledger], Any], holder: str, accounts: Collection[Account]) -> Any:
        """One transaction: what it needs is loaded, what it says has changed is saved. Sometimes the same call again."""
        result = self._commit(call, holder, accounts)
        if self.random.random() < 0.1:
            before = self._shown()
            self._commit(call, holder, accounts)
            if self._shown() != before:
                raise ViolationError(f"a repeated call of {holder} changed the books")
        return result

    def _commit(self, call: Callable[[Ledger], Any], holder: str, accounts: Collection[Account]) -> Any:
        tables = self.tables
        ledger = self._ledger_type(
            periods=dict(tables.periods),
            terms=dict(tables.terms),
            totals={key: _copy_totals(totals) for key, totals in tables.totals.items() if key[0] in accounts},
            rows={key: _copy_row(row) for key, row in tables.rows.items() if key[0] == holder and key[1] in accounts},
            closed=set(tables.closed),
            settlements=dict(tables.settlements),
        )
        result = call(ledger)
        for key in ledger.changed_rows:
            tables.rows[key] = ledger.rows[key]
            tables.totals[key[1:]] = ledger.totals[key[1:]]
            self._unchecked.add(key[1:])
        for settling in ledger.settled_now:
            tables.settlements["t", settling.decision_id] = settling.executed
        tables.closed |= ledger.closed
        return result

    # The rules

    def _set_terms(self, grant: str) -> None:
        uses = self.random.choice((None, 1, 2, 5, 5, 20, 40))
        nanos = self.random.choice((None, None, 10, 80)) if uses is not None else self.random.choice((10, 40))
        self.tables.terms["t", grant] = Terms(uses, nanos, "EUR" if nanos is not None else "")
        for account in ACCOUNTS:
            if account.grant == grant:
                self._note_limit(account)

    def _note_limit(self, account: Account) -> None:
        key = (account, (self.tables.periods.get((account.tenant, account.subject)) or Period()).number)
        limit = self._limit(account)
        # A worker may still spend of an earlier period what the limit of then allowed.
        self.greatest[key] = self.greatest[key].most(limit)
        for period in range(1, key[1]):
            earlier = (account, period)
            self.greatest[earlier] = Room(
                _UNLIMITED if limit.uses == _UNLIMITED else self.greatest[earlier].uses,
                _UNLIMITED if limit.nanos == _UNLIMITED else self.greatest[earlier].nanos,
            )

    def _limit(self, account: Account) -> Room:
        terms = self.tables.terms[account.tenant, account.grant]
        assert terms is not None
        return Room(
            _UNLIMITED if terms.uses is None else terms.uses, _UNLIMITED if terms.nanos is None else terms.nanos
        )

    def _check(self) -> None:
        for key, spent in self.spent.items():
            net = spent.minus(self.given_back[key])
            if not self.greatest[key].covers(net):
                raise ViolationError(f"{key}: spent {net} of {self.greatest[key]}")
        for key in self._unchecked:
            rows = [row for (_, *of), row in self.tables.rows.items() if (of[0], of[1]) == key]
            totals = self.tables.totals[key]
            sums = (
                _sum(row.taken() for row in rows),
                _sum(row.spent for row in rows),
                _sum(row.cancelled for row in rows),
                sum(row.is_open() for row in rows),
            )
            if sums != (totals.taken, totals.spent, totals.cancelled, totals.holders):
                raise ViolationError(f"{key}: the books say {totals}, their rows {sums}")
        self._unchecked.clear()
        for worker in self.workers:
            for standing in worker.holder.standings():
                row = self.tables.rows.get((worker.holder.id, standing.account, standing.period)) or Row()
                may = standing.granted.minus(standing.returned)
                if not row.granted.covers(standing.granted) or not row.taken().covers(may):
                    raise ViolationError(f"{worker.holder.id} may spend {may} of {standing}, the books know {row}")

    def _check_granted(self, account: Account) -> None:
        period = (self.tables.periods.get((account.tenant, account.subject)) or Period()).number
        totals = self.tables.totals.get((account, period))
        terms = self.tables.terms[account.tenant, account.grant]
        if totals is None or terms is None:
            return
        free = totals.cancelled.minus(totals.taken).plus(self._limit(account))
        before = self._before.get((account, period))
        self._before[account, period] = _copy_totals(totals)
        if before is not None and totals.spent == before.spent:
            # A spend that was not limited may be heard of first when it is cancelled: then it is taken and given back at once.
            grown = totals.taken.minus(totals.cancelled).minus(before.taken.minus(before.cancelled)).most(NOTHING)
            if (grown.uses and free.uses < 0) or (grown.nanos and free.nanos < 0):
                raise ViolationError(f"{account}: granted beyond the limit: {totals} of {self._limit(account)}")

    def _check_nothing_leaked(self) -> None:
        for key, totals in self.tables.totals.items():
            if key[1] != (self.tables.periods.get((key[0].tenant, key[0].subject)) or Period()).number:
                continue  # what was granted of a period that is over, and not heard of, is of no use to anybody
            unknown = self._unknown(key)
            really = self.spent[key].plus(unknown)
            if totals.taken != really or totals.cancelled != self.given_back[key]:
                raise ViolationError(f"{key}: {totals}, but spent were {self.spent[key]} and lost {unknown}")
            terms = self.tables.terms[key[0].tenant, key[0].grant]
            left = self._ledger_type(terms=self.tables.terms, totals=self.tables.totals).left(*key)
            unspent = self._limit(key[0]).minus(really).plus(self.given_back[key])
            if terms is None or left is None or (terms.uses is not None and left.uses != unspent.uses):
                raise ViolationError(f"{key}: {left} can be had of {unspent}")

    def _unknown(self, key: tuple[Account, int]) -> Room:
        """What lost workers had left, which nobody can know; less what they spent unheard of while it was not limited."""
        return _sum(
            (self.tables.rows.get((worker.holder.id, *key)) or Row()).taken().minus(worker.journal[key])
            for worker in self.lost
        )

    def _shown(self) -> str:
        return repr((sorted(self.tables.rows.items()), sorted(self.tables.totals.items(), key=lambda item: item[0])))


def _copy_totals(totals: Totals) -> Totals:
    return Totals(totals.taken, totals.spent, totals.cancelled, totals.holders, totals.currency)


def _copy_row(row: Row) -> Row:
    return Row(row.granted, row.spent, row.returned, row.cancelled, row.sequence, row.closed)


def _sum(rooms: Iterable[Room]) -> Room:
    return reduce(Room.plus, rooms, NOTHING)


def _totals(worker: Worker) -> list[Standing]:
    return [Standing(account, period, spent=room) for (account, period), room in worker.journal.items()]
