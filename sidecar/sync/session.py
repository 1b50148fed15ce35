"""What is said on a stream, in both directions, and what it does to the store."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import grpc
from sidestep.v1 import sync_pb2 as pb

from engine.names import Lane
from sidecar.clock import Clock
from sidecar.store.errors import ApplyError, DigestMismatchError, StoreError, UndecodableError, UnreadableError
from sidecar.store.staging import Staging
from sidecar.store.writer import Writer, parse_delta
from sidecar.sync.confirm import Confirmations
from sidecar.sync.errors import ProtocolError, SilentError, SyncError, WithheldError
from sidecar.sync.lanes import LaneFollower, cursor_message
from sidecar.sync.proofs import Proofs
from sidecar.sync.reception import Reception
from sidecar.sync.signedtime import SignedTime
from sidecar.sync.state import LaneId, Phase, SyncState
from sidecar.sync.trust import UnverifiedError

_ADMITTED: Final = "sidestep-admitted"
_SILENT_HEARTBEATS: Final = 3
# How long what an answer speaks of may stay away, by what the lane is doing. A lost message would be waited for in vain.
_OWED_S: Final = {Phase.FOLLOWING: 15.0, Phase.AWAITING: 120.0, Phase.LOADING: 120.0}
_STATUS_POLLS: Final = 50
_STATUS_POLL_S: Final = 0.01


class Session:
    """Follows one stream after another on the same store; what is known of the lanes outlives a stream."""

    def __init__(
        self,
        writer: Writer,
        *,
        sidecar: str,
        instance: str,
        version: str,
        heartbeat_s: float,
        retry_s: float,
        proofs: Proofs,
        clock: Clock,
        on_change: Callable[[], None],
    ) -> None:
        self._writer = writer
        self._hello = (sidecar, instance, version)
        self._heartbeat_s = heartbeat_s
        self._retry_s = retry_s
        self._proofs = proofs
        self._clock = clock
        self._on_change = on_change
        self._lanes: dict[LaneId, LaneFollower] = {}
        self._receptions: dict[LaneId, Reception] = {}
        self._ended: deque[tuple[Staging, pb.SnapshotEnd]] = deque()
        self._confirmations = Confirmations(writer, clock)
        self._time = SignedTime(writer, clock)
        self._admitted = False
        self._deltas = self._snapshots = self._mismatches = 0
        self._last_message_at: float | None = None
        self._last_heartbeat_at: float | None = None
        self._heard_at = 0.0
        self.heard = False
        """Whether anything was received on the latest stream."""
        self._call: Any = None
        self._sending = asyncio.Lock()
        self._finishing = asyncio.Event()
        self._dropping = asyncio.Event()
        self._dropping.set()  # an earlier run may have left something to drop

    def state(self, *, connected: bool, streams: int, last_error: str) -> SyncState:
        """See SyncState."""
        return SyncState(
            connected=connected,
            streams=streams,
            scope=self._writer.scope(),
            cursors=self._writer.cursors(),
            phases={lane_id: lane.phase for lane_id, lane in self._lanes.items()},
            refusals={lane_id: lane.refused for lane_id, lane in self._lanes.items() if lane.refused is not None},
            deltas=self._deltas,
            snapshots=self._snapshots,
            mismatches=self._mismatches,
            last_message_at=self._last_message_at,
            last_heartbeat_at=self._last_heartbeat_at,
            last_error=last_error,
            clock_offset_s=self._time.offset_s(),
            trusted_keys=self._proofs.trusted_keys,
            trusted_keys_problem=self._proofs.problem,
            unverified=self._proofs.counts,
        )

    async def follow(self, call: Any, on_begun: Callable[[], None]) -> None:
        """Follows one stream to its end; `on_begun` is called with the first message received.

        Raises SyncError, StoreError, grpc.aio.AioRpcError.
        """
        self._call = call
        self._admitted = False
        self.heard = False
        self._heard_at = asyncio.get_running_loop().time()
        self._confirmations.new_stream()
        for lane in self._lanes.values():
            lane.new_stream()
        tasks = {
            asyncio.create_task(self._receive(on_begun)),
            asyncio.create_task(self._beat()),
            asyncio.create_task(self._finish()),
            asyncio.create_task(self._drop()),
        }
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.INTERNAL:
                await self._raise_true_status()
            raise
        except UnverifiedError as error:
            self._proofs.count(error)
            raise
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def end_stream(self) -> None:
        """Gives up what an ended stream was in the middle of."""
        self._call = None
        receiving = (reception.staging for reception in self._receptions.values())
        for staging in [*receiving, *(staging for staging, _ in self._ended)]:
            staging.abort()
        self._receptions.clear()
        self._ended.clear()
        self._proofs.keep()

    async def _raise_true_status(self) -> None:
        """A write that meets the end of the stream makes gRPC report INTERNAL, until the status itself comes in."""
        for _ in range(_STATUS_POLLS):
            if await self._call.code() is not grpc.StatusCode.INTERNAL:
                await self._call.read()  # of a call that has ended: raises its status
                return
            await asyncio.sleep(_STATUS_POLL_S)

    async def _receive(self, on_begun: Callable[[], None]) -> None:
        if (await self._call.initial_metadata()).get(_ADMITTED) is None:
            # Refused: the status says why and when to come back. A message sent meanwhile would make grpc.aio report an error of
            # its own instead, and the request to come back later would be lost.
            await self._call.read()
            raise SyncError("the control plane did not admit the stream")
        self._admitted = True
        await self._send(pb.SyncRequest(hello=self._proofs.hello(*self._hello)))
        await self._ping()
        loop = asyncio.get_running_loop()
        while (raw := await self._call.read()) is not grpc.aio.EOF:
            response = self._proofs.open(raw)
            self._heard_at = loop.time()
            self._last_message_at = self._clock.wall()
            if not self.heard:
                self.heard = True
                on_begun()
            for request in self._on_response(response):
                await self._send(request)
            await asyncio.sleep(0)

    async def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._heartbeat_s)
            silent_s = loop.time() - self._heard_at
            if silent_s > _SILENT_HEARTBEATS * self._heartbeat_s:
                raise SilentError(f"nothing heard for {silent_s:.1f} s")
            if not self._admitted:
                continue
            self._proofs.keep()
            for lane_id, owed_s in self._confirmations.owed_s().items():
                phase = self._lanes[lane_id].phase if lane_id in self._lanes else Phase.REFUSED
                if owed_s > _OWED_S.get(phase, float("inf")):
                    raise WithheldError(f"tenants/{lane_id[0]} lags, and nothing came for {owed_s:.0f} s")
            for lane in self._lanes.values():
                await self._answer(lane.tick())
            try:
                async with asyncio.timeout(_SILENT_HEARTBEATS * self._heartbeat_s):
                    await self._ping()
            except TimeoutError:
                raise SilentError("the control plane takes no messages") from None

    async def _ping(self) -> None:
        await self._send(self._ping_request())

    def _ping_request(self) -> pb.SyncRequest:
        offset_s = self._time.offset_s()
        ping = pb.Ping(nonce=self._confirmations.ping())
        if offset_s is not None:
            ping.clock_offset_ms = round(offset_s * 1000)
        return pb.SyncRequest(ping=ping)

    async def _send(self, request: pb.SyncRequest) -> None:
        if request.HasField("snapshot_request"):
            asked = request.snapshot_request
            asked.epoch, asked.revision = self._proofs.least((asked.tenant, Lane(asked.lane)))
        async with self._sending:
            try:
                await self._call.write(request)
            except asyncio.InvalidStateError:  # the stream is over; reading tells how it ended
                await self._call.read()
                raise SyncError("the control plane ended the stream") from None

    async def _answer(self, requests: list[pb.SyncRequest]) -> None:
        for request in requests:
            await self._send(request)
        if requests:
            self._on_change()

    def _on_response(self, response: pb.SyncResponse) -> list[pb.SyncRequest]:
        kind = response.WhichOneof("message")
        if kind == "delta":
            return self._on_delta(response.delta)
        if kind == "heartbeat":
            return self._on_heartbeat(response.heartbeat)
        if kind == "scope":
            return self._on_scope(response.scope)
        if kind == "snapshot_required":
            self._lane(response.snapshot_required).announced()
            self._on_change()
        elif kind == "snapshot_offer":
            return self._on_offer(response.snapshot_offer)
        elif kind == "snapshot_chunk":
            return self._on_chunk(response.snapshot_chunk)
        elif kind == "snapshot_end":
            return self._on_end(response.snapshot_end)
        return []  # a message without content, or of a kind this version does not know, says nothing

    def _lane(self, message: pb.Cursor | pb.Delta | pb.SnapshotRequired | pb.SnapshotChunk) -> LaneFollower:
        try:
            lane_id = (message.tenant, Lane(message.lane))
        except ValueError:
            raise ProtocolError(f"a message about lane {message.lane}") from None
        if message.tenant not in (self._writer.scope() or ()):
            raise ProtocolError("a message about a tenant out of scope")
        lane = self._lanes.get(lane_id)
        if lane is None:
            monotonic = asyncio.get_running_loop().time
            lane = self._lanes[lane_id] = LaneFollower(lane_id, retry_s=self._retry_s, monotonic=monotonic)
        return lane

    def _on_delta(self, raw: bytes) -> list[pb.SyncRequest]:
        try:
            delta = parse_delta(raw)
        except UndecodableError as error:
            raise ProtocolError(str(error)) from None
        lane = self._lane(delta)
        try:
            cursor = self._writer.apply_delta(raw)
        except ApplyError as error:
            before = lane.phase
            requests = lane.delta_failed(error, delta.revision, self._writer.cursor(*lane.lane_id))
            if requests or lane.phase is not before:
                self._mismatches += isinstance(error, DigestMismatchError)
                self._on_change()
            return requests
        held = self._writer.cursor(*lane.lane_id)
        if cursor is not None:
            self._proofs.lift(lane.lane_id, cursor)
            self._deltas += 1
            changed = lane.phase is not Phase.FOLLOWING
            lane.applied()
            self._confirmations.advanced(lane.lane_id, cursor)
            if changed:
                self._on_change()
        if held is None or held.revision < delta.revision:
            return []  # waits for the snapshot before it
        return [pb.SyncRequest(ack=pb.Ack(cursor=cursor_message(lane.lane_id, held)))]

    def _on_heartbeat(self, heartbeat: pb.Heartbeat) -> list[pb.SyncRequest]:
        self._last_heartbeat_at = self._clock.wall()
        asked = self._confirmations.answered(heartbeat.nonce)
        self._proofs.check_answer(heartbeat.nonce, asked=asked is not None)
        if asked is not None and self._proofs.demanded:
            self._time.answered(asked.boottime, heartbeat.server_time.ToNanoseconds() / 1e9)
        requests: list[pb.SyncRequest] = []
        scope = self._writer.scope() or ()
        for head in heartbeat.heads:
            if head.tenant not in scope:
                continue  # a new tenant, to be announced
            lane = self._lane(head)
            cursor = self._writer.cursor(*lane.lane_id)
            same = cursor is not None and (cursor.epoch, cursor.revision) == (head.epoch, head.revision)
            if cursor is not None and same and cursor.digest != head.digest:
                if lane.phase is Phase.FOLLOWING:
                    error = DigestMismatchError("the head has another digest than the data here")
                    requests += self._failed(lane, error, head.revision)
                continue
            requests += lane.head(head.epoch, head.revision, cursor)
            if asked is not None and self._proofs.covers(lane.lane_id):
                self._confirmations.head(lane.lane_id, head.epoch, head.revision, asked)
        return requests

    def _on_scope(self, scope: pb.Scope) -> list[pb.SyncRequest]:
        self._proofs.check_scope(scope)
        tenants = frozenset(scope.tenants)
        if not tenants:
            return []  # says nothing; never "wipe"
        known = self._writer.scope() or frozenset()
        gone = self._writer.set_scope(tenants)
        for lane_id in [lane_id for lane_id in self._lanes if lane_id[0] not in tenants]:
            del self._lanes[lane_id]
            self._receptions.pop(lane_id, None)
        if gone:
            self._dropping.set()
        self._on_change()
        # The heads of a tenant that is new here are asked for at once, so that its data counts as current once it is applied
        # and not only with the next heartbeat.
        return [self._ping_request()] if tenants - known else []

    def _on_offer(self, offer: pb.SnapshotOffer) -> list[pb.SyncRequest]:
        lane = self._lane(offer.cursor)
        self._proofs.check_offer(lane.lane_id, offer)
        lane.offered()
        try:
            staging = self._writer.stage(offer)
            self._receptions[lane.lane_id] = Reception(staging, offer, verified=self._proofs.demanded)
        except ApplyError as error:
            return self._failed(lane, error, offer.cursor.revision)
        self._on_change()
        return []

    def _on_chunk(self, chunk: pb.SnapshotChunk) -> list[pb.SyncRequest]:
        lane = self._lane(chunk)
        reception = self._receptions.get(lane.lane_id)
        if reception is None:
            return []  # of a snapshot that was given up
        try:
            reception.add(chunk)
        except ApplyError as error:
            del self._receptions[lane.lane_id]
            return self._failed(lane, error, reception.staging.cursor.revision)
        self._confirmations.moved(lane.lane_id)
        at = cursor_message(lane.lane_id, reception.staging.cursor)
        return [pb.SyncRequest(ack=pb.Ack(cursor=at, chunk=chunk.chunk))]

    def _on_end(self, end: pb.SnapshotEnd) -> list[pb.SyncRequest]:
        lane = self._lane(end.cursor)
        reception = self._receptions.pop(lane.lane_id, None)
        if reception is None:
            return []
        try:
            reception.end()
        except ApplyError as error:
            return self._failed(lane, error, reception.staging.cursor.revision)
        self._ended.append((reception.staging, end))
        self._finishing.set()
        return []

    def _failed(self, lane: LaneFollower, error: ApplyError, revision: int) -> list[pb.SyncRequest]:
        if isinstance(error, DigestMismatchError):
            self._mismatches += 1
        requests = lane.failed(error, revision, self._writer.cursor(*lane.lane_id))
        self._on_change()
        return requests

    async def _finish(self) -> None:
        """Completes received snapshots one after another, while deltas go on being applied."""
        while True:
            await self._finishing.wait()
            self._finishing.clear()
            while self._ended:
                staging, end = self._ended.popleft()
                try:
                    await self._complete(staging, end)
                finally:
                    staging.abort()

    async def _complete(self, staging: Staging, end: pb.SnapshotEnd) -> None:
        lane = self._lanes.get(staging.lane_id)
        if lane is None:
            return  # went out of scope
        try:
            for _ in staging.finish(end):
                await asyncio.sleep(0)
            await asyncio.to_thread(staging.sync)
            cursor = staging.commit()
        except ApplyError as error:
            await self._answer(self._failed(lane, error, staging.cursor.revision))
            return
        except UnreadableError:
            raise
        except StoreError as error:
            if self._lanes.get(staging.lane_id) is lane:
                raise ProtocolError(str(error)) from None
            return
        self._snapshots += 1
        self._proofs.lift(staging.lane_id, cursor, snapshot=True)
        self._proofs.keep(now=True)
        lane.loaded()
        self._confirmations.advanced(staging.lane_id, cursor)
        self._on_change()
        await self._send(pb.SyncRequest(ack=pb.Ack(cursor=cursor_message(staging.lane_id, cursor))))

    async def _drop(self) -> None:
        while True:
            await self._dropping.wait()
            self._dropping.clear()
            for _ in self._writer.drop():
                await asyncio.sleep(0)
