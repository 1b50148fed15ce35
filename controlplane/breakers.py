"""Breakers of classes of grants as records: settings to limits, and a stored state to the breaker it is, and back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from google.protobuf.duration_pb2 import Duration
from sidestep.v1 import resources_pb2 as pb

from engine.breaker import DEFAULT_STEPS, MAX_STEPS, MAX_WAIT_S, Breaker, Limits, Phase
from engine.classes import check_class_id, class_name
from engine.errors import InvalidInputError

MAX_BREAKERS: Final = 64
MIN_SAMPLES: Final = 10
MIN_WINDOW_S: Final = 3600.0
MAX_WINDOW_S: Final = 90 * 86400.0
MIN_WAIT_S: Final = 60.0
_PHASES: Final = {
    pb.CLASS_STATE_ACTIVE: Phase.CLOSED,
    pb.CLASS_STATE_SUSPENDED: Phase.SUSPENDED,
    pb.CLASS_STATE_REOPENING: Phase.HALF_OPEN,
}
_STATES: Final = {phase: state for state, phase in _PHASES.items()}


def limits_of(settings: pb.Settings | None) -> dict[str, Limits]:
    """The limits of every class that has a breaker, by class."""
    if settings is None:
        return {}
    return {class_name(breaker.grant_class): _limits(breaker) for breaker in settings.breakers}


def read_breaker(record: pb.GrantClassState | None) -> Breaker:
    """The breaker that a stored state is; closed if there is none."""
    if record is None:
        return Breaker()
    return Breaker(
        # As sidecars read it.
        _PHASES.get(record.state, Phase.SUSPENDED),
        record.since_time.ToNanoseconds() / 1e9,
        record.step,
        record.trips,
        record.held,
    )


def write_breaker(name: str, breaker: Breaker, limits: Limits | None, reason: str) -> pb.GrantClassState:
    """The state to store."""
    record = pb.GrantClassState(
        name=name,
        state=_STATES[breaker.phase],
        spot_check_rate=0.0 if limits is None else breaker.spot_check_rate(limits),
        held=breaker.held,
        step=breaker.step,
        trips=breaker.trips,
        reason=reason,
    )
    record.since_time.FromNanoseconds(int(breaker.since * 1e9))
    return record


def check_class_state(record: pb.GrantClassState, record_id: str, field: str) -> None:
    """Raises InvalidInputError naming the field of a state that cannot be stored."""
    check_class_id(record_id, f"{field}.name")
    if record.state not in _PHASES:
        raise InvalidInputError(f"{field}.state", f"{record.state} is not ACTIVE, SUSPENDED or REOPENING")
    reopening = record.state == pb.CLASS_STATE_REOPENING
    # Negated, so that NaN is refused too.
    if not 0.0 <= record.spot_check_rate <= 1.0 or (record.spot_check_rate > 0) is not reopening:
        raise InvalidInputError(f"{field}.spot_check_rate", "is above 0 and at most 1 while REOPENING, else 0")
    if record.held and record.state != pb.CLASS_STATE_SUSPENDED:
        raise InvalidInputError(f"{field}.held", "only a suspended class is held")


def check_breakers(breakers: Iterable[pb.ClassBreaker], field: str) -> None:
    """Raises InvalidInputError naming the field of limits that no breaker can have."""
    seen: set[str] = set()
    for index, breaker in enumerate(breakers):
        where = f"{field}[{index}]"
        if index >= MAX_BREAKERS:
            raise InvalidInputError(field, f"more than {MAX_BREAKERS}")
        if breaker.grant_class:
            check_class_id(breaker.grant_class, f"{where}.grant_class")
        name = class_name(breaker.grant_class)
        if name in seen:
            raise InvalidInputError(f"{where}.grant_class", f"{name!r} is given twice")
        seen.add(name)
        if not 0.0 < breaker.max_rate < 1.0:
            raise InvalidInputError(f"{where}.max_rate", "must be above 0 and below 1")
        if breaker.min_samples < MIN_SAMPLES:
            raise InvalidInputError(f"{where}.min_samples", f"must be at least {MIN_SAMPLES}")
        _check_span(breaker, "window", MIN_WINDOW_S, MAX_WINDOW_S, where)
        _check_span(breaker, "reopen_after", MIN_WAIT_S, MAX_WAIT_S, where)
        _check_steps(breaker, where)


def _check_span(breaker: pb.ClassBreaker, name: str, least_s: float, most_s: float, where: str) -> None:
    if not breaker.HasField(name):
        raise InvalidInputError(f"{where}.{name}", "is required")
    if not least_s <= _seconds(getattr(breaker, name)) <= most_s:
        raise InvalidInputError(f"{where}.{name}", f"must be between {least_s:g} s and {most_s:g} s")


def _check_steps(breaker: pb.ClassBreaker, where: str) -> None:
    if len(breaker.steps) > MAX_STEPS:
        raise InvalidInputError(f"{where}.steps", f"more than {MAX_STEPS}")
    before = 1.0
    for number, rate in enumerate(breaker.steps):
        if not 0.0 < rate <= before:
            raise InvalidInputError(
                f"{where}.steps[{number}]", "must be above 0, at most 1, and no more than the one before"
            )
        before = rate


def _limits(breaker: pb.ClassBreaker) -> Limits:
    return Limits(
        breaker.max_rate,
        breaker.min_samples,
        _seconds(breaker.window),
        _seconds(breaker.reopen_after),
        tuple(breaker.steps) or DEFAULT_STEPS,
    )


def _seconds(duration: Duration) -> float:
    return float(duration.seconds + duration.nanos / 1e9)
