"""One sidecar's stream: what it is sent next.

Order of precedence: urgent deltas, heartbeats, one snapshot chunk, one bulk delta. Of the last two, one each may be
unacknowledged at a time, so a slow sidecar holds back only itself, and never an urgent delta behind much of its bulk.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from enum import Enum

from sidestep.v1 import admin_pb2, resources_pb2, sync_pb2

from controlplane.api.wire import delimited
from controlplane.changes import Changes, Frame, LaneKey, Updates
from controlplane.errors import CompactedError, StalledError
from controlplane.snapshots import Lease, Snapshots
from controlplane.store import Head
from engine.errors import SidestepError
from engine.names import Lane

_URGENT_AT_ONCE = 16
_MAX_PINGS = 16
_MAX_REFUSAL = 500


class Phase(Enum):
    """What a lane of a stream is doing."""

    FOLLOWING = 1
    SNAPSHOT = 2
    REFUSED = 3


class Follower:
    """A lane of a stream. `sent` is the revision the sidecar has been brought to; `acked` is what it says it applied."""

    def __init__(self, key: LaneKey, history: int, acked: sync_pb2.Cursor) -> None:
        self.key = key
        self.history = history
        self.phase = Phase.FOLLOWING
        self.reason = ""
        self.refusal = ""
        self.sent = 0
        self.acked = acked


class Transfer:
    """A snapshot on its way."""

    def __init__(self, follower: Follower, lease: asyncio.Task[Lease]) -> None:
        self.follower = follower
        self.lease_task = lease
        self.lease: Lease | None = None
        self.next_chunk = 0
        self.unacked: int | None = None
        self.sent_at = 0.0

    def end(self) -> None:
        """Gives the lease back, also one still to come."""
        self.lease_task.add_done_callback(_release)
        self.lease_task.cancel()


class Stream:
    """Sends until cancelled or `end`ed; `receive` takes what the sidecar says meanwhile. Belongs to one event loop.

    `write` sends one encoded SyncResponse. `scope` None means all tenants. `status` is kept up to date in place and
    `on_status` called after each change.
    """

    def __init__(
        self,
        hello: sync_pb2.Hello,
        scope: frozenset[str] | None,
        changes: Changes,
        snapshots: Snapshots,
        write: Callable[[bytes], Awaitable[None]],
        on_status: Callable[[], None],
        *,
        heartbeat_s: float,
        ack_timeout_s: float,
        on_delta: Callable[[Lane], None] = lambda _: None,
        on_chunk: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._on_delta = on_delta
        self._on_chunk = on_chunk
        self._scope = scope
        self._changes = changes
        self._snapshots = snapshots
        self._write = write
        self._on_status = on_status
        self._heartbeat_s = heartbeat_s
        self._ack_timeout_s = ack_timeout_s
        self._cursors = {(cursor.tenant, int(cursor.lane)): cursor for cursor in hello.cursors}
        self._wake = asyncio.Event()
        self._failure: SidestepError | None = None
        self._followers: dict[tuple[str, int], Follower] = {}
        # Followers that may be behind, in the order in which they get their turn.
        self._behind: dict[Lane, dict[LaneKey, Follower]] = {lane: {} for lane in Lane}
        self._wanting: dict[Lane, dict[LaneKey, Follower]] = {lane: {} for lane in Lane}
        self._transfer: Transfer | None = None
        self._bulk_unacked: tuple[LaneKey, int] | None = None
        self._pings: deque[int] = deque(maxlen=_MAX_PINGS)
        self._heartbeat_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.status = admin_pb2.SidecarStatus(
            sidecar=hello.sidecar, instance=hello.instance, version=hello.version, connected=True
        )
        self.status.connect_time.FromNanoseconds(time.time_ns())
        self.status.seen_time.CopyFrom(self.status.connect_time)

    @property
    def loading(self) -> bool:
        """Whether a snapshot is on its way, or waits to be."""
        return self._transfer is not None or any(self._wanting.values())

    def acknowledged(self) -> Iterator[tuple[LaneKey, sync_pb2.Cursor]]:
        """Every lane it follows, and where the sidecar says it stands; epoch 0: nowhere yet."""
        for follower in self._followers.values():
            yield follower.key, follower.acked

    def end(self, error: SidestepError) -> None:
        """Makes `run` raise an error soon."""
        self._failure = error
        self._wake.set()

    async def run(self) -> None:
        """Sends. Raises StalledError if a chunk is not acknowledged in time, and what snapshots and the store raise."""
        try:
            with self._changes.subscribe(self._wake, self._scope) as updates:
                updates.lanes.update(key for key in self._changes.heads if updates.covers(key[0]))
                await self._take_updates(updates, first=True)
                while True:
                    self._wake.clear()
                    if self._failure is not None:
                        raise self._failure
                    await self._take_updates(updates)
                    busy = await self._send_urgent()
                    busy |= await self._send_heartbeats()
                    busy |= await self._send_snapshot()
                    busy |= await self._send_bulk()
                    if not busy:
                        await self._wake.wait()
        finally:
            self._drop_transfer()
            if self._timer is not None:
                self._timer.cancel()

    # From the sidecar

    def receive(self, request: sync_pb2.SyncRequest) -> None:
        """Takes one message after Hello. What concerns a lane this stream does not follow is ignored."""
        self.status.seen_time.FromNanoseconds(time.time_ns())
        kind = request.WhichOneof("message")
        if kind == "ack":
            self._on_ack(request.ack)
        elif kind == "refusal":
            self._on_refusal(request.refusal)
        elif kind == "snapshot_request":
            asked = request.snapshot_request
            if follower := self._followers.get((asked.tenant, asked.lane)):
                self._want(follower, "requested")
        elif kind == "ping":
            self._pings.append(request.ping.nonce)
        self._wake.set()
        self._on_status()

    def _on_ack(self, ack: sync_pb2.Ack) -> None:
        follower = self._followers.get((ack.cursor.tenant, ack.cursor.lane))
        if follower is None:
            return
        if ack.HasField("chunk"):
            if self._transfer and self._transfer.follower is follower and self._transfer.unacked == ack.chunk:
                self._transfer.unacked = None
            return
        follower.acked.CopyFrom(ack.cursor)
        if (
            self._bulk_unacked
            and self._bulk_unacked[0] == follower.key
            and ack.cursor.revision >= self._bulk_unacked[1]
        ):
            self._bulk_unacked = None
        if follower.refusal and follower.phase is Phase.FOLLOWING:
            follower.refusal = ""
            self._show_refusals()

    def _on_refusal(self, refusal: sync_pb2.Refusal) -> None:
        follower = self._followers.get((refusal.cursor.tenant, refusal.cursor.lane))
        if follower is None:
            return
        self._stop(follower)
        follower.phase = Phase.REFUSED
        follower.acked.CopyFrom(refusal.cursor)
        tenant, lane = follower.key
        where = f"tenants/{tenant} {lane.name.lower()} revision {refusal.revision}"
        follower.refusal = f"{where}: {refusal.code}: {refusal.detail}"[:_MAX_REFUSAL]
        self._show_refusals()

    def _show_refusals(self) -> None:
        refusals = [follower.refusal for follower in self._followers.values() if follower.refusal]
        self.status.refusal = "; ".join(refusals)[: 2 * _MAX_REFUSAL]

    # To the sidecar

    async def _take_updates(self, updates: Updates, *, first: bool = False) -> None:
        """Notes which lanes moved; announces the scope at first and when tenants have come into being."""
        moved, updates.lanes = updates.lanes, set()
        new = [key for key in moved if key not in self._followers]
        if new or first:
            tenants = sorted({tenant for tenant, _ in self._followers} | {tenant for tenant, _ in new})
            await self._send(sync_pb2.SyncResponse(scope=sync_pb2.Scope(tenants=tenants)))
        for key in sorted(new):
            await self._begin(self._changes.heads[key])
        if new or first:
            self._on_status()
        for key in moved:
            self._behind[key[1]][key] = self._followers[key]

    async def _begin(self, head: Head) -> None:
        """Starts a lane: from the sidecar's cursor if the log leads on from it, else with a snapshot."""
        key = (head.tenant, head.lane)
        acked = self.status.cursors.add(tenant=head.tenant, lane=resources_pb2.Lane.Name(head.lane))
        follower = self._followers[key] = Follower(key, self._changes.history(key), acked)
        cursor = self._cursors.pop(key, None)
        reason = "no cursor" if cursor is None else await self._mismatch(head, cursor)
        if reason:
            self._want(follower, reason)
        elif cursor is not None:
            follower.sent = cursor.revision
            follower.acked.CopyFrom(cursor)

    async def _mismatch(self, head: Head, cursor: sync_pb2.Cursor) -> str:
        """Why the log does not lead on from a cursor; empty if it does."""
        if cursor.epoch == head.epoch and cursor.revision > head.revision:
            # Another process may have committed and served it a moment ago.
            await self._changes.refresh()
            head = self._changes.heads[(head.tenant, head.lane)]
        if cursor.epoch != head.epoch:
            return "other epoch"
        if cursor.revision > head.revision:
            return "cursor is ahead"
        digest = head.digest
        if cursor.revision < head.revision:
            try:
                frames = await self._changes.read((head.tenant, head.lane), cursor.revision, 1)
            except CompactedError:
                return "compacted"
            if not frames:
                return "cursor is ahead"
            response = sync_pb2.SyncResponse.FromString(frames[0].message)
            digest = sync_pb2.Delta.FromString(response.delta).previous_digest
        return "" if digest == cursor.digest else "digest mismatch"

    async def _send_urgent(self) -> bool:
        busy = False
        for follower in tuple(self._behind[Lane.URGENT].values()):
            for frame in await self._next_frames(follower, _URGENT_AT_ONCE):
                # A refusal or a request for a snapshot may have come in while the one before was written.
                if follower.phase is not Phase.FOLLOWING:
                    break
                follower.sent = frame.revision
                await self._write(frame.message)
                self._on_delta(Lane.URGENT)
                busy = True
        return busy

    async def _send_bulk(self) -> bool:
        if self._bulk_unacked is not None:
            return False
        for key, follower in tuple(self._behind[Lane.BULK].items()):
            frames = await self._next_frames(follower, 1)
            if frames and follower.phase is Phase.FOLLOWING:
                follower.sent = frames[0].revision
                self._bulk_unacked = (key, follower.sent)
                # To the end of the row, so that every tenant gets its turn.
                self._behind[Lane.BULK].pop(key, None)
                self._behind[Lane.BULK][key] = follower
                await self._write(frames[0].message)
                self._on_delta(Lane.BULK)
                return True
        return False

    async def _next_frames(self, follower: Follower, limit: int) -> list[Frame]:
        """What a lane lacks, a few frames at a time; takes it from the row when it lacks nothing more."""
        head = self._changes.heads[follower.key]
        if follower.phase is Phase.FOLLOWING and self._changes.history(follower.key) != follower.history:
            self._want(follower, "other history")
        elif follower.phase is Phase.FOLLOWING and head.revision > follower.sent:
            try:
                return list(await self._changes.read(follower.key, follower.sent, limit))
            except CompactedError:
                self._want(follower, "compacted")
        self._behind[follower.key[1]].pop(follower.key, None)
        return []

    async def _send_heartbeats(self) -> bool:
        loop = asyncio.get_running_loop()
        now = loop.time()
        transfer = self._transfer
        if transfer and transfer.unacked is not None and now - transfer.sent_at > self._ack_timeout_s:
            raise StalledError(f"snapshot chunk {transfer.unacked} was not acknowledged in {self._ack_timeout_s:g} s")
        due = now >= self._heartbeat_at
        if due:
            self._heartbeat_at = now + self._heartbeat_s
            self._timer = loop.call_at(self._heartbeat_at, self._wake.set)
        if not self._changes.is_current():
            # Old heads would make the sidecar take its data for current. It hears that we live, and pings wait.
            if due:
                await self._write(self._heartbeat(0, heads=b""))
            return due
        nonces = list(self._pings) or [0] * due
        self._pings.clear()
        heads = self._changes.encoded_heads(self._scope)
        for nonce in nonces:
            await self._write(self._heartbeat(nonce, heads))
        return bool(nonces)

    def _heartbeat(self, nonce: int, heads: bytes) -> bytes:
        timed = sync_pb2.Heartbeat(nonce=nonce)
        timed.server_time.FromNanoseconds(time.time_ns())
        # Encoded messages merge by concatenation, so the heads are encoded once for all streams of one scope.
        return delimited(sync_pb2.SyncResponse.HEARTBEAT_FIELD_NUMBER, heads + timed.SerializeToString())

    async def _send_snapshot(self) -> bool:
        transfer = self._transfer
        if transfer is None:
            return await self._begin_transfer()
        if transfer.lease is None:
            if not transfer.lease_task.done():
                return False
            transfer.lease = transfer.lease_task.result()
            await self._send(sync_pb2.SyncResponse(snapshot_offer=transfer.lease.offer))
            return True
        if transfer.unacked is not None:
            return False
        cursor = transfer.lease.offer.cursor
        if transfer.next_chunk < transfer.lease.chunks:
            payload = await transfer.lease.read()
            if self._transfer is not transfer:
                return True
            chunk = sync_pb2.SnapshotChunk(
                tenant=cursor.tenant, lane=cursor.lane, chunk=transfer.next_chunk, payload=payload
            )
            transfer.unacked = transfer.next_chunk
            transfer.next_chunk += 1
            transfer.sent_at = asyncio.get_running_loop().time()
            await self._send(sync_pb2.SyncResponse(snapshot_chunk=chunk))
            self._on_chunk(len(payload))
            return True
        follower = transfer.follower
        follower.sent = cursor.revision
        follower.history = self._changes.history(follower.key)
        follower.phase = Phase.FOLLOWING
        self._behind[follower.key[1]][follower.key] = follower
        end = sync_pb2.SnapshotEnd(cursor=cursor, chunks=transfer.lease.chunks)
        self._drop_transfer()
        await self._send(sync_pb2.SyncResponse(snapshot_end=end))
        return True

    async def _begin_transfer(self) -> bool:
        """Announces the next snapshot, urgent lanes first, and has it made ready."""
        for lane in Lane:
            for key, follower in self._wanting[lane].items():
                del self._wanting[lane][key]
                lease = asyncio.create_task(self._snapshots.lease(*key))
                lease.add_done_callback(lambda _: self._wake.set())
                self._transfer = Transfer(follower, lease)
                required = sync_pb2.SnapshotRequired(
                    tenant=key[0], lane=resources_pb2.Lane.Name(lane), reason=follower.reason
                )
                await self._send(sync_pb2.SyncResponse(snapshot_required=required))
                return True
        return False

    def _want(self, follower: Follower, reason: str) -> None:
        """Puts a lane in the row for a snapshot."""
        self._stop(follower)
        follower.phase = Phase.SNAPSHOT
        follower.reason = reason
        self._wanting[follower.key[1]][follower.key] = follower

    def _stop(self, follower: Follower) -> None:
        """Ends whatever is under way on a lane."""
        self._wanting[follower.key[1]].pop(follower.key, None)
        if self._transfer and self._transfer.follower is follower:
            self._drop_transfer()
        if self._bulk_unacked and self._bulk_unacked[0] == follower.key:
            self._bulk_unacked = None

    def _drop_transfer(self) -> None:
        if self._transfer is not None:
            self._transfer.end()
            self._transfer = None

    async def _send(self, response: sync_pb2.SyncResponse) -> None:
        await self._write(response.SerializeToString())


def _release(lease: asyncio.Task[Lease]) -> None:
    if not lease.cancelled() and lease.exception() is None:
        lease.result().release()
