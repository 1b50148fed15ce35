"""What to say to the control plane when a lane does not go as it should."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from sidestep.v1 import sync_pb2 as pb
from sidestep.v1.resources_pb2 import Lane as PbLane

from engine.names import Lane
from sidecar.store.errors import (
    ApplyError,
    DigestMismatchError,
    GapError,
    RefusedError,
    StorageFullError,
    UndecodableError,
)
from sidecar.store.keys import Cursor
from sidecar.sync.state import LaneId, Phase, Refused

_DETAIL_BYTES: Final = 500
_STORAGE_FULL: Final = "storage_full"


class LaneFollower:
    """One lane. Methods return the requests to send.

    A digest mismatch or a gap asks for a snapshot, once. If the lane goes wrong again before a delta has applied, a
    further snapshot would not help either: the breaker opens, and only after `retry_s` is one asked for again. A refused
    change is not asked for again until the control plane's head has moved past it, or after `retry_s`; in the bulk lane,
    whose snapshots are large and whose head moves all the time, or if the store is full, only after `retry_s`.
    """

    def __init__(self, lane_id: LaneId, *, retry_s: float, monotonic: Callable[[], float]) -> None:
        self.lane_id = lane_id
        self.phase = Phase.FOLLOWING
        self.refused: Refused | None = None
        self._retry_s = retry_s
        self._monotonic = monotonic
        self._asked = False
        self._retry_at = 0.0

    def new_stream(self) -> None:
        """The control plane starts over from our cursor."""
        if self.phase is not Phase.BROKEN:
            self.phase = Phase.FOLLOWING

    def announced(self) -> None:
        """A snapshot will come."""
        if self.phase is not Phase.BROKEN:
            self.phase = Phase.AWAITING

    def offered(self) -> None:
        """A snapshot begins."""
        self.phase = Phase.LOADING

    def applied(self) -> None:
        """A delta was applied."""
        self._asked = False
        if self.phase is not Phase.LOADING and self.phase is not Phase.AWAITING:
            self.phase = Phase.FOLLOWING
            self.refused = None

    def loaded(self) -> None:
        """A snapshot was adopted."""
        self.phase = Phase.FOLLOWING
        self.refused = None

    def head(self, epoch: int, revision: int, cursor: Cursor | None) -> list[pb.SyncRequest]:
        """The control plane's head of the lane was seen."""
        if self.phase is not Phase.REFUSED or self.refused is None:
            return []
        if self.lane_id[1] is Lane.BULK or self.refused.code == _STORAGE_FULL:
            return []
        moved_on = revision > self.refused.revision or (cursor is not None and epoch > cursor.epoch)
        return self._ask("newer revision after a refusal") if moved_on else []

    def tick(self) -> list[pb.SyncRequest]:
        """Time went by."""
        if self.phase in (Phase.BROKEN, Phase.REFUSED) and self._monotonic() >= self._retry_at:
            return self._ask("another try")
        return []

    def delta_failed(self, error: ApplyError, revision: int, cursor: Cursor | None) -> list[pb.SyncRequest]:
        """A delta leading to `revision` was not applied; the lane stays at `cursor`."""
        if isinstance(error, GapError):
            # Deltas that were under way when a snapshot was asked for, or a change refused, do not fit: expected.
            return self._resync(str(error)) if self.phase is Phase.FOLLOWING else []
        if isinstance(error, DigestMismatchError) and self.phase in (Phase.AWAITING, Phase.LOADING):
            return []  # it builds on what the snapshot will bring
        return self.failed(error, revision, cursor)

    def failed(self, error: ApplyError, revision: int, cursor: Cursor | None) -> list[pb.SyncRequest]:
        """A snapshot of `revision` was not adopted, or the data differs from the head; the lane stays at `cursor`."""
        if isinstance(error, GapError):
            return self._resync(str(error))
        if isinstance(error, DigestMismatchError):
            refusal = self._refuse("digest_mismatch", str(error), revision, cursor)
            return [refusal, *self._resync(str(error))]
        self.phase = Phase.REFUSED
        self._retry_at = self._monotonic() + self._retry_s
        return [self._refuse(_code(error), str(error), revision, cursor)]

    def _resync(self, reason: str) -> list[pb.SyncRequest]:
        if self._asked:
            self.phase = Phase.BROKEN
            self._retry_at = self._monotonic() + self._retry_s
            return []
        return self._ask(reason)

    def _ask(self, reason: str) -> list[pb.SyncRequest]:
        self._asked = True
        self.phase = Phase.AWAITING
        tenant, lane = self.lane_id
        request = pb.SnapshotRequest(tenant=tenant, lane=PbLane.Name(lane.value), reason=reason[:_DETAIL_BYTES])
        return [pb.SyncRequest(snapshot_request=request)]

    def _refuse(self, code: str, detail: str, revision: int, cursor: Cursor | None) -> pb.SyncRequest:
        self.refused = Refused(revision, code, detail[:_DETAIL_BYTES])
        at = cursor_message(self.lane_id, cursor)
        refusal = pb.Refusal(cursor=at, revision=revision, code=code, detail=self.refused.detail)
        return pb.SyncRequest(refusal=refusal)


def _code(error: ApplyError) -> str:
    if isinstance(error, RefusedError):
        return error.code
    if isinstance(error, StorageFullError):
        return _STORAGE_FULL
    assert isinstance(error, UndecodableError), error
    return "undecodable"


def cursor_message(lane_id: LaneId, cursor: Cursor | None) -> pb.Cursor:
    """A cursor as sent; of a lane that was never loaded: revision 0 without a digest."""
    tenant, lane = lane_id
    message = pb.Cursor(tenant=tenant, lane=PbLane.Name(lane.value))
    if cursor is not None:
        message.epoch, message.revision, message.digest = cursor
    return message
