"""A sidecar's store in a folder, filled as sync fills it, for simulations."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from google.protobuf.message import Message
from sidestep.v1 import resources_pb2, sync_pb2
from sidestep.v1.resources_pb2 import Collection as Number

from engine.digest import Digest
from engine.names import Lane, lane_of
from sidecar.clock import Clock
from sidecar.store.reader import Reader
from sidecar.store.writer import Writer

RecordKey = tuple[int, str]
Records = Mapping[RecordKey, Message]
_EPOCH: Final = 1
_DIGEST_KEY: Final = hashlib.sha256(b"sidestep simulation").digest()
_CONFIRM_EVERY_S: Final = 1800.0


class SimulatedClock(Clock):
    """Stands where it is set; never goes back."""

    __slots__ = ("_booted_at", "now")

    def __init__(self, now: float) -> None:
        super().__init__("simulated")
        self.now = now
        self._booted_at = now - 86400.0

    def advance(self, now: float) -> None:
        """Sets it, unless that would be back."""
        self.now = max(self.now, now)

    def wall(self) -> float:
        """Simulated time."""
        return self.now

    def boottime(self) -> float:
        """Simulated time since a day before the beginning."""
        return self.now - self._booted_at


class SimulatedStore:
    """One tenant's data in `folder`. Every `put` is one commit; readers see it with their next view."""

    def __init__(self, folder: Path, tenant: str, records: Records, clock: SimulatedClock) -> None:
        self.clock = clock
        self._tenant = tenant
        self._writer = Writer(folder, clock=clock)
        self.reader: Reader | None = None
        try:
            self._writer.set_scope(frozenset({tenant}))
            for lane in Lane:
                self._snapshot(lane, {key: value for key, value in records.items() if lane_of(key[0]) is lane})
            self._confirmed_at = float("-inf")
            self.confirm()
            self.reader = Reader(folder, clock=clock)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Releases the folder."""
        if self.reader is not None:
            self.reader.close()
        self._writer.close()

    def confirm(self) -> None:
        """The data is the newest there is: noted as often as sidecars need it to count as fresh."""
        if self.clock.now - self._confirmed_at < _CONFIRM_EVERY_S:
            return
        self._confirmed_at = self.clock.now
        for lane in Lane:
            self._writer.confirm(self._tenant, lane, boottime=self.clock.boottime(), wall=self.clock.wall())

    def put(self, records: Iterable[tuple[RecordKey, Message, bytes | None]]) -> None:
        """Writes records of one lane in one commit: each with its key and the bytes it takes the place of, if any."""
        changes = list(records)
        if not changes:
            return
        lane = lane_of(changes[0][0][0])
        assert lane is not None
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
        for (collection, record_id), message, old in changes:
            value = message.SerializeToString()
            if old is not None:
                digest.remove(collection, record_id, old)
            digest.add(collection, record_id, value)
            delta.changes.add(collection=Number.Name(Number.ValueType(collection)), id=record_id, value=value)
        delta.digest = digest.value()
        self._writer.apply_delta(delta.SerializeToString())

    def _snapshot(self, lane: Lane, records: Records) -> None:
        digest = Digest(_DIGEST_KEY)
        payload = sync_pb2.SnapshotRecords()
        for (collection, record_id), message in sorted(records.items(), key=lambda item: item[0]):
            value = message.SerializeToString()
            digest.add(collection, record_id, value)
            payload.records.add(collection=Number.Name(Number.ValueType(collection)), id=record_id, value=value)
        name = resources_pb2.Lane.Name(lane.value)
        cursor = sync_pb2.Cursor(tenant=self._tenant, lane=name, epoch=_EPOCH, revision=1, digest=digest.value())
        staging = self._writer.stage(
            sync_pb2.SnapshotOffer(cursor=cursor, records=len(records), digest_key=_DIGEST_KEY)
        )
        if records:
            staging.add(sync_pb2.SnapshotChunk(tenant=self._tenant, lane=name, payload=payload.SerializeToString()))
        for _ in staging.finish(sync_pb2.SnapshotEnd(cursor=cursor, chunks=staging.chunks)):
            pass
        staging.commit()
