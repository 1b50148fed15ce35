"""What a grant's budget must satisfy before it is stored. Errors name the field."""

from __future__ import annotations

from sidestep.v1 import resources_pb2 as pb

from controlplane.budgets import nanos_of
from engine.errors import InvalidInputError
from engine.money import MAX_BUDGET_NANOS, NANOS, is_currency

MAX_USES = 10**9
# Ten years: longer than any strong authentication should be remembered for.
MAX_ELAPSED_S = 10 * 366 * 86400


def check_budget(budget: pb.Budget, field: str) -> None:
    """Raises InvalidInputError for a budget that limits nothing, or by what cannot be."""
    if budget.max_count > MAX_USES:
        raise InvalidInputError(f"{field}.max_count", f"more than {MAX_USES}")
    amounts = [name for name in ("max_amount", "max_per_use") if budget.HasField(name)]
    for name in amounts:
        _check_amount(getattr(budget, name), f"{field}.{name}")
    if len(amounts) == 2:
        if budget.max_amount.currency != budget.max_per_use.currency:
            raise InvalidInputError(f"{field}.max_per_use.currency", "is not that of max_amount")
        if nanos_of(budget.max_per_use) > nanos_of(budget.max_amount):
            raise InvalidInputError(f"{field}.max_per_use", "is more than max_amount")
    if budget.HasField("max_elapsed"):
        span = budget.max_elapsed
        if not 0 <= span.nanos < NANOS or not 0 < span.seconds + span.nanos / NANOS <= MAX_ELAPSED_S:
            raise InvalidInputError(f"{field}.max_elapsed", "is not above 0 and at most ten years")
    if not (budget.max_count or amounts or budget.HasField("max_elapsed")):
        raise InvalidInputError(field, "limits nothing: give max_count, max_amount, max_per_use or max_elapsed")


def _check_amount(amount: pb.Amount, field: str) -> None:
    if not is_currency(amount.currency):
        raise InvalidInputError(f"{field}.currency", "is required: an ISO 4217 code in upper case")
    if not 0 <= amount.nanos < NANOS or amount.units < 0:
        raise InvalidInputError(field, "must be positive, its nanos below one unit")
    if not 0 < nanos_of(amount) <= MAX_BUDGET_NANOS:
        raise InvalidInputError(field, f"is not above 0 and at most {MAX_BUDGET_NANOS // NANOS} units")
