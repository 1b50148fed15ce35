"""Someone between a sidecar and its control plane: a proxy for everything gRPC, who does to a sync stream what the test says.

with ManInTheMiddle(plane.address) as between:
    # start a sidecar on between.address
    between.tamper = lambda response: [response]     # what goes on in place of each response of a sync stream; [] drops it
    between.tamper = None                            # honest again: bytes pass as they are
    between.cut()                                    # ends all streams
    between.seen                                     # every response of the control plane, in order
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import Any, Self

import grpc
from sidestep.v1 import sync_pb2

Tamper = Callable[[sync_pb2.SyncResponse], Sequence[sync_pb2.SyncResponse]]

_SYNC = "/sidestep.v1.SyncService/Sync"
_KEPT = 20_000


class ManInTheMiddle:
    """Listens on an ephemeral loopback port; runs in a thread of its own."""

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self.address = ""
        self.tamper: Tamper | None = None
        self.seen: list[sync_pb2.SyncResponse] = []
        self.streams = 0
        self._calls: set[Any] = set()
        self._started = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),))

    def cut(self) -> None:
        """Ends all sync streams."""

        def cancel() -> None:
            for call in tuple(self._calls):
                call.cancel()

        self._loop.call_soon_threadsafe(cancel)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive()
        self._loop.close()

    async def _run(self) -> None:
        self._stop = asyncio.Event()
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers((_Everything(self._pass_on),))
        self.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        options = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 100))
        async with grpc.aio.insecure_channel(self._upstream, options=options) as channel:
            self._channel = channel
            self._started.set()
            await self._stop.wait()
            for call in tuple(self._calls):
                call.cancel()
            await server.stop(1)
            if others := asyncio.all_tasks() - {asyncio.current_task()}:
                await asyncio.wait(others, timeout=1)

    async def _pass_on(self, method: str, requests: AsyncIterator[bytes], context: Any) -> None:
        call: Any = self._channel.stream_stream(method)(metadata=_metadata(context.invocation_metadata()))
        self._calls.add(call)
        self.streams += method == _SYNC
        up = asyncio.create_task(_upward(requests, call))
        try:
            await context.send_initial_metadata(_metadata(await call.initial_metadata()))
            async for raw in call:
                for out in self._downward(raw) if method == _SYNC else [raw]:
                    await context.write(out)
        except grpc.aio.AioRpcError as error:
            await context.abort(error.code(), error.details() or "", _metadata(error.trailing_metadata()))
        except asyncio.CancelledError:
            if not call.cancelled() or self._stop.is_set():
                raise
            await context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
        finally:
            self._calls.discard(call)
            up.cancel()
            call.cancel()
            await asyncio.gather(up, return_exceptions=True)

    def _downward(self, raw: bytes) -> Sequence[bytes]:
        response = sync_pb2.SyncResponse.FromString(raw)
        self.seen.append(response)
        del self.seen[:-_KEPT]
        tamper = self.tamper
        if tamper is None:
            return [raw]
        copy = sync_pb2.SyncResponse()
        copy.CopyFrom(response)
        return [each.SerializeToString() for each in tamper(copy)]


class _Everything(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    def __init__(self, pass_on: Any) -> None:
        self._pass_on = pass_on

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        method = handler_call_details.method

        async def serve(requests: AsyncIterator[bytes], context: Any) -> None:
            await self._pass_on(method, requests, context)

        return grpc.stream_stream_rpc_method_handler(serve)  # type: ignore[arg-type]


async def _upward(requests: AsyncIterator[bytes], call: Any) -> None:
    async for request in requests:
        await call.write(request)
    await call.done_writing()


def _metadata(metadata: Any) -> tuple[tuple[str, Any], ...]:
    return tuple((key, value) for key, value in metadata or () if not key.startswith(("grpc-", "user-agent")))
