"""The options of `sidestep grant put` and `request` that give a grant a budget."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

import click
from sidestep.v1 import resources_pb2 as pb

from controlplane.cli.values import DURATION
from engine.money import NANOS, from_nanos

_AMOUNT = re.compile(r"(\d{1,10}(?:\.\d{1,9})?) ?([A-Z]{3})")
_EUR = 1_000_000_000
# PSD2 RTS Article 16, remote low-value payments: 30 EUR each, and 100 EUR in all or five payments since the last strong customer
# authentication. The article lets the provider choose between the two; `psd2` holds to both.
PRESETS: dict[str, dict[str, Any]] = {
    "psd2": {"max_uses": 5, "max_amount": ("EUR", 100 * _EUR), "max_per_use": ("EUR", 30 * _EUR)},
    "psd2-amount": {"max_amount": ("EUR", 100 * _EUR), "max_per_use": ("EUR", 30 * _EUR)},
    "psd2-count": {"max_uses": 5, "max_per_use": ("EUR", 30 * _EUR)},
}


class _AmountType(click.ParamType[tuple[str, int]]):
    """`30.50EUR`: currency and billionths."""

    name = "amount"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        """Exact: never through a float."""
        if isinstance(value, tuple):
            return value
        read = _AMOUNT.fullmatch(value)
        if read is None:
            self.fail(f"{value!r} is not an amount such as 30.50EUR", param, ctx)
        return read[2], int(Decimal(read[1]) * NANOS)


AMOUNT = _AmountType()
OPTIONS = (
    click.option("--budget", "preset", type=click.Choice(list(PRESETS)), help="Limits of PSD2 RTS Article 16."),
    click.option("--max-uses", type=click.IntRange(1), help="Budget: uses since the last strong authentication."),
    click.option("--max-amount", type=AMOUNT, help="Budget: all uses together (`100EUR`)."),
    click.option("--max-per-use", type=AMOUNT, help="Budget: each use (`30EUR`)."),
    click.option("--max-elapsed", type=DURATION, help="Budget: time since the last strong authentication (`90d`)."),
)


def stated_budget(given: dict[str, Any]) -> pb.Budget | None:
    """The budget that the options state; an option given beside a preset counts before it. None: there is none."""
    names = ("max_uses", "max_amount", "max_per_use", "max_elapsed")
    stated = dict(PRESETS.get(given["preset"] or "", {}))
    stated |= {name: given[name] for name in names if given[name] is not None}
    if not stated:
        return None
    budget = pb.Budget(max_count=stated.get("max_uses", 0))
    for name in ("max_amount", "max_per_use"):
        if name in stated:
            currency, nanos = stated[name]
            units, rest = from_nanos(nanos)
            getattr(budget, name).CopyFrom(pb.Amount(currency=currency, units=units, nanos=rest))
    if "max_elapsed" in stated:
        budget.max_elapsed.FromNanoseconds(int(stated["max_elapsed"] * 1e9))
    return budget
