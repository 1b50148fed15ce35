"""The lease protocol over many schedules of a hostile world, and the same world with broken protocols, which it must notice."""

from __future__ import annotations

import pytest

from tests.model.escrow import ViolationError, World
from tests.model.mutants import MUTANTS, Mutant, broken

# Schedules of one test, and how many such tests there are for `make e2e` (100,000 schedules together with the quick ones).
_QUICK = 2_000
_SLICE = 10_000
_SLICES = 10
# A mutant must be noticed within so many.
_ENOUGH = 10_000


def _explore(first: int, count: int) -> None:
    for seed in range(first, first + count):
        try:
            World(seed).run()
        except ViolationError as error:
            raise AssertionError(f"schedule {seed}: {error}") from error


def test_no_schedule_overspends_or_leaks() -> None:
    _explore(0, _QUICK)


@pytest.mark.e2e
@pytest.mark.parametrize("part", range(_SLICES))
def test_no_schedule_of_a_hundred_thousand_overspends_or_leaks(part: int) -> None:
    _explore(1_000_000 + part * _SLICE, _SLICE)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_broken_protocol_is_noticed(mutant: Mutant) -> None:
    holder, ledger = broken(mutant)
    for seed in range(_ENOUGH):
        try:
            World(seed, holder, ledger).run()
        except ViolationError:
            return
    pytest.fail(f"{mutant.name} got through {_ENOUGH} schedules")


def test_a_holder_id_that_two_processes_use_is_noticed() -> None:
    for seed in range(_ENOUGH):
        try:
            World(seed, reuse_id=True).run()
        except ViolationError:
            return
    pytest.fail("two processes with one holder id got through")


def test_the_schedules_reach_what_matters() -> None:
    """A world in which nothing happens would notice nothing."""
    worlds = [World(seed) for seed in range(300)]
    for world in worlds:
        world.run()
    assert sum(len(world.decisions) for world in worlds) > 300
    assert any(world.lost for world in worlds)
    assert any(world.tables.closed for world in worlds)
    assert any(period.number > 2 for world in worlds for period in world.tables.periods.values())
    assert any(not executed for world in worlds for executed in world.tables.settlements.values())
    assert any(row.returned.uses for world in worlds for row in world.tables.rows.values())
    assert any(
        totals.taken.uses >= terms.uses > 1
        for world in worlds
        for (account, _), totals in world.tables.totals.items()
        if (terms := world.tables.terms[account.tenant, account.grant]) is not None and terms.uses is not None
    )
