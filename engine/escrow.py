"""Escrow of budgets: a holder's half, and what both halves say to each other (sidestep/v1/lease.proto). Pure.

A budget is exact across all workers because each spends only from slices it was granted. All numbers are totals since the
holder and the period began; they only rise, so messages may be lost, repeated and reordered: the greater total is the newer.
The control plane's half is `engine.books`.

    remaining = granted - returned - spent          of one holder, account and period

Nothing here does I/O or knows the time. A `Holder` belongs to one thread: the worker's loop. Its messages and the answers to
them are immutable and may cross to another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec

from engine.errors import SidestepError


class EscrowError(SidestepError):
    """A total that cannot be, such as more returned than was granted."""


class Room(NamedTuple):
    """A number of uses and an amount in billionths of the budget's currency unit."""

    uses: int = 0
    nanos: int = 0

    def plus(self, other: Room) -> Room:
        """Sum, each for itself."""
        return Room(self.uses + other.uses, self.nanos + other.nanos)

    def minus(self, other: Room) -> Room:
        """Difference, each for itself; may be negative."""
        return Room(self.uses - other.uses, self.nanos - other.nanos)

    def most(self, other: Room) -> Room:
        """The greater of each."""
        return Room(max(self.uses, other.uses), max(self.nanos, other.nanos))

    def least(self, other: Room) -> Room:
        """The smaller of each."""
        return Room(min(self.uses, other.uses), min(self.nanos, other.nanos))

    def covers(self, other: Room) -> bool:
        """Whether both are at least the other's."""
        return self.uses >= other.uses and self.nanos >= other.nanos


NOTHING = Room()


class Account(NamedTuple):
    """One subject's use of one grant's budget."""

    tenant: str
    grant: str
    subject: str


class Standing(msgspec.Struct, frozen=True, gc=False):
    """A holder's totals in one period of one account (LeaseStanding)."""

    account: Account
    period: int
    granted: Room = NOTHING
    spent: Room = NOTHING
    returned: Room = NOTHING


class Ask(msgspec.Struct, frozen=True, gc=False):
    """A wish for a slice of the account's current period (LeaseAsk). For nothing: only to hear what is held."""

    account: Account
    least: Room
    want: Room


class Message(msgspec.Struct, frozen=True, gc=False):
    """One call of a holder (LeaseRequest; one per tenant on the wire). A repetition is the same message."""

    holder: str
    sequence: int
    standings: tuple[Standing, ...] = ()
    asks: tuple[Ask, ...] = ()


class Slice(msgspec.Struct, frozen=True, gc=False):
    """What the holder has of an account's current period (LeaseSlice)."""

    account: Account
    period: int
    # Unix seconds of the strong authentication the period began with; None: none is known.
    started_at: float | None
    # In total, in this period.
    granted: Room
    # Not held by anyone at that moment; None: the grant has no budget, or is not in force.
    left: Room | None
    # Nothing was granted to the ask, because not enough is left.
    exhausted: bool = False
    # Nothing will be granted to any: no such grant, no budget, not in force, another currency.
    refused: bool = False
    # Of the amounts; empty where they do not count.
    currency: str = ""


class Answer(msgspec.Struct, frozen=True, gc=False):
    """The control plane's answer to a message (LeaseResponse)."""

    slices: tuple[Slice, ...] = ()


class _Period:
    """What a holder has of one period of one account."""

    __slots__ = ("granted", "returned", "spent", "started_at")

    def __init__(self, started_at: float | None) -> None:
        self.granted = self.spent = self.returned = NOTHING
        self.started_at = started_at

    def remaining(self) -> Room:
        return self.granted.minus(self.returned).minus(self.spent)


class _Held:
    """What a holder knows of one account. `left` is None where it does not know."""

    __slots__ = ("dirty", "doubtful", "left", "periods", "wanted")

    def __init__(self) -> None:
        self.periods: dict[int, _Period] = {}
        self.left: Room | None = None
        self.wanted: tuple[Room, Room] | None = None
        # Periods whose totals have changed since they were last put into a message.
        self.dirty: set[int] = set()
        # An ask was given up without an answer: something may have been granted.
        self.doubtful = False

    def current(self) -> int:
        return max(self.periods, default=0)


class Left(NamedTuple):
    """What a holder can spend of an account now: what `engine.facts.BudgetHeld` says of it."""

    period: int
    started_at: float | None
    # Of its own slice. Negative in a bound that was not limited when it was spent.
    remaining: Room
    # Of what nobody held when it last asked; None: not known.
    left: Room | None


class Holder:
    """One worker incarnation's slices. Not for two threads at once.

    The rule of durability is the caller's: a spend is durable by its journal record; a `message()` that returns something may
    be sent only once what it says was returned is durable; a restarted worker is another holder, and closes this one with
    `CloseHolder` and the exact totals of its journal. An account is never forgotten, for what was granted of it is a total: a
    holder that has grown too large is replaced by one with another id, and closed.
    """

    def __init__(self, holder_id: str) -> None:
        self.id = holder_id
        self._sequence = 0
        self._accounts: dict[Account, _Held] = {}

    def left(self, account: Account) -> Left | None:
        """What can be spent of the newest period known; None: nothing is known of the account."""
        held = self._accounts.get(account)
        if held is None or not held.periods:
            return None
        number = held.current()
        period = held.periods[number]
        return Left(number, period.started_at, period.remaining(), held.left)

    def spend(self, account: Account, period: int, room: Room) -> None:
        """Books what a decision spends; what is left was checked by the decision. Raises EscrowError for an unknown period."""
        held = self._accounts.get(account)
        if held is None or period not in held.periods:
            raise EscrowError(f"nothing is held of period {period} of grant {account.grant}")
        held.periods[period].spent = held.periods[period].spent.plus(room)
        held.dirty.add(period)

    def undo(self, account: Account, period: int, room: Room) -> None:
        """Takes a spend back whose record was not written. Only before a message has told of it."""
        held = self._accounts[account]
        held.periods[period].spent = held.periods[period].spent.minus(room)

    def ask(self, account: Account, least: Room, want: Room) -> None:
        """Remembers a wish for the next message. Of several the greater counts; an answer for the account ends it."""
        held = self._accounts.setdefault(account, _Held())
        before = held.wanted or (NOTHING, NOTHING)
        held.wanted = (before[0].most(least), before[1].most(want).most(least))

    def give_back(self, account: Account, keep: Room = NOTHING) -> Room:
        """Returns what is left of the account beyond `keep`, of earlier periods all of it, and drops the wish. The room that will
        be returned by the next message, over all periods."""
        held = self._accounts.get(account)
        if held is None:
            return NOTHING
        held.wanted = None
        total = NOTHING
        current = held.current()
        for number, period in held.periods.items():
            excess = period.remaining().minus(keep if number == current else NOTHING).most(NOTHING)
            if excess != NOTHING:
                period.returned = period.returned.plus(excess)
                held.dirty.add(number)
                total = total.plus(excess)
        return total

    def forget_left(self, account: Account) -> None:
        """What nobody holds is no longer known: it was heard of too long ago. A budget that seemed exhausted may be asked for."""
        held = self._accounts.get(account)
        if held is not None:
            held.left = None

    def message(self) -> Message | None:
        """The next call: totals that have changed, and wishes. None: there is nothing to say.

        The same message is to be repeated until it is answered or given up; a later message says all that this one did not get
        across only if `failed` is called for it.
        """
        standings: list[Standing] = []
        asks: list[Ask] = []
        for account, held in self._accounts.items():
            standings += [_standing(account, number, held.periods[number]) for number in sorted(held.dirty)]
            held.dirty.clear()
            if held.wanted is not None:
                asks.append(Ask(account, *held.wanted))
            elif held.doubtful:
                asks.append(Ask(account, NOTHING, NOTHING))
            held.doubtful = False
        if not standings and not asks:
            return None
        self._sequence += 1
        return Message(self.id, self._sequence, tuple(standings), tuple(asks))

    def failed(self, message: Message) -> None:
        """Nothing is known of what became of the message: the next one says it again."""
        for standing in message.standings:
            self._accounts[standing.account].dirty.add(standing.period)
        for ask in message.asks:
            self._accounts[ask.account].doubtful = True

    def absorb(self, answer: Answer) -> None:
        """Takes an answer over. It may be late, repeated, or the answer to a message that was given up."""
        for found in answer.slices:
            held = self._accounts.setdefault(found.account, _Held())
            # What a late answer grants of a period that is over is only there to be returned.
            if found.period >= held.current():
                held.left = NOTHING if found.refused else found.left
                held.wanted = None
            period = held.periods.setdefault(found.period, _Period(found.started_at))
            period.granted = period.granted.most(found.granted)

    def standings(self) -> Iterator[Standing]:
        """All totals, for a checkpoint."""
        for account, held in self._accounts.items():
            for number, period in sorted(held.periods.items()):
                yield _standing(account, number, period)

    def accounts(self) -> Iterable[Account]:
        """Those anything is known of."""
        return tuple(self._accounts)


def _standing(account: Account, number: int, period: _Period) -> Standing:
    return Standing(account, number, period.granted, period.spent, period.returned)
