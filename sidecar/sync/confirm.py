"""When the control plane last said that nothing is missing here."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from typing import Final, NamedTuple

from sidecar.clock import Clock
from sidecar.store.keys import Cursor
from sidecar.store.writer import Writer
from sidecar.sync.state import LaneId

_MAX_PINGS: Final = 64
_MIN_INTERVAL_S: Final = 0.25


class _Asked(NamedTuple):
    boottime: float
    wall: float


class _Pending(NamedTuple):
    epoch: int
    revision: int
    asked: _Asked


class Confirmations:
    """Turns answered pings into confirmations in the store, at most four a second for each lane.

    An answer was composed after its ping was sent, so the heads in it held at that moment or later: that moment is what
    is recorded. When an answer was read says nothing, since it may have lain in a buffer while this process stood still;
    so heartbeats that answer no ping confirm nothing. An answer whose head is ahead confirms once the lane reaches it.
    """

    def __init__(self, writer: Writer, clock: Clock) -> None:
        self._writer = writer
        self._clock = clock
        self._pings: OrderedDict[int, _Asked] = OrderedDict()
        self._pending: dict[LaneId, _Pending] = {}
        self._written: dict[LaneId, float] = {}
        # When something last came for a lane, by boot time.
        self._moved: dict[LaneId, float] = {}

    def new_stream(self) -> None:
        """Pings of an earlier stream are not answered any more."""
        self._pings.clear()
        self._pending.clear()
        self._moved.clear()

    def ping(self) -> int:
        """The nonce of a ping that is sent now: random, so that nobody can have its answer beforehand."""
        nonce = secrets.randbits(64) or 1
        self._pings[nonce] = _Asked(self._clock.boottime(), self._clock.wall())
        if len(self._pings) > _MAX_PINGS:
            self._pings.popitem(last=False)
        return nonce

    def answered(self, nonce: int) -> _Asked | None:
        """When the ping with this nonce was sent; None if there is none under way."""
        return self._pings.pop(nonce, None)

    def head(self, lane_id: LaneId, epoch: int, revision: int, asked: _Asked) -> None:
        """An answer to a ping of time `asked` said that the lane's head is at `revision`."""
        cursor = self._writer.cursor(*lane_id)
        if cursor is not None and (cursor.epoch, cursor.revision) == (epoch, revision):
            self._write(lane_id, asked)
        elif cursor is None or (cursor.epoch, cursor.revision) < (epoch, revision):
            # The earliest stays: under steady writes a later one would always be just out of reach.
            self._pending.setdefault(lane_id, _Pending(epoch, revision, asked))

    def advanced(self, lane_id: LaneId, cursor: Cursor) -> None:
        """The lane reached `cursor`."""
        self.moved(lane_id)
        pending = self._pending.get(lane_id)
        if pending is not None and (cursor.epoch, cursor.revision) >= (pending.epoch, pending.revision):
            del self._pending[lane_id]
            if cursor.epoch == pending.epoch:
                self._write(lane_id, pending.asked)

    def moved(self, lane_id: LaneId) -> None:
        """Something came for the lane."""
        self._moved[lane_id] = self._clock.boottime()

    def owed_s(self) -> dict[LaneId, float]:
        """For how long nothing has come, by lane, though an answer says that there is more to come."""
        now = self._clock.boottime()
        return {
            lane_id: now - max(pending.asked.boottime, self._moved.get(lane_id, 0.0))
            for lane_id, pending in self._pending.items()
        }

    def _write(self, lane_id: LaneId, asked: _Asked) -> None:
        last = self._written.get(lane_id)
        if last is None or not 0.0 <= asked.boottime - last < _MIN_INTERVAL_S:
            self._written[lane_id] = asked.boottime
            self._writer.confirm(*lane_id, boottime=asked.boottime, wall=asked.wall)
