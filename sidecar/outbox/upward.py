"""A channel of the agent to the control plane for unary calls, and how long to wait after one that failed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final, TypeVar

import grpc
from google.protobuf.message import Message

from sidecar.lease.client import OPTIONS
from sidecar.retryinfo import retry_after_s
from sidecar.sync.backoff import Backoff
from sidecar.upstream import Line, Upstream

CALL_S: Final = 5.0
"""How long a call may take."""
_BACKOFF_LIMIT_S: Final = 15.0

_log = logging.getLogger(__name__)
_Response = TypeVar("_Response", bound=Message)


class Upward:
    """Opens its channel with the first call, and another one when certificates have changed. Used in the event loop's thread.
    `sidecar`: as in Hello. `about`: what the log calls it."""

    def __init__(self, upstream: Upstream, sidecar: str, about: str, metadata: Sequence[tuple[str, str]] = ()) -> None:
        self.sidecar = sidecar
        self._line = Line(upstream, OPTIONS)
        self._about = about
        self._metadata = tuple(metadata)
        self._backoff = Backoff(limit_s=_BACKOFF_LIMIT_S)
        self._failing = False

    async def call(
        self, method: str, request: Message, response: type[_Response], timeout_s: float = CALL_S
    ) -> _Response:
        """One call. Raises grpc.aio.AioRpcError."""
        call = (await self._line.channel()).unary_unary(
            method, request_serializer=type(request).SerializeToString, response_deserializer=response.FromString
        )
        answer: _Response = await call(request, timeout=timeout_s, metadata=self._metadata, wait_for_ready=False)
        if self._failing:
            _log.info("%s: the control plane answers again", self._about)
        self._failing = False
        self._backoff.reset()
        return answer

    def failed(self, error: grpc.aio.AioRpcError) -> float:
        """A call failed. How long to wait before the next, seconds."""
        if not self._failing:  # once per outage, not once per attempt
            _log.warning("%s: %s: %s", self._about, error.code().name, (error.details() or "")[:200])
        self._failing = True
        return self._backoff.next_s(retry_after_s(error))

    async def close(self) -> None:
        """Closes the channel; a call in flight is cancelled."""
        await self._line.close()
