"""Token buckets in bounded memory.

Each key has two: the one that bars exemptions, and the hard one, `hard_factor` times as large and as fast. A bucket is kept as
the time at which it will be full again (the generic cell rate algorithm), so it takes one number and no refilling.

Exact buckets are kept for a fixed number of keys, the longest unused makes way. What it had used up is then noted in a small
table of cells that many keys share, so that nobody gets a full bucket by pushing their own out. Two keys that share cells can
cost each other exemptions for a moment, never a refusal: the hard bucket of a key that comes back is full.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Hashable
from typing import Final, NamedTuple

from engine.errors import SidestepError

DEFAULT_HARD_FACTOR: Final = 10.0
SLOWEST_PER_S: Final = 1e-6
_CELLS: Final = 1 << 15
_MASK: Final = _CELLS - 1
_SHIFT: Final = 21


class RateLimitedError(SidestepError):
    """Over a hard rate limit. `retry_after_s`: seconds until there is a token again."""

    def __init__(self, kind: str, retry_after_s: float) -> None:
        super().__init__(f"too many requests per {kind}; try again in {max(retry_after_s, 0.001):.3f} s")
        self.kind = kind
        self.retry_after_s = retry_after_s


class Limit(NamedTuple):
    """`burst` tokens at most, `per_second` come back; the hard limit is `hard_factor` times as high."""

    per_second: float
    burst: float
    hard_factor: float = DEFAULT_HARD_FACTOR


class Limits(NamedTuple):
    """A tenant's rate limits; None: off."""

    subject: Limit | None = None
    device: Limit | None = None
    caller: Limit | None = None


class Buckets:
    """The buckets of one kind of key. Not thread-safe. `now` is in seconds; if it goes back, nobody waits longer than for an
    empty bucket."""

    def __init__(self, entries: int) -> None:
        self._entries = entries
        # Key -> when the soft and the hard bucket are full again.
        self._exact: OrderedDict[Hashable, list[float]] = OrderedDict()
        self._cells = (array("d", bytes(8 * _CELLS)), array("d", bytes(8 * _CELLS)))

    def __len__(self) -> int:
        return len(self._exact)

    def held(self, key: Hashable) -> list[float]:
        """When the soft and the hard bucket of a key are full again: made if need be, for `wait_s` and `draw`."""
        held = self._exact.get(key)
        if held is None:
            held = self._exact[key] = [self._noted(key), 0.0]
            if len(self._exact) > self._entries:
                self._note(*self._exact.popitem(last=False))
        elif 2 * len(self._exact) > self._entries:
            # Before, nobody is about to make way.
            self._exact.move_to_end(key)
        return held

    def empty(self, key: Hashable, limit: Limit, now: float) -> bool:
        """Whether the soft bucket has no token. Takes none."""
        held = self._exact.get(key)
        full_at = self._noted(key) if held is None else held[0]
        full_s = limit.burst / limit.per_second
        return min(max(full_at, now), now + full_s) + 1.0 / limit.per_second - full_s - now > 1e-9

    def take(self, key: Hashable, limit: Limit, now: float) -> bool:
        """Takes a token from both buckets, where there is one. Whether the soft one had none."""
        return draw(self.held(key), limit, now)

    def _noted(self, key: Hashable) -> float:
        """When a key's bucket is full again at the latest, by what was noted of those that made way."""
        place = hash(key)
        return min(self._cells[0][place & _MASK], self._cells[1][place >> _SHIFT & _MASK])

    def _note(self, key: Hashable, held: list[float]) -> None:
        place = hash(key)
        for cells, cell in zip(self._cells, (place & _MASK, place >> _SHIFT & _MASK), strict=True):
            cells[cell] = max(cells[cell], held[0])


def wait_s(held: list[float], limit: Limit, now: float) -> float:
    """How long until the hard bucket has a token; 0: it has one. Takes none."""
    if held[1] <= now:
        return 0.0
    full_s = limit.burst / limit.per_second
    step_s = 1.0 / (limit.per_second * limit.hard_factor)
    return max(0.0, min(held[1], now + full_s) + step_s - full_s - now)


def fill(held: list[float], limit: Limit, now: float) -> None:
    """Takes a token from both buckets, which are full."""
    step_s = 1.0 / limit.per_second
    held[0], held[1] = now + step_s, now + step_s / limit.hard_factor


def draw(held: list[float], limit: Limit, now: float) -> bool:
    """Takes a token from both buckets, where there is one. Whether the soft one had none."""
    step_s = 1.0 / limit.per_second
    latest = now + limit.burst * step_s
    held[1] = min(max(held[1], now) + step_s / limit.hard_factor, latest)
    soft = min(max(held[0], now), latest) + step_s
    if soft - latest > 1e-9:
        held[0] = soft - step_s
        return True
    held[0] = soft
    return False
