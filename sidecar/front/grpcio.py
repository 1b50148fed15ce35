"""The other transport: grpc.aio in a thread of its own. Several times slower than the native one, and much older."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

import grpc
from grpc_reflection.v1alpha import reflection as grpc_reflection

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

_CODES = {code.value[0]: code for code in grpc.StatusCode}
# Stopping turns away calls that have arrived but not been handed over (CANCELLED), so it waits until nobody calls.
_QUIET_S = 0.2
_POLL_S = 0.01
# Above its default of 1,000 calls not yet handed over, grpcio ends some at random (CANCELLED), before our own bound does.
_MAX_PENDING = 16 * MAX_WAITING
# For answers that are on their way when the grace has passed.
_SETTLE_S = 0.1
_STOP_S = 5.0


class _Failure(NamedTuple):
    code: StatusCode
    message: str
    details: bytes = b""

    async def end(self, context: Any) -> None:
        """Ends a call so; raises."""
        trailers = ((DETAILS, self.details),) if self.details else ()
        await context.abort(_CODES[self.code], self.message, trailers)


class _Stream:
    """A streaming call's way out: at most one message that was not sent yet, then perhaps a status."""

    __slots__ = ("changed", "failure", "unsent")

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self.unsent: bytes | None = None
        self.failure: _Failure | None = None


class GrpcioTransport:
    """`Transport` on grpc.aio. Its event loop accepts and answers; the worker loop takes calls from a queue."""

    def __init__(self, listener: Listener, methods: Sequence[Method], *, reflection: Sequence[str] = ()) -> None:
        self._methods = list(methods)
        self._waiting: queue.SimpleQueue[Call] = queue.SimpleQueue()
        # Results for the event loop, and whether it has been told to fetch them.
        self._results: deque[tuple[asyncio.Future[bytes | _Failure], bytes | _Failure]] = deque()
        self._told = False
        self._in_flight = 0
        self._last_call_at = 0.0
        self._drained = threading.Event()
        self._closed = False
        self._port = 0
        self._socket = SocketFile(listener.path) if listener.path else None
        if self._socket:
            self._socket.make_way()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"grpcio {listener}", daemon=True)
        self._thread.start()
        try:
            self._server = self._run(self._bind(listener, reflection))
        except RuntimeError as error:
            self._stop_loop()
            raise TransportError(f"{listener}: {error}") from error
        if self._socket:
            self._socket.claim()

    @property
    def port(self) -> int:
        """The bound TCP port; 0 for a Unix socket."""
        return self._port

    def start(self) -> None:
        """Begins to accept calls."""
        self._run(self._server.start())

    def receive(self, max_calls: int, timeout_s: float) -> list[Call] | None:
        """See `Transport.receive`."""
        calls: list[Call] = []
        if max_calls <= 0:
            return calls
        try:
            call = self._waiting.get(timeout=min(timeout_s, WAKE_S)) if timeout_s > 0 else self._waiting.get_nowait()
            while True:
                if not call.cancelled:
                    calls.append(call)
                if len(calls) >= max_calls:
                    break
                call = self._waiting.get_nowait()
        except queue.Empty:
            if not calls and self._drained.is_set():
                return None
        return calls

    def answer(self, call: Call, payload: bytes) -> None:
        """See `Transport.answer`."""
        self._finish(call.handle, payload)

    def fail(self, call: Call, code: StatusCode, message: str, details: bytes = b"") -> None:
        """See `Transport.fail`."""
        if isinstance(call.handle, _Stream):
            call.handle.failure = _Failure(code, message, details)
            self._tell(call.handle.changed.set)
        else:
            self._finish(call.handle, _Failure(code, message, details))

    def send(self, call: Call, payload: bytes) -> bool:
        """See `Transport.send`."""
        stream: _Stream = call.handle
        if stream.unsent is not None:
            return False
        stream.unsent = payload
        self._tell(stream.changed.set)
        return True

    def drain(self, grace_s: float) -> None:
        """See `Transport.drain`. Over once nobody called for a moment; what is left of the grace is for calls in flight."""
        if not self._closed:
            asyncio.run_coroutine_threadsafe(self._drain(time.monotonic() + grace_s), self._loop)

    def close(self) -> None:
        """See `Transport.close`."""
        if self._closed:
            return
        self._closed = True
        if self._socket:
            self._socket.remove()
        self._run(self._stop(0.0))
        self._stop_loop()

    async def _bind(self, listener: Listener, reflection: Sequence[str]) -> grpc.aio.Server:
        server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", 0 if listener.path else 1),
                ("grpc.max_receive_message_length", max(method.max_bytes for method in self._methods)),
                ("grpc.max_concurrent_streams", MAX_WAITING),
                ("grpc.server.max_pending_requests", _MAX_PENDING),
                ("grpc.server.max_pending_requests_hard_limit", _MAX_PENDING),
            ]
        )
        server.add_generic_rpc_handlers((_Handlers(self._methods, self._serve, self._serve_stream),))
        if reflection:
            grpc_reflection.enable_server_reflection((*reflection, grpc_reflection.SERVICE_NAME), server)
        self._port = server.add_insecure_port(f"unix:{listener.path}" if listener.path else str(listener.address))
        if listener.path:
            self._port = 0
        return server

    async def _serve(self, method: int, payload: bytes, context: Any) -> bytes:
        await self._refuse_excess(method, payload, context)
        future: asyncio.Future[bytes | _Failure] = self._loop.create_future()
        call = _call(method, payload, context, future)
        self._in_flight += 1
        self._last_call_at = time.monotonic()
        self._waiting.put(call)
        try:
            result = await future
        except asyncio.CancelledError:
            call.cancelled = True
            raise
        finally:
            self._in_flight -= 1
        if isinstance(result, _Failure):
            await result.end(context)
            raise AssertionError  # abort raises
        return result

    async def _serve_stream(self, method: int, payload: bytes, context: Any) -> None:
        await self._refuse_excess(method, payload, context)
        stream = _Stream()
        call = _call(method, payload, context, stream)
        self._waiting.put(call)
        try:
            while True:
                await stream.changed.wait()
                stream.changed.clear()
                if stream.unsent is not None:
                    await context.write(stream.unsent)
                    stream.unsent = None
                if stream.failure is not None:
                    await stream.failure.end(context)
        except grpc.aio.InternalError:
            pass  # while a message was on its way
        finally:
            call.cancelled = True

    async def _refuse_excess(self, method: int, payload: bytes, context: Any) -> None:
        limit = self._methods[method].max_bytes
        if len(payload) > limit:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, oversize(len(payload), limit))
        if self._waiting.qsize() >= MAX_WAITING:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, overflow())

    def _finish(self, future: asyncio.Future[bytes | _Failure], result: bytes | _Failure) -> None:
        self._results.append((future, result))
        if not self._told:
            self._told = True
            self._tell(self._deliver)

    def _deliver(self) -> None:
        # First, so that a result that comes from now on is told of again.
        self._told = False
        results = self._results
        while results:
            future, result = results.popleft()
            if not future.done():
                future.set_result(result)

    def _tell(self, callback: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # closed meanwhile: nobody waits for it
            self._loop.call_soon_threadsafe(callback)

    async def _drain(self, until: float) -> None:
        now = time.monotonic()
        while now < until and (self._in_flight or now - self._last_call_at < _QUIET_S):
            await asyncio.sleep(_POLL_S)
            now = time.monotonic()
        await self._stop(max(_SETTLE_S, until - now))

    async def _stop(self, grace_s: float) -> None:
        await self._server.stop(grace_s)
        self._drained.set()

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _stop_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_STOP_S)
        if not self._thread.is_alive():
            self._loop.close()


def _call(method: int, payload: bytes, context: Any, handle: object) -> Call:
    remaining = context.time_remaining()
    deadline = NO_DEADLINE if remaining is None else time.monotonic() + remaining
    return Call(method, payload, context.invocation_metadata() or (), context.peer(), deadline, handle)


class _Handlers(grpc.GenericRpcHandler):
    """The methods by path, with messages left as bytes."""

    def __init__(
        self,
        methods: Sequence[Method],
        unary: Callable[[int, bytes, Any], Awaitable[bytes]],
        stream: Callable[[int, bytes, Any], Awaitable[None]],
    ) -> None:
        self._handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            method.path: (
                grpc.unary_stream_rpc_method_handler(_bound(stream, index))
                if method.streaming
                else grpc.unary_unary_rpc_method_handler(_bound(unary, index))
            )
            for index, method in enumerate(methods)
        }

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        """The handler of a path, or None."""
        return self._handlers.get(handler_call_details.method)


def _bound(serve: Callable[[int, bytes, Any], Awaitable[Any]], method: int) -> Any:
    async def handle(payload: bytes, context: Any) -> Any:
        return await serve(method, payload, context)

    return handle
