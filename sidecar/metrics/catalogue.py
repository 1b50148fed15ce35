"""Every metric of the sidecar, once. Standard library only.

Names and units are OpenTelemetry's (units in UCUM); what Prometheus calls a metric follows from them by the rules of
OpenTelemetry's specification "Prometheus and OpenMetrics Compatibility". Labels have closed sets of values, so that nothing a
caller sends can add a time series, and nothing personal can get into one.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from sidecar.page import (
    BASES,
    ERRORS,
    EXPORT_STATES,
    GUARDS,
    LIMIT_EFFECTS,
    LIMITED,
    LOCAL_STORES,
    MAX_WORKERS,
    OUTCOMES,
    UNVERIFIED,
    State,
)

_UNITS = {"s": "seconds", "By": "bytes"}


class Kind(StrEnum):
    """What a metric measures. Values are Prometheus' names."""

    COUNTER = "counter"
    """Only rises; from 0 with every start of the supervisor."""
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Label(NamedTuple):
    """A label, and the values it can have."""

    name: str
    values: tuple[str, ...]


class Metric(NamedTuple):
    """One metric. `help` is a sentence for people."""

    name: str
    kind: Kind
    # UCUM; in braces: what is counted.
    unit: str
    help: str
    labels: tuple[Label, ...] = ()

    @property
    def family(self) -> str:
        """Prometheus' name of the metric family: dots become underscores, a unit is spelt out at the end."""
        name = self.name.replace(".", "_")
        unit = self.prometheus_unit
        return name if not unit or name.endswith(f"_{unit}") else f"{name}_{unit}"

    @property
    def prometheus(self) -> str:
        """The family's name as Prometheus' text format before OpenMetrics has it: that of a counter ends in `_total`."""
        return f"{self.family}_total" if self.kind is Kind.COUNTER else self.family

    @property
    def prometheus_unit(self) -> str:
        """`seconds`, `bytes`, or empty: what is counted is no unit to Prometheus."""
        return _UNITS.get(self.unit, "")


PROCESSES = ("agent", *(f"worker-{index}" for index in range(MAX_WORKERS)))
"""Names of the processes in the order of the page's slots."""

LANES = ("urgent", "bulk")

_PROCESS = Label("process", PROCESSES)

DECISIONS = Metric(
    "sidestep.decisions",
    Kind.COUNTER,
    "{decision}",
    "Decisions by outcome and what they rest on.",
    (Label("outcome", OUTCOMES), Label("basis", BASES)),
)
ERROR_COUNT = Metric(
    "sidestep.errors",
    Kind.COUNTER,
    "{call}",
    "Calls that ended without a decision, by gRPC status.",
    (Label("code", ERRORS),),
)
DURATION = Metric("sidestep.decision.duration", Kind.HISTOGRAM, "s", "Time from taking a call to its decision.")
PARKED_CALLS = Metric("sidestep.parked_calls", Kind.COUNTER, "{call}", "Calls that waited for a revision.")

CALLERS = Metric(
    "sidestep.callers",
    Kind.GAUGE,
    "{caller}",
    "Callers known to the worker that knows fewest; 0 also in development mode.",
)
CALLERS_UNUSABLE = Metric(
    "sidestep.callers.unusable",
    Kind.GAUGE,
    "{worker}",
    "Workers that go by callers read before, because what is there now cannot be used.",
)
CALLERS_FAILURES = Metric(
    "sidestep.callers.failures", Kind.COUNTER, "{failure}", "Times the callers or their tokens could not be used."
)

LOCAL_UNUSABLE = Metric(
    "sidestep.local.unusable",
    Kind.GAUGE,
    "{worker}",
    "Workers that cannot use a part of the pod's own store. Without reservations no grant with a budget applies.",
    (Label("part", LOCAL_STORES),),
)
LOCAL_FAILURES = Metric(
    "sidestep.local.failures",
    Kind.COUNTER,
    "{failure}",
    "Times a part of the pod's own store could not be used.",
    (Label("part", LOCAL_STORES),),
)

DATA_AGE = Metric(
    "sidestep.data.age",
    Kind.GAUGE,
    "s",
    "Since the control plane last confirmed the oldest data any worker decides on; infinite: never.",
)
SOFT_STALE = Metric("sidestep.data.soft_stale", Kind.GAUGE, "s", "Age of the data from which no exemption applies.")
HARD_STALE = Metric(
    "sidestep.data.hard_stale", Kind.GAUGE, "s", "Age of the data from which the top requirement applies."
)
REVISION = Metric(
    "sidestep.revision",
    Kind.GAUGE,
    "{revision}",
    "Lowest revision any worker decides on.",
    (Label("lane", LANES),),
)

JOURNAL_RECORDS = Metric("sidestep.journal.records", Kind.COUNTER, "{record}", "Records appended.")
JOURNAL_BYTES = Metric("sidestep.journal.bytes", Kind.COUNTER, "By", "Bytes appended.")
JOURNAL_BACKLOG = Metric("sidestep.journal.backlog", Kind.GAUGE, "{record}", "Records that wait for the collector.")
JOURNAL_BACKLOG_BYTES = Metric(
    "sidestep.journal.backlog.bytes", Kind.GAUGE, "By", "Bytes that wait for the collector, and of the quarantine."
)
JOURNAL_MAX = Metric("sidestep.journal.max", Kind.GAUGE, "By", "Bytes that may wait, of all workers together.")
JOURNAL_SEGMENTS = Metric("sidestep.journal.segments", Kind.GAUGE, "{file}", "Segment files on disk.")
JOURNAL_FULL = Metric(
    "sidestep.journal.full", Kind.GAUGE, "{worker}", "Workers at the journal's bound: exemptions are off there."
)
JOURNAL_SHIPPED = Metric("sidestep.journal.shipped", Kind.COUNTER, "{record}", "Records the collector acknowledged.")
JOURNAL_QUARANTINED = Metric(
    "sidestep.journal.quarantined", Kind.COUNTER, "{record}", "Records set aside because the collector refused them."
)
JOURNAL_SPOOLED = Metric(
    "sidestep.journal.spooled", Kind.COUNTER, "{record}", "Records copied to the spool while draining."
)
SPOOL_UNUSABLE = Metric(
    "sidestep.journal.spool_unusable",
    Kind.GAUGE,
    "{spool}",
    "1 if the spool could not be written when the agent started.",
)
JOURNAL_DISCARDED = Metric(
    "sidestep.journal.discarded", Kind.COUNTER, "{record}", "Records dropped because there is no sink."
)
JOURNAL_TORN = Metric(
    "sidestep.journal.torn", Kind.COUNTER, "{file}", "Segments with a damaged header or a tail that was cut."
)
JOURNAL_UNRECORDED = Metric(
    "sidestep.journal.unrecorded", Kind.COUNTER, "{decision}", "Decisions answered without a record. Must stay 0."
)
JOURNAL_LOST = Metric(
    "sidestep.journal.lost",
    Kind.COUNTER,
    "{decision}",
    "Records known to be gone, and decisions answered without one. Must stay 0.",
)
EXPORT_STATE = Metric(
    "sidestep.journal.export.state",
    Kind.GAUGE,
    "{state}",
    "1 for what the collector does with the journal's spans.",
    (Label("state", EXPORT_STATES),),
)
EXPORT_FAILURES = Metric("sidestep.journal.export.failures", Kind.COUNTER, "{attempt}", "Attempts to ship that failed.")
JOURNAL_REPORTS = Metric(
    "sidestep.journal.reports", Kind.COUNTER, "{report}", "Reports of the journal's heads the control plane took."
)
JOURNAL_REPORT_FAILURES = Metric(
    "sidestep.journal.report.failures", Kind.COUNTER, "{report}", "Reports of the journal's heads that failed."
)

SYNC_CONNECTED = Metric("sidestep.sync.connected", Kind.GAUGE, "{stream}", "1 while the sync stream is up.")
SYNC_RECONNECTS = Metric(
    "sidestep.sync.reconnects", Kind.COUNTER, "{stream}", "Times the sync stream was opened again."
)
SYNC_DELTAS = Metric("sidestep.sync.deltas", Kind.COUNTER, "{delta}", "Changes applied.")
SYNC_SNAPSHOTS = Metric("sidestep.sync.snapshots", Kind.COUNTER, "{snapshot}", "Snapshots adopted.")
SYNC_MISMATCHES = Metric(
    "sidestep.sync.mismatches", Kind.COUNTER, "{lane}", "Digests that differed from the control plane's."
)
SYNC_BREAKERS = Metric(
    "sidestep.sync.breakers_open", Kind.GAUGE, "{lane}", "Lanes that differ from the control plane after a resync."
)
SYNC_REFUSALS = Metric("sidestep.sync.refusals", Kind.GAUGE, "{lane}", "Lanes where a change was refused.")

SYNC_UNVERIFIED = Metric(
    "sidestep.sync.unverified",
    Kind.COUNTER,
    "{stream}",
    "Streams given up because something on them did not prove itself. Must stay 0.",
    (Label("reason", UNVERIFIED),),
)
CLOCK_OFFSET = Metric(
    "sidestep.clock.offset",
    Kind.GAUGE,
    "s",
    "By how much the clock is ahead of the control plane's signed time. Beyond 30, either way, no exemption applies.",
)
TRUSTED_KEYS = Metric(
    "sidestep.sync.trusted_keys", Kind.GAUGE, "{key}", "Keys of the control plane that are pinned; 0: development mode."
)
TRUSTED_KEYS_UNUSABLE = Metric(
    "sidestep.sync.trusted_keys.unusable",
    Kind.GAUGE,
    "{file}",
    "1 while the file of trusted keys cannot be used: keys read before hold.",
)

SCRUBS = Metric("sidestep.scrubs", Kind.COUNTER, "{scrub}", "Scrubs of the store that were completed.")
SCRUB_FINDINGS = Metric(
    "sidestep.scrub.findings", Kind.COUNTER, "{finding}", "What the scrub found wrong. Must stay 0."
)

PROCESS_STATE = Metric(
    "sidestep.process.state",
    Kind.GAUGE,
    "{state}",
    "1 for the state a process is in.",
    (_PROCESS, Label("state", tuple(state.name.lower() for state in State))),
)
PROCESS_RESTARTS = Metric(
    "sidestep.process.restarts", Kind.COUNTER, "{restart}", "Times a process was started again.", (_PROCESS,)
)

GUARD_FINDINGS = Metric(
    "sidestep.guard.findings",
    Kind.COUNTER,
    "{finding}",
    "New findings of the guards, and new evidence for old ones.",
    (Label("guard", GUARDS),),
)

RATE_LIMITED = Metric(
    "sidestep.guard.limited",
    Kind.COUNTER,
    "{request}",
    "Requests over a rate limit: decided without exemption, or refused and not decided.",
    (Label("limit", LIMITED), Label("effect", LIMIT_EFFECTS)),
)

METRIC_EXPORTS = Metric(
    "sidestep.metric.exports", Kind.COUNTER, "{export}", "Times these metrics were sent to the collector."
)
METRIC_EXPORT_FAILURES = Metric(
    "sidestep.metric.export.failures", Kind.COUNTER, "{export}", "Times sending these metrics failed."
)

CATALOGUE: tuple[Metric, ...] = tuple(value for value in globals().copy().values() if isinstance(value, Metric))
"""All of them, in the order in which they are shown."""
