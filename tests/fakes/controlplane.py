"""A control plane that does what it is told: a real gRPC server whose every answer is scripted by the test.

with ControlPlane() as plane:
    # start a sidecar or SyncClient on plane.address
    stream = plane.accept()               # the next stream, its Hello read
    stream.scope("acme")
    stream.snapshot(history)              # waits for every acknowledgement
    stream.delta(history.commit({...}))
    stream.expect("ack")                  # the next message that is not a ping
    stream.heartbeat(history)             # pings are answered with these heads from now on
    stream.end(grpc.StatusCode.UNAVAILABLE)
    plane.stop(); plane.start()           # the same port

Everything blocks with a deadline, and fails the test when it passes.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from sidestep.v1 import sync_pb2

from tests.fakes.history import History

WAIT_S = 10.0


class SyncStream:
    """One stream, from the control plane's side."""

    def __init__(self, requests: Iterator[sync_pb2.SyncRequest], metadata: dict[str, str]) -> None:
        self.metadata = metadata
        self.hello = sync_pb2.Hello()
        # Answer pings at once with the heads of these histories; None: leave them unanswered.
        self.heads: list[History] | None = None
        self.pings = 0
        self.closed = threading.Event()
        self._requests = requests
        self._received: queue.Queue[sync_pb2.SyncRequest] = queue.Queue()
        self._answers: queue.Queue[sync_pb2.SyncResponse | None] = queue.Queue()
        self.status: grpc.StatusCode | None = None

    def send(self, response: sync_pb2.SyncResponse) -> None:
        self._answers.put(response)

    def scope(self, *tenants: str) -> None:
        self.send(sync_pb2.SyncResponse(scope=sync_pb2.Scope(tenants=tenants)))

    def delta(self, raw: bytes) -> None:
        self.send(sync_pb2.SyncResponse(delta=raw))

    def required(self, history: History, reason: str = "told to") -> None:
        required = sync_pb2.SnapshotRequired(tenant=history.tenant, lane=history.head.lane, reason=reason)
        self.send(sync_pb2.SyncResponse(snapshot_required=required))

    def snapshot(self, history: History, chunk_records: int = 100) -> None:
        """Sends a whole snapshot and waits until it was applied."""
        offer, chunks, end = history.snapshot(chunk_records)
        self.send(sync_pb2.SyncResponse(snapshot_offer=offer))
        for chunk in chunks:
            self.chunk(chunk)
        self.send(sync_pb2.SyncResponse(snapshot_end=end))
        ack = self.expect("ack").ack
        assert not ack.HasField("chunk"), ack
        assert ack.cursor == end.cursor, (ack.cursor, end.cursor)

    def chunk(self, chunk: sync_pb2.SnapshotChunk) -> None:
        """Sends one chunk and waits for its acknowledgement."""
        self.send(sync_pb2.SyncResponse(snapshot_chunk=chunk))
        ack = self.expect("ack").ack
        assert ack.HasField("chunk"), ack
        assert ack.chunk == chunk.chunk, ack

    def heartbeat(self, *histories: History, nonce: int = 0) -> None:
        """Sends the heads of these histories; pings are answered with them from now on."""
        self.heads = list(histories)
        heads = [history.head for history in histories]
        self.send(sync_pb2.SyncResponse(heartbeat=sync_pb2.Heartbeat(heads=heads, nonce=nonce)))

    def follow(self, *histories: History) -> None:
        """Answers pings with the heads of these histories from now on."""
        self.heads = list(histories)

    def receive(self, wait_s: float = WAIT_S) -> sync_pb2.SyncRequest:
        """The next message other than a ping."""
        try:
            return self._received.get(timeout=wait_s)
        except queue.Empty:
            raise AssertionError(f"nothing received within {wait_s} s") from None

    def expect(self, kind: str, wait_s: float = WAIT_S) -> sync_pb2.SyncRequest:
        """The next message other than a ping, which must be of this kind."""
        request = self.receive(wait_s)
        assert request.WhichOneof("message") == kind, request
        return request

    def nothing_received(self) -> bool:
        return self._received.empty()

    def end(self, code: grpc.StatusCode | None = None) -> None:
        """Ends the stream, with an error if a code is given."""
        self.status = code
        self._answers.put(None)

    def answers(self) -> Iterator[sync_pb2.SyncResponse]:
        """What the server sends; used by the server."""
        while (answer := self._answers.get()) is not None:
            yield answer

    def read(self) -> None:
        """Reads until the client is gone; used by the server."""
        try:
            for request in self._requests:
                if request.WhichOneof("message") != "ping":
                    self._received.put(request)
                    continue
                self.pings += 1
                if self.heads is not None:
                    heads = [history.head for history in self.heads]
                    heartbeat = sync_pb2.Heartbeat(heads=heads, nonce=request.ping.nonce)
                    self.send(sync_pb2.SyncResponse(heartbeat=heartbeat))
        except Exception:
            pass
        self.closed.set()
        self._answers.put(None)


class ControlPlane:
    """Listens on an ephemeral loopback port as soon as it is made."""

    def __init__(self) -> None:
        self._port = 0
        self._streams: queue.Queue[SyncStream] = queue.Queue()
        self._open: list[SyncStream] = []
        # Refuse streams: (code, seconds of RetryInfo or None).
        self.refuse: tuple[grpc.StatusCode, float | None] | None = None
        # How long refusals take, and what was said meanwhile.
        self.hesitate_s = 0.0
        self.overheard: list[sync_pb2.SyncRequest] = []
        # When streams were begun (time.monotonic()), refused ones too.
        self.attempts: list[float] = []
        self.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    def start(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=16)
        self._server = grpc.server(self._pool, options=[("grpc.so_reuseport", 0)])
        handler = grpc.stream_stream_rpc_method_handler(
            self._sync,
            request_deserializer=sync_pb2.SyncRequest.FromString,
            response_serializer=sync_pb2.SyncResponse.SerializeToString,
        )
        service = grpc.method_handlers_generic_handler("sidestep.v1.SyncService", {"Sync": handler})
        self._server.add_generic_rpc_handlers((service,))
        self._port = self._server.add_insecure_port(self.address)
        self._server.start()

    def stop(self) -> None:
        """Dies, with its streams."""
        for stream in self._open:
            stream.end()
        self._server.stop(0).wait()
        self._pool.shutdown(wait=True)
        self._open.clear()

    def accept(self, wait_s: float = WAIT_S) -> SyncStream:
        """The next stream that was begun."""
        try:
            stream = self._streams.get(timeout=wait_s)
        except queue.Empty:
            raise AssertionError(f"no stream within {wait_s} s") from None
        stream.hello.CopyFrom(stream.expect("hello").hello)
        return stream

    def __enter__(self) -> ControlPlane:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _overhear(self, requests: Any) -> None:
        with contextlib.suppress(grpc.RpcError):
            self.overheard.extend(requests)

    def _sync(self, requests: Any, context: Any) -> Iterator[sync_pb2.SyncResponse]:
        self.attempts.append(time.monotonic())
        if self.refuse is not None:
            code, retry_after_s = self.refuse
            if self.hesitate_s:
                threading.Thread(target=self._overhear, args=(requests,)).start()
                threading.Event().wait(self.hesitate_s)
            if retry_after_s is not None:
                context.set_trailing_metadata((("grpc-status-details-bin", _status(code, retry_after_s)),))
            context.abort(code, "told to")
        context.send_initial_metadata((("sidestep-admitted", "true"),))
        metadata = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
        stream = SyncStream(requests, metadata)
        self._open.append(stream)
        reader = threading.Thread(target=stream.read)
        reader.start()
        self._streams.put(stream)
        try:
            yield from stream.answers()
        finally:
            if stream.status is not None:
                context.abort(stream.status, "told to")


def _status(code: grpc.StatusCode, retry_after_s: float) -> bytes:
    """google.rpc.Status with one RetryInfo, in wire format."""
    delay = Duration()
    delay.FromNanoseconds(int(retry_after_s * 1e9))
    encoded = delay.SerializeToString()
    info = AnyMessage(type_url="type.googleapis.com/google.rpc.RetryInfo", value=b"\x0a" + _sized(encoded))
    return b"\x08" + bytes([code.value[0]]) + b"\x1a" + _sized(info.SerializeToString())


def _sized(data: bytes) -> bytes:
    assert len(data) < 128
    return bytes([len(data)]) + data


def eventually(condition: Callable[[], object], wait_s: float = WAIT_S) -> None:
    """Waits for a condition with a deadline."""
    deadline = time.monotonic() + wait_s
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.005)
