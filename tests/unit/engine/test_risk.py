from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.facts import Signal
from engine.risk import KINDS, combine, weighted

SIGNALS = st.lists(st.builds(Signal, st.sampled_from(KINDS), st.floats(0, 100)), max_size=8)


def test_within_a_kind_the_highest_counts_and_across_kinds_they_add_as_independent_evidence() -> None:
    risk = combine([Signal("network", 20), Signal("network", 50), Signal("asn", 50)])
    assert (risk.network, risk.asn, risk.country) == (50, 50, 0)
    assert risk.score == 75


def test_nothing_found_is_zero_and_unchecked_is_unknown() -> None:
    assert combine(()).score == 0.0
    risk = combine([Signal("network", 90)], unchecked=["device"])
    assert (risk.score, risk.device, risk.network) == (None, None, 90)
    # Unchecked wins over what was found of the same kind.
    assert combine([Signal("asn", 90)], unchecked=["asn"]).asn is None


@pytest.mark.parametrize(
    ("score", "confidence", "result"), [(80, 50, 40), (100, 100, 100), (120, 100, 100), (-5, 100, 0), (50, 200, 50)]
)
def test_confidence_weighs(score: float, confidence: float, result: float) -> None:
    assert weighted(score, confidence) == result


@pytest.mark.parametrize("score", range(101))
def test_a_lone_score_is_exactly_itself(score: int) -> None:
    """A limit is inclusive: 30 must not come out as 30.000000000000004."""
    assert combine([Signal("network", float(score))]).score == score


@given(SIGNALS, SIGNALS)
def test_no_further_signal_ever_lowers_a_score(some: list[Signal], more: list[Signal]) -> None:
    fewer, all_of_them = combine(some), combine([*some, *more])
    assert fewer.score is not None
    assert all_of_them.score is not None
    assert 0.0 <= fewer.score <= all_of_them.score + 1e-9
    assert all_of_them.score <= 100.0 + 1e-9
    assert all_of_them.score >= max((s.score for s in [*some, *more]), default=0.0)
