"""Follows the control plane: one stream at a time, whatever happens to it."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import grpc
from sidestep.v1 import sync_pb2 as pb

from sidecar.clock import Clock
from sidecar.retryinfo import retry_after_s
from sidecar.store.errors import StorageFullError
from sidecar.store.marks import Marks
from sidecar.store.writer import Writer
from sidecar.sync.backoff import MAX_S, MIN_S, Backoff
from sidecar.sync.errors import SyncError
from sidecar.sync.proofs import Proofs
from sidecar.sync.session import Session
from sidecar.sync.state import SyncState
from sidecar.sync.trust import TrustedKeys
from sidecar.upstream import Upstream

_log = logging.getLogger(__name__)
_METHOD = "/sidestep.v1.SyncService/Sync"
_MAX_MESSAGE_BYTES = 32 << 20
_OPTIONS = (
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    # Reconnecting is done here, with full jitter; a channel lives as long as its stream.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    # For a path that drops idle connections; our own pings find a dead one sooner. More often than the control plane takes
    # (every 5 s) would be answered with ENHANCE_YOUR_CALM.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)


@dataclass(frozen=True, slots=True)
class SyncSettings:
    """How to follow. `sidecar`: the stable name shown to operators.

    `heartbeat_s`: seconds between pings; after three without any message the stream is given up. `healthy_s`: a stream
    that lasted this long resets the backoff. `retry_s`: when a lane that failed for good is tried again.
    `metadata` goes with every stream and may carry a bearer token.
    """

    upstream: Upstream
    sidecar: str
    version: str
    metadata: Sequence[tuple[str, str]] = ()
    heartbeat_s: float = 2.0
    healthy_s: float = 30.0
    retry_s: float = 300.0
    backoff_first_s: float = MIN_S
    backoff_limit_s: float = MAX_S


class SyncClient:
    """Applies what the control plane sends to the store, for as long as `run` runs.

    Works in the event loop's thread, in slices of some milliseconds. Whoever runs it calls `Writer.maintain` and
    `Writer.remove_retired` from time to time, in between.
    `trust` None: development mode, whatever comes is believed; otherwise `marks` are needed too.
    `on_state` is called with a SyncState whenever something other than a cursor or a count changed; it must not block.
    """

    def __init__(
        self,
        writer: Writer,
        settings: SyncSettings,
        *,
        trust: TrustedKeys | None = None,
        marks: Marks | None = None,
        clock: Clock | None = None,
        on_state: Callable[[SyncState], None] = lambda _: None,
    ) -> None:
        self._settings = settings
        self._on_state = on_state
        self._backoff = Backoff(first_s=settings.backoff_first_s, limit_s=settings.backoff_limit_s)
        self._instance = secrets.token_hex(8)
        self._session = Session(
            writer,
            sidecar=settings.sidecar,
            instance=self._instance,
            version=settings.version,
            heartbeat_s=settings.heartbeat_s,
            retry_s=settings.retry_s,
            proofs=Proofs(writer, trust, marks),
            clock=clock or writer.clock,
            on_change=self._changed,
        )
        self._connected = False
        self._streams = 0
        self._last_error = ""

    @property
    def state(self) -> SyncState:
        """How following goes at this moment."""
        return self._session.state(connected=self._connected, streams=self._streams, last_error=self._last_error)

    async def run(self) -> None:
        """Follows until cancelled. Connection and protocol errors only show in the state; each leads to a new stream.

        Raises UnreadableError when the store itself cannot be used any more: it must be opened anew.
        """
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            wait_s: float | None = None
            try:
                await self._stream()
                self._last_error = "the control plane ended the stream"
            except grpc.aio.AioRpcError as error:
                wait_s = retry_after_s(error)
                self._last_error = f"{error.code().name}: {(error.details() or '')[:200]}"
            except (SyncError, StorageFullError) as error:
                self._last_error = str(error)
            finally:
                self._connected = False
                self._session.end_stream()
            if self._session.heard and loop.time() - began >= self._settings.healthy_s:
                self._backoff.reset()
            self._changed()
            pause_s = self._backoff.next_s(wait_s)
            _log.info("sync: %s; next attempt in %.2f s", self._last_error, pause_s)
            await asyncio.sleep(pause_s)

    async def _stream(self) -> None:
        settings = self._settings
        async with settings.upstream.open_async(_OPTIONS) as channel:
            sync: grpc.aio.StreamStreamMultiCallable[pb.SyncRequest, bytes] = channel.stream_stream(
                _METHOD,
                request_serializer=pb.SyncRequest.SerializeToString,
                response_deserializer=None,  # signatures are over the bytes as they came
            )
            call = sync(metadata=tuple(settings.metadata))
            self._streams += 1
            try:
                await self._session.follow(call, self._begun)
            finally:
                call.cancel()

    def _begun(self) -> None:
        self._connected = True
        self._changed()

    def _changed(self) -> None:
        self._on_state(self.state)
