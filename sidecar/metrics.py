"""The page as Prometheus text (exposition format 0.0.4). Standard library only. Label sets are closed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sidecar.page import (
    BASES,
    ERRORS,
    LATENCY_BOUNDS_S,
    OUTCOMES,
    UNKNOWN,
    AgentWord,
    Page,
    Slot,
    State,
    Word,
    WorkerSlot,
    WorkerWord,
)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_AGENT_COUNTERS = (
    ("sidestep_journal_shipped_total", AgentWord.JOURNAL_SHIPPED, "Records acknowledged by the collector."),
    ("sidestep_journal_rejected_total", AgentWord.JOURNAL_REJECTED, "Spans the collector took and did not keep."),
    ("sidestep_journal_quarantined_total", AgentWord.JOURNAL_QUARANTINED, "Records the collector refuses for good."),
    ("sidestep_journal_lost_total", AgentWord.JOURNAL_LOST, "Records known to be gone. Must stay 0."),
    ("sidestep_journal_torn_total", AgentWord.JOURNAL_TORN, "Segments with a damaged header or a tail that was cut."),
    ("sidestep_journal_discarded_total", AgentWord.JOURNAL_DISCARDED, "Records dropped because there is no sink."),
    ("sidestep_journal_export_failures_total", AgentWord.EXPORT_FAILURES, "Attempts to ship that failed."),
    ("sidestep_sync_reconnects_total", AgentWord.SYNC_RECONNECTS, "Times the sync stream was opened again."),
    ("sidestep_scrubs_total", AgentWord.SCRUBS, "Scrubs of the store that were completed."),
    ("sidestep_scrub_findings_total", AgentWord.SCRUB_FINDINGS, "What the scrub found wrong. Must stay 0."),
)
_AGENT_GAUGES = (
    ("sidestep_journal_backlog_bytes", AgentWord.JOURNAL_BACKLOG_BYTES, "Bytes that wait for the collector."),
    ("sidestep_journal_segments", AgentWord.JOURNAL_SEGMENTS, "Segment files on disk."),
    ("sidestep_sync_connected", AgentWord.SYNC_CONNECTED, "1 while the sync stream is up."),
    (
        "sidestep_sync_breakers_open",
        AgentWord.SYNC_BREAKERS,
        "Lanes that differ from the control plane after a resync.",
    ),
    ("sidestep_sync_refusals", AgentWord.SYNC_REFUSALS, "Lanes where a change was refused."),
)
_WORKER_COUNTERS = (
    ("sidestep_unrecorded_decisions_total", WorkerWord.UNRECORDED, "Decisions answered without a record."),
    ("sidestep_parked_calls_total", WorkerWord.PARKED, "Calls that waited for a revision."),
    ("sidestep_journal_records_total", WorkerWord.JOURNAL_RECORDS, "Records appended."),
    ("sidestep_journal_bytes_total", WorkerWord.JOURNAL_BYTES, "Bytes appended."),
)


def render(page: Page, processes: Mapping[str, tuple[Slot, int]]) -> str:
    """All metrics. `processes`: name (`agent`, `worker-0`) to its slot and how often it was restarted."""
    workers = [page.worker(index) for index in range(page.workers)]
    lines: list[str] = []

    def metric(name: str, kind: str, text: str, samples: Iterable[tuple[str, object]]) -> None:
        lines.append(f"# HELP {name} {text}")
        lines.append(f"# TYPE {name} {kind}")
        lines.extend(f"{name}{labels} {value}" for labels, value in samples)

    def total(word: int, index: int = 0) -> int:
        return sum(worker.get(word, index) for worker in workers)

    metric(
        "sidestep_decisions_total",
        "counter",
        "Decisions by outcome and what they rest on.",
        [
            (f'{{outcome="{outcome}",basis="{basis}"}}', count)
            for row, outcome in enumerate(OUTCOMES)
            for column, basis in enumerate(BASES)
            if (count := total(WorkerWord.DECISIONS, row * len(BASES) + column)) or (row and column)
        ],
    )
    metric(
        "sidestep_errors_total",
        "counter",
        "Calls that ended without a decision, by gRPC status.",
        [(f'{{code="{code}"}}', total(WorkerWord.ERRORS, index)) for index, code in enumerate(ERRORS)],
    )
    lines += _histogram(
        [total(WorkerWord.LATENCY, at) for at in range(len(LATENCY_BOUNDS_S) + 1)], total(WorkerWord.LATENCY_SUM_NS)
    )
    for name, counter, text in _WORKER_COUNTERS:
        metric(name, "counter", text, [("", total(counter))])
    metric("sidestep_journal_full", "gauge", "Workers at the journal's bound.", [("", total(WorkerWord.JOURNAL_FULL))])
    for name, word, text in _AGENT_COUNTERS:
        metric(name, "counter", text, [("", page.agent.get(word))])
    for name, word, text in _AGENT_GAUGES:
        metric(name, "gauge", text, [("", page.agent.get(word))])

    # The oldest data any worker decides on. Not known is the worst age, so that an alarm on age sees it.
    age_ms = max(worker.get(Word.DATA_AGE_MS) for worker in workers)
    age = "+Inf" if age_ms == UNKNOWN else age_ms / 1000
    metric("sidestep_data_age_seconds", "gauge", "Since the control plane last confirmed the data.", [("", age)])
    metric("sidestep_revision", "gauge", "Lowest revision any worker decides on.", _revisions(workers))
    metric(
        "sidestep_process_state",
        "gauge",
        "1 for the state a process is in.",
        [
            (f'{{process="{name}",state="{state.name.lower()}"}}', int(slot.state is state))
            for name, (slot, _) in processes.items()
            for state in State
        ],
    )
    metric(
        "sidestep_process_restarts_total",
        "counter",
        "Times a process was started again.",
        [(f'{{process="{name}"}}', restarts) for name, (_, restarts) in processes.items()],
    )
    return "\n".join(lines) + "\n"


def _histogram(counts: list[int], sum_ns: int) -> list[str]:
    name = "sidestep_decision_duration_seconds"
    lines = [f"# HELP {name} Time from taking a call to its decision.", f"# TYPE {name} histogram"]
    below = 0
    for bound, count in zip(LATENCY_BOUNDS_S, counts, strict=False):
        below += count
        lines.append(f'{name}_bucket{{le="{bound:g}"}} {below}')
    below += counts[-1]
    lines.append(f'{name}_bucket{{le="+Inf"}} {below}')
    lines.append(f"{name}_sum {sum_ns / 1e9}")
    lines.append(f"{name}_count {below}")
    return lines


def _revisions(workers: list[WorkerSlot]) -> list[tuple[str, int]]:
    samples = []
    for lane, word in (("urgent", Word.URGENT_REVISION), ("bulk", Word.BULK_REVISION)):
        known = [revision for worker in workers if (revision := worker.get(word)) != UNKNOWN]
        if known:
            samples.append((f'{{lane="{lane}"}}', min(known)))
    return samples
