"""How long to wait before the next attempt."""

from __future__ import annotations

import random
from typing import Final

MIN_S: Final = 0.05
MAX_S: Final = 15.0
LONGEST_ASKED_S: Final = 60.0
"""What a server may ask for. More would let one wrong message make the data stale."""


class Backoff:
    """Exponential backoff with full jitter: a uniform share of a bound that doubles from 50 ms to 15 s.

    Full jitter, because a control plane that comes back is met by its whole fleet at once.
    """

    def __init__(self, *, first_s: float = MIN_S, limit_s: float = MAX_S) -> None:
        self._first_s = first_s
        self._limit_s = limit_s
        self._bound_s = first_s

    def next_s(self, retry_after_s: float | None = None) -> float:
        """Seconds to wait now; never less than the server asked for, up to `LONGEST_ASKED_S`."""
        wait_s = random.uniform(0.0, self._bound_s)  # noqa: S311 - spreads load, keeps no secret
        self._bound_s = min(self._limit_s, 2 * self._bound_s)
        return wait_s if retry_after_s is None else min(max(0.0, retry_after_s), LONGEST_ASKED_S) + wait_s

    def reset(self) -> None:
        """Starts over, after an attempt that lasted."""
        self._bound_s = self._first_s
