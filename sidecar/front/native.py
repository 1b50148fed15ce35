"""The default transport: HTTP/2 and gRPC in Rust, outside the GIL (pygrpc-native)."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pygrpc_native import EVENT_CALL, STREAM_FULL, NativeGrpcFront

from sidecar.front.reflection import ReflectionServer
from sidecar.front.transport import (
    DETAILS,
    MAX_WAITING,
    NO_DEADLINE,
    WAKE_S,
    Call,
    Method,
    StatusCode,
    TransportError,
    overflow,
    oversize,
)
from sidecar.front.unix import SocketFile
from sidecar.listeners import Listener

if TYPE_CHECKING:
    from pygrpc_native._native import DetailedEvent

# It has no GOAWAY: that nobody calls any more is how the end of a drain is noticed.
_QUIET_S = 0.2


class NativeTransport:
    """`Transport` on pygrpc-native.

    The queue inside it has no bound, so `receive` takes all that waits there into one that has.
    """

    def __init__(self, listener: Listener, methods: Sequence[Method], *, reflection: Sequence[str] = ()) -> None:
        self._limits = [method.max_bytes for method in methods]
        # Calls without an answer, waiting or being worked on.
        self._open: dict[int, Call] = {}
        self._waiting: deque[Call] = deque()
        self._drain_until: float | None = None
        self._last_call_at = 0.0
        self._socket = SocketFile(listener.path) if listener.path else None
        if self._socket:
            self._socket.make_way()
        try:
            self._front = NativeGrpcFront(
                f"unix:{listener.path}" if listener.path else str(listener.address),
                [(method.path, method.streaming) for method in methods],
                io_threads=1,
                call_details=True,
                max_concurrent_streams=MAX_WAITING,
                reuse_port=not listener.path,
            )
        except OSError as error:
            raise TransportError(f"{listener}: {error.strerror or error}") from error
        if self._socket:
            self._socket.claim()
        self._reflection = ReflectionServer(reflection) if reflection else None
        if self._reflection:
            self._front.set_fallback(self._reflection.path)

    @property
    def port(self) -> int:
        """The bound TCP port; 0 for a Unix socket."""
        return 0 if self._socket else self._front.bound_port

    def start(self) -> None:
        """Begins to accept calls."""
        self._front.start()

    def receive(self, max_calls: int, timeout_s: float) -> list[Call] | None:
        """See `Transport.receive`."""
        waiting = self._waiting
        timeout_ms = 0 if waiting else round(min(timeout_s, WAKE_S) * 1000)
        events = self._front.recv_batch_details(MAX_WAITING, timeout_ms)
        if events is None:
            return None
        if events:
            self._accept(events)
        if self._drain_until is not None and self._has_drained(self._drain_until):
            return None
        calls: list[Call] = []
        while waiting and len(calls) < max_calls:
            call = waiting.popleft()
            if not call.cancelled:
                calls.append(call)
        return calls

    def answer(self, call: Call, payload: bytes) -> None:
        """See `Transport.answer`."""
        self._open.pop(call.handle, None)
        self._front.respond(call.handle, payload)

    def fail(self, call: Call, code: StatusCode, message: str, details: bytes = b"") -> None:
        """See `Transport.fail`."""
        self._open.pop(call.handle, None)
        self._front.fail(call.handle, code, message, [(DETAILS, details)] if details else None)

    def send(self, call: Call, payload: bytes) -> bool:
        """See `Transport.send`."""
        return self._front.stream_try_send(call.handle, payload) != STREAM_FULL

    def drain(self, grace_s: float) -> None:
        """See `Transport.drain`. Over once nobody called for a moment; past the grace, calls are refused."""
        self._drain_until = time.monotonic() + grace_s

    def close(self) -> None:
        """See `Transport.close`."""
        if self._socket:
            self._socket.remove()
        self._front.close()
        if self._reflection:
            self._reflection.stop()

    def _accept(self, events: list[DetailedEvent]) -> None:
        now = self._last_call_at = time.monotonic()
        for kind, handle, method, payload, _, details in events:
            if kind != EVENT_CALL:
                gone = self._open.pop(handle, None)
                if gone is not None:
                    gone.cancelled = True
                continue
            assert payload is not None
            assert details is not None
            metadata, peer, remaining = details
            deadline = NO_DEADLINE if remaining is None else now + remaining
            call = Call(method, payload, metadata, peer, deadline, handle)
            self._open[handle] = call
            if len(payload) > self._limits[method]:
                self.fail(call, StatusCode.RESOURCE_EXHAUSTED, oversize(len(payload), self._limits[method]))
            elif self._drain_until is not None and now >= self._drain_until:
                self.fail(call, StatusCode.UNAVAILABLE, "draining")
            elif len(self._waiting) >= MAX_WAITING:
                self.fail(call, StatusCode.RESOURCE_EXHAUSTED, overflow())
            else:
                self._waiting.append(call)

    def _has_drained(self, until: float) -> bool:
        now = time.monotonic()
        return not self._waiting and (now >= until or (not self._open and now - self._last_call_at >= _QUIET_S))
