"""Receiving a snapshot into a new generation while the live one goes on serving and being written.

The steps, in the order in which the writer's thread takes them, between other work:

1. `add` every chunk: loads its records and their index rows.
2. `finish` once: checks the whole, copies all other lanes from the live generation, and applies what that was given
   meanwhile. A generator of slices of a few milliseconds.
3. `sync`, the only step that blocks on the disk; in another thread, if the writer must stay responsive.
4. `commit`: applies what came in since, then swaps.
"""

from __future__ import annotations

import shutil
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Final

import lmdb
from google.protobuf.message import DecodeError
from sidestep.v1 import sync_pb2 as pb

from engine.digest import KEY_BYTES, Digest
from engine.names import Lane
from sidecar.store import index, keys
from sidecar.store.apply import CHECKED, add_row, apply_delta, open_collections, put_cursor
from sidecar.store.environment import GUARD, Environment, open_for_writing, storage_errors
from sidecar.store.errors import DamagedRowError, DigestMismatchError, StoreError, UndecodableError, UnreadableError
from sidecar.store.keys import Cursor
from sidecar.store.rowbuffer import RowBuffer

if TYPE_CHECKING:
    from lmdb import _Database

    from sidecar.store.writer import LaneId, Writer

MAX_QUEUED_BYTES: Final = 64 << 20
"""Deltas that may wait for the swap: far more than come in during the seconds it takes."""
_SLICE_ROWS: Final = 1000
_SLICE_BYTES: Final = 256 << 10


class Staging:
    """One snapshot of one (tenant, lane) on its way into a new generation. Made by `Writer.stage`.

    Raises UndecodableError for an offer that makes no sense. Any error of its steps has given the staging up: the new
    generation is gone, the live one as it was.
    """

    def __init__(self, writer: Writer, offer: pb.SnapshotOffer) -> None:
        try:
            lane = Lane(offer.cursor.lane)
        except ValueError:
            raise UndecodableError("a snapshot names no lane") from None
        if len(offer.digest_key) != KEY_BYTES or not offer.cursor.tenant:
            raise UndecodableError("a snapshot without a digest key or tenant")
        self.lane_id: LaneId = (offer.cursor.tenant, lane)
        self.tenant, self.lane = self.lane_id
        self.cursor = Cursor(offer.cursor.epoch, offer.cursor.revision, offer.cursor.digest)
        self.records = 0
        self.chunks = 0
        self._writer = writer
        self._offer = offer
        self._digest = Digest(offer.digest_key)
        self._counts: Counter[index.Row] = Counter()
        self._last_keys: dict[int, bytes] = {}
        self._staged: dict[LaneId, Cursor] = {}
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._env: Environment | None = open_for_writing(
            writer.directory.new_generation(), map_size=writer.map_size, create=True
        )
        self._rows = {name: RowBuffer(db) for name, db in self._env.dbs.indexes.items()}
        self.copying = False

    def takes(self, lane_id: LaneId, delta: pb.Delta) -> bool:
        """Whether the new generation will need this delta too: its lane's from the snapshot on, all once it copies."""
        if lane_id == self.lane_id:
            return delta.epoch == self.cursor.epoch and delta.revision > self.cursor.revision
        return self.copying

    def queue(self, raw: bytes) -> None:
        """Keeps a delta that `takes` said yes to until `finish` or `commit` apply it. Too many give the staging up."""
        self._queued_bytes += len(raw)
        self._queue.append(raw)
        if self._queued_bytes > MAX_QUEUED_BYTES:
            self.abort()

    def add(self, chunk: pb.SnapshotChunk) -> None:
        """Loads the next chunk. Raises UndecodableError, RefusedError, StorageFullError."""
        with self._step() as environment:
            if chunk.chunk != self.chunks:
                raise UndecodableError(f"snapshot chunk {chunk.chunk} instead of {self.chunks}")
            try:
                records = pb.SnapshotRecords.FromString(chunk.payload).records
            except DecodeError:
                raise UndecodableError(f"snapshot chunk {chunk.chunk} cannot be decoded") from None
            self.records += len(records)
            if self.records > self._offer.records:
                raise UndecodableError("a snapshot has more records than it offered")
            groups = [
                (number, list(group)) for number, group in groupby(records, lambda record: int(record.collection))
            ]
            dbs = open_collections(environment, self.lane, {number for number, _ in groups})
            with environment.write() as txn:
                for number, group in groups:
                    self._load(txn, dbs[number], number, group)
                for buffer in self._rows.values():
                    buffer.drain(txn)
            self.chunks += 1

    def finish(self, end: pb.SnapshotEnd) -> Iterator[None]:
        """Checks the received whole and completes the new generation, yielding after every slice.

        Raises UndecodableError, DigestMismatchError, StorageFullError.
        """
        with self._step() as environment:
            stated = end.cursor
            if end.chunks != self.chunks or self.records != self._offer.records:
                raise UndecodableError(
                    f"a snapshot of {self._offer.records} records in {end.chunks} chunks ended with "
                    f"{self.records} in {self.chunks}"
                )
            if (stated.epoch, stated.revision) != (self.cursor.epoch, self.cursor.revision):
                raise UndecodableError("a snapshot ended at another revision than it offered")
            if not self._digest.value() == self.cursor.digest == stated.digest:
                raise DigestMismatchError(
                    f"{self.lane.name.lower()}: snapshot {self.cursor.revision} has another digest"
                )
            for buffer in self._rows.values():
                more = True
                while more:
                    with environment.write() as txn:
                        more = buffer.drain(txn, rest=True)
                    yield
                    self._alive()
            with environment.write() as txn:
                for row, count in self._counts.items():
                    add_row(txn, environment, row, count)
                self._put_lane(txn, environment, self.lane_id, self.cursor, self._offer.digest_key)
            for _ in self._copy_others(environment):
                yield
                self._alive()
            while self._queue:
                # At least two, and no pause after the last, since one more may come in with every slice.
                self._catch_up(environment)
                size = 0
                while self._queue and size < _SLICE_BYTES:
                    size += self._catch_up(environment)
                if self._queue:
                    yield
                    self._alive()

    def sync(self) -> None:
        """Forces the new generation to disk. The only step that another thread may take; does nothing once given up."""
        with GUARD:
            environment = self._env
            if environment is None:
                return
            environment.share()
        try:
            environment.env.sync(True)
        finally:
            environment.close()

    def commit(self) -> Cursor:
        """Makes the new generation the live one, and returns where the lane stands now."""
        with self._step() as environment:
            while self._queue:
                self._catch_up(environment)
            self._copy_bookkeeping(environment)
            self._writer.adopt(self, environment)
        self._env = None
        return self._staged[self.lane_id]

    def abort(self) -> None:
        """Gives the snapshot up. May be called at any point before the swap, more than once."""
        environment, self._env = self._env, None
        if environment is not None:
            self._writer.forget(self)
            environment.close()
            shutil.rmtree(environment.path, ignore_errors=True)

    @contextmanager
    def _step(self) -> Iterator[Environment]:
        environment = self._alive()
        try:
            with storage_errors():
                yield environment
        except (lmdb.Error, DamagedRowError) as error:  # while reading the live generation
            self.abort()
            self._writer.live.mark_suspect(str(error))
            raise UnreadableError(str(error)) from error
        except BaseException:
            self.abort()
            raise

    def _alive(self) -> Environment:
        if self._env is None:
            raise StoreError("the snapshot was given up")
        return self._env

    def _load(
        self,
        txn: lmdb.Transaction[bytes],
        db: _Database,
        number: int,
        records: list[pb.SnapshotRecord],
    ) -> None:
        check = self._writer.check if number in CHECKED else None
        tenant, digest = self.tenant, self._digest
        items: list[tuple[bytes, bytes]] = []
        rows: dict[bytes, list[tuple[bytes, bytes]]] = defaultdict(list)
        for record in records:
            record_id, value = record.id, record.value
            if check is not None:
                check(number, record_id, value)
            items.append((index.checked_record_key(tenant, record_id), value))
            digest.add(number, record_id, value)
            for row in index.rows(number, tenant, record_id, value):
                if row.value is None:
                    self._counts[row] += 1
                else:
                    rows[row.name].append((row.key, row.value))
        _insert_new(txn, db, items, self._last_keys.get(number, b""))
        self._last_keys[number] = max(items[-1][0], self._last_keys.get(number, b""))
        for name, entries in rows.items():
            self._rows[name].add(entries)

    def _copy_others(self, environment: Environment) -> Iterator[None]:
        """From one moment on: deltas committed to the live generation after it are queued, those before are copied."""
        live = self._writer.live
        lanes = {lane_id: cursor for lane_id, cursor in self._writer.cursors().items() if lane_id != self.lane_id}
        tables = {lane: live.lane_collections(lane) for lane in Lane}
        self.copying = True
        with GUARD:
            source = live.begin_read()
        try:
            for lane_id, cursor in lanes.items():
                tenant, lane = lane_id
                pairs = [(db, environment.collection(number, lane)) for number, db in tables[lane]]
                pairs += [
                    (live.dbs.indexes[name], environment.dbs.indexes[name])
                    for name, of in index.LANES.items()
                    if of is lane
                ]
                for old, new in pairs:
                    for rows in _slices(source, old, keys.tenant_prefix(tenant)):
                        with environment.write() as txn:
                            target = txn.cursor(new)
                            target.putmulti(rows, append=not target.last() or target.key() < rows[0][0])
                        yield
                digest_key = source.get(keys.lane_row(keys.META_KEY, tenant, lane), default=b"", db=live.dbs.meta)
                with environment.write() as txn:
                    self._put_lane(txn, environment, lane_id, cursor, digest_key)
        finally:
            live.end_read(source)

    def _put_lane(
        self, txn: lmdb.Transaction[bytes], environment: Environment, lane_id: LaneId, cursor: Cursor, digest_key: bytes
    ) -> None:
        put_cursor(txn, environment, *lane_id, cursor)
        txn.put(keys.lane_row(keys.META_KEY, *lane_id), digest_key, db=environment.dbs.meta)
        self._staged[lane_id] = cursor

    def _catch_up(self, environment: Environment) -> int:
        raw = self._queue.popleft()
        self._queued_bytes -= len(raw)
        delta = pb.Delta.FromString(raw)
        lane_id = delta.tenant, Lane(delta.lane)
        cursor = self._staged.get(lane_id)
        if cursor is None or (delta.epoch, delta.revision) > (cursor.epoch, cursor.revision):
            self._staged[lane_id] = apply_delta(environment, delta, cursor, self._writer.check)
        return len(raw)

    def _copy_bookkeeping(self, environment: Environment) -> None:
        """Scope, time and confirmations: what was complete in the live generation is no less complete in this one."""
        live = self._writer.live
        with live.env.begin() as source:
            rows = list(keys.iterate(source.cursor(live.dbs.meta), keys.META_CONFIRMED))
            rows += keys.iterate(source.cursor(live.dbs.meta), keys.META_TIME)
            scope = source.get(keys.META_SCOPE, db=live.dbs.meta)
        if scope is not None:
            rows.append((keys.META_SCOPE, scope))
        with environment.write() as txn:
            for key, value in rows:
                keys.check_meta_row(key, value)
                txn.put(key, value, db=environment.dbs.meta)


def _insert_new(txn: lmdb.Transaction[bytes], db: _Database, items: list[tuple[bytes, bytes]], last_key: bytes) -> None:
    """Inserts records that must not be there yet; in bulk if they are sorted, as the protocol promises."""
    if last_key < items[0][0] and all(left[0] < right[0] for left, right in pairwise(items)):
        txn.cursor(db).putmulti(items, append=True)
        return
    for key, value in items:
        if not txn.put(key, value, overwrite=False, db=db):
            raise UndecodableError("a snapshot has a record twice")


def _slices(txn: lmdb.Transaction[bytes], db: _Database, prefix: bytes) -> Iterator[list[tuple[bytes, bytes]]]:
    rows: list[tuple[bytes, bytes]] = []
    size = 0
    for row in keys.iterate(txn.cursor(db), prefix):
        rows.append(row)
        size += len(row[1])
        if len(rows) == _SLICE_ROWS or size >= _SLICE_BYTES:
            yield rows
            rows, size = [], 0
    if rows:
        yield rows
