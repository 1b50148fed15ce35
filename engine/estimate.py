"""The rate of abuse among exemptions, from spot checks that were drawn at known rates.

A decision that a spot check withheld stands for 1/rate decisions like it (Horvitz and Thompson 1952), so the estimate is unbiased
also where the rate changed in between. The interval is Wilson's score interval (1927) for the effective number of samples
(Kish 1965): with equal rates, simply for their number. It never leaves 0-1 and is of use for few samples, unlike the normal one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final, NamedTuple

Z_95: Final = 1.6448536269514722
"""One-sided 95 %: each bound is wrong once in twenty."""


class Samples(NamedTuple):
    """Spot checks that were drawn at one rate: how many came to which end. `rate`: 0-1, greater than 0."""

    rate: float
    passed: int
    # Failed, and given up: who cannot pass gives up.
    failed: int


class Estimate(NamedTuple):
    """Rates are 0-1. `samples`: spot checks with an outcome. Without any, the interval is everything there is."""

    rate: float
    lower: float
    upper: float
    samples: int


def estimate(groups: Iterable[Samples], z: float = Z_95) -> Estimate:
    """The rate of abuse in all that the samples stand for. Groups without a possible rate or without samples do not count."""
    count, weight, square, abuse = 0, 0.0, 0.0, 0.0
    for group in groups:
        size = group.passed + group.failed
        if size <= 0 or not 0.0 < group.rate <= 1.0:
            continue
        each = 1.0 / group.rate
        count += size
        weight += size * each
        square += size * each * each
        abuse += group.failed * each
    if not count:
        return Estimate(0.0, 0.0, 1.0, 0)
    rate = min(1.0, abuse / weight)
    lower, upper = wilson(rate, weight * weight / square, z)
    return Estimate(rate, lower, upper, count)


def wilson(rate: float, samples: float, z: float = Z_95) -> tuple[float, float]:
    """Wilson's score interval around a rate that was found in so many samples (> 0)."""
    spread = z * z / samples
    middle = (rate + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(rate * (1 - rate) / samples + spread / (4 * samples))
    return max(0.0, min(rate, middle - half)), min(1.0, max(rate, middle + half))
