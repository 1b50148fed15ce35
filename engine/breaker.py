"""The class breaker: suspends a class of grants whose rate of abuse has passed its limit, and reopens it slowly. Pure.

    CLOSED ──trips──> SUSPENDED ──after a time──> HALF_OPEN ──all steps passed──> CLOSED
                          ^──────────trips────────────┘

It trips when even the lower bound of the rate is above the limit, so that chance does not suspend a class. While it is
half-open, more exemptions are drawn for a spot check, step by step fewer, and it is stricter both ways: a step is passed only at
half the limit or less, and a rate above the limit trips it at once. Each time that happens it waits twice as long. Suspended by
a person it stays suspended until a person resumes it.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple

from engine.estimate import Estimate

MAX_STEPS: Final = 8
MAX_WAIT_S: Final = 7 * 86400.0
HYSTERESIS: Final = 0.5
"""Share of the limit that a step must stay within to be passed."""
DEFAULT_STEPS: Final = (0.5, 0.2, 0.05)


class Phase(Enum):
    """Where a breaker stands."""

    CLOSED = "closed"
    SUSPENDED = "suspended"
    HALF_OPEN = "half_open"


class Limits(NamedTuple):
    """Of one class. Rates 0-1, times seconds. `steps`: spot-check rates of the half-open phase, in falling order."""

    max_rate: float
    min_samples: int
    window_s: float
    reopen_after_s: float
    steps: tuple[float, ...] = DEFAULT_STEPS


class Breaker(NamedTuple):
    """The state of one class. `since`: when phase or step began; only samples after it count while half-open."""

    phase: Phase = Phase.CLOSED
    since: float = 0.0
    # Of Limits.steps, while half-open.
    step: int = 0
    # Times it tripped without being closed for a whole window in between.
    trips: int = 0
    # A person suspended it.
    held: bool = False

    def counts_from(self, limits: Limits, now: float) -> float:
        """Samples from then on are what `advance` must be told of."""
        if self.phase is Phase.CLOSED:
            # Not what made it trip before.
            return max(now - limits.window_s, self.since)
        return self.since

    def spot_check_rate(self, limits: Limits) -> float:
        """The least share of exemptions to draw; 0 unless it is half-open."""
        if self.phase is not Phase.HALF_OPEN or not limits.steps:
            return 0.0
        return limits.steps[min(self.step, len(limits.steps) - 1)]

    def reopens_at(self, limits: Limits) -> float | None:
        """When a suspended class becomes half-open; None if time alone does not do that."""
        if self.phase is not Phase.SUSPENDED or self.held:
            return None
        return self.since + min(MAX_WAIT_S, limits.reopen_after_s * 2.0 ** min(max(0, self.trips - 1), 60))


def advance(breaker: Breaker, limits: Limits, found: Estimate, now: float) -> Breaker:
    """The state at `now`, by what was found since `counts_from`. Equal inputs give equal states; telling it the same again
    changes nothing more than time does."""
    if breaker.phase is Phase.CLOSED:
        if found.samples >= limits.min_samples and found.lower > limits.max_rate:
            return _trip(breaker, now)
        if breaker.trips and now - breaker.since >= limits.window_s:
            return breaker._replace(trips=0)
        return breaker
    if breaker.phase is Phase.SUSPENDED:
        due = breaker.reopens_at(limits)
        if due is None or now < due:
            return breaker
        return _reopen(breaker, limits, now)
    if not limits.steps:
        return Breaker(Phase.CLOSED, now, trips=breaker.trips)
    if found.samples < limits.min_samples:
        return breaker
    if found.rate > limits.max_rate:
        return _trip(breaker, now)
    if found.rate > limits.max_rate * HYSTERESIS:
        return breaker
    if breaker.step + 1 < len(limits.steps):
        return breaker._replace(step=breaker.step + 1, since=now)
    return Breaker(Phase.CLOSED, now, trips=breaker.trips)


def suspend(breaker: Breaker, now: float) -> Breaker:
    """A person suspends the class."""
    return Breaker(Phase.SUSPENDED, now, trips=breaker.trips, held=True)


def resume(breaker: Breaker, limits: Limits | None, now: float) -> Breaker:
    """A person lets a suspended class reopen: in steps where there are limits, at once where there are none."""
    if breaker.phase is not Phase.SUSPENDED:
        return breaker
    if limits is None:
        return Breaker(Phase.CLOSED, now, trips=breaker.trips)
    return _reopen(breaker, limits, now)


def _trip(breaker: Breaker, now: float) -> Breaker:
    return Breaker(Phase.SUSPENDED, now, trips=breaker.trips + 1)


def _reopen(breaker: Breaker, limits: Limits, now: float) -> Breaker:
    if not limits.steps:
        return Breaker(Phase.CLOSED, now, trips=breaker.trips)
    return Breaker(Phase.HALF_OPEN, now, trips=breaker.trips)
