"""SyncService: admission, scope, and the life of a stream from Hello to its end."""
# ruff: noqa: N802 - the method is named by the proto service

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Collection
from typing import Any, NamedTuple, NoReturn

import grpc
from sidestep.v1 import admin_pb2, sync_pb2

from controlplane.api.admission import Admission, Slots
from controlplane.api.sidecars import check_sidecar, check_text
from controlplane.api.standing import Sent, Standing, standing_of
from controlplane.api.stream import Stream
from controlplane.api.versions import Versions
from controlplane.changes import Changes
from controlplane.counters import Counters, Refused
from controlplane.errors import DrainingError, IdentityError, RefusedError, ScopeChangedError, StalledError
from controlplane.identity.sidecars import LOOK_EVERY_S, Caller, Identities, Sidecars
from controlplane.metrics.catalogue import ENDS
from controlplane.metrics.tally import Tally
from controlplane.signing import Signatures
from controlplane.snapshots import Snapshots
from controlplane.store import Store
from engine.errors import InvalidInputError, SidestepError
from engine.names import Lane

_LOG = logging.getLogger(__name__)

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
# Over so long streams are ended whose tenants have changed, so that they do not all come back at once.
_SPREAD_S = 3.0


class _Following(NamedTuple):
    """A stream's sidecar, what ends the stream when an error is set, and when it is to end for its age."""

    caller: Caller
    ended: asyncio.Future[None]
    retire_at: float


class SyncService:
    """Serves the streams of one process. `sidecars` gives a connection's tenants from its identity.

    Whom `admission` turns away is refused with RESOURCE_EXHAUSTED and a time to come back, unless all places are taken and some
    stream has not said Hello: the oldest of these makes room. `versions` says whom to admit. At most `max_transfers` streams are
    sent a snapshot at a time. A stream ends about `max_age_s` after it began, when nothing is under way, so that sidecars spread
    over replicas that were added; and at once when its certificate no longer holds.
    """

    def __init__(
        self,
        store: Store,
        changes: Changes,
        snapshots: Snapshots,
        sidecars: Sidecars,
        counters: Counters,
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
        self._sidecars = sidecars
        self._counters = counters
        self._signatures = signatures or Signatures()
        self._heartbeat_s = heartbeat_s
        self._ack_timeout_s = ack_timeout_s
        self._admission = admission
        self._versions = versions
        self._slots = Slots(max_transfers)
        self._max_age_s = max_age_s
        self._streams: dict[Stream, _Following] = {}
        # Until when streams may say Hello, in the order in which they came.
        self._silent: dict[asyncio.Timeout, None] = {}
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
        self._sidecars.identify(context)
        with self._admission.admit(self._make_room):
            # Only now may the sidecar speak: see SyncService in sync.proto.
            await context.send_initial_metadata(((ADMITTED, "true"),))
            try:
                hello = await self._hello(context)
            except InvalidInputError:
                self.refused.add("hello")
                raise
            # Before anything is written under its name.
            caller = await self._sidecars.admit(context, hello.sidecar)
            problem, found = self._versions.judge(hello.version)
            if problem:
                self._refuse(hello, caller, problem, found)
            await self._serve(hello, caller, context, found)

    async def run(self) -> None:
        """Ends streams that stall or are old, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_CHECK_EVERY_S)
            now = loop.time()
            for stream, following in list(self._streams.items()):
                stream.check(now)
                if now >= following.retire_at:
                    stream.retire()

    async def follow(self, identities: Identities) -> None:
        """Ends streams whose certificate no longer holds, or whose tenants have changed, until cancelled."""
        generation = identities.generation
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await identities.look()
            changed, generation = identities.generation != generation, identities.generation
            now = time.time()
            for following in tuple(self._streams.values()):
                certificate = following.caller.certificate
                if (
                    certificate is not None
                    and (changed or certificate.expires_at <= now)
                    and not following.ended.done()
                ):
                    self._judge(following)

    def _judge(self, following: _Following) -> None:
        assert following.caller.certificate is not None
        try:
            scope = self._sidecars.judge(following.caller.certificate).scope
        except IdentityError as error:
            self._counters.end(error.why)
            _end(following.ended, error)
            return
        if scope != following.caller.scope:
            pause_s = random.uniform(0.0, _SPREAD_S)  # noqa: S311
            asyncio.get_running_loop().call_later(pause_s, _end, following.ended, ScopeChangedError())

    def _make_room(self) -> bool:
        """Gives up the stream that has been silent for longest."""
        for silent in self._silent:
            silent.reschedule(asyncio.get_running_loop().time())
            del self._silent[silent]
            return True
        self._counters.refuse(Refused.OVERLOADED)
        return False

    async def _hello(self, context: Any) -> sync_pb2.Hello:
        try:
            async with asyncio.timeout(_HELLO_WITHIN_S) as patience:
                self._silent[patience] = None
                request = await context.read()
        except TimeoutError:
            self._counters.refuse(Refused.NO_HELLO)
            raise InvalidInputError("hello", f"expected within {_HELLO_WITHIN_S:g} s") from None
        finally:
            self._silent.pop(patience, None)
        return check_hello(request)

    def _refuse(self, hello: sync_pb2.Hello, caller: Caller, problem: str, found: admin_pb2.VersionSkew) -> NoReturn:
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
                identity=caller.identity,
            )
            status.seen_time.FromNanoseconds(time.time_ns())
            self._store.record_sidecar(status)
        raise RefusedError(problem)

    async def _serve(self, hello: sync_pb2.Hello, caller: Caller, context: Any, skew: admin_pb2.VersionSkew) -> None:
        name = hello.sidecar

        def on_status() -> None:
            if self._latest.get(name) is stream:
                self._store.record_sidecar(stream.status)

        stream = Stream(
            hello,
            caller.scope,
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
        stream.status.identity = caller.identity
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        age_s = self._max_age_s * random.uniform(1 - _AGE_JITTER, 1 + _AGE_JITTER)  # noqa: S311 - spreads load
        self._streams[stream] = _Following(caller, ended, asyncio.get_running_loop().time() + age_s)
        self.admitted += 1
        self._latest[name] = stream
        on_status()
        _LOG.info("sidecar %s connected", name)
        sending = asyncio.create_task(stream.run())
        tasks = {sending, asyncio.create_task(_receive(context, stream))}
        why = "left"
        try:
            # `ended` also ends a stream that hangs because nobody reads it.
            done, _ = await asyncio.wait({*tasks, ended}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            why = "aged" if sending in done else why
        except StalledError:
            why = "stalled"
            raise
        except DrainingError:
            why = "draining"
            raise
        except SidestepError:
            why = "failed"
            raise
        finally:
            self.ended.add(why)
            ended.cancel()
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


def _end(ended: asyncio.Future[None], error: Exception) -> None:
    if not ended.done():
        ended.set_exception(error)


async def _receive(context: Any, stream: Stream) -> None:
    while (request := await context.read()) is not grpc.aio.EOF:
        stream.receive(request)


def check_hello(request: Any) -> sync_pb2.Hello:
    """The first message of a stream. Raises InvalidInputError naming the field unless it is a Hello."""
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
