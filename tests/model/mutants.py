"""Broken variants of the lease protocol: each breaks one rule in one line, and the model must notice."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import engine.books
import engine.escrow
from engine.books import Ledger
from engine.escrow import Holder


class Mutant(NamedTuple):
    """One line of a module, and what stands there instead."""

    name: str
    module: str
    line: str
    instead: str


MUTANTS = (
    # The holder
    Mutant(
        "answers-add-up",
        "escrow",
        "period.granted = period.granted.most(found.granted)",
        "period.granted = period.granted.plus(found.granted)",
    ),
    Mutant(
        "returned-is-kept",
        "escrow",
        "return self.granted.minus(self.returned).minus(self.spent)",
        "return self.granted.minus(self.spent)",
    ),
    Mutant(
        "spent-is-kept",
        "escrow",
        "return self.granted.minus(self.returned).minus(self.spent)",
        "return self.granted.minus(self.returned)",
    ),
    Mutant(
        "a-failed-report-is-forgotten", "escrow", "self._accounts[standing.account].dirty.add(standing.period)", "pass"
    ),
    Mutant("a-failed-ask-is-forgotten", "escrow", "self._accounts[ask.account].doubtful = True", "pass"),
    Mutant(
        "an-old-period-counts-for-the-new",
        "escrow",
        "period = held.periods.setdefault(found.period, _Period(found.started_at))",
        "period = held.periods.setdefault(max(held.current(), found.period), _Period(found.started_at))",
    ),
    Mutant(
        "undone-twice",
        "escrow",
        "held.periods[period].spent = held.periods[period].spent.minus(room)",
        "held.periods[period].spent = held.periods[period].spent.minus(room).minus(room)",
    ),
    Mutant(
        "returned-before-it-is-booked",
        "escrow",
        "period.returned = period.returned.plus(excess)",
        "period.returned = period.returned.plus(excess).plus(excess)",
    ),
    # The books
    Mutant(
        "only-what-is-spent-is-taken",
        "books",
        "return self.granted.minus(self.returned).most(self.spent).most(self.cancelled)",
        "return self.spent.most(self.cancelled)",
    ),
    Mutant(
        "a-later-bound-forgets",
        "books",
        "return self.granted.minus(self.returned).most(self.spent).most(self.cancelled)",
        "return self.granted.minus(self.returned)",
    ),
    Mutant("a-repeated-ask-is-granted", "books", " or sequence <= before_it", ""),
    Mutant(
        "reports-add-up",
        "books",
        "row.returned = row.returned.most(standing.returned.least(row.granted))",
        "row.returned = row.returned.plus(standing.returned).least(row.granted)",
    ),
    Mutant("a-close-believes-the-last-report", "books", "row.spent = row.spent.most(proved)", "pass"),
    Mutant(
        "a-close-returns-nothing",
        "books",
        "row.returned = row.returned.most(row.granted.minus(row.spent.most(row.cancelled)))",
        "pass",
    ),
    Mutant("a-closed-holder-is-served", "books", "self.closed.add((tenant, holder))", "pass"),
    Mutant("a-close-adds-up", "books", "row.spent = row.spent.most(proved)", "row.spent = row.spent.plus(proved)"),
    Mutant("settled-again", "books", "if before is not None:", "if False:"),
    Mutant("cancelled-after-executed", "books", "if before is not None:", "if before is False:"),
    Mutant("executed-gives-back", "books", "if not settling.executed:", "if True:"),
    Mutant(
        "given-back-to-the-current-period",
        "books",
        "key = (settling.holder, settling.account, settling.period)",
        "key = (settling.holder, settling.account, self.period(settling.account).number)",
    ),
    Mutant(
        "cancelled-is-not-given-back",
        "books",
        "free = totals.cancelled.minus(totals.taken)",
        "free = NOTHING.minus(totals.taken)",
    ),
    Mutant(
        "a-report-counts-for-the-current-period",
        "books",
        "key = (holder, standing.account, standing.period)",
        "key = (holder, standing.account, self.period(standing.account).number)",
    ),
    Mutant(
        "more-than-is-left",
        "books",
        "given.append(min(free, max(least, min(want, max(fair, 0)))))",
        "given.append(max(least, want))",
    ),
    Mutant(
        "what-is-taken-is-still-left",
        "books",
        "0 if terms.uses is None else terms.uses + free.uses",
        "0 if terms.uses is None else terms.uses",
    ),
    Mutant(
        "totals-forget-a-row",
        "books",
        "totals.taken = totals.taken.plus(row.taken().minus(before.taken()))",
        "totals.taken = totals.taken.plus(row.taken().minus(before.taken())) if self.changed_rows == {key} else totals.taken",
    ),
)


def broken(mutant: Mutant) -> tuple[type[Holder], type[Ledger]]:
    """The two halves with the mutant's line. Raises LookupError if there is no such line: the list must be kept up."""
    halves: dict[str, ModuleType] = {"escrow": engine.escrow, "books": engine.books}
    path = Path(halves[mutant.module].__file__ or "")
    source = path.read_text(encoding="utf-8")
    if mutant.line not in source:
        raise LookupError(f"{mutant.name}: there is no line {mutant.line!r} in {path.name}")
    name = f"tests.model.broken_{mutant.module}"
    halves[mutant.module] = sys.modules[name] = ModuleType(name)
    try:
        exec(compile(source.replace(mutant.line, mutant.instead), str(path), "exec"), sys.modules[name].__dict__)
    finally:
        del sys.modules[name]
    return halves["escrow"].Holder, halves["books"].Ledger
