"""Every metric of the control plane, once.

Names and units are OpenTelemetry's (units in UCUM); what Prometheus calls a metric follows from them. Labels have closed sets of
values, but for `tenant`, of which the first `MAX_TENANTS` by name are told apart.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple

import grpc
from sidestep.v1 import (
    access_pb2,
    admin_pb2,
    audit_pb2,
    lease_pb2,
    report_pb2,
    sync_pb2,
    usage_pb2,
)

from engine.names import Lane

MAX_TENANTS: Final = 100
"""Tenants with series of their own."""

_UNITS = {"s": "seconds", "By": "bytes"}


class Kind(StrEnum):
    """What a metric measures. Values are Prometheus' names."""

    COUNTER = "counter"
    """Only rises; from 0 with every start of the process."""
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Label(NamedTuple):
    """A label, and the values it can have; None: not closed, but bounded."""

    name: str
    values: tuple[str, ...] | None


class Metric(NamedTuple):
    """One metric. `help` is a sentence for people."""

    name: str
    kind: Kind
    # UCUM; in braces: what is counted.
    unit: str
    help: str
    labels: tuple[Label, ...] = ()

    @property
    def prometheus(self) -> str:
        """The family's name as Prometheus' text format has it: dots become underscores, a unit is spelt out, counters end in
        `_total`."""
        name = self.name.replace(".", "_")
        unit = _UNITS.get(self.unit, "")
        name = name if not unit or name.endswith(f"_{unit}") else f"{name}_{unit}"
        return f"{name}_total" if self.kind is Kind.COUNTER else name


SERVICES: Final = tuple(
    file.DESCRIPTOR.services_by_name[name]
    for file, name in (
        (access_pb2, "AccessService"),
        (admin_pb2, "AdminService"),
        (audit_pb2, "AuditService"),
        (audit_pb2, "ProposalService"),
        (sync_pb2, "SyncService"),
        (report_pb2, "ReportService"),
        (usage_pb2, "UsageService"),
        (lease_pb2, "LeaseService"),
    )
)
"""Descriptors of the services of the API."""

OTHER: Final = "other"
METHODS: Final = (*(f"{service.name}/{method.name}" for service in SERVICES for method in service.methods), OTHER)
"""Methods of the API, without the package; `other` stands for health, reflection and what does not exist."""
CODES: Final = tuple(code.name.lower() for code in grpc.StatusCode)
LANES: Final = tuple(lane.name.lower() for lane in Lane)
REFUSALS: Final = ("full", "rate", "draining", "identity", "version", "hello")
"""Why a stream was not admitted."""
ENDS: Final = ("left", "aged", "stalled", "draining", "failed")
"""How an admitted stream ended."""
IMPORTS: Final = ("done", "refused", "failed")
LEASES: Final = ("granted", "exhausted", "no_budget", "currency")
AUTHENTICATIONS: Final = ("recorded", "refused")
BREAKERS: Final = ("active", "suspended", "reopening")
FAILURES: Final = ("call", "heads")

_METHOD = Label("method", METHODS)
_TENANT = Label("tenant", None)
_LANE = Label("lane", LANES)

RPCS = Metric(
    "sidestep.cp.rpcs",
    Kind.COUNTER,
    "{call}",
    "Calls that ended, by method and gRPC status; a stream counts when it ends.",
    (_METHOD, Label("code", CODES)),
)
RPC_DURATION = Metric(
    "sidestep.cp.rpc.duration", Kind.HISTOGRAM, "s", "Time a call took; streams of sidecars are left out.", (_METHOD,)
)

COMMITS = Metric("sidestep.cp.commits", Kind.COUNTER, "{commit}", "Revisions that this process committed.", (_LANE,))
REVISION = Metric(
    "sidestep.cp.revision",
    Kind.GAUGE,
    "{revision}",
    "Newest revision of a lane; of the first 100 tenants by name.",
    (_TENANT, _LANE),
)
TENANTS = Metric("sidestep.cp.tenants", Kind.GAUGE, "{tenant}", "Tenants there are.")
HEADS_AGE = Metric("sidestep.cp.heads.age", Kind.GAUGE, "s", "Since the newest revisions were last read.")

STREAMS = Metric("sidestep.cp.streams", Kind.GAUGE, "{stream}", "Sidecars connected to this process.")
STREAMS_ADMITTED = Metric("sidestep.cp.streams.admitted", Kind.COUNTER, "{stream}", "Streams of sidecars admitted.")
STREAMS_REFUSED = Metric(
    "sidestep.cp.streams.refused",
    Kind.COUNTER,
    "{stream}",
    "Streams of sidecars refused, by reason.",
    (Label("reason", REFUSALS),),
)
STREAMS_ENDED = Metric(
    "sidestep.cp.streams.ended",
    Kind.COUNTER,
    "{stream}",
    "Admitted streams that ended, by what ended them.",
    (Label("reason", ENDS),),
)
DELTAS_SENT = Metric(
    "sidestep.cp.sync.deltas", Kind.COUNTER, "{delta}", "Changes sent, to all streams together.", (_LANE,)
)
CHUNKS_SENT = Metric("sidestep.cp.sync.snapshot.sent", Kind.COUNTER, "By", "Bytes of snapshots sent.")
TRANSFERS = Metric("sidestep.cp.sync.transfers", Kind.GAUGE, "{stream}", "Streams a snapshot is on its way to.")
BEHIND = Metric(
    "sidestep.cp.sync.behind",
    Kind.GAUGE,
    "{stream}",
    "Streams that have not acknowledged the newest revision of a lane.",
    (_LANE,),
)
LAG_REVISIONS = Metric(
    "sidestep.cp.sync.lag.revisions",
    Kind.GAUGE,
    "{revision}",
    "Revisions the stream that is furthest behind has not acknowledged.",
    (_LANE,),
)
LAG = Metric(
    "sidestep.cp.sync.lag",
    Kind.GAUGE,
    "s",
    "Since the oldest commit that some connected sidecar has not acknowledged.",
    (_LANE,),
)
REFUSING = Metric("sidestep.cp.sync.refusing", Kind.GAUGE, "{stream}", "Streams of sidecars that refuse a change.")

SNAPSHOTS_BUILT = Metric("sidestep.cp.snapshots.built", Kind.COUNTER, "{snapshot}", "Snapshots built.")
SNAPSHOTS_FAILED = Metric(
    "sidestep.cp.snapshots.failed", Kind.COUNTER, "{snapshot}", "Snapshots that could not be made."
)
SNAPSHOT_TIME = Metric("sidestep.cp.snapshots.time", Kind.COUNTER, "s", "Time spent building snapshots.")
SNAPSHOT_BYTES = Metric("sidestep.cp.snapshots.size", Kind.COUNTER, "By", "Bytes of snapshots built.")

IMPORTS_RUNNING = Metric("sidestep.cp.imports.running", Kind.GAUGE, "{import}", "Imports under way.")
IMPORTS_ENDED = Metric(
    "sidestep.cp.imports", Kind.COUNTER, "{import}", "Imports that ended.", (Label("result", IMPORTS),)
)
IMPORT_RECORDS = Metric("sidestep.cp.import.records", Kind.COUNTER, "{record}", "Records that imports brought.")

LEASED = Metric(
    "sidestep.cp.leases",
    Kind.COUNTER,
    "{slice}",
    "Slices of budgets that were asked for, by what became of it.",
    (Label("result", LEASES),),
)
AUTHENTICATIONS_REPORTED = Metric(
    "sidestep.cp.authentications",
    Kind.COUNTER,
    "{authentication}",
    "Authentications that sidecars reported; refused: the proof or a rule was against it.",
    (Label("result", AUTHENTICATIONS),),
)

FINDINGS_OPEN = Metric(
    "sidestep.cp.findings.open", Kind.GAUGE, "{finding}", "Findings over the fleet that wait for a person."
)
PROPOSALS_PENDING = Metric(
    "sidestep.cp.proposals.pending", Kind.GAUGE, "{proposal}", "Changes that wait for a second person."
)
CLASSES = Metric(
    "sidestep.cp.classes",
    Kind.GAUGE,
    "{class}",
    "Classes of grants whose breaker has a state, by that state.",
    (Label("state", BREAKERS),),
)
AUDIT_ENTRIES = Metric("sidestep.cp.audit.entries", Kind.GAUGE, "{entry}", "Entries of all audit logs.")

STORE_FAILURES = Metric(
    "sidestep.cp.store.failures",
    Kind.COUNTER,
    "{failure}",
    "Times the database failed: a call, or reading the newest revisions.",
    (Label("where", FAILURES),),
)
LOOP_LAG = Metric(
    "sidestep.cp.loop.lag", Kind.GAUGE, "s", "Longest time the event loop was late in the last ten seconds."
)
CPU = Metric("sidestep.cp.process.cpu", Kind.COUNTER, "s", "CPU time of this process.")
MEMORY = Metric("sidestep.cp.process.memory", Kind.GAUGE, "By", "Resident memory of this process.")

CATALOGUE: tuple[Metric, ...] = tuple(value for value in globals().copy().values() if isinstance(value, Metric))
"""All of them, in the order in which they are shown."""
