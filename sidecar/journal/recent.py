"""The last records of requests that spent, after they have left the journal: a while longer, it may be asked what became of one.

A worker that dies may leave requests of which the pod knows only that they were about to spend. Whether they did, the records of
its chain tell: those that are still in segments, and those that this process was done with, in memory.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from sidecar.journal.reader import SegmentReader
from sidecar.journal.record import spent_request
from sidecar.journal.segment import JournalError, list_segments

MAX_KEPT: Final = 2_048
"""Of each chain."""
_SLICE_RECORDS: Final = 512


class Found(NamedTuple):
    """Records by decision id. A request with a later id than `since_ms` (Unix) and no record here has none."""

    records: dict[bytes, bytes]
    since_ms: float


@dataclass(slots=True)
class _Chain:
    since_ms: float
    # Ids with their records.
    kept: deque[tuple[bytes, bytes]] = field(default_factory=deque)


class RecentSpends:
    """By chain. Used in the thread of the backlog."""

    def __init__(self) -> None:
        self._began_ms = time.time() * 1000
        self._chains: dict[str, _Chain] = {}

    def begin(self, chain: str, settled: int) -> None:
        """The chain's records below `settled` have left the journal, and this process has not seen them."""
        if chain not in self._chains:
            self._chains[chain] = _Chain(self._began_ms if settled else 0.0)

    def add(self, chain: str, record: bytes) -> None:
        """A record that spent leaves the journal."""
        decision_id, request_id = spent_request(record)
        if not request_id:
            return
        known = self._chains.setdefault(chain, _Chain(0.0))
        known.kept.append((decision_id, record))
        if len(known.kept) > MAX_KEPT:
            known.since_ms = max(known.since_ms, id_ms(known.kept.popleft()[0]))

    def find(self, chain: str, ids: Container[bytes]) -> Found:
        """What is known of decisions."""
        known = self._chains.get(chain)
        if known is None:
            return Found({}, self._began_ms)
        return Found({each: record for each, record in known.kept if each in ids}, known.since_ms)

    def keep(self, chains: Container[str]) -> None:
        """Forgets all others."""
        self._chains = {chain: known for chain, known in self._chains.items() if chain in chains}


def in_segments(directory: Path, chain: str, ids: Container[bytes]) -> dict[bytes, bytes]:
    """The records that a chain's segments still have of decisions that spent. Raises OSError."""
    found = {}
    for name in list_segments(directory):
        if name.chain != chain:
            continue
        try:
            reader = SegmentReader(directory / str(name))
        except (JournalError, FileNotFoundError):
            continue
        try:
            while entries := reader.read(_SLICE_RECORDS):
                for entry in entries:
                    decision_id, _ = spent_request(entry.payload)
                    if decision_id in ids:
                        found[decision_id] = entry.payload
        finally:
            reader.close()
    return found


def id_ms(decision_id: bytes) -> float:
    """When a decision id (UUIDv7) was made, ms since the Unix epoch."""
    return int.from_bytes(decision_id[:6], "big")
