"""A sidecar's half of the sync stream, written down by hand: it checks every byte and applies it to dictionaries."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import grpc
from sidestep.v1 import sync_pb2

from engine.digest import Digest

URGENT, BULK = 1, 2
WITHIN_S = 10.0

Key = tuple[str, int]


class ReplicaLane:
    """What the scripted sidecar holds of one lane."""

    def __init__(self, offer: sync_pb2.SnapshotOffer) -> None:
        self.cursor = offer.cursor
        self.key = offer.digest_key
        self.records: dict[tuple[int, str], bytes] = {}

    def check(self) -> None:
        digest = Digest(self.key)
        for (collection, record_id), value in self.records.items():
            digest.add(collection, record_id, value)
        assert digest.value() == self.cursor.digest

    def apply(self, delta: sync_pb2.Delta) -> None:
        assert delta.revision == self.cursor.revision + 1
        assert delta.previous_digest == self.cursor.digest
        assert delta.epoch == self.cursor.epoch
        for change in delta.changes:
            key = (int(change.collection), change.id)
            if change.WhichOneof("change") == "deleted":
                del self.records[key]
            else:
                self.records[key] = change.value
        self.cursor.revision, self.cursor.digest = delta.revision, delta.digest
        self.check()


class Replica:
    """Applies what it is sent and acknowledges it, unless told to hold back what belongs to the bulk lane."""

    def __init__(self, call: Any, lanes: dict[Key, ReplicaLane]) -> None:
        self._call = call
        self.lanes = lanes
        self._staged: dict[Key, tuple[ReplicaLane, list[tuple[int, str]]]] = {}
        self.acknowledge_bulk = True
        self.log: list[tuple[str, Any]] = []
        self.chunks: dict[Key, int] = {}

    async def send(self, **message: Any) -> None:
        await self._call.write(sync_pb2.SyncRequest(**message))

    async def hello(
        self, name: str = "pod-1", cursors: Iterable[sync_pb2.Cursor] | None = None, instance: str = "i"
    ) -> None:
        held = cursors if cursors is not None else [lane.cursor for lane in self.lanes.values()]
        await self.send(hello=sync_pb2.Hello(sidecar=name, instance=instance, version="1", cursors=held))

    def disconnect(self) -> None:
        self._call.cancel()

    async def step(self) -> tuple[str, Any]:
        """Takes one message, checks and applies it."""
        async with asyncio.timeout(WITHIN_S):
            response = await self._call.read()
        assert response is not grpc.aio.EOF, await self._call.code()
        kind = response.WhichOneof("message")
        message = getattr(response, kind)
        if kind == "delta":
            message = sync_pb2.Delta.FromString(message)
            lane = self.lanes[(message.tenant, message.lane)]
            lane.apply(message)
            await self._ack(lane.cursor)
        elif kind == "snapshot_offer":
            key = (message.cursor.tenant, message.cursor.lane)
            self._staged[key] = (ReplicaLane(message), [])
            self.chunks[key] = 0
        elif kind == "snapshot_chunk":
            await self._stage(message)
        elif kind == "snapshot_end":
            key = (message.cursor.tenant, message.cursor.lane)
            lane, order = self._staged.pop(key)
            assert message.chunks == self.chunks[key]
            assert order == sorted(order, key=lambda record: (record[0], record[1].encode()))
            lane.check()
            self.lanes[key] = lane
            await self._ack(lane.cursor)
        self.log.append((kind, message))
        return kind, message

    async def _stage(self, chunk: sync_pb2.SnapshotChunk) -> None:
        key = (chunk.tenant, int(chunk.lane))
        lane, order = self._staged[key]
        assert chunk.chunk == self.chunks[key]
        assert len(chunk.payload) <= 256 * 1024
        self.chunks[key] += 1
        for record in sync_pb2.SnapshotRecords.FromString(chunk.payload).records:
            lane.records[(int(record.collection), record.id)] = record.value
            order.append((int(record.collection), record.id))
        await self._ack(lane.cursor, chunk=chunk.chunk)

    async def _ack(self, cursor: sync_pb2.Cursor, **fields: Any) -> None:
        if self.acknowledge_bulk or cursor.lane == URGENT:
            await self.send(ack=sync_pb2.Ack(cursor=cursor, **fields))

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(WITHIN_S):
            while not condition():
                await self.step()

    async def at(self, *revisions: tuple[str, int, int]) -> None:
        """Follows until these lanes are at (tenant, lane, revision)."""
        await self.until(lambda: all(self._is_at((tenant, lane), revision) for tenant, lane, revision in revisions))

    def _is_at(self, key: Key, revision: int) -> bool:
        return key in self.lanes and self.lanes[key].cursor.revision == revision

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.log if kind != "heartbeat"]
