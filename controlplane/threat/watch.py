"""Looks again and again at what sidecars reported, for every tenant."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final

from controlplane.errors import StoreError
from controlplane.store import Store
from controlplane.threat.breakers import run_breakers
from controlplane.threat.fleet import FleetLimits, find_shared

_FORGET_EVERY_S: Final = 3600.0
# The longest window of a breaker.
_KEPT_S: Final = 91 * 86400.0

_LOG = logging.getLogger(__name__)


class Watch:
    """Runs breakers and finds what is spread over pods, every `interval_s`."""

    def __init__(self, store: Store, limits: FleetLimits, interval_s: float) -> None:
        self._store = store
        self._limits = limits
        self._interval_s = interval_s
        self._forget_at = time.monotonic() + _FORGET_EVERY_S

    async def run(self) -> None:
        """Until cancelled. A database that fails is tried again."""
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                await self.look()
            except StoreError as error:
                _LOG.warning("reports cannot be looked at, will try again: %s", error)

    async def look(self) -> None:
        """Once, at all tenants. Raises StoreError."""
        for tenant in sorted({head.tenant for head in await self._store.heads()}):
            await run_breakers(self._store, tenant)
            await find_shared(self._store, tenant, self._limits)
        if time.monotonic() >= self._forget_at:
            self._forget_at = time.monotonic() + _FORGET_EVERY_S
            now = time.time()
            await self._store.usage.forget(now - _KEPT_S, now - 2 * self._limits.window_s)
