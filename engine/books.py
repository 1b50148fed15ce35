"""The control plane's half of the escrow (`engine.escrow`): who holds what of each budget. Pure.

Of every account and period it is known how much holders may have taken at most, and how much of that was given back by
cancelled decisions. What is left for new slices is

    limit - taken + cancelled       where a holder's taken = max(granted - returned, spent, cancelled)

so whatever a holder does with its slice, and whatever of it is never heard of again, counts as spent. Only a holder's own word
lowers it: what it returned, or the exact totals its journal proves once it is gone.

A `Ledger` is the part of the books that one call needs. It is loaded, changed by one of `lease`, `close` or `settle`, and what
changed is saved, in one transaction of its owner (`controlplane.store.budgets`). Applying the same call again changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from engine.escrow import NOTHING, Account, Answer, Ask, EscrowError, Message, Room, Slice, Standing

# A slice is at most this part of what is left, divided by how many holders share it: small budgets are leased use by use, and
# a large one never lies in one worker's hands.
_SHARE = 4


class HolderClosedError(EscrowError):
    """A closed holder asks for more: its totals are final, and its process should be gone."""


class Terms(NamedTuple):
    """What a grant's budget allows in a period. None: not limited."""

    uses: int | None
    nanos: int | None
    currency: str = ""


class Period(NamedTuple):
    """A subject's current period: it began with a strong authentication, or with none that is known of."""

    number: int = 1
    started_at: float | None = None


@dataclass(slots=True)
class Totals:
    """Of one account and period, over all holders. `holders`: how many have something left of a slice."""

    taken: Room = NOTHING
    spent: Room = NOTHING
    cancelled: Room = NOTHING
    holders: int = 0
    # Of the amounts; set with the first grant.
    currency: str = ""


@dataclass(slots=True)
class Row:
    """Of one holder, account and period. All but `closed` only rise."""

    granted: Room = NOTHING
    spent: Room = NOTHING
    returned: Room = NOTHING
    cancelled: Room = NOTHING
    # The last ask that was granted or refused.
    sequence: int = 0
    closed: bool = False

    def taken(self) -> Room:
        """The most it can have spent, and may yet."""
        return self.granted.minus(self.returned).most(self.spent).most(self.cancelled)

    def is_open(self) -> bool:
        """Whether something of its slice may be left."""
        return not self.closed and not NOTHING.covers(self.granted.minus(self.returned).minus(self.spent))


class Settled(Enum):
    """What became of a settlement."""

    SETTLED = "settled"
    SETTLED_OTHERWISE = "settled_otherwise"


class Settling(NamedTuple):
    """The end of one decision's spend. `executed` False: it is given back."""

    decision_id: str
    executed: bool
    holder: str
    account: Account
    period: int
    spent: Room


RowKey = tuple[str, Account, int]
"""(holder, account, period)."""


@dataclass(slots=True)
class Ledger:
    """What one call needs of the books, by key. What is absent is new, or there is no such thing.

    `changed_*` and `settled_now` tell what to save.
    """

    # By (tenant, subject).
    periods: dict[tuple[str, str], Period] = field(default_factory=dict)
    # By (tenant, grant); absent or None: no budget, or a grant that is not in force.
    terms: dict[tuple[str, str], Terms | None] = field(default_factory=dict)
    totals: dict[tuple[Account, int], Totals] = field(default_factory=dict)
    rows: dict[RowKey, Row] = field(default_factory=dict)
    # By (tenant, holder).
    closed: set[tuple[str, str]] = field(default_factory=set)
    # Whether it was executed, by (tenant, decision id).
    settlements: dict[tuple[str, str], bool] = field(default_factory=dict)
    # Of earlier periods nothing is granted: the books were set back since, and forgot what holders have of them.
    first_period: int = 1
    changed_rows: set[RowKey] = field(default_factory=set)
    settled_now: list[Settling] = field(default_factory=list)

    # Calls

    def lease(self, message: Message) -> Answer:
        """Takes a holder's totals over and grants its asks. Raises HolderClosedError for an ask of a closed holder."""
        for ask in message.asks:
            if (ask.account.tenant, message.holder) in self.closed:
                raise HolderClosedError(f"holder {message.holder} is closed")
        for standing in message.standings:
            self._report(message.holder, standing)
        slices: dict[Account, Slice] = {}
        for standing in message.standings:
            slices[standing.account] = self._slice(message.holder, standing.account)
        asked: dict[Account, int] = {}
        for (holder, account, _), row in self.rows.items():
            if holder == message.holder:
                asked[account] = max(asked.get(account, 0), row.sequence)
        for ask in message.asks:
            refused = self._grant(message.holder, message.sequence, ask, asked.get(ask.account, 0))
            slices[ask.account] = self._slice(message.holder, ask.account, exhausted=refused)
        return Answer(tuple(slices.values()))

    def close(self, tenant: str, holder: str, totals: Iterable[Standing]) -> list[tuple[Account, int]]:
        """Ends a holder whose process is gone. `totals`: the exact spends its journal proves; what is not named was not spent.

        Every row of the holder must be loaded. Returns what contradicts earlier word: there the greater total is kept.
        """
        spent = {(standing.account, standing.period): standing.spent for standing in totals}
        conflicts = []
        # A holder that was never heard of can still have spent: by what was granted before the books were lost.
        keys = {(holder, *key) for key in spent} | {key for key in self.rows if key[0] == holder}
        for key in sorted(keys):
            proved = spent.get(key[1:], NOTHING)
            row = self._row(key)
            before = _copy(row)
            if not proved.covers(row.spent) or not proved.covers(row.cancelled):
                conflicts.append(key[1:])
            row.spent = row.spent.most(proved)
            if not row.closed:
                row.returned = row.returned.most(row.granted.minus(row.spent.most(row.cancelled)))
                row.closed = True
            self._book(key, before, row)
        self.closed.add((tenant, holder))
        return conflicts

    def settle(self, settlements: Sequence[Settling]) -> list[Settled]:
        """Completes spends: the first settlement of a decision stands, and is applied once."""
        return [self._settle(settling) for settling in settlements]

    # Parts

    def left(self, account: Account, period: int) -> Room | None:
        """What no holder has; negative after a limit was lowered, nothing where it is not limited. None: there is no budget."""
        terms = self.terms.get((account.tenant, account.grant))
        if terms is None:
            return None
        if period < self.first_period:
            return NOTHING
        totals = self.totals.get((account, period)) or Totals()
        free = totals.cancelled.minus(totals.taken)
        return Room(
            0 if terms.uses is None else terms.uses + free.uses, 0 if terms.nanos is None else terms.nanos + free.nanos
        )

    def period(self, account: Account) -> Period:
        """The subject's current one."""
        return self.periods.get((account.tenant, account.subject)) or Period()

    def _report(self, holder: str, standing: Standing) -> None:
        key = (holder, standing.account, standing.period)
        row = self._row(key)
        before = _copy(row)
        row.spent = row.spent.most(standing.spent)
        if not row.closed:
            # It knows better what it was granted if the books were set back.
            row.granted = row.granted.most(standing.granted)
            row.returned = row.returned.most(standing.returned.least(row.granted))
        self._book(key, before, row)

    def _grant(self, holder: str, sequence: int, ask: Ask, before_it: int) -> bool:
        """Grants what can be; True: it cannot, for want of room.

        `before_it`: number of the last ask for the account, in any period. Nobody waits any more for one that was overtaken.
        """
        account = ask.account
        number = self.period(account).number
        terms = self.terms.get((account.tenant, account.grant))
        left = self.left(account, number)
        if terms is None or left is None or sequence <= before_it:
            return False
        key = (holder, account, number)
        row = self._row(key)
        totals = self.totals[account, number]
        others = totals.holders - row.is_open()
        before = _copy(row)
        row.sequence = sequence
        given: Room | None = NOTHING
        if ask.want != NOTHING and not self._other_currency(account, number):
            given = _size(terms, left, ask, others)
        if given is not None and given != NOTHING:
            # A bound that came later may have been overdrawn before: that is taken, and not granted again.
            row.granted = row.granted.most(row.spent.plus(row.returned)).plus(given)
            totals.currency = totals.currency or terms.currency
        self._book(key, before, row)
        return given is None

    def _slice(self, holder: str, account: Account, *, exhausted: bool = False) -> Slice:
        period = self.period(account)
        row = self.rows.get((holder, account, period.number)) or Row()
        left = self.left(account, period.number)
        if self._other_currency(account, period.number):
            return Slice(account, period.number, period.started_at, row.granted, NOTHING, refused=True)
        shown = None if left is None else left.most(NOTHING)
        terms = self.terms.get((account.tenant, account.grant))
        return Slice(
            account,
            period.number,
            period.started_at,
            row.granted,
            shown,
            exhausted=exhausted,
            refused=left is None,
            currency=terms.currency if terms is not None else "",
        )

    def _other_currency(self, account: Account, period: int) -> bool:
        terms = self.terms.get((account.tenant, account.grant))
        totals = self.totals.get((account, period))
        return bool(terms and totals and totals.currency and terms.currency and totals.currency != terms.currency)

    def _settle(self, settling: Settling) -> Settled:
        decision = (settling.account.tenant, settling.decision_id)
        before = self.settlements.get(decision)
        if before is not None:
            return Settled.SETTLED if before == settling.executed else Settled.SETTLED_OTHERWISE
        key = (settling.holder, settling.account, settling.period)
        self.settlements[decision] = settling.executed
        self.settled_now.append(settling)
        if not settling.executed:
            # The spend may be heard of before the holder reports it.
            row = self._row(key)
            old = _copy(row)
            row.cancelled = row.cancelled.plus(settling.spent)
            self._book(key, old, row)
        return Settled.SETTLED

    def _row(self, key: RowKey) -> Row:
        self.totals.setdefault(key[1:], Totals())
        return self.rows.setdefault(key, Row(closed=(key[1].tenant, key[0]) in self.closed))

    def _book(self, key: RowKey, before: Row, row: Row) -> None:
        """Carries a row's change over to the totals."""
        if row == before and key in self.changed_rows:
            return
        self.changed_rows.add(key)
        totals = self.totals[key[1:]]
        totals.taken = totals.taken.plus(row.taken().minus(before.taken()))
        totals.spent = totals.spent.plus(row.spent.minus(before.spent))
        totals.cancelled = totals.cancelled.plus(row.cancelled.minus(before.cancelled))
        totals.holders += row.is_open() - before.is_open()


def _size(terms: Terms, left: Room, ask: Ask, others: int) -> Room | None:
    """How much of what is left one ask gets; None: not even the least it needs."""
    given = []
    for limit, free, least, want in zip((terms.uses, terms.nanos), left, ask.least, ask.want, strict=True):
        if limit is None:
            given.append(0)
        elif free < max(least, 0):
            return None
        else:
            fair = free // (_SHARE * (others + 1))
            given.append(min(free, max(least, min(want, max(fair, 0)))))
    return Room(*given)


def _copy(row: Row) -> Row:
    return Row(row.granted, row.spent, row.returned, row.cancelled, row.sequence, row.closed)
