"""The truth about one (tenant, lane), as a control plane holds it: commits become deltas, and at any point a snapshot.

history = History("acme", Lane.BULK)
raw = history.commit({(64, "d1"): device("alice"), (64, "d2"): None})   # an encoded Delta
offer, chunks, end = history.snapshot()
"""

from __future__ import annotations

from collections.abc import Mapping

from sidestep.v1 import resources_pb2, sync_pb2

from engine.digest import EMPTY, Digest
from engine.names import Lane
from sidecar.store.keys import Cursor

Records = dict[tuple[int, str], bytes]


class History:
    def __init__(self, tenant: str = "acme", lane: Lane = Lane.BULK, *, epoch: int = 1, key: bytes = b"k" * 32) -> None:
        self.tenant = tenant
        self.lane = lane
        self.epoch = epoch
        self.key = key
        self.revision = 0
        self.records: Records = {}
        self._digest = EMPTY

    @property
    def cursor(self) -> Cursor:
        return Cursor(self.epoch, self.revision, self._digest)

    @property
    def head(self) -> sync_pb2.Cursor:
        return sync_pb2.Cursor(
            tenant=self.tenant,
            lane=resources_pb2.Lane.Name(self.lane.value),
            epoch=self.epoch,
            revision=self.revision,
            digest=self._digest,
        )

    def commit(self, changes: Mapping[tuple[int, str], bytes | None]) -> bytes:
        """Applies the changes (None deletes) and returns the encoded Delta."""
        digest = Digest(self.key, self._digest)
        delta = sync_pb2.Delta(
            tenant=self.tenant,
            lane=resources_pb2.Lane.Name(self.lane.value),
            epoch=self.epoch,
            revision=self.revision + 1,
            previous_digest=self._digest,
        )
        for (collection, record_id), value in changes.items():
            old = self.records.pop((collection, record_id), None)
            if old is not None:
                digest.remove(collection, record_id, old)
            change = delta.changes.add(id=record_id)
            change.collection = collection  # type: ignore[assignment]
            if value is None:
                change.deleted = True
            else:
                change.value = value
                self.records[collection, record_id] = value
                digest.add(collection, record_id, value)
        self.revision += 1
        self._digest = delta.digest = digest.value()
        return delta.SerializeToString()

    def snapshot(
        self, chunk_records: int = 100
    ) -> tuple[sync_pb2.SnapshotOffer, list[sync_pb2.SnapshotChunk], sync_pb2.SnapshotEnd]:
        ordered = sorted(self.records.items(), key=lambda item: (item[0][0], item[0][1].encode()))
        offer = sync_pb2.SnapshotOffer(
            cursor=self.head,
            records=len(ordered),
            bytes=sum(len(value) for _, value in ordered),
            digest_key=self.key,
        )
        chunks = []
        for number, start in enumerate(range(0, len(ordered), chunk_records)):
            content = sync_pb2.SnapshotRecords()
            for (collection, record_id), value in ordered[start : start + chunk_records]:
                record = content.records.add(id=record_id, value=value)
                record.collection = collection  # type: ignore[assignment]
            chunk = sync_pb2.SnapshotChunk(
                tenant=self.tenant, lane=self.head.lane, chunk=number, payload=content.SerializeToString()
            )
            chunks.append(chunk)
        return offer, chunks, sync_pb2.SnapshotEnd(cursor=self.head, chunks=len(chunks))


def device(subject: str) -> bytes:
    return resources_pb2.Device(subject=subject, key_id="fp").SerializeToString()


def device_state(subject: str, trust: int) -> bytes:
    state = resources_pb2.DeviceState(subject=subject)
    state.trust = trust  # type: ignore[assignment]
    return state.SerializeToString()


def grant(scope: str, value: str) -> bytes:
    message = resources_pb2.Grant(state=resources_pb2.GRANT_STATE_ACTIVE)
    setattr(message, scope, value)
    return message.SerializeToString()


def signal(value: str, score: int = 50) -> bytes:
    return resources_pb2.Signal(value=value, score=score).SerializeToString()
