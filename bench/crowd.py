"""Many lightweight sidecars in one process: each has a connection of its own, applies, verifies every digest, and acknowledges.

`python -m bench.crowd ADDRESS COUNT NAME [--bare]`; asked by lines on standard input, it answers with one line of JSON each:

    state    how many are connected and at the newest revision any of them has seen, and what was refused
    report   arrivals since the last report: {revision: [seconds since the epoch, ...]}, and when each stream was admitted
    quit

The bulk lane is refused by these clients, as by a sidecar whose store is full: a thousand copies of a million records are more
than one machine can hold. With --bare they follow `bench.fanout`: no digest, an empty answer to each message.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import defaultdict
from typing import Any

import grpc
from sidestep.v1 import resources_pb2, sync_pb2

from engine.digest import Digest
from sidecar.retryinfo import retry_after_s
from sidecar.sync.backoff import Backoff

SYNC = "/sidestep.v1.SyncService/Sync"
BARE = "/bench.Fanout/Follow"
_OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0))
_PING_S = 2.0


class Crowd:
    """What all clients of this process have seen."""

    def __init__(self, address: str, name: str, *, bare: bool) -> None:
        self.address = address
        self.name = name
        self.bare = bare
        self.arrivals: dict[int, list[float]] = defaultdict(list)
        self.admissions: list[float] = []
        self.refused = 0
        self.connected = 0
        self.clients: list[Client] = []

    def state(self) -> dict[str, Any]:
        newest = max((client.revision for client in self.clients), default=0)
        current = sum(client.following and client.revision == newest for client in self.clients)
        return {"connected": self.connected, "current": current, "newest": newest, "refused": self.refused}

    def report(self) -> dict[str, Any]:
        found = {"arrivals": dict(self.arrivals), "admissions": self.admissions, **self.state()}
        self.arrivals, self.admissions = defaultdict(list), []
        return found


class Client:
    """One of them."""

    def __init__(self, crowd: Crowd, number: int) -> None:
        self._crowd = crowd
        self._name = f"{crowd.name}-{number}"
        self._cursor: sync_pb2.Cursor | None = None
        self._key = b""
        self._records: dict[tuple[int, str], bytes] = {}
        self._digest = Digest(bytes(32))
        self.following = False

    @property
    def revision(self) -> int:
        return self._cursor.revision if self._cursor is not None else 0

    async def run(self) -> None:
        backoff = Backoff()
        while True:
            began, wait_s = time.monotonic(), None
            try:
                async with grpc.aio.insecure_channel(self._crowd.address, options=_OPTIONS) as channel:
                    await (self._bare(channel) if self._crowd.bare else self._follow(channel))
            except grpc.aio.AioRpcError as error:
                wait_s = retry_after_s(error)
                self._crowd.refused += wait_s is not None
            except asyncio.InvalidStateError:
                pass  # written to a stream that has ended
            if time.monotonic() - began > 30:
                backoff.reset()
            await asyncio.sleep(backoff.next_s(wait_s))

    async def _bare(self, channel: grpc.aio.Channel) -> None:
        call = channel.stream_stream(BARE)()
        await call.write(b"hello")
        self._crowd.connected += 1
        try:
            while (message := await call.read()) is not grpc.aio.EOF:
                self._crowd.arrivals[int.from_bytes(message[:8], "big")].append(time.time())
                await call.write(b"")
        finally:
            self._crowd.connected -= 1

    async def _follow(self, channel: grpc.aio.Channel) -> None:
        sync = channel.stream_stream(
            SYNC,
            request_serializer=sync_pb2.SyncRequest.SerializeToString,
            response_deserializer=sync_pb2.SyncResponse.FromString,
        )
        call = sync()
        if dict(await call.initial_metadata()).get("sidestep-admitted") is None:
            await call.read()  # raises what it was refused with
        self._crowd.admissions.append(time.time())
        self._crowd.connected += 1
        cursors = [self._cursor] if self._cursor is not None else []
        hello = sync_pb2.Hello(sidecar=self._name, instance="bench", version="bench", cursors=cursors)
        await call.write(sync_pb2.SyncRequest(hello=hello))
        pinging = asyncio.create_task(_ping(call))
        try:
            while (response := await call.read()) is not grpc.aio.EOF:
                if (answer := self._take(response)) is not None:
                    await call.write(answer)
        finally:
            self.following = False
            self._crowd.connected -= 1
            pinging.cancel()

    def _take(self, response: sync_pb2.SyncResponse) -> sync_pb2.SyncRequest | None:
        kind = response.WhichOneof("message")
        if kind == "delta":
            return self._apply(sync_pb2.Delta.FromString(response.delta))
        if kind == "heartbeat":
            heads = {head.revision for head in response.heartbeat.heads if head.lane == resources_pb2.LANE_URGENT}
            self.following |= self.revision in heads
        if kind == "snapshot_required" and response.snapshot_required.lane == resources_pb2.LANE_BULK:
            asked = response.snapshot_required
            cursor = sync_pb2.Cursor(tenant=asked.tenant, lane=asked.lane)
            return sync_pb2.SyncRequest(refusal=sync_pb2.Refusal(cursor=cursor, code="storage_full"))
        if kind == "snapshot_offer" and response.snapshot_offer.cursor.lane == resources_pb2.LANE_URGENT:
            self._key, self._records = response.snapshot_offer.digest_key, {}
        if kind == "snapshot_chunk" and response.snapshot_chunk.lane == resources_pb2.LANE_URGENT:
            chunk = response.snapshot_chunk
            for record in sync_pb2.SnapshotRecords.FromString(chunk.payload).records:
                self._records[int(record.collection), record.id] = record.value
            at = sync_pb2.Cursor(tenant=chunk.tenant, lane=chunk.lane)
            return sync_pb2.SyncRequest(ack=sync_pb2.Ack(cursor=at, chunk=chunk.chunk))
        if kind == "snapshot_end" and response.snapshot_end.cursor.lane == resources_pb2.LANE_URGENT:
            self._digest = Digest(self._key)
            for (collection, record_id), value in self._records.items():
                self._digest.add(collection, record_id, value)
            return self._reached(response.snapshot_end.cursor)
        return None

    def _apply(self, delta: sync_pb2.Delta) -> sync_pb2.SyncRequest | None:
        if delta.lane != resources_pb2.LANE_URGENT:
            return None
        for change in delta.changes:
            key = (int(change.collection), change.id)
            if (old := self._records.pop(key, None)) is not None:
                self._digest.remove(*key, old)
            if change.WhichOneof("change") == "value":
                self._records[key] = change.value
                self._digest.add(*key, change.value)
        self._crowd.arrivals[delta.revision].append(time.time())
        return self._reached(
            sync_pb2.Cursor(
                tenant=delta.tenant,
                lane=resources_pb2.LANE_URGENT,
                epoch=delta.epoch,
                revision=delta.revision,
                digest=delta.digest,
            )
        )

    def _reached(self, cursor: sync_pb2.Cursor) -> sync_pb2.SyncRequest:
        assert self._digest.value() == cursor.digest, "the records do not have their digest"
        self._cursor, self.following = cursor, True
        return sync_pb2.SyncRequest(ack=sync_pb2.Ack(cursor=cursor))


async def _ping(call: Any) -> None:
    nonce = 0
    while True:
        await asyncio.sleep(_PING_S)
        nonce += 1
        await call.write(sync_pb2.SyncRequest(ping=sync_pb2.Ping(nonce=nonce)))


async def _serve(crowd: Crowd, count: int) -> None:
    crowd.clients = [Client(crowd, number) for number in range(count)]
    running = [asyncio.create_task(client.run()) for client in crowd.clients]
    while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
        if line == "quit":
            break
        failed = [task.exception() for task in running if task.done()]
        answer = crowd.report() if line == "report" else crowd.state()
        print(json.dumps({**answer, "failed": [repr(error) for error in failed]}), flush=True)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


def main() -> None:
    """Runs them until told to quit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("count", type=int)
    parser.add_argument("name")
    parser.add_argument("--bare", action="store_true")
    arguments = parser.parse_args()
    asyncio.run(_serve(Crowd(arguments.address, arguments.name, bare=arguments.bare), arguments.count))


if __name__ == "__main__":
    main()
