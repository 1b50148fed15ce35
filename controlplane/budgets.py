"""Budgets as records: whether a change of one lets more pass. Pure."""

from __future__ import annotations

from sidestep.v1 import resources_pb2 as pb

from engine.money import to_nanos


def nanos_of(amount: pb.Amount) -> int:
    """An amount in billionths of its unit."""
    return to_nanos(amount.units, amount.nanos)


def widens(before: pb.Grant, after: pb.Grant) -> bool:
    """Whether a changed grant's budget lets anything pass that the former did not:
    such a change is one of the grant's bounds, and may need a second person."""
    if not after.HasField("budget"):
        return before.HasField("budget")
    if not before.HasField("budget"):
        return False
    old, new = before.budget, after.budget
    if old.max_count and not 0 < new.max_count <= old.max_count:
        return True
    for name in ("max_amount", "max_per_use"):
        if old.HasField(name):
            was, will = getattr(old, name), getattr(new, name)
            if not new.HasField(name) or was.currency != will.currency or nanos_of(will) > nanos_of(was):
                return True
    if not old.HasField("max_elapsed"):
        return False
    return not new.HasField("max_elapsed") or new.max_elapsed.ToNanoseconds() > old.max_elapsed.ToNanoseconds()
