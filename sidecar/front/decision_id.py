"""Decision ids: UUIDv7 (RFC 9562)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final
from uuid import UUID

from engine.errors import InvalidInputError

_RANDOM_BITS: Final = 74
_LOW_BITS: Final = 62
_LOW: Final = (1 << _LOW_BITS) - 1
_POOL_BYTES: Final = 4096


class DecisionIds:
    """Makes ids that rise, also within a millisecond and when the clock is set back (RFC 9562 section 6.2, method 2).

    One per worker loop; not thread-safe. `time_ns` is for tests.
    """

    def __init__(self, time_ns: Callable[[], int] = time.time_ns) -> None:
        self._time_ns = time_ns
        self._ms = 0
        self._random = 0
        # System calls cost more than everything else here.
        self._pool = b""
        self._used = 0

    def next(self) -> bytes:
        """The next id, 16 bytes."""
        ms = self._time_ns() // 1_000_000
        if ms > self._ms:
            self._ms = ms
            # The top bit is left clear, as room to count up.
            self._random = int.from_bytes(self._take(10), "big") >> 7
        else:
            self._random += 1 + int.from_bytes(self._take(4), "big")
            if self._random >> _RANDOM_BITS:
                self._ms += 1
                self._random = int.from_bytes(self._take(10), "big") >> 7
        high, low = self._random >> _LOW_BITS, self._random & _LOW
        return (self._ms << 80 | 7 << 76 | high << 64 | 2 << 62 | low).to_bytes(16, "big")

    def _take(self, count: int) -> bytes:
        if self._used + count > len(self._pool):
            self._pool = os.urandom(_POOL_BYTES)
            self._used = 0
        start = self._used
        self._used += count
        return self._pool[start : self._used]


def id_text(decision_id: bytes) -> str:
    """The usual form: 36 characters in lower case."""
    h = decision_id.hex()
    return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"


def parse_id(text: str) -> bytes:
    """The 16 bytes of a decision id as callers have it. Raises InvalidInputError."""
    try:
        parsed = UUID(text)
    except ValueError:
        parsed = None
    if parsed is None or str(parsed) != text.lower():
        raise InvalidInputError("decision_id", "is not the id of a decision")
    return parsed.bytes
