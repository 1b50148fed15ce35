"""This machine's clock, held against the time that answers to pings state under signature."""

from __future__ import annotations

import logging
from typing import Final

from engine.clockoffset import MAX_OFFSET_S
from sidecar.clock import Clock
from sidecar.store.writer import Writer

_log = logging.getLogger(__name__)
MAX_ROUND_TRIP_S: Final = 10.0
"""An answer that took longer says too little about the time: half of it is how wrong it may be."""


class SignedTime:
    """Notes the control plane's time in the store, for all processes, and tells how far the wall clock is from it."""

    def __init__(self, writer: Writer, clock: Clock) -> None:
        self._writer = writer
        self._clock = clock
        # CLOCK_BOOTTIME and the control plane's time at the same moment.
        self._at: tuple[float, float] | None = None
        self._off = False

    def answered(self, asked_boottime: float, server_time: float) -> None:
        """An answer to a ping sent at `asked_boottime` stated the time."""
        now = self._clock.boottime()
        if not 0.0 <= now - asked_boottime <= MAX_ROUND_TRIP_S:
            return
        # It was stated at some moment in between.
        self._at = (asked_boottime + now) / 2, server_time
        self._writer.note_time(boottime=self._at[0], server_time=server_time)
        offset_s = self.offset_s() or 0.0
        off = abs(offset_s) > MAX_OFFSET_S
        if off is not self._off:
            self._off = off
            if off:
                _log.error("the clock is %+.0f s off the control plane's: no exemption applies", offset_s)
            else:
                _log.warning("the clock is right again")

    def offset_s(self) -> float | None:
        """By how much the wall clock is ahead now; None: nothing is known yet."""
        if self._at is None:
            return None
        boottime, server_time = self._at
        return self._clock.wall() - (server_time + self._clock.boottime() - boottime)
