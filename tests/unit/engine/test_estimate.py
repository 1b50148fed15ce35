"""The estimate of abuse: unbiased over rates, and an interval that holds what it says."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.estimate import Estimate, Samples, estimate, wilson

GROUPS = st.lists(st.builds(Samples, st.floats(0.001, 1.0), st.integers(0, 500), st.integers(0, 500)), max_size=5)


def test_without_samples_nothing_is_known() -> None:
    assert estimate([]) == Estimate(0.0, 0.0, 1.0, 0)
    assert estimate([Samples(0.0, 5, 5), Samples(2.0, 1, 1), Samples(0.5, 0, 0)]).samples == 0


def test_equal_rates_are_plain_shares() -> None:
    found = estimate([Samples(0.01, 90, 10)])
    assert found.rate == pytest.approx(0.1)
    assert (found.lower, found.upper) == pytest.approx(wilson(0.1, 100))


def test_a_rare_draw_stands_for_more() -> None:
    # 10 of 100 at 1 in 10, none of 100 at 1 in 1: 100 bad of 1,100.
    assert estimate([Samples(0.1, 90, 10), Samples(1.0, 100, 0)]).rate == pytest.approx(100 / 1100)


@settings(deadline=None)
@given(GROUPS)
def test_the_interval_holds_the_rate(groups: list[Samples]) -> None:
    found = estimate(groups)
    assert 0.0 <= found.lower <= found.rate <= found.upper <= 1.0 or found.samples == 0


@settings(deadline=None)
@given(st.integers(1, 400), st.floats(0, 1))
def test_more_samples_narrow_it(samples: int, rate: float) -> None:
    lower, upper = wilson(rate, samples)
    closer, near = wilson(rate, samples * 4)
    assert near - closer <= upper - lower + 1e-12


def test_it_is_unbiased_though_the_rate_of_checks_rises_with_the_abuse() -> None:
    # A raw share would say far too much: the bad days are checked ten times as often.
    chance = random.Random(7)
    found, raw, rounds = 0.0, 0.0, 200
    truth = (4_000 * 0.02 + 1_000 * 0.3) / 5_000
    for _ in range(rounds):
        groups = []
        for size, abuse, rate in ((4_000, 0.02, 0.05), (1_000, 0.3, 0.5)):
            drawn = sum(chance.random() < rate for _ in range(size))
            failed = sum(chance.random() < abuse for _ in range(drawn))
            groups.append(Samples(rate, drawn - failed, failed))
        found += estimate(groups).rate / rounds
        raw += sum(group.failed for group in groups) / sum(sum(group[1:]) for group in groups) / rounds
    assert found == pytest.approx(truth, rel=0.05)
    assert raw > 2 * truth


def test_the_lower_bound_is_rarely_above_the_truth() -> None:
    chance = random.Random(3)
    wrong = 0
    for _ in range(1_000):
        failed = sum(chance.random() < 0.05 for _ in range(100))
        wrong += estimate([Samples(0.1, 100 - failed, failed)]).lower > 0.05
    assert wrong <= 90
