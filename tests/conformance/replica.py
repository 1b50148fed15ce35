"""A sidecar's store, filled as sync fills it: snapshots once, then one delta for each difference."""

from __future__ import annotations

from pathlib import Path

from sidestep.v1 import resources_pb2, sync_pb2
from sidestep.v1.resources_pb2 import Collection as Number

from engine.digest import Digest
from engine.durations import parse_duration
from engine.names import Lane, lane_of
from sidecar.clock import Clock
from sidecar.store.view import Cursor
from sidecar.store.writer import Writer
from tests.conformance.records import Records, build
from tests.conformance.vectors import Vector, fixture, fixture_now

EPOCH = 7
BOOT = "this-boot"
BOOTED_AT = fixture_now().timestamp() - 400 * 86400.0
_OTHER_TENANT = "globex"
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

    def change(self, vector: Vector) -> None:
        """Sets the clock to the vector's time, applies its records as deltas, and confirms the lanes at its ages."""
        self.clock.now = vector.now_s
        wanted = build(self._tenant, vector.records, vector.now)
        for lane in Lane:
            self._delta(lane, wanted)
        self._held = wanted
        self._state_time(_seconds(vector.data.get("clock_offset", "0s")), vector.data.get("time_stated_in", BOOT))
        for lane, own in ((Lane.URGENT, "urgent_age"), (Lane.BULK, "bulk_age")):
            age_s = _seconds(vector.data.get(own, vector.data.get("age", "1s")))
            self._confirm(self._tenant, lane, age_s, vector.data.get("confirmed_in", BOOT))
            self._confirm(_OTHER_TENANT, lane, 1.0, BOOT)

    def head(self, tenant: str) -> Cursor | None:
        """Where the tenant's urgent lane stands; None: not loaded."""
        return self._writer.cursor(tenant, Lane.URGENT)

    def close(self) -> None:
        """Releases the directory."""
        self._writer.close()

    def _state_time(self, offset_s: float, boot: str) -> None:
        self.clock.boot = boot
        self._writer.note_time(boottime=self.clock.boottime(), server_time=self.clock.wall() - offset_s)
        self.clock.boot = BOOT

    def _confirm(self, tenant: str, lane: Lane, age_s: float, boot: str) -> None:
        # Within a boot its own clock tells the age, across boots the wall clock; the other one is set to mislead.
        boottime, wall = self.clock.boottime(), self.clock.wall()
        if boot == BOOT:
            boottime, wall = boottime - age_s, wall + 3600.0
        else:
            wall -= age_s
        self.clock.boot = boot
        self._writer.confirm(tenant, lane, boottime=boottime, wall=wall)
        self.clock.boot = BOOT

    def _snapshot(self, tenant: str, lane: Lane, records: Records) -> None:
        rows = sorted((int(collection), record_id, value) for (collection, record_id), value in records.items())
        rows = [row for row in rows if lane_of(row[0]) is lane]
        digest = Digest(_DIGEST_KEY)
        payload = sync_pb2.SnapshotRecords()
        for collection, record_id, value in rows:
            digest.add(collection, record_id, value)
            payload.records.add(collection=Number.Name(collection), id=record_id, value=value)
        name = resources_pb2.Lane.Name(lane.value)
        cursor = sync_pb2.Cursor(tenant=tenant, lane=name, epoch=EPOCH, revision=1, digest=digest.value())
        staging = self._writer.stage(sync_pb2.SnapshotOffer(cursor=cursor, records=len(rows), digest_key=_DIGEST_KEY))
        if rows:
            staging.add(sync_pb2.SnapshotChunk(tenant=tenant, lane=name, payload=payload.SerializeToString()))
        for _ in staging.finish(sync_pb2.SnapshotEnd(cursor=cursor, chunks=staging.chunks)):
            pass
        staging.commit()

    def _delta(self, lane: Lane, wanted: Records) -> None:
        cursor = self._writer.cursor(self._tenant, lane)
        assert cursor is not None
        digest = Digest(_DIGEST_KEY, cursor.digest)
        delta = sync_pb2.Delta(
            tenant=self._tenant,
            lane=resources_pb2.Lane.Name(lane.value),
            epoch=cursor.epoch,
            revision=cursor.revision + 1,
            previous_digest=cursor.digest,
        )
        for key in sorted(self._held.keys() | wanted.keys()):
            collection, record_id = key
            old, new = self._held.get(key), wanted.get(key)
            if old == new or lane_of(collection) is not lane:
                continue
            change = delta.changes.add(collection=Number.Name(collection), id=record_id)
            if old is not None:
                digest.remove(collection, record_id, old)
            if new is not None:
                digest.add(collection, record_id, new)
                change.value = new
            else:
                change.deleted = True
        if delta.changes:
            delta.digest = digest.value()
            self._writer.apply_delta(delta.SerializeToString())


def _seconds(text: str) -> float:
    return -parse_duration(text[1:]) if text.startswith("-") else parse_duration(text)
