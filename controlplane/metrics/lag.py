"""How late the event loop is."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Final

EVERY_S: Final = 0.1
KEPT: Final = 100
"""Measurements that count: ten seconds' worth."""


class LoopLag:
    """Sleeps again and again, and sees by how much it overslept."""

    def __init__(self) -> None:
        self._late: deque[float] = deque(maxlen=KEPT)

    @property
    def worst_s(self) -> float:
        """The longest of the last ten seconds."""
        return max(self._late, default=0.0)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            due = time.perf_counter() + EVERY_S
            await asyncio.sleep(EVERY_S)
            self._late.append(max(0.0, time.perf_counter() - due))
