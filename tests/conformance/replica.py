"""A sidecar's store, filled as sync fills it: snapshots once, then one delta for each difference."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from sidestep.v1 import sync_pb2

from engine.digest import EMPTY, Digest
from engine.durations import parse_duration
from engine.names import Collection, Lane, lane_of
from sidecar.clock import Clock
from sidecar.store.view import Cursor
from sidecar.store.writer import Writer
from tests.conformance.records import Records, build
from tests.conformance.vectors import Vector, fixture, fixture_now

EPOCH = 7
BOOT = "this-boot"
BOOTED_AT = fixture_now().timestamp() - 400 * 86400.0
_DIGEST_KEY = bytes(range(32))


class SteadyClock(Clock):
    """Stands still where it is set. `boot` names the boot that confirmations are written in."""

    __slots__ = ("boot", "now")

    def __init__(self, now: float) -> None:
        super().__init__(BOOT)
        self.now = now
        self.boot = BOOT

    def wall(self) -> float:
        return self.now

    def boottime(self) -> float:
        return self.now - BOOTED_AT

    def boot_id(self) -> str:
        return self.boot


class Replica:
    """The store in `data_dir` and where it stands. `change` brings the default tenant to what a vector starts from."""

    def __init__(self, data_dir: Path) -> None:
        base = fixture()
        self.clock = SteadyClock(fixture_now().timestamp())
        self._writer = Writer(data_dir, clock=self.clock)
        self._tenant: str = base["default_tenant"]
        self._held: Records = {}
        tenants = {*base["tenants"], *base["unsynced_tenants"], *base["half_synced_tenants"]}
        self._writer.set_scope(frozenset(tenants))
        for tenant, bodies in base["tenants"].items():
            records = build(tenant, bodies, fixture_now())
            for lane in Lane:
                self._snapshot(tenant, lane, records)
            if tenant == self._tenant:
                self._held = records
        for tenant in base["half_synced_tenants"]:
            self._snapshot(tenant, Lane.URGENT, {})
        self._confirm("globex", Lane.URGENT, 1.0)
        self._confirm("globex", Lane.BULK, 1.0)

    def change(self, vector: Vector) -> None:
        """Sets the clock to the vector's time, applies its records as deltas, and confirms the lanes at its ages."""
        self.clock.now = vector.now_s
        wanted = build(self._tenant, vector.records, vector.now)
        for lane in Lane:
            self._delta(lane, wanted)
        self._held = wanted
        age = vector.data.get("age", "1s")
        boot = vector.data.get("confirmed_in", BOOT)
        self._confirm(self._tenant, Lane.URGENT, _seconds(vector.data.get("urgent_age", age)), boot)
        self._confirm(self._tenant, Lane.BULK, _seconds(vector.data.get("bulk_age", age)), boot)
        self._confirm("globex", Lane.URGENT, 1.0)
        self._confirm("globex", Lane.BULK, 1.0)

    def head(self, tenant: str) -> Cursor | None:
        """Where the tenant's urgent lane stands; None: not loaded."""
        return self._writer.cursor(tenant, Lane.URGENT)

    def close(self) -> None:
        """Releases the directory."""
        self._writer.close()

    def _confirm(self, tenant: str, lane: Lane, age_s: float, boot: str = BOOT) -> None:
        self.clock.boot = boot
        # Boot time of another boot says nothing here; a misleading one shows that nobody looks at it.
        boottime = self.clock.boottime() - age_s if boot == BOOT else self.clock.boottime()
        self._writer.confirm(tenant, lane, boottime=boottime, wall=self.clock.now - age_s)
        self.clock.boot = BOOT

    def _snapshot(self, tenant: str, lane: Lane, records: Records) -> None:
        rows = sorted((int(collection), record_id, value) for (collection, record_id), value in records.items())
        rows = [row for row in rows if lane_of(row[0]) is lane]
        digest = Digest(_DIGEST_KEY)
        for row in rows:
            digest.add(*row)
        cursor = sync_pb2.Cursor(tenant=tenant, lane=int(lane), epoch=EPOCH, revision=1, digest=digest.value())
        staging = self._writer.stage(
            sync_pb2.SnapshotOffer(cursor=cursor, records=len(rows), digest_key=_DIGEST_KEY)
        )
        chunks = 0
        if rows:
            payload = sync_pb2.SnapshotRecords(
                records=[sync_pb2.SnapshotRecord(collection=c, id=i, value=v) for c, i, v in rows]
            )
            staging.add(sync_pb2.SnapshotChunk(tenant=tenant, lane=int(lane), payload=payload.SerializeToString()))
            chunks = 1
        for _ in staging.finish(sync_pb2.SnapshotEnd(cursor=cursor, chunks=chunks)):
            pass
        staging.commit()

    def _delta(self, lane: Lane, wanted: Records) -> None:
        cursor = self._writer.cursor(self._tenant, lane)
        assert cursor is not None
        digest = Digest(_DIGEST_KEY, cursor.digest)
        changes = []
        for key in sorted(self._held.keys() | wanted.keys()):
            collection, record_id = key
            old, new = self._held.get(key), wanted.get(key)
            if old == new or lane_of(collection) is not lane:
                continue
            if old is not None:
                digest.remove(collection, record_id, old)
            if new is not None:
                digest.add(collection, record_id, new)
                changes.append(sync_pb2.Change(collection=int(collection), id=record_id, value=new))
            else:
                changes.append(sync_pb2.Change(collection=int(collection), id=record_id, deleted=True))
        if changes:
            delta = sync_pb2.Delta(
                tenant=self._tenant,
                lane=int(lane),
                epoch=cursor.epoch,
                revision=cursor.revision + 1,
                previous_digest=cursor.digest,
                digest=digest.value(),
                changes=changes,
            )
            self._writer.apply_delta(delta.SerializeToString())


def _seconds(text: str) -> float:
    return -parse_duration(text[1:]) if text.startswith("-") else parse_duration(text)
