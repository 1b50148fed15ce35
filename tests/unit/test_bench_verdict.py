"""What a benchmark may conclude from its rounds."""

from __future__ import annotations

import pytest

from bench.verdict import Ratio, of_rounds


def test_the_median_of_the_rounds_counts_with_the_middle_half_as_its_spread() -> None:
    # Each round against its own other side: a machine that was slow for one of them does not matter.
    ratio = of_rounds([10.0, 20.0, 33.0, 40.0, 500.0], [100.0, 100.0, 100.0, 100.0, 1000.0])
    assert ratio == pytest.approx((0.33, 0.20, 0.40))


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(0.2, 0.33, "met"), (0.3, 0.4, "inconclusive"), (0.34, 0.4, "missed")]
)
def test_a_budget_is_met_or_missed_by_the_whole_middle_half(low: float, high: float, verdict: str) -> None:
    assert Ratio(0.33, low, high).verdict(1 / 3) == verdict
