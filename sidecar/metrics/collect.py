"""What the page holds, as samples. Standard library only."""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import NamedTuple

from sidecar.metrics import catalogue
from sidecar.metrics.catalogue import LANES, PROCESSES, Metric
from sidecar.page import (
    BASES,
    ERRORS,
    EXEMPLAR_WORDS,
    EXPORT_STATES,
    GUARDS,
    LATENCY_BOUNDS_S,
    LIMIT_EFFECTS,
    LIMITED,
    LOCAL_STORES,
    OFFSET_ZERO,
    OUTCOMES,
    UNKNOWN,
    UNVERIFIED,
    AgentSlot,
    AgentWord,
    Page,
    Slot,
    State,
    Word,
    WorkerSlot,
    WorkerWord,
)

_WORKER_WORDS = (
    (catalogue.PARKED_CALLS, WorkerWord.PARKED),
    (catalogue.CALLERS_UNUSABLE, WorkerWord.CALLERS_UNUSABLE),
    (catalogue.CALLERS_FAILURES, WorkerWord.CALLERS_FAILURES),
    (catalogue.JOURNAL_RECORDS, WorkerWord.JOURNAL_RECORDS),
    (catalogue.JOURNAL_BYTES, WorkerWord.JOURNAL_BYTES),
    (catalogue.JOURNAL_FULL, WorkerWord.JOURNAL_FULL),
    (catalogue.JOURNAL_UNRECORDED, WorkerWord.UNRECORDED),
)
_AGENT_WORDS = (
    (catalogue.JOURNAL_BACKLOG, AgentWord.JOURNAL_BACKLOG),
    (catalogue.JOURNAL_BACKLOG_BYTES, AgentWord.JOURNAL_BACKLOG_BYTES),
    (catalogue.JOURNAL_SEGMENTS, AgentWord.JOURNAL_SEGMENTS),
    (catalogue.JOURNAL_SHIPPED, AgentWord.JOURNAL_SHIPPED),
    (catalogue.JOURNAL_QUARANTINED, AgentWord.JOURNAL_QUARANTINED),
    (catalogue.JOURNAL_SPOOLED, AgentWord.JOURNAL_SPOOLED),
    (catalogue.SPOOL_UNUSABLE, AgentWord.SPOOL_UNUSABLE),
    (catalogue.JOURNAL_DISCARDED, AgentWord.JOURNAL_DISCARDED),
    (catalogue.JOURNAL_TORN, AgentWord.JOURNAL_TORN),
    (catalogue.EXPORT_FAILURES, AgentWord.EXPORT_FAILURES),
    (catalogue.JOURNAL_REPORTS, AgentWord.ANCHOR_REPORTS),
    (catalogue.JOURNAL_REPORT_FAILURES, AgentWord.ANCHOR_FAILURES),
    (catalogue.SYNC_CONNECTED, AgentWord.SYNC_CONNECTED),
    (catalogue.SYNC_RECONNECTS, AgentWord.SYNC_RECONNECTS),
    (catalogue.SYNC_DELTAS, AgentWord.SYNC_DELTAS),
    (catalogue.SYNC_SNAPSHOTS, AgentWord.SYNC_SNAPSHOTS),
    (catalogue.SYNC_MISMATCHES, AgentWord.SYNC_MISMATCHES),
    (catalogue.SYNC_BREAKERS, AgentWord.SYNC_BREAKERS),
    (catalogue.SYNC_REFUSALS, AgentWord.SYNC_REFUSALS),
    (catalogue.TRUSTED_KEYS, AgentWord.TRUSTED_KEYS),
    (catalogue.TRUSTED_KEYS_UNUSABLE, AgentWord.TRUSTED_KEYS_UNUSABLE),
    (catalogue.SCRUBS, AgentWord.SCRUBS),
    (catalogue.SCRUB_FINDINGS, AgentWord.SCRUB_FINDINGS),
    (catalogue.METRIC_EXPORTS, AgentWord.METRIC_EXPORTS),
    (catalogue.METRIC_EXPORT_FAILURES, AgentWord.METRIC_EXPORT_FAILURES),
)


class Point(NamedTuple):
    """A value, and the values of the metric's labels in their order."""

    labels: tuple[str, ...]
    value: int | float


class Exemplar(NamedTuple):
    """One decision of a bucket, as its span: ids in hexadecimal as W3C Trace Context writes them."""

    trace_id: str
    span_id: str
    duration_s: float
    at_ns: int


class Histogram(NamedTuple):
    """Counts per bucket, not accumulated; one more than there are bounds. `exemplars` likewise."""

    counts: tuple[int, ...]
    sum_s: float
    exemplars: tuple[Exemplar | None, ...]


class Sample(NamedTuple):
    """One metric's value: points, or a histogram."""

    metric: Metric
    points: tuple[Point, ...] = ()
    histogram: Histogram | None = None


def collect(page: Page) -> list[Sample]:
    """Every metric of the catalogue, in its order. A metric of which nothing is known yet has no points."""
    agent = page.agent
    workers = [page.worker(index) for index in range(page.workers)]
    found: dict[Metric, tuple[Point, ...]] = {
        metric: (Point((), _total(workers, word)),) for metric, word in _WORKER_WORDS
    }
    found |= {metric: (Point((), agent.get(word)),) for metric, word in _AGENT_WORDS}
    found[catalogue.DECISIONS] = _decisions(workers)
    found[catalogue.ERROR_COUNT] = tuple(
        Point((code,), _total(workers, WorkerWord.ERRORS, at)) for at, code in enumerate(ERRORS)
    )
    found[catalogue.GUARD_FINDINGS] = tuple(
        Point((guard,), _total(workers, WorkerWord.GUARD_FINDINGS, at)) for at, guard in enumerate(GUARDS)
    )
    found[catalogue.RATE_LIMITED] = tuple(
        Point((limit, effect), _total(workers, WorkerWord.LIMITED, row * len(LIMIT_EFFECTS) + column))
        for row, limit in enumerate(LIMITED)
        for column, effect in enumerate(LIMIT_EFFECTS)
    )
    offset = agent.get(AgentWord.CLOCK_OFFSET_MS)
    found[catalogue.CLOCK_OFFSET] = (Point((), (offset - OFFSET_ZERO) / 1000),) if offset else ()
    found[catalogue.SYNC_UNVERIFIED] = tuple(
        Point((reason,), agent.get(AgentWord.SYNC_UNVERIFIED, at)) for at, reason in enumerate(UNVERIFIED)
    )
    for metric, word in (
        (catalogue.LOCAL_UNUSABLE, WorkerWord.LOCAL_UNUSABLE),
        (catalogue.LOCAL_FAILURES, WorkerWord.LOCAL_FAILURES),
    ):
        found[metric] = tuple(Point((part,), _total(workers, word, at)) for at, part in enumerate(LOCAL_STORES))
    known = (worker.get(WorkerWord.CALLERS) for worker in _living(workers))
    found[catalogue.CALLERS] = (Point((), min(known, default=0)),)
    found[catalogue.DATA_AGE] = (Point((), _age_s(workers)),)
    found[catalogue.SOFT_STALE] = _limit(agent, AgentWord.SOFT_STALE_MS, 1000)
    found[catalogue.HARD_STALE] = _limit(agent, AgentWord.HARD_STALE_MS, 1000)
    found[catalogue.JOURNAL_MAX] = _limit(agent, AgentWord.JOURNAL_MAX_BYTES, 1)
    found[catalogue.REVISION] = _revisions(workers)
    found[catalogue.JOURNAL_LOST] = (
        Point((), agent.get(AgentWord.JOURNAL_LOST) + _total(workers, WorkerWord.UNRECORDED)),
    )
    state = agent.get(AgentWord.EXPORT_STATE)
    found[catalogue.EXPORT_STATE] = tuple(Point((name,), int(state == at)) for at, name in enumerate(EXPORT_STATES))
    processes: list[tuple[str, Slot]] = list(zip(PROCESSES, [agent, *workers], strict=False))
    found[catalogue.PROCESS_STATE] = tuple(
        Point((name, each.name.lower()), int(slot.get(Word.STATE) == each))
        for name, slot in processes
        for each in State
    )
    found[catalogue.PROCESS_RESTARTS] = tuple(Point((name,), slot.get(Word.RESTARTS)) for name, slot in processes)
    duration = Sample(catalogue.DURATION, histogram=_duration(workers, agent))
    return [
        duration if metric is catalogue.DURATION else Sample(metric, found[metric]) for metric in catalogue.CATALOGUE
    ]


def _total(workers: list[WorkerSlot], word: int, index: int = 0) -> int:
    return sum(worker.get(word, index) for worker in workers)


def _living(workers: list[WorkerSlot]) -> list[WorkerSlot]:
    """Those that may decide; what the others last said of their data is no longer true."""
    return [worker for worker in workers if worker.state not in (State.EMPTY, State.DEAD)]


def _decisions(workers: list[WorkerSlot]) -> tuple[Point, ...]:
    """What cannot be, unless something is wrong, is left out while it is 0; the rest is there from the start."""
    return tuple(
        Point((outcome, basis), count)
        for row, outcome in enumerate(OUTCOMES)
        for column, basis in enumerate(BASES)
        if (count := _total(workers, WorkerWord.DECISIONS, row * len(BASES) + column)) or (row and column)
    )


def _age_s(workers: list[WorkerSlot]) -> float:
    """Of the oldest data. Not known is the worst age, so that an alarm on age sees it; so is that no worker lives."""
    age_ms = max((worker.get(Word.DATA_AGE_MS) for worker in _living(workers)), default=UNKNOWN)
    return math.inf if age_ms == UNKNOWN else age_ms / 1000


def _limit(agent: AgentSlot, word: AgentWord, per_unit: int) -> tuple[Point, ...]:
    """A bound; none before the agent has said what it is, lest everything seem to be beyond it."""
    value = agent.get(word)
    return (Point((), value / per_unit if per_unit > 1 else value),) if value else ()


def _revisions(workers: list[WorkerSlot]) -> tuple[Point, ...]:
    points = []
    for lane, word in zip(LANES, (Word.URGENT_REVISION, Word.BULK_REVISION), strict=True):
        known = [revision for worker in _living(workers) if (revision := worker.get(word)) != UNKNOWN]
        if known:
            points.append(Point((lane,), min(known)))
    return tuple(points)


def _duration(workers: list[WorkerSlot], agent: AgentSlot) -> Histogram:
    buckets = range(len(LATENCY_BOUNDS_S) + 1)
    return Histogram(
        counts=tuple(_total(workers, WorkerWord.LATENCY, bucket) for bucket in buckets),
        sum_s=_total(workers, WorkerWord.LATENCY_SUM_NS) / 1e9,
        exemplars=tuple(_exemplar(agent, bucket) for bucket in buckets),
    )


def _exemplar(agent: AgentSlot, bucket: int) -> Exemplar | None:
    first = bucket * EXEMPLAR_WORDS

    def read() -> tuple[int, ...]:
        return tuple(agent.get(AgentWord.EXEMPLARS, first + at) for at in range(EXEMPLAR_WORDS))

    # The agent may be writing it just now: what is not the same twice, or not of this bucket, is left out.
    words = read()
    high, low, span_id, duration_ns, at_ns = words
    duration_s = duration_ns / 1e9
    if words != read() or not (high or low) or not span_id or bisect_left(LATENCY_BOUNDS_S, duration_s) != bucket:
        return None
    return Exemplar(f"{high:016x}{low:016x}", f"{span_id:016x}", duration_s, at_ns)
