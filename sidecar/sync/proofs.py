"""What a stream must prove, and which lanes hold nothing but what was proved."""

from __future__ import annotations

import logging
import secrets
from collections import Counter
from collections.abc import Mapping
from typing import Final

from sidestep.v1 import sync_pb2 as pb

from sidecar.store.keys import Cursor
from sidecar.store.marks import Mark, Marks
from sidecar.store.writer import Writer
from sidecar.sync.lanes import cursor_message
from sidecar.sync.state import LaneId
from sidecar.sync.trust import Fault, TrustedKeys, UnverifiedError, decode

_log = logging.getLogger(__name__)

_NOTHING: Final = (0, 0)


class Proofs:
    """Checks what comes on one stream after another. Without `trust` (development mode) everything passes.

    With it, `marks` says how far each lane ever was that holds nothing but what was signed. Other lanes, filled before keys were
    pinned, go on serving, but they are loaded anew and not confirmed until then.
    """

    def __init__(self, writer: Writer, trust: TrustedKeys | None, marks: Marks | None) -> None:
        self._writer = writer
        self._trust = trust
        self._marks = None if trust is None else marks
        self._nonce = 0
        self._scope_number = 0
        self._counts: Counter[str] = Counter()
        for lane_id, cursor in writer.cursors().items():
            self.lift(lane_id, cursor)  # the file may be a little behind

    @property
    def demanded(self) -> bool:
        """Whether anything has to be proved."""
        return self._trust is not None

    @property
    def trusted_keys(self) -> int:
        """How many keys are pinned."""
        return 0 if self._trust is None else len(self._trust)

    @property
    def problem(self) -> str:
        """Why the file of trusted keys cannot be used as it is now; empty: it can."""
        return "" if self._trust is None else self._trust.problem

    @property
    def counts(self) -> Mapping[str, int]:
        """How often something was not believed, by `Fault`."""
        return dict(self._counts)

    def count(self, error: UnverifiedError) -> None:
        """Counts and logs what was not believed."""
        self._counts[error.fault] += 1
        _log.error("sync: not believed, and not applied: %s", error)

    # What comes in. All of these raise UnverifiedError.

    def open(self, raw: bytes) -> pb.SyncResponse:
        """A response, its signature verified. Raises ProtocolError as well."""
        return decode(raw) if self._trust is None else self._trust.open(raw)

    def check_scope(self, scope: pb.Scope) -> None:
        """It answers the Hello of this stream, and is the newest on it."""
        if self._trust is None:
            return
        if scope.nonce != self._nonce or scope.number <= self._scope_number:
            raise UnverifiedError(Fault.REPLAYED, "scope")
        self._scope_number = scope.number

    def check_answer(self, nonce: int, *, asked: bool) -> None:
        """A heartbeat with a nonce answers a ping of this stream, and is the first that does."""
        if self._trust is not None and nonce and not asked:
            raise UnverifiedError(Fault.REPLAYED, "heartbeat")

    def check_offer(self, lane_id: LaneId, offer: pb.SnapshotOffer) -> None:
        """The snapshot is not older than what the lane once held."""
        mark = self._mark(lane_id)
        offered = Mark(offer.cursor.epoch, offer.cursor.revision)
        if mark is not None and offered < mark:
            where = f"snapshot {offered.epoch}/{offered.revision} of tenants/{lane_id[0]} {lane_id[1].name.lower()}"
            raise UnverifiedError(Fault.ROLLED_BACK, f"{where}, which was at {mark.epoch}/{mark.revision}")

    # What is held.

    def covers(self, lane_id: LaneId) -> bool:
        """Whether a lane holds nothing but what had to be proved."""
        return self._marks is None or self._mark(lane_id) is not None

    def lift(self, lane_id: LaneId, cursor: Cursor, *, snapshot: bool = False) -> None:
        """A lane stands at `cursor` now. A proved `snapshot` makes everything in it proved."""
        if self._marks is not None and (snapshot or self._mark(lane_id) is not None):
            self._marks.lift(lane_id, cursor.epoch, cursor.revision)

    def keep(self, *, now: bool = False) -> None:
        """Writes the marks to disk, at most once a second, or `now`."""
        if self._marks is None:
            return
        try:
            self._marks.flush(now=now)
        except OSError as error:
            _log.error("sync: the marks cannot be written: %s", error.strerror)

    def least(self, lane_id: LaneId) -> tuple[int, int]:
        """The (epoch, revision) that a snapshot of a lane must not be older than."""
        cursor = self._writer.cursor(*lane_id)
        return max(self._mark(lane_id) or _NOTHING, _NOTHING if cursor is None else cursor[:2])

    def hello(self, sidecar: str, instance: str, version: str) -> pb.Hello:
        """What opens a new stream."""
        self._nonce = secrets.randbits(64) if self.demanded else 0
        self._scope_number = 0
        hello = pb.Hello(sidecar=sidecar, instance=instance, version=version, nonce=self._nonce)
        held, scope = self._writer.cursors(), self._writer.scope()
        hello.cursors.extend(
            cursor_message(lane_id, cursor) for lane_id, cursor in held.items() if self.covers(lane_id)
        )
        for lane_id, mark in ({} if self._marks is None else self._marks.known()).items():
            cursor = held.get(lane_id)
            if (cursor is None or cursor[:2] < mark) and (scope is None or lane_id[0] in scope):
                hello.marks.append(cursor_message(lane_id, Cursor(*mark, b"")))
        return hello

    def _mark(self, lane_id: LaneId) -> Mark | None:
        return None if self._marks is None else self._marks.get(lane_id)
