"""Amounts of money as exact integers: billionths of a currency's unit. Never floats."""

from __future__ import annotations

import re

NANOS = 1_000_000_000
# The most a budget may be: a thousand million units. A record keeps amounts as 64-bit integers.
MAX_BUDGET_NANOS = 10**9 * NANOS
_SATURATED = 2**63 - 1
_CURRENCY = re.compile(r"[A-Z]{3}")


def to_nanos(units: int, nanos: int) -> int:
    """Units and billionths together."""
    return units * NANOS + nanos


def saturated(nanos: int) -> int:
    """The amount as far as 64 bits go: beyond them it is above every budget, or below zero, as it was."""
    return max(-_SATURATED, min(nanos, _SATURATED))


def from_nanos(nanos: int) -> tuple[int, int]:
    """(units, billionths), both with the sign of the amount."""
    units, rest = divmod(abs(nanos), NANOS)
    return (units, rest) if nanos >= 0 else (-units, -rest)


def is_currency(currency: str) -> bool:
    """Whether it is three upper-case letters, as in ISO 4217."""
    return _CURRENCY.fullmatch(currency) is not None


def format_nanos(nanos: int, currency: str) -> str:
    """`99.50 EUR`: at least two digits after the point, more only where they are needed."""
    units, rest = divmod(abs(nanos), NANOS)
    digits = f"{rest:09d}".rstrip("0").ljust(2, "0")
    return f"{'-' if nanos < 0 else ''}{units}.{digits} {currency}".rstrip()
