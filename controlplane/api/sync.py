"""SyncService: admission, scope, and the life of a stream from Hello to its end."""
# ruff: noqa: N802 - the method is named by the proto service

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Any

import grpc
from sidestep.v1 import sync_pb2

from controlplane.api.sidecars import check_sidecar, check_text
from controlplane.api.standing import Sent, Standing, standing_of
from controlplane.api.stream import Stream
from controlplane.changes import Changes
from controlplane.errors import DrainingError, OverloadedError, StalledError
from controlplane.metrics.catalogue import ENDS, REFUSALS
from controlplane.metrics.tally import Tally
from controlplane.snapshots import Snapshots
from controlplane.store import Store
from engine.errors import InvalidInputError, SidestepError
from engine.names import Lane

_LOG = logging.getLogger(__name__)

ScopeOf = Callable[[Any], frozenset[str] | None]

_SERVICE = "sidestep.v1.SyncService"
ADMITTED = "sidestep-admitted"
"""Initial metadata of a stream that was admitted."""
_LANES = frozenset(int(lane) for lane in Lane)
_HELLO_WITHIN_S = 10.0
_MAX_CURSORS = 20_000
_MAX_TEXT_BYTES = 128


class SyncService:
    """Serves the streams of one process. `scope_of` gives a connection's tenants (None: all) from its identity.

    At most `max_streams` at a time; further ones are refused with RESOURCE_EXHAUSTED and a time to come back.
    """

    def __init__(
        self,
        store: Store,
        changes: Changes,
        snapshots: Snapshots,
        scope_of: ScopeOf,
        *,
        heartbeat_s: float,
        ack_timeout_s: float,
        max_streams: int,
    ) -> None:
        self._store = store
        self._changes = changes
        self._snapshots = snapshots
        self._scope_of = scope_of
        self._heartbeat_s = heartbeat_s
        self._ack_timeout_s = ack_timeout_s
        self._max_streams = max_streams
        self._open = 0
        self._streams: set[Stream] = set()
        # The stream that speaks for a sidecar: after a reconnect the old one may live on for a while.
        self._latest: dict[str, Stream] = {}
        self._draining = False
        self.admitted = 0
        self.refused = Tally.of(REFUSALS)
        self.ended = Tally.of(ENDS)
        self.sent = Sent()

    def standing(self) -> Standing:
        """Where all streams stand at this moment."""
        return standing_of(self._streams, self._changes.heads)

    def add_to(self, server: grpc.aio.Server) -> None:
        """Registers the service. Answers are encoded already, once for all streams, so none is serialised here."""
        handler: Any = grpc.stream_stream_rpc_method_handler(
            self.Sync, request_deserializer=sync_pb2.SyncRequest.FromString, response_serializer=None
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, {"Sync": handler}),))

    def drain(self) -> None:
        """Ends every stream with UNAVAILABLE and admits no more."""
        self._draining = True
        for stream in self._streams:
            stream.end(DrainingError())

    async def Sync(self, requests: Any, context: Any) -> None:
        """One stream; ends with the client's half-close, or an error."""
        if self._draining:
            self.refused.add("draining")
            raise DrainingError
        if self._open >= self._max_streams:
            self.refused.add("full")
            raise OverloadedError("too many sidecars are connected", random.uniform(1.0, 5.0))  # noqa: S311
        self._open += 1
        try:
            # Only now may the sidecar speak: see SyncService in sync.proto.
            await context.send_initial_metadata(((ADMITTED, "true"),))
            try:
                hello = await _read_hello(context)
            except InvalidInputError:
                self.refused.add("hello")
                raise
            await self._serve(hello, context)
        finally:
            self._open -= 1

    async def _serve(self, hello: sync_pb2.Hello, context: Any) -> None:
        name = hello.sidecar

        def on_status() -> None:
            if self._latest.get(name) is stream:
                self._store.record_sidecar(stream.status)

        stream = Stream(
            hello,
            self._scope_of(context),
            self._changes,
            self._snapshots,
            context.write,
            on_status,
            heartbeat_s=self._heartbeat_s,
            ack_timeout_s=self._ack_timeout_s,
            on_delta=self._on_delta,
            on_chunk=self._on_chunk,
        )
        self._streams.add(stream)
        self.admitted += 1
        self._latest[name] = stream
        on_status()
        _LOG.info("sidecar %s connected", name)
        tasks = {asyncio.create_task(stream.run()), asyncio.create_task(_receive(context, stream))}
        ended = "left"
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except StalledError:
            ended = "stalled"
            raise
        except DrainingError:
            ended = "draining"
            raise
        except SidestepError:
            ended = "failed"
            raise
        finally:
            self.ended.add(ended)
            for task in tasks:
                task.cancel()
            self._streams.discard(stream)
            stream.status.connected = False
            on_status()
            if self._latest.get(name) is stream:
                del self._latest[name]
            _LOG.info("sidecar %s disconnected", name)
            await asyncio.gather(*tasks, return_exceptions=True)

    def _on_delta(self, lane: Lane) -> None:
        self.sent.deltas.add(lane.name.lower())

    def _on_chunk(self, size: int) -> None:
        self.sent.chunk_bytes += size


async def _receive(context: Any, stream: Stream) -> None:
    while (request := await context.read()) is not grpc.aio.EOF:
        stream.receive(request)


async def _read_hello(context: Any) -> sync_pb2.Hello:
    try:
        async with asyncio.timeout(_HELLO_WITHIN_S):
            request = await context.read()
    except TimeoutError:
        raise InvalidInputError("hello", f"expected within {_HELLO_WITHIN_S:g} s") from None
    if request is grpc.aio.EOF or request.WhichOneof("message") != "hello":
        raise InvalidInputError("hello", "must be the first message")
    hello: sync_pb2.Hello = request.hello
    check_sidecar(hello.sidecar, "hello.sidecar")
    for field in ("instance", "version"):
        check_text(getattr(hello, field), f"hello.{field}", _MAX_TEXT_BYTES)
    if len(hello.cursors) > _MAX_CURSORS:
        raise InvalidInputError("hello.cursors", f"more than {_MAX_CURSORS}")
    seen: set[tuple[str, int]] = set()
    for index, cursor in enumerate(hello.cursors):
        if cursor.lane not in _LANES:
            raise InvalidInputError(f"hello.cursors[{index}].lane", f"{cursor.lane} is no lane")
        if (cursor.tenant, cursor.lane) in seen:
            raise InvalidInputError(f"hello.cursors[{index}]", "a second cursor of the same tenant and lane")
        seen.add((cursor.tenant, cursor.lane))
    return hello
