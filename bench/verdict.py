"""What a benchmark concludes: a ratio, how far it can be trusted, and whether it keeps to its budget."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Ratio(NamedTuple):
    """Ours over the other's. `low` and `high`: the middle half of what was seen lies between them."""

    value: float
    low: float
    high: float

    def verdict(self, budget: float) -> str:
        """`met` or `missed` if the whole middle half is on that side of the budget, else `inconclusive`."""
        if self.high <= budget:
            return "met"
        return "missed" if self.low > budget else "inconclusive"

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f}-{self.high:.2f})"


def middle_half(values: Sequence[float]) -> tuple[float, float]:
    """The quartiles that bound it."""
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    return lower, upper


def of_rounds(ours: Sequence[float], other: Sequence[float]) -> Ratio:
    """The median of the ratios of each round, of which there are two at least."""
    ratios = [mine / theirs for mine, theirs in zip(ours, other, strict=True)]
    return Ratio(statistics.median(ratios), *middle_half(ratios))
