"""SyncService: admission, scope, and the life of a stream from Hello to its end."""
# ruff: noqa: N802 - the method is named by the proto service

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Collection
from typing import Any, NoReturn

import grpc
from sidestep.v1 import admin_pb2, sync_pb2

from controlplane.api.admission import Admission, Slots
from controlplane.api.sidecars import check_sidecar, check_text
from controlplane.api.standing import Sent, Standing, standing_of
from controlplane.api.stream import Stream
from controlplane.api.versions import Versions
from controlplane.changes import Changes
from controlplane.errors import DrainingError, RefusedError, StalledError
from controlplane.metrics.catalogue import ENDS
from controlplane.metrics.tally import Tally
from controlplane.signing import Signatures
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
_CHECK_EVERY_S = 1.0
# Streams that began together must not end together.
_AGE_JITTER = 0.2
_MAX_CURSORS = 20_000
_MAX_TEXT_BYTES = 128


class SyncService:
    """Serves the streams of one process. `scope_of` gives a connection's tenants (None: all) from its identity.

    Whom `admission` turns away is refused with RESOURCE_EXHAUSTED and a time to come back; `versions` says whom to admit. At most
    `max_transfers` streams are sent a snapshot at a time. A stream ends about `max_age_s` after it began, when nothing is under
    way, so that sidecars spread over replicas that were added.
    """

    def __init__(
        self,
        store: Store,
        changes: Changes,
        snapshots: Snapshots,
        scope_of: ScopeOf,
        signatures: Signatures | None = None,
        *,
        heartbeat_s: float,
        ack_timeout_s: float,
        admission: Admission,
        versions: Versions,
        max_transfers: int,
        max_age_s: float,
    ) -> None:
        self._store = store
        self._changes = changes
        self._snapshots = snapshots
        self._scope_of = scope_of
        self._signatures = signatures or Signatures()
        self._heartbeat_s = heartbeat_s
        self._ack_timeout_s = ack_timeout_s
        self._admission = admission
        self._versions = versions
        self._slots = Slots(max_transfers)
        self._max_age_s = max_age_s
        # And when each is to end.
        self._streams: dict[Stream, float] = {}
        # The stream that speaks for a sidecar: after a reconnect the old one may live on for a while.
        self._latest: dict[str, Stream] = {}
        self._draining = False
        self.admitted = 0
        self.refused = admission.refused
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
        with self._admission.admit():
            # Only now may the sidecar speak: see SyncService in sync.proto.
            await context.send_initial_metadata(((ADMITTED, "true"),))
            try:
                hello = await _read_hello(context)
            except InvalidInputError:
                self.refused.add("hello")
                raise
            problem, found = self._versions.judge(hello.version)
            if problem:
                self._refuse(hello, problem, found)
            await self._serve(hello, context, found)

    async def run(self) -> None:
        """Ends streams that stall or are old, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_CHECK_EVERY_S)
            now = loop.time()
            for stream, retire_at in list(self._streams.items()):
                stream.check(now)
                if now >= retire_at:
                    stream.retire()

    def _refuse(self, hello: sync_pb2.Hello, problem: str, found: admin_pb2.VersionSkew) -> NoReturn:
        """Refuses a version, and has the list of sidecars say so."""
        self.refused.add("version")
        if hello.sidecar not in self._latest:
            status = admin_pb2.SidecarStatus(
                sidecar=hello.sidecar,
                instance=hello.instance,
                version=hello.version,
                cursors=hello.cursors,
                refusal=problem,
                version_skew=found,
            )
            status.seen_time.FromNanoseconds(time.time_ns())
            self._store.record_sidecar(status)
        raise RefusedError(problem)

    async def _serve(self, hello: sync_pb2.Hello, context: Any, skew: admin_pb2.VersionSkew) -> None:
        name = hello.sidecar

        def on_status() -> None:
            if self._latest.get(name) is stream:
                self._store.record_sidecar(stream.status)

        stream = Stream(
            hello,
            self._scope_of(context),
            self._changes,
            self._snapshots,
            self._signatures,
            context.write,
            on_status,
            heartbeat_s=self._heartbeat_s,
            ack_timeout_s=self._ack_timeout_s,
            slots=self._slots,
            on_delta=self._on_delta,
            on_chunk=self._on_chunk,
        )
        stream.status.version_skew = skew
        age_s = self._max_age_s * random.uniform(1 - _AGE_JITTER, 1 + _AGE_JITTER)  # noqa: S311 - spreads load
        self._streams[stream] = asyncio.get_running_loop().time() + age_s
        self.admitted += 1
        self._latest[name] = stream
        on_status()
        _LOG.info("sidecar %s connected", name)
        sending = asyncio.create_task(stream.run())
        tasks = {sending, asyncio.create_task(_receive(context, stream))}
        ended = "left"
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            ended = "aged" if sending in done else ended
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
            self._streams.pop(stream, None)
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
    _check_cursors(hello.cursors, "hello.cursors")
    _check_cursors(hello.marks, "hello.marks")
    return hello


def _check_cursors(cursors: Collection[sync_pb2.Cursor], field: str) -> None:
    if len(cursors) > _MAX_CURSORS:
        raise InvalidInputError(field, f"more than {_MAX_CURSORS}")
    seen: set[tuple[str, int]] = set()
    for index, cursor in enumerate(cursors):
        if cursor.lane not in _LANES:
            raise InvalidInputError(f"{field}[{index}].lane", f"{cursor.lane} is no lane")
        if (cursor.tenant, cursor.lane) in seen:
            raise InvalidInputError(f"{field}[{index}]", "a second one of the same tenant and lane")
        seen.add((cursor.tenant, cursor.lane))
