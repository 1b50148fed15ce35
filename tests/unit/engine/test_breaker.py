"""The class breaker: when it trips, how it reopens, and what never happens."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.breaker import MAX_WAIT_S, Breaker, Limits, Phase, advance, resume, suspend
from engine.estimate import Estimate, Samples, estimate

LIMITS = Limits(max_rate=0.1, min_samples=20, window_s=3600.0, reopen_after_s=600.0, steps=(0.5, 0.1))
NONE = estimate([])
GOOD = estimate([Samples(0.1, 100, 0)])
FAIR = estimate([Samples(0.1, 93, 7)])
BAD = estimate([Samples(0.1, 60, 40)])
# Above the limit, but it may be chance.
UNLUCKY = estimate([Samples(0.1, 22, 3)])


def test_it_trips_only_when_chance_cannot_explain_it() -> None:
    assert advance(Breaker(), LIMITS, UNLUCKY, 10.0).phase is Phase.CLOSED
    assert advance(Breaker(), LIMITS, BAD, 10.0) == Breaker(Phase.SUSPENDED, 10.0, trips=1)


def test_few_samples_do_not_trip_it() -> None:
    assert advance(Breaker(), LIMITS, Estimate(1.0, 0.9, 1.0, 19), 10.0).phase is Phase.CLOSED


def test_it_reopens_in_steps() -> None:
    breaker = Breaker(Phase.SUSPENDED, 0.0, trips=1)
    assert advance(breaker, LIMITS, NONE, 599.0) == breaker
    breaker = advance(breaker, LIMITS, NONE, 600.0)
    assert breaker.phase is Phase.HALF_OPEN
    assert breaker.spot_check_rate(LIMITS) == 0.5
    assert advance(breaker, LIMITS, NONE, 9e9) == breaker
    breaker = advance(breaker, LIMITS, GOOD, 700.0)
    assert breaker.spot_check_rate(LIMITS) == 0.1
    assert breaker.counts_from(LIMITS, 800.0) == 700.0
    breaker = advance(breaker, LIMITS, GOOD, 800.0)
    assert breaker == Breaker(Phase.CLOSED, 800.0, trips=1)
    # What made it trip no longer counts.
    assert breaker.counts_from(LIMITS, 900.0) == 800.0
    assert advance(breaker, LIMITS, GOOD, 800.0 + 3600.0).trips == 0


def test_between_half_the_limit_and_the_limit_a_step_waits() -> None:
    breaker = Breaker(Phase.HALF_OPEN, 0.0, trips=1)
    assert advance(breaker, LIMITS, FAIR, 10.0) == breaker


def test_half_open_it_trips_on_the_rate_itself_and_waits_twice_as_long() -> None:
    breaker = advance(Breaker(Phase.HALF_OPEN, 0.0, trips=1), LIMITS, UNLUCKY, 10.0)
    assert breaker == Breaker(Phase.SUSPENDED, 10.0, trips=2)
    assert breaker.reopens_at(LIMITS) == 10.0 + 1200.0
    assert Breaker(Phase.SUSPENDED, 0.0, trips=99).reopens_at(LIMITS) == MAX_WAIT_S


def test_a_person_holds_it_until_a_person_resumes() -> None:
    breaker = suspend(Breaker(), 5.0)
    assert advance(breaker, LIMITS, GOOD, 1e12) == breaker
    assert resume(breaker, LIMITS, 6.0) == Breaker(Phase.HALF_OPEN, 6.0)
    assert resume(breaker, None, 6.0) == Breaker(Phase.CLOSED, 6.0)
    assert resume(Breaker(), LIMITS, 6.0) == Breaker()


def test_without_steps_it_closes_at_once() -> None:
    plain = LIMITS._replace(steps=())
    assert advance(Breaker(Phase.SUSPENDED, 0.0, trips=1), plain, NONE, 600.0).phase is Phase.CLOSED
    assert advance(Breaker(Phase.HALF_OPEN, 0.0, trips=1), plain, NONE, 600.0).phase is Phase.CLOSED


ESTIMATES = st.builds(
    lambda passed, failed: estimate([Samples(0.2, passed, failed)]), st.integers(0, 200), st.integers(0, 200)
)
EVENTS = st.lists(st.tuples(st.floats(0.0, 5_000.0), ESTIMATES), max_size=60)


@settings(deadline=None)
@given(EVENTS)
def test_invariants(events: list[tuple[float, Estimate]]) -> None:
    breaker, now = Breaker(), 0.0
    for pause_s, found in events:
        now += pause_s
        after = advance(breaker, LIMITS, found, now)
        # Closed only from half-open, at the last step, with enough good samples; half-open only after the wait.
        if breaker.phase is Phase.SUSPENDED:
            assert after.phase is not Phase.CLOSED
            due = breaker.reopens_at(LIMITS)
            assert due is not None
            assert (after.phase is Phase.HALF_OPEN) == (now >= due)
        if breaker.phase is Phase.HALF_OPEN and after.phase is Phase.CLOSED:
            assert breaker.step == len(LIMITS.steps) - 1
            assert found.rate <= LIMITS.max_rate / 2
        if after.phase is Phase.SUSPENDED and breaker.phase is not Phase.SUSPENDED:
            assert found.samples >= LIMITS.min_samples
            assert found.rate > LIMITS.max_rate
            assert after.trips == breaker.trips + 1
        assert after.since >= breaker.since
        assert 0 <= after.step < len(LIMITS.steps)
        # The same again, at the same time, trips nothing further: a replica that works on the same does no harm.
        if after.phase is Phase.SUSPENDED:
            assert advance(after, LIMITS, found, now) == after
        breaker = after


@settings(deadline=None)
@given(EVENTS)
def test_what_a_person_holds_stays_suspended(events: list[tuple[float, Estimate]]) -> None:
    breaker, now = suspend(Breaker(), 0.0), 0.0
    for pause_s, found in events:
        now += pause_s
        assert advance(breaker, LIMITS, found, now) == breaker
