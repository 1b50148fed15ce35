"""What a worker may spend of budgets: the slices its holder was leased, and what became of each.

The loops of a worker look here while they decide, take what a decision spends, and either commit it, once its record is in the
journal, or undo it. The lease client (client.py), a thread, does everything that waits: it gets slices, tells what was spent, and
gives back what nobody uses. The lock between them is held for some dictionary accesses and never across a wait.

A holder that has seen many accounts is replaced by a new one, so that what has to be kept of it stays small.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import msgspec

from engine.decision import Spend
from engine.escrow import NOTHING, Account, Answer, Holder, Message, Room, Standing
from engine.facts import BudgetHeld
from sidecar.lease.holders import HolderFile

MAX_ACCOUNTS: Final = 2000
"""Accounts and periods of one holder, about; then it makes way."""
MAX_WISHES: Final = 1000
"""Accounts for which slices may be asked at once."""
_APPETITE_S: Final = 1.0
_MAX_APPETITE: Final = 64
_EAGER: Final = 4
# An account that is used twice within so long will be used again.
_AGAIN_S: Final = 10.0

Wait = Callable[[], bool]
"""Something a request has to wait for; tells whether that is over."""


@dataclass(slots=True, eq=False)
class Book:
    """One holder of this process. `numbers`: its accounts', as in its file; only what has one can be spent."""

    file: HolderFile
    holder: Holder
    numbers: dict[tuple[Account, int], int] = field(default_factory=dict)
    # Taken by decisions whose records are on their way into the journal.
    taken: dict[tuple[Account, int], Room] = field(default_factory=dict)
    # When something was last taken of an account or granted to it (monotonic). Others were given back.
    used_at: dict[Account, float] = field(default_factory=dict)
    currencies: dict[Account, str] = field(default_factory=dict)
    # What amounts were granted in.
    granted_in: dict[tuple[Account, int], str] = field(default_factory=dict)
    spent: bool = False

    def standings(self) -> list[Standing]:
        """All totals. Exact once nothing is taken any more."""
        return list(self.holder.standings())

    def tenants(self) -> list[str]:
        """Those it may have been leased anything of."""
        return list(dict.fromkeys(account.tenant for account in self.holder.accounts()))


class Taken(msgspec.Struct, frozen=True, gc=False, eq=False):
    """What a decision takes of a slice, until its record is in the journal."""

    book: Book
    account: Account
    period: int
    room: Room


@dataclass(slots=True)
class _Wish:
    least: Room
    want: Room
    currency: str


@dataclass(slots=True)
class _Appetite:
    """How much an account is used: doubles with every wish that comes soon after the last."""

    uses: int
    at: float


class _Used(NamedTuple):
    """The last use of an account, and whether it was not the only one lately."""

    at: float
    room: Room
    again: bool


class Leases:
    """The slices of one worker. Thread-safe. `wake` is called when the client has something to do."""

    def __init__(self, wake: Callable[[], None] = lambda: None) -> None:
        self.wake = wake
        self._lock = threading.Lock()
        self._book: Book | None = None
        self._retired: list[Book] = []
        self._wishes: dict[Account, _Wish] = {}
        # Accounts that calls wait for; another object for every wish that was sent.
        self._awaited: dict[Account, object] = {}
        self._appetites: dict[Account, _Appetite] = {}
        self._used: dict[Account, _Used] = {}
        # For which a slice was asked ahead of its use.
        self._ahead: set[Account] = set()
        # When it was last heard what nobody holds, oldest first.
        self._heard: deque[tuple[float, Account]] = deque()
        self._down_until = 0.0
        self._closed = False

    # What loops do.

    def held(self, account: Account) -> BudgetHeld | None:
        """What can be spent of an account now; None: nothing is known of it."""
        with self._lock:
            return self._held(account)

    def take(self, account: Account, spend: Spend, seen: BudgetHeld) -> Taken | None:
        """Takes what a decision spends that saw this of the account. None: another was quicker, decide again."""
        room = Room(spend.uses, spend.nanos)
        with self._lock:
            book = self._book
            if book is None or self._held(account) != seen:
                return None
            key = account, spend.period
            book.taken[key] = book.taken.get(key, NOTHING).plus(room)
            book.used_at[account] = time.monotonic()
            return Taken(book, account, spend.period, room)

    def commit(self, taken: Iterable[Taken]) -> None:
        """Their records are in the journal."""
        with self._lock:
            for each in taken:
                self._release(each)
                each.book.holder.spend(each.account, each.period, each.room)
                each.book.spent = True
                self._look_ahead(each)

    def undo(self, taken: Taken) -> None:
        """It has no record."""
        with self._lock:
            self._release(taken)

    def want(self, account: Account, spend: Spend) -> Wait | None:
        """Asks for a slice that covers what a decision would spend. What to wait for; None: there is none to be had just now."""
        now = time.monotonic()
        least = Room(spend.uses, spend.nanos)
        with self._lock:
            if self._closed or now < self._down_until:
                return None
            awaited = self._awaited.get(account)
            if awaited is None:
                if len(self._awaited) >= MAX_WISHES:
                    return None
                awaited = self._awaited[account] = object()
            self._wish(account, least, spend.currency, now)
        self.wake()
        return lambda: self._awaited.get(account) is not awaited

    def _held(self, account: Account) -> BudgetHeld | None:
        book = self._book
        if book is None or account not in book.used_at:
            return None
        left = book.holder.left(account)
        number = None if left is None else book.numbers.get((account, left.period))
        if left is None or number is None:
            return None
        remaining = left.remaining.minus(book.taken.get((account, left.period), NOTHING))
        return BudgetHeld(
            book.holder.id,
            number,
            left.period,
            left.started_at,
            remaining.uses,
            remaining.nanos,
            None if left.left is None else left.left.uses,
            None if left.left is None else left.left.nanos,
            book.granted_in.get((account, left.period), ""),
        )

    def _release(self, taken: Taken) -> None:
        key = taken.account, taken.period
        rest = taken.book.taken[key].minus(taken.room)
        if rest == NOTHING:
            del taken.book.taken[key]
        else:
            taken.book.taken[key] = rest

    def _wish(self, account: Account, least: Room, currency: str, now: float, each: Room | None = None) -> None:
        """`each`: what one use takes, if that is not the least."""
        each = each or least
        wish = self._wishes.get(account)
        if wish is None:
            uses = self._appetite(account, now)
            self._wishes[account] = _Wish(least, Room(each.uses * uses, each.nanos * uses), currency)
        else:
            # One more waits.
            wish.least, wish.want = wish.least.most(least), wish.want.plus(least)

    def _appetite(self, account: Account, now: float) -> int:
        appetite = self._appetites.get(account)
        soon = appetite is not None and now - appetite.at <= _APPETITE_S
        uses = min(_MAX_APPETITE, 2 * appetite.uses) if appetite is not None and soon else 1
        self._appetites.pop(account, None)
        self._appetites[account] = _Appetite(uses, now)
        if len(self._appetites) > MAX_ACCOUNTS:
            del self._appetites[next(iter(self._appetites))]
        return uses

    def _look_ahead(self, taken: Taken) -> None:
        """Asks for more of an account that is used again and again before it is used up.

        Of a budget with little left nothing is asked ahead but what leaves as much for others; where it is not known how much is
        left, the control plane gives nothing if others might want for it.
        """
        account, book, room = taken.account, taken.book, taken.room
        now = time.monotonic()
        before = self._used.pop(account, None)
        again = before is not None and now - before.at <= _AGAIN_S
        self._used[account] = _Used(now, room, again)
        if len(self._used) > MAX_ACCOUNTS:
            del self._used[next(iter(self._used))]
        if book is not self._book or account in self._wishes or account in self._ahead:
            return
        appetite = self._appetites.get(account)
        uses = appetite.uses if appetite is not None and appetite.uses >= _EAGER else 0
        found = book.holder.left(account)
        if not (again or uses) or found is None or self._closed or now < self._down_until:
            return
        rest = found.remaining.minus(book.taken.get((account, found.period), NOTHING))
        # What is not limited is negative once something was spent.
        few_uses = 0 <= rest.uses <= uses // 4
        low_nanos = 0 <= rest.nanos < room.nanos * max(1, uses // 4)
        left = found.left
        if not (few_uses or low_nanos) or (
            left is not None and ((few_uses and not left.uses) or (low_nanos and not left.nanos))
        ):
            return
        plenty = left is not None and (
            (rest.uses < 0 or left.uses >= 2 * room.uses) and (rest.nanos < 0 or left.nanos >= 2 * room.nanos)
        )
        self._ahead.add(account)
        self._wish(account, room if uses or plenty else NOTHING, book.currencies.get(account, ""), now, room)
        self.wake()

    # What the client does.

    @property
    def book(self) -> Book | None:
        """The holder that is spent from."""
        return self._book

    def adopt(self, book: Book | None) -> None:
        """Spends from another holder from now on; the last one retires."""
        with self._lock:
            if self._book is not None:
                self._retired.append(self._book)
            self._book = book

    def abandon(self) -> HolderFile | None:
        """The control plane has closed the holder: nothing may be spent from it any more. Its file."""
        with self._lock:
            book, self._book = self._book, None
        return None if book is None else book.file

    def finished(self) -> list[Book]:
        """Retired holders of which nothing is on its way into the journal any more."""
        with self._lock:
            return [book for book in self._retired if not book.taken]

    def forget(self, book: Book) -> None:
        """A retired holder is closed."""
        with self._lock:
            self._retired.remove(book)

    def wishes(self) -> bool:
        """Whether slices are to be asked for."""
        return bool(self._wishes)

    def message(self) -> Message | None:
        """What is to be said to the control plane."""
        with self._lock:
            book = self._book
            if book is None:
                return None
            wishes, self._wishes = self._wishes, {}
            for account, wish in wishes.items():
                book.holder.ask(account, wish.least, wish.want)
                if wish.currency:
                    book.currencies[account] = wish.currency
            book.spent = False
            return book.holder.message()

    def absorb(self, book: Book, answer: Answer, numbers: dict[tuple[Account, int], int]) -> None:
        """Takes over what was granted; `numbers` of its accounts are in the holder's file."""
        now = time.monotonic()
        with self._lock:
            book.numbers.update(numbers)
            book.holder.absorb(answer)
            for each in answer.slices:
                book.used_at[each.account] = now
                if each.currency:
                    # The first stays: in one period, the control plane grants in no other.
                    book.granted_in.setdefault((each.account, each.period), each.currency)
                self._heard.append((now, each.account))
                self._awaited.pop(each.account, None)
                self._ahead.discard(each.account)

    def answered(self, message: Message) -> None:
        """All of the message was answered: nobody need wait for more."""
        with self._lock:
            for ask in message.asks:
                self._awaited.pop(ask.account, None)
                self._ahead.discard(ask.account)

    def failed(self, book: Book, message: Message, down_s: float) -> None:
        """Nothing is known of what became of the message. For so long, nobody need wait for a slice."""
        with self._lock:
            book.holder.failed(message)
            book.spent = True
            self._fail(down_s)

    def fail(self, down_s: float) -> None:
        """There is no holder to ask for."""
        with self._lock:
            self._wishes.clear()
            self._fail(down_s)

    def _fail(self, down_s: float) -> None:
        self._down_until = time.monotonic() + down_s
        self._awaited.clear()
        self._ahead.clear()

    def tidy(self, idle_s: float, heard_s: float, warm_s: float) -> None:
        """Gives back what was not used for `idle_s`, and forgets what was heard of others longer than `heard_s` ago. Of an
        account that is used again and again, one more use is kept for `warm_s`."""
        now = time.monotonic()
        with self._lock:
            book = self._book
            while self._heard and now - self._heard[0][0] > heard_s:
                _, account = self._heard.popleft()
                if book is not None:
                    book.holder.forget_left(account)
            if book is None:
                return
            busy = {account for account, _ in book.taken}
            for account in [each for each, at in book.used_at.items() if now - at > idle_s and each not in busy]:
                used = self._used.get(account)
                warm = used is not None and used.again and now - used.at <= warm_s
                if not warm:
                    del book.used_at[account]
                if book.holder.give_back(account, used.room if used is not None and warm else NOTHING) != NOTHING:
                    book.spent = True

    def close(self) -> None:
        """No more slices are asked for; for when the loops have ended."""
        with self._lock:
            self._closed = True
            self._awaited.clear()
            self._wishes.clear()
