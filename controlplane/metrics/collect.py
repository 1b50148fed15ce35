"""What the parts of the program count and hold, as samples of the catalogue."""

from __future__ import annotations

import asyncio
import logging
import resource
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from sidestep.v1 import resources_pb2 as pb
from sidestep.v1 import sync_pb2

from controlplane.api.leases import LeaseService
from controlplane.api.quotas import ImportQuotas
from controlplane.api.reports import ReportService
from controlplane.api.sync import SyncService
from controlplane.changes import Changes, LaneKey
from controlplane.errors import CompactedError, StoreError
from controlplane.metrics import catalogue
from controlplane.metrics.catalogue import LANES, MAX_TENANTS, Metric
from controlplane.metrics.lag import LoopLag
from controlplane.metrics.tally import Tally
from controlplane.snapshots import Snapshots
from controlplane.store import Head, Store
from controlplane.store.stock import Stock
from engine.names import Lane

_LOG = logging.getLogger(__name__)

_STOCK_EVERY_S: Final = 10.0
_CLASSES: Final = {
    pb.CLASS_STATE_ACTIVE: "active",
    pb.CLASS_STATE_SUSPENDED: "suspended",
    pb.CLASS_STATE_REOPENING: "reopening",
}
# Commits looked up for one collection to tell how old what is not acknowledged is: of the lanes furthest behind.
_MAX_LOOKED_UP: Final = 20
_PAGE_BYTES: Final = resource.getpagesize()


class Point(NamedTuple):
    """A value, and the values of the metric's labels in their order."""

    labels: tuple[str, ...]
    value: float


Samples = Mapping[Metric, Sequence[Point]]


class Sources(NamedTuple):
    """The parts that are asked."""

    store: Store
    changes: Changes
    snapshots: Snapshots
    sync: SyncService
    leases: LeaseService
    reports: ReportService
    imports: ImportQuotas
    lag: LoopLag
    rpcs: Tally
    # Calls that ended because the database failed.
    call_failures: Callable[[], int]


class Collector:
    """Collects in the event loop of the parts. What the database must be asked for is as of a moment ago."""

    def __init__(self, sources: Sources) -> None:
        self._of = sources
        self._commits = Tally.of(LANES)
        self._stock: Stock | None = None
        self._lags: dict[Lane, float] = {}
        sources.store.watch(self._on_commit)

    async def run(self) -> None:
        """Asks the database from time to time, until cancelled."""
        while True:
            try:
                self._stock = await self._of.store.stock(time.time())
            except StoreError as error:
                _LOG.debug("metrics: the database cannot be asked: %s", error)
                self._stock = None
            await asyncio.sleep(_STOCK_EVERY_S)

    async def collect(self) -> Samples:
        """Every metric of the catalogue but histograms. A metric of which nothing is known has no points."""
        of = self._of
        standing = of.sync.standing()
        lags = await self._lag_s(standing.slowest)
        found: dict[Metric, Sequence[Point]] = {
            catalogue.RPCS: _points(of.rpcs),
            catalogue.COMMITS: _points(self._commits),
            catalogue.REVISION: _revisions(of.changes.heads),
            catalogue.TENANTS: _one(len({tenant for tenant, _ in of.changes.heads})),
            catalogue.HEADS_AGE: _one(of.changes.age_s()),
            catalogue.STREAMS: _one(standing.streams),
            catalogue.STREAMS_ADMITTED: _one(of.sync.admitted),
            catalogue.STREAMS_REFUSED: _points(of.sync.refused),
            catalogue.STREAMS_ENDED: _points(of.sync.ended),
            catalogue.DELTAS_SENT: _points(of.sync.sent.deltas),
            catalogue.CHUNKS_SENT: _one(of.sync.sent.chunk_bytes),
            catalogue.TRANSFERS: _one(standing.transfers),
            catalogue.BEHIND: _by_lane(standing.behind),
            catalogue.LAG_REVISIONS: _by_lane(standing.lag_revisions),
            catalogue.LAG: _by_lane(lags),
            catalogue.REFUSING: _one(standing.refusing),
            catalogue.SNAPSHOTS_BUILT: _one(of.snapshots.built),
            catalogue.SNAPSHOTS_FAILED: _one(of.snapshots.failed),
            catalogue.SNAPSHOT_TIME: _one(of.snapshots.build_s),
            catalogue.SNAPSHOT_BYTES: _one(of.snapshots.built_bytes),
            catalogue.IMPORTS_RUNNING: _one(of.imports.running),
            catalogue.IMPORTS_ENDED: _points(of.imports.ended),
            catalogue.IMPORT_RECORDS: _one(of.imports.records),
            catalogue.LEASED: _points(of.leases.results),
            catalogue.AUTHENTICATIONS_REPORTED: _points(of.reports.results),
            catalogue.STORE_FAILURES: [Point(("call",), of.call_failures()), Point(("heads",), of.changes.failures)],
            catalogue.LOOP_LAG: _one(of.lag.worst_s),
            catalogue.CPU: _one(time.process_time()),
            catalogue.MEMORY: _one(_resident_bytes()),
        }
        if (stock := self._stock) is not None:
            found[catalogue.FINDINGS_OPEN] = _one(stock.open_findings)
            found[catalogue.PROPOSALS_PENDING] = _one(stock.pending_proposals)
            found[catalogue.AUDIT_ENTRIES] = _one(stock.audit_entries)
            found[catalogue.CLASSES] = [
                Point((name,), stock.classes.get(int(state), 0)) for state, name in _CLASSES.items()
            ]
        return found

    def _on_commit(self, heads: Iterable[Head]) -> None:
        for head in heads:
            self._commits.add(head.lane.name.lower())

    async def _lag_s(self, slowest: Mapping[LaneKey, int]) -> dict[Lane, float]:
        """How long ago the oldest commit was made that a stream lacks; by lane, 0 where none is lacking."""
        worst = dict.fromkeys(Lane, 0.0)
        heads = self._of.changes.heads
        missing = sorted(slowest, key=lambda key: heads[key].revision - slowest[key], reverse=True)
        for key in missing[:_MAX_LOOKED_UP]:
            committed_at = await commit_time(self._of.changes, key, slowest[key])
            if committed_at is not None:
                worst[key[1]] = max(worst[key[1]], time.time() - committed_at)
        return worst


async def commit_time(changes: Changes, key: LaneKey, after: int) -> float | None:
    """When the first commit after a revision was made, in Unix seconds; None if the log does not tell any more."""
    try:
        frames = await changes.read(key, after, 1)
    except (CompactedError, StoreError):
        return None
    if not frames:
        return None
    delta = sync_pb2.Delta.FromString(sync_pb2.SyncResponse.FromString(frames[0].message).delta)
    return float(delta.commit_time.ToNanoseconds() / 1e9)


def _points(tally: Tally) -> list[Point]:
    return [Point(labels, count) for labels, count in tally]


def _one(value: float) -> list[Point]:
    return [Point((), value)]


def _by_lane(values: Mapping[Lane, float]) -> list[Point]:
    return [Point((lane.name.lower(),), values.get(lane, 0)) for lane in Lane]


def _revisions(heads: Mapping[LaneKey, Head]) -> list[Point]:
    shown = sorted(heads)[: MAX_TENANTS * len(Lane)]
    return [Point((tenant, lane.name.lower()), heads[tenant, lane].revision) for tenant, lane in shown]


def _resident_bytes() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES
    except OSError:  # not Linux: the most it ever was is better than nothing
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
