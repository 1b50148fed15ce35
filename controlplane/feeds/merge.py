"""From what a feed says to the signals the control plane keeps."""

from __future__ import annotations

import math
from collections.abc import Iterable

from sidestep.v1 import resources_pb2

from controlplane.feeds.formats import FeedSignal
from engine.names import Collection, make_name, signal_id

# Signals of one import live between ttl and ttl + ttl / _GRID.
_GRID = 4


def merge(signals: Iterable[FeedSignal]) -> list[FeedSignal]:
    """One signal per (kind, value); where a feed names a value twice, the stricter of what it says counts."""
    merged: dict[tuple[str, str], FeedSignal] = {}
    for signal in signals:
        key = (signal.kind, signal.value)
        known = merged.get(key)
        merged[key] = signal if known is None else _stricter(known, signal)
    return list(merged.values())


def _stricter(a: FeedSignal, b: FeedSignal) -> FeedSignal:
    # Absent confidence is 100 and an absent expiry is the import's own, so absent wins over any given value.
    return FeedSignal(
        a.kind,
        a.value,
        max(a.score, b.score),
        None if a.confidence is None or b.confidence is None else max(a.confidence, b.confidence),
        None if a.expire_at is None or b.expire_at is None else max(a.expire_at, b.expire_at),
    )


def expiry_on_grid(now: float, ttl_s: float) -> float:
    """When signals imported now expire: `ttl_s` from now, rounded up to a grid of a quarter of it (at least a minute).

    Rounding makes imports repeated within a quarter of the ttl write equal records: only real differences travel.
    """
    grid_s = max(60.0, ttl_s / _GRID)
    return math.ceil((now + ttl_s) / grid_s) * grid_s


def to_signal(tenant: str, source: str, signal: FeedSignal, expire_at: float) -> resources_pb2.Signal:
    """The record of a feed's signal; `expire_at` counts where the feed says nothing. Raises InvalidInputError."""
    name = make_name(tenant, Collection.SIGNALS, signal_id(signal.kind, signal.value, source))
    record = resources_pb2.Signal(
        name=str(name),
        kind=f"SIGNAL_KIND_{signal.kind.upper()}",
        value=signal.value,
        source=source,
        score=signal.score,
    )
    if signal.confidence is not None:
        record.confidence = signal.confidence
    record.expire_time.FromNanoseconds(int(signal.expire_at if signal.expire_at is not None else expire_at) * 10**9)
    return record
