"""Token buckets: how many pass, what comes back, what a flood of keys can and cannot do."""

from __future__ import annotations

import gc
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.facts import Device
from sidecar.guard.buckets import Buckets, Limit, Limits, RateLimitedError, wait_s
from sidecar.guard.guards import Guards
from tests.unit.guard.asked import BOUND, NOW, RECOGNISED, UNKNOWN, asked, rules

RULES = rules()
LIMIT = Limit(per_second=1.0, burst=3, hard_factor=2.0)


def over(guards: Guards, subject: str = "alice", device: Device = BOUND, at: float = 0.0, caller: str = "") -> str:
    limits = Limits(subject=LIMIT)
    gathered = asked(RULES, subject=subject, device=device, at=at, limits=limits)
    return guards.examine(gathered, caller).gathered.facts.rate_limited


def test_a_burst_passes_and_then_one_a_second() -> None:
    buckets = Buckets(8)
    assert [buckets.take("k", LIMIT, NOW) for _ in range(5)] == [False, False, False, True, True]
    assert [buckets.take("k", LIMIT, NOW + 1.0) for _ in range(2)] == [False, True]
    assert [buckets.take("k", LIMIT, NOW + 100.0) for _ in range(4)] == [False, False, False, True]


def test_hard_limit_refuses_and_says_when_to_come_back() -> None:
    guards = Guards()
    for _ in range(6):
        over(guards)
    with pytest.raises(RateLimitedError) as refused:
        over(guards)
    assert refused.value.kind == "subject"
    assert refused.value.retry_after_s == pytest.approx(0.5, abs=1e-6)
    with pytest.raises(RateLimitedError):
        over(guards, at=0.49)
    assert over(guards, at=0.51) in ("", "subject")


@settings(max_examples=200, deadline=None)
@given(
    gaps=st.lists(st.floats(0, 5), min_size=1, max_size=60),
    rate=st.floats(0.1, 100),
    burst=st.integers(1, 20),
)
def test_never_more_than_the_burst_and_what_came_back(gaps: list[float], rate: float, burst: int) -> None:
    buckets, limit = Buckets(8), Limit(rate, burst)
    now, passed = NOW, 0
    for gap in gaps:
        now += gap
        passed += not buckets.take("k", limit, now)
    assert passed <= burst + rate * (now - NOW) + 1e-3
    assert passed >= 1


def test_clock_that_goes_back_costs_at_most_one_bucket() -> None:
    buckets = Buckets(8)
    for _ in range(3):
        buckets.take("k", LIMIT, NOW)
    assert buckets.take("k", LIMIT, NOW - 86400.0)
    assert not buckets.take("k", LIMIT, NOW - 86400.0 + 3.0)


def test_pushing_ones_own_bucket_out_gives_no_new_tokens() -> None:
    buckets = Buckets(16)
    slow = Limit(0.001, 3)
    for _ in range(3):
        buckets.take("attacker", slow, NOW)
    for number in range(100):
        buckets.take(f"other-{number}", slow, NOW)
    assert buckets.take("attacker", slow, NOW + 1.0)


def test_nobody_is_refused_for_what_other_keys_used_up() -> None:
    buckets = Buckets(16)
    slow = Limit(0.001, 1, 1.0)
    for number in range(60_000):
        buckets.take(f"other-{number}", slow, NOW)
    fresh = [f"victim-{number}" for number in range(200)]
    assert any(buckets.empty(key, slow, NOW) for key in fresh)  # they share notes, at this load
    assert all(wait_s(buckets.held(key), slow, NOW) == 0.0 for key in fresh)


def test_kinds_of_evidence_have_buckets_apart() -> None:
    guards = Guards()
    for _ in range(4):
        over(guards, device=UNKNOWN)
    assert over(guards, device=RECOGNISED) == ""
    assert over(guards, device=BOUND) == ""


def test_recognised_device_is_held_to_what_the_bound_one_used_up() -> None:
    guards = Guards()
    for _ in range(4):
        over(guards, device=BOUND)
    assert over(guards, device=RECOGNISED) == "subject"


def test_callers_have_limits_of_their_own() -> None:
    guards = Guards()
    limits = Limits(caller=Limit(0.001, 1, 1.0))
    guards.examine(asked(RULES, limits=limits), "shop")
    guards.examine(asked(RULES, limits=limits), "bank")
    with pytest.raises(RateLimitedError):
        guards.examine(asked(RULES, subject="bob", limits=limits), "shop")


def test_refused_request_takes_no_token_elsewhere() -> None:
    guards = Guards()
    limits = Limits(subject=Limit(0.001, 5, 1.0), caller=Limit(0.001, 1, 1.0))
    guards.examine(asked(RULES, subject="alice", limits=limits), "shop")
    for _ in range(20):
        with pytest.raises(RateLimitedError):
            guards.examine(asked(RULES, subject="alice", limits=limits), "shop")
    for number in range(4):
        assert guards.examine(asked(RULES, subject="alice", limits=limits), f"other-{number}")


def test_memory_is_bounded_however_many_keys_there_are() -> None:
    flood(entries=1024, keys=50_000)


@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_memory_is_bounded_with_ten_million_keys() -> None:
    flood(entries=8192, keys=10_000_000)


def flood(entries: int, keys: int) -> None:
    tracemalloc.start()
    try:
        buckets = Buckets(entries)
        for number in range(2 * entries):
            buckets.take(("acme", number), LIMIT, NOW)
        gc.collect()
        full, _ = tracemalloc.get_traced_memory()
        for number in range(keys):
            buckets.take(("acme", number), LIMIT, NOW)
        gc.collect()
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(buckets) == entries
    assert full < entries * 400 + (1 << 20)
    assert after < 1.2 * full
    assert peak < 1.5 * full
