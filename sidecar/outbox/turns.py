"""Whose turn it is: each tenant's outbox is sent by itself, a page at a time, and one that is refused waits alone."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable

import grpc

from sidecar.lease.client import REFUSED
from sidecar.outbox.upward import Upward
from sidecar.sync.backoff import Backoff

_BACKOFF_LIMIT_S = 15.0


class Turns:
    """Who was refused, and until when it is left alone (monotonic)."""

    def __init__(self, upward: Upward) -> None:
        self._upward = upward
        self._refused: dict[str, tuple[Backoff, float]] = {}

    async def take(self, tenants: Callable[[], Iterable[str]], send_page: Callable[[str], Awaitable[bool]]) -> float:
        """Sends a page of every tenant, then the next, until there is none. `send_page`: whether there was one; it may raise
        grpc.aio.AioRpcError. Returns how long to
        wait before the next try, seconds; those that were refused keep nobody waiting."""
        busy = list(tenants())
        self._refused = {tenant: held for tenant, held in self._refused.items() if tenant in busy}
        while busy:
            going = []
            for tenant in busy:
                if tenant in self._refused and time.monotonic() < self._refused[tenant][1]:
                    continue
                try:
                    if await send_page(tenant):
                        going.append(tenant)
                except grpc.aio.AioRpcError as error:
                    pause_s = self._upward.failed(error)
                    if error.code() not in REFUSED:
                        return pause_s
                    backoff = self._refused.get(tenant, (Backoff(limit_s=_BACKOFF_LIMIT_S), 0.0))[0]
                    self._refused[tenant] = backoff, time.monotonic() + backoff.next_s()
                else:
                    self._refused.pop(tenant, None)
            busy = going
        return 0.0
