"""Where the streams of a process stand, for metrics: how many, and how far behind the heads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from controlplane.api.stream import Stream
from controlplane.changes import LaneKey
from controlplane.metrics.catalogue import LANES
from controlplane.metrics.tally import Tally
from controlplane.store import Head
from engine.names import Lane


class Sent:
    """What all streams together were sent since the start."""

    def __init__(self) -> None:
        self.deltas = Tally.of(LANES)
        self.chunk_bytes = 0


class Standing(NamedTuple):
    """One moment. `slowest`: for lanes that some stream lacks commits of, the lowest revision acknowledged.

    A lane that a sidecar still loads for the first time counts as behind, but lags by nothing: its age says nothing yet.
    """

    streams: int
    transfers: int
    refusing: int
    behind: Mapping[Lane, int]
    lag_revisions: Mapping[Lane, int]
    slowest: Mapping[LaneKey, int]


def standing_of(streams: Iterable[Stream], heads: Mapping[LaneKey, Head]) -> Standing:
    """Looks at every stream."""
    count = transfers = refusing = 0
    behind = dict.fromkeys(Lane, 0)
    lag = dict.fromkeys(Lane, 0)
    slowest: dict[LaneKey, int] = {}
    for stream in streams:
        count += 1
        transfers += stream.loading
        refusing += bool(stream.status.refusal)
        lacking: set[Lane] = set()
        for key, acked in stream.acknowledged():
            head = heads[key]
            if (acked.epoch, acked.revision) == (head.epoch, head.revision):
                continue
            lacking.add(key[1])
            if acked.epoch == head.epoch and acked.revision < head.revision:
                lag[key[1]] = max(lag[key[1]], head.revision - acked.revision)
                slowest[key] = min(slowest.get(key, acked.revision), acked.revision)
        for lane in lacking:
            behind[lane] += 1
    return Standing(count, transfers, refusing, behind, lag, slowest)
