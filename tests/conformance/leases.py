"""What a vector says a worker holds of budgets, as the gatherer asks for it."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from engine.escrow import Account
from engine.facts import BudgetHeld
from engine.money import NANOS
from tests.conformance.vectors import Vector, fixture, instant


def leases(vector: Vector) -> dict[Account, BudgetHeld]:
    """By account of the asking subject."""
    tenant = vector.request.get("tenant", fixture()["default_tenant"])
    subject = vector.request.get("subject", {}).get("id", "")
    held = {}
    for number, (grant, stated) in enumerate(sorted(vector.leases.items())):
        held[Account(tenant, grant, subject)] = BudgetHeld(
            holder="0123456789abcdef0123456789abcdef",
            slice=number,
            period=stated.get("period", 1),
            started_at=instant(stated["started"], vector.now).timestamp() if "started" in stated else None,
            uses=stated.get("uses", 0),
            nanos=_nanos(stated, "amount") or 0,
            left_uses=stated.get("left_uses"),
            left_nanos=_nanos(stated, "left_amount"),
        )
    return held


def _nanos(stated: dict[str, Any], key: str) -> int | None:
    return int(Decimal(stated[key]) * NANOS) if key in stated else None
