"""Budgets in step 5 of the decision: whether what the holder has left covers this use, and what the use spends. Pure.

Uses and amounts count since the subject's last verified strong authentication, over all sidecars; what this worker may spend
of them is the slice in `BudgetHeld` (`engine.escrow`). Amounts are integers, so nothing is lost to rounding.
"""

from __future__ import annotations

from msgspec.structs import replace

from engine.decision import Code, Spend
from engine.facts import Budget, BudgetHeld, Facts, Grant


def refusal(budget: Budget, facts: Facts, clock_skew_s: float) -> Code | None:
    """Why the budget does not let this use pass; None if it does.

    BUDGET_NO_LEASE comes last, and only where a slice could still be had: a call refused by nothing else may wait for one.
    """
    nanos = 0
    if budget.counts_amounts:
        if facts.amount is None:
            return Code.BUDGET_AMOUNT_MISSING
        if facts.amount.currency != budget.currency:
            return Code.BUDGET_CURRENCY
        nanos = facts.amount.nanos
        if nanos < 0:
            return Code.BUDGET_AMOUNT_NEGATIVE
        if budget.max_nanos_per_use is not None and nanos > budget.max_nanos_per_use:
            return Code.BUDGET_PER_USE
        if budget.max_nanos is not None and nanos > budget.max_nanos:
            return Code.BUDGET_EXHAUSTED
    held = budget.held
    if held is None:
        return Code.BUDGET_NO_LEASE
    if budget.max_elapsed_s is not None:
        # A period that began with no authentication known of, or in the future, is too long ago.
        elapsed_s = None if held.started_at is None else facts.now - held.started_at
        if elapsed_s is None or not -clock_skew_s <= elapsed_s <= budget.max_elapsed_s:
            return Code.BUDGET_ELAPSED
    wanting = False
    # A slice in the currency the budget had before is worth nothing in this one.
    foreign = bool(held.currency) and held.currency != budget.currency
    for limit, have, left, need in (
        (budget.max_uses, held.uses, held.left_uses, 1),
        (budget.max_nanos, 0 if foreign else held.nanos, held.left_nanos, nanos),
    ):
        if limit is None or have >= need:
            continue
        if left is not None and have + left < need:
            return Code.BUDGET_EXHAUSTED
        wanting = True
    return Code.BUDGET_NO_LEASE if wanting else None


def spend(grant: Grant, facts: Facts) -> Spend | None:
    """What a use of the grant spends; None: the grant has no budget. `refusal` must have let it pass."""
    budget = grant.budget
    if budget is None or budget.held is None:
        return None
    held = budget.held
    nanos = facts.amount.nanos if budget.counts_amounts and facts.amount is not None else 0
    expires_at = None
    if budget.max_elapsed_s is not None and held.started_at is not None:
        expires_at = held.started_at + budget.max_elapsed_s
    return Spend(
        grant.id,
        held.holder,
        held.slice,
        held.period,
        1,
        nanos,
        budget.currency,
        None if budget.max_uses is None else held.uses - 1 + (held.left_uses or 0),
        None if budget.max_nanos is None else held.nanos - nanos + (held.left_nanos or 0),
        expires_at,
    )


def ample(grant: Grant, now: float) -> Grant:
    """The grant as if enough of its budget were held, in the period that is held or else one that began just now."""
    budget = grant.budget
    if budget is None:
        return grant
    held = budget.held or BudgetHeld("", 0, 0, now)
    enough = replace(
        held, uses=1, nanos=budget.max_nanos or 0, left_uses=None, left_nanos=None, currency=budget.currency
    )
    return replace(grant, budget=replace(budget, held=enough))


def with_leases(facts: Facts, clock_skew_s: float) -> Facts | None:
    """The facts as if a slice were held of every budget that lacks nothing else; None: there is no such budget."""
    wanting = False

    def leased(grants: tuple[Grant, ...]) -> tuple[Grant, ...]:
        nonlocal wanting
        made = []
        for grant in grants:
            lacks = grant.budget is not None and refusal(grant.budget, facts, clock_skew_s) is Code.BUDGET_NO_LEASE
            wanting |= lacks
            made.append(ample(grant, facts.now) if lacks else grant)
        return tuple(made)

    grants = leased(facts.grants)
    candidates = tuple(replace(candidate, grants=leased(candidate.grants)) for candidate in facts.candidates)
    return replace(facts, grants=grants, candidates=candidates) if wanting else None
