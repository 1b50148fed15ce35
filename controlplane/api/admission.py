"""Who may begin a stream now: so many at a time, and so many a second: a fleet that comes back at once is let in evenly."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from controlplane.errors import OverloadedError
from controlplane.metrics.catalogue import REFUSALS
from controlplane.metrics.tally import Tally

_LEAST_S: Final = 1.0
_SPREAD_S: Final = 4.0
# No longer than what sidecars heed: sidecar/sync/backoff.py.
_LONGEST_S: Final = 60.0


class Admission:
    """Admits streams of one process. `refused` counts the others by reason.

    Who is turned away is told when to come back, at random within the time in which all who were turned away can be admitted.
    """

    def __init__(self, *, max_streams: int, per_second: float, now: Callable[[], float] = time.monotonic) -> None:
        self._max_streams = max_streams
        self._per_second = per_second
        self._most = max(1.0, per_second)
        self._now = now
        self._left = self._most
        self._left_at = now()
        # About how many wait to come back.
        self._turned_away = 0.0
        self.open = 0
        self.refused = Tally.of(REFUSALS)

    @contextmanager
    def admit(self, make_room: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """For the life of one stream. `make_room` is asked when all places are taken: whether one of them is given up. Raises
        OverloadedError."""
        if self.open >= self._max_streams and not make_room():
            self.refused.add("full")
            raise OverloadedError("too many sidecars are connected", self._wait_s())
        now = self._now()
        refilled = (now - self._left_at) * self._per_second
        # What was not used to admit somebody has waited for nobody.
        self._turned_away = max(0.0, self._turned_away - max(0.0, self._left + refilled - self._most))
        self._left, self._left_at = min(self._most, self._left + refilled), now
        if self._left < 1:
            self.refused.add("rate")
            raise OverloadedError("too many sidecars connect at once", self._wait_s())
        self._left -= 1
        self._turned_away = max(0.0, self._turned_away - 1)
        self.open += 1
        try:
            yield
        finally:
            self.open -= 1

    def _wait_s(self) -> float:
        self._turned_away += 1
        spread_s = max(_SPREAD_S, self._turned_away / self._per_second)
        return min(_LONGEST_S, random.uniform(_LEAST_S, _LEAST_S + spread_s))  # noqa: S311 - spreads load


class Slots:
    """So many may do something at a time; the others wait for their turn, in the order in which they asked."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: dict[asyncio.Event, None] = {}

    def take(self, wake: asyncio.Event) -> bool:
        """Takes a slot. If there is none, `wake` is set when it is worth asking again."""
        if self._free:
            self._free -= 1
            self._waiting.pop(wake, None)
            return True
        self._waiting.setdefault(wake)
        return False

    def give(self) -> None:
        """Gives a slot back."""
        self._free += 1
        self._wake_next()

    def leave(self, wake: asyncio.Event) -> None:
        """Gives up waiting. Whoever was woken and leaves passes the turn on."""
        self._waiting.pop(wake, None)
        if self._free:
            self._wake_next()

    def _wake_next(self) -> None:
        for wake in self._waiting:
            del self._waiting[wake]
            wake.set()
            return
