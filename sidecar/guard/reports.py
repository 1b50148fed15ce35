"""Findings on their way up: a bounded queue that whoever reports upstream drains."""

from __future__ import annotations

from collections import deque
from typing import Final

import msgspec

MAX_QUEUED: Final = 1024


class Report(msgspec.Struct, frozen=True, gc=False):
    """One new finding, or new evidence for one. Personal: `fingerprint` holds raw component values, to be hashed with a key
    of the tenant before they leave the process."""

    tenant: str
    at: float
    # As in decisions: `shared-fingerprint`.
    guard: str
    code: str
    # 0-1.
    confidence: float
    subject: str
    action: str
    # Registered id; empty: unknown.
    device: str = ""
    fingerprint: dict[str, str] = {}
    # Of a grant's own burst, which has no effect here.
    grant: str = ""


class Reports:
    """The queue. At its bound the oldest goes, and is counted in `dropped`."""

    def __init__(self) -> None:
        self._queue: deque[Report] = deque(maxlen=MAX_QUEUED)
        self.dropped = 0

    def add(self, report: Report) -> None:
        """Queues one."""
        if len(self._queue) == MAX_QUEUED:
            self.dropped += 1
        self._queue.append(report)

    def drain(self) -> list[Report]:
        """Takes all there are, oldest first."""
        drained = []
        while self._queue:
            drained.append(self._queue.popleft())
        return drained
