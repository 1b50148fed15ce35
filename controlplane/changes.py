"""The change log in memory: every stream is a cursor into it.

One task follows the heads: at once after a commit of this process, within `poll_s` after one of another. New commits
go, already encoded as they will be sent, into rings that all streams share; a stream that falls behind reads the log.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from sidestep.v1 import resources_pb2, sync_pb2

from controlplane.errors import CompactedError, StoreError
from controlplane.store import Entry, Head, Store
from engine.names import Lane

_LOG = logging.getLogger(__name__)

LaneKey = tuple[str, Lane]

_RING_BYTES = {Lane.URGENT: 16 * 1024 * 1024, Lane.BULK: 64 * 1024 * 1024}
_RING_FRAMES = 16_384
_READ_AHEAD = 16
# Who is further behind than this, after a burst by another process, reads the log.
_CATCH_UP = 64
_RETRY_S = 0.5
# Heads older than this prove nothing about now, so no heartbeat may carry them.
_CURRENT_FOR_S = 2.0


class Frame(NamedTuple):
    """One commit as it goes over the wire: `message` is an encoded SyncResponse."""

    revision: int
    message: bytes


class Updates:
    """What happened since a stream last looked: the lanes in its scope that moved."""

    def __init__(self, wake: asyncio.Event, scope: frozenset[str] | None) -> None:
        self.lanes: set[LaneKey] = set()
        self._wake = wake
        self._scope = scope

    def covers(self, tenant: str) -> bool:
        """Whether a tenant is in the scope."""
        return self._scope is None or tenant in self._scope

    def moved(self, key: LaneKey) -> None:
        """Notes a lane and wakes the stream, if it is in the scope."""
        if self.covers(key[0]):
            self.lanes.add(key)
            self._wake.set()


class Ring:
    """The newest frames of one lane of all tenants together, bounded in number and bytes; the oldest go first."""

    def __init__(self, max_frames: int, max_bytes: int) -> None:
        self._max_frames = max_frames
        self._max_bytes = max_bytes
        self._bytes = 0
        self._frames: dict[str, deque[Frame]] = {}
        self._order: deque[str] = deque()

    def append(self, tenant: str, frame: Frame) -> None:
        """Adds the next revision of a tenant; a gap forgets what was before it."""
        frames = self._frames.setdefault(tenant, deque())
        if frames and frames[-1].revision + 1 != frame.revision:
            self.forget(tenant)
            frames = self._frames.setdefault(tenant, deque())
        frames.append(frame)
        self._order.append(tenant)
        self._bytes += len(frame.message)
        while self._bytes > self._max_bytes or len(self._order) > self._max_frames:
            self._bytes -= len(self._frames[self._order.popleft()].popleft().message)

    def forget(self, tenant: str) -> None:
        """Drops all frames of a tenant."""
        frames = self._frames.pop(tenant, None)
        if frames:
            self._bytes -= sum(len(frame.message) for frame in frames)
            self._order = deque(name for name in self._order if name != tenant)

    def after(self, tenant: str, revision: int, limit: int) -> list[Frame] | None:
        """The frames right after a revision; None if the ring does not reach back to it."""
        frames = self._frames.get(tenant)
        if not frames or not frames[0].revision <= revision + 1 <= frames[-1].revision:
            return None
        start = revision + 1 - frames[0].revision
        return [frames[index] for index in range(start, min(start + limit, len(frames)))]


class Changes:
    """Follows the store's heads and tells the streams. All methods belong to one event loop."""

    def __init__(self, store: Store, *, poll_s: float = 0.05) -> None:
        self._store = store
        self._poll_s = poll_s
        self._rings = {lane: Ring(_RING_FRAMES, _RING_BYTES[lane]) for lane in Lane}
        self._heads: dict[LaneKey, Head] = {}
        self._histories: dict[LaneKey, int] = {}
        self._committed: dict[LaneKey, Head] = {}
        self._wake = asyncio.Event()
        self._publishing = asyncio.Lock()
        self._position: tuple[int, int, int] | None = None
        self._polled_at = float("-inf")
        self._subscribers: set[Updates] = set()
        self._encoded_heads: dict[frozenset[str] | None, bytes] = {}
        self._task: asyncio.Task[None] | None = None
        self.failures = 0
        """Times the heads could not be read."""

    async def start(self) -> None:
        """Reads the heads and follows them from then on. Raises StoreError."""
        await self.refresh()
        self._store.watch(self._on_commit)
        self._task = asyncio.create_task(self._follow(), name="changes")

    async def stop(self) -> None:
        """Stops following."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    @property
    def heads(self) -> Mapping[LaneKey, Head]:
        """Every lane's head as last seen."""
        return self._heads

    def history(self, key: LaneKey) -> int:
        """A number that changes when a lane's revisions no longer continue what they were: another epoch, or a head set
        back because the database was restored. Then what was sent before proves nothing.
        """
        return self._histories[key]

    def is_current(self) -> bool:
        """Whether the heads were read a moment ago. If not, the database is out of reach and they prove nothing."""
        return self.age_s() < max(_CURRENT_FOR_S, 4 * self._poll_s)

    def age_s(self) -> float:
        """Seconds since the heads were last read."""
        return time.monotonic() - self._polled_at

    @contextmanager
    def subscribe(self, wake: asyncio.Event, scope: frozenset[str] | None) -> Iterator[Updates]:
        """Sets `wake`, and notes the lane, whenever a lane in the scope (None: all tenants) moves."""
        updates = Updates(wake, scope)
        self._subscribers.add(updates)
        try:
            yield updates
        finally:
            self._subscribers.discard(updates)

    async def read(self, key: LaneKey, after: int, limit: int) -> Sequence[Frame]:
        """At most `limit` frames right after a revision, not beyond the head as last seen.

        From the ring, or else from the log. Raises CompactedError if only a snapshot leads on, StoreError.
        """
        tenant, lane = key
        last = self._heads[key].revision
        frames = self._rings[lane].after(tenant, after, limit)
        if frames is None:
            frames = [to_frame(entry) for entry in await self._store.changes(tenant, lane, after, limit=limit)]
        return [frame for frame in frames if frame.revision <= last]

    async def refresh(self) -> None:
        """Reads the heads now. Raises StoreError."""
        async with self._publishing:
            polled_at = time.monotonic()
            position = await self._store.position()
            if position != self._position:
                heads = await self._store.heads()
                for head in sorted(heads, key=lambda head: head.lane):
                    await self._publish(head)
                self._position = position
            self._polled_at = polled_at

    def encoded_heads(self, scope: frozenset[str] | None) -> bytes:
        """The heads in a scope as the `heads` of an encoded Heartbeat, ordered by (tenant, lane)."""
        encoded = self._encoded_heads.get(scope)
        if encoded is None:
            heads = [head for key, head in sorted(self._heads.items()) if scope is None or key[0] in scope]
            encoded = sync_pb2.Heartbeat(heads=map(to_cursor, heads)).SerializeToString()
            self._encoded_heads[scope] = encoded
        return encoded

    def _on_commit(self, heads: Iterable[Head]) -> None:
        self._committed.update({(head.tenant, head.lane): head for head in heads})
        self._wake.set()

    async def _follow(self) -> None:
        failing = False
        while True:
            try:
                async with asyncio.timeout(_RETRY_S if failing else self._poll_s):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            try:
                await self._publish_committed()
                await self.refresh()
                if failing:
                    _LOG.warning("following the change log again")
                failing = False
            except StoreError as error:
                self.failures += 1
                if not failing:
                    _LOG.error("cannot follow the change log: %s", error)
                failing = True
            except Exception:
                # A bug must not end the following in silence: heartbeats stop, readiness fails, and it goes on trying.
                _LOG.exception("cannot follow the change log")
                failing = True

    async def _publish_committed(self) -> None:
        async with self._publishing:
            while self._committed:
                key, head = next(iter(self._committed.items()))
                known = self._heads.get(key)
                if known is None or known.epoch != head.epoch or known.revision < head.revision:
                    await self._publish(head)
                if self._committed[key] is head:
                    del self._committed[key]

    async def _publish(self, head: Head) -> None:
        """Fills the ring up to a head, then makes the head known and wakes the streams."""
        key = (head.tenant, head.lane)
        known = self._heads.get(key)
        if known == head:
            return
        ring = self._rings[head.lane]
        same_history = known is not None and (known.epoch, known.digest_key) == (head.epoch, head.digest_key)
        if known is not None and same_history and known.revision < head.revision:
            after = max(known.revision, head.revision - _CATCH_UP)
            try:
                while after < head.revision:
                    entries = await self._store.changes(head.tenant, head.lane, after, limit=_READ_AHEAD)
                    for entry in entries:
                        if entry.revision <= head.revision:
                            ring.append(head.tenant, to_frame(entry))
                    after = entries[-1].revision
            except CompactedError:
                ring.forget(head.tenant)
        else:
            ring.forget(head.tenant)
            self._histories[key] = self._histories.get(key, 0) + 1
        self._heads[key] = head
        self._encoded_heads.clear()
        for updates in self._subscribers:
            updates.moved(key)


def to_cursor(head: Head) -> sync_pb2.Cursor:
    """A head as it is written on the wire."""
    return sync_pb2.Cursor(
        tenant=head.tenant,
        lane=resources_pb2.Lane.Name(head.lane),
        epoch=head.epoch,
        revision=head.revision,
        digest=head.digest,
    )


def to_frame(entry: Entry) -> Frame:
    """A commit as it is sent."""
    return Frame(entry.revision, sync_pb2.SyncResponse(delta=entry.delta).SerializeToString())
