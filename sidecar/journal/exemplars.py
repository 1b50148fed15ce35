"""Exemplars: per bucket of the latency histogram the last decision the collector has, so that a metric leads to a trace."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable

from sidecar.journal.span import Timing, read_timing
from sidecar.page import EXEMPLAR_WORDS, LATENCY_BOUNDS_S, AgentSlot, AgentWord

_EVERY_S = 0.25
_BOUNDS_NS = [round(bound * 1e9) for bound in LATENCY_BOUNDS_S]


class Exemplars:
    """The exemplars in the agent's slot."""

    def __init__(self, slot: AgentSlot) -> None:
        self._slot = slot
        self._due_at = 0.0

    def offer(self, spans: Iterable[bytes]) -> None:
        """Takes exemplars from accepted spans (of `encode_span`); the last of a bucket stays.

        Four times a second at most: looking at each span of a busy sidecar would cost a tenth of encoding it.
        """
        now = time.monotonic()
        if now < self._due_at:
            return
        self._due_at = now + _EVERY_S
        latest: dict[int, Timing] = {}
        for span in spans:
            timing = read_timing(span)
            if timing is not None:
                latest[bisect_left(_BOUNDS_NS, timing.duration_ns)] = timing
        for bucket, timing in latest.items():
            self._write(bucket, timing)

    def _write(self, bucket: int, timing: Timing) -> None:
        words = (
            int.from_bytes(timing.trace_id[:8], "big"),
            int.from_bytes(timing.trace_id[8:], "big"),
            int.from_bytes(timing.span_id, "big"),
            timing.duration_ns,
            timing.start_ns + timing.duration_ns,
        )
        for index, word in enumerate(words, bucket * EXEMPLAR_WORDS):
            self._slot.set(AgentWord.EXEMPLARS, word, index)
