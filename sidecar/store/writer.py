"""The one writer of the store."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import lmdb
from google.protobuf.message import DecodeError
from sidestep.v1 import sync_pb2 as pb

from engine.names import Lane
from sidecar.clock import Clock
from sidecar.store import keys
from sidecar.store.apply import Check, apply_delta
from sidecar.store.environment import MAP_SIZE, Environment, open_for_writing, storage_errors
from sidecar.store.errors import ApplyError, DamagedRowError, NotLoadedError, UndecodableError, UnreadableError
from sidecar.store.examine import examine
from sidecar.store.generation import DataDir, is_suspect, is_trusted, shortfall, trust
from sidecar.store.keys import Confirmation, Cursor
from sidecar.store.scrub import Finding, scrub
from sidecar.store.staging import Staging

LaneId = tuple[str, Lane]
_log = logging.getLogger(__name__)
_DROP_SLICE: Final = 500


class Writer:
    """Writes the store: one per data directory, used by one thread.

    Opening takes the directory's lock (LockedError), removes what a crash left, and makes sure that the live generation
    is sound: one written in this boot is taken as it is, any other is examined first. What is not sound is quarantined
    and an empty generation takes its place. `pulse` is called while that lasts.

    `map_size` is the most a generation may grow to, in bytes. `check` sees the records of the collections in
    `apply.CHECKED` before they are committed and raises RefusedError for those this version cannot serve.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        map_size: int = MAP_SIZE,
        check: Check | None = None,
        clock: Clock | None = None,
        pulse: Callable[[], None] = lambda: None,
    ) -> None:
        self.directory = DataDir(data_dir)
        self.check = check
        self.clock = clock or Clock()
        self.map_size = map_size
        self.quarantined = 0
        self._retired: list[Environment] = []
        self._stagings: list[Staging] = []
        self._cursors: dict[LaneId, Cursor] = {}
        self._scope: frozenset[str] | None = None
        self._lock = self.directory.lock()
        try:
            self.directory.clean()
            self._live = self._open(pulse)
        except BaseException:
            os.close(self._lock)
            raise

    @property
    def live(self) -> Environment:
        """The live generation."""
        return self._live

    def cursors(self) -> dict[LaneId, Cursor]:
        """Where every loaded lane stands."""
        return dict(self._cursors)

    def cursor(self, tenant: str, lane: Lane) -> Cursor | None:
        """Where a lane stands; None: it was never loaded."""
        return self._cursors.get((tenant, lane))

    def scope(self) -> frozenset[str] | None:
        """The tenants to follow, as last told; None: never told."""
        return self._scope

    def apply_delta(self, raw: bytes) -> Cursor | None:
        """Applies an encoded Delta in one transaction, together with its revision.

        Returns the lane's new cursor; None if nothing changed, because the delta is a repetition or because it waits for
        a snapshot of its lane that is being finished. On an error the store holds what it held before: GapError,
        DigestMismatchError, UndecodableError, RefusedError, StorageFullError.
        """
        delta = parse_delta(raw)
        lane_id = delta.tenant, Lane(delta.lane)
        cursor = self._cursors.get(lane_id)
        if cursor is not None and is_repetition(delta, cursor):
            return None
        waits = [staging for staging in self._stagings if staging.takes(lane_id, delta)]
        if waits and (cursor is None or (delta.epoch, delta.revision) != (cursor.epoch, cursor.revision + 1)):
            for staging in waits:
                staging.queue(raw)
            return None
        try:
            fresh = apply_delta(self._live, delta, cursor, self.check)
        except ApplyError:
            if not any(staging.lane_id == lane_id for staging in waits):
                raise
            for staging in waits:  # the lane is being replaced, perhaps because it is wrong: what follows counts there
                staging.queue(raw)
            return None
        self._cursors[lane_id] = fresh
        for staging in waits:
            staging.queue(raw)
        return fresh

    def confirm(self, tenant: str, lane: Lane, *, boottime: float, wall: float) -> None:
        """Records that at this time of this boot the control plane had nothing newer for the lane."""
        confirmation = Confirmation(self.clock.boot_id(), boottime, wall)
        with self._live.write() as txn:
            row = keys.lane_row(keys.META_CONFIRMED, tenant, lane)
            txn.put(row, keys.pack_confirmation(row, confirmation), db=self._live.dbs.meta)

    def note_time(self, *, boottime: float, server_time: float) -> None:
        """Records what time the control plane said it was at this moment of this boot."""
        noted = Confirmation(self.clock.boot_id(), boottime, server_time)
        with self._live.write() as txn:
            txn.put(keys.META_TIME, keys.pack_confirmation(keys.META_TIME, noted), db=self._live.dbs.meta)

    def set_scope(self, tenants: frozenset[str]) -> frozenset[str]:
        """Follows exactly these tenants from now on, and returns those no longer followed.

        Their lanes count as never loaded at once; their records go with `drop`. A snapshot that is copying what goes is
        given up. Raises ValueError for an empty scope: that never means "wipe".
        """
        if not tenants:
            raise ValueError("an empty scope says nothing")
        if tenants == self._scope:
            return frozenset()
        gone = frozenset(tenant for tenant, _ in self._cursors) - tenants
        for staging in [s for s in self._stagings if s.tenant not in tenants or (gone and s.copying)]:
            staging.abort()
        meta = self._live.dbs.meta
        with self._live.write() as txn:
            txn.put(keys.META_SCOPE, keys.pack_scope(tenants), db=meta)
            for tenant in gone:
                mark = keys.META_DROP + tenant.encode()
                txn.put(mark, keys.seal(mark, b""), db=meta)
                for lane in Lane:
                    for kind in (keys.META_CURSOR, keys.META_KEY, keys.META_CONFIRMED):
                        txn.delete(keys.lane_row(kind, tenant, lane), db=meta)
        self._load(self._live)
        return gone

    def drop(self) -> Iterator[None]:
        """Removes, slice by slice, the records of tenants no longer followed; also what an earlier run did not get to."""
        live = self._live
        marks = []
        with _bookkeeping(live) as rows:
            for key, value in rows(keys.META_DROP):
                keys.unseal(key, value)
                marks.append(key)
        for mark in marks:
            tenant = mark[len(keys.META_DROP) :] + b"\0"
            records = [db for lane in Lane for _, db in live.lane_collections(lane)]
            for db in (*live.dbs.indexes.values(), *records):
                while live is self._live and self._drop_slice(db, tenant):
                    yield
            if live is not self._live:  # the generation that took over never held them
                return
            with live.write() as txn:
                txn.delete(mark, db=live.dbs.meta)

    def stage(self, offer: pb.SnapshotOffer) -> Staging:
        """Begins to receive a snapshot; one of the same lane that was being received is given up."""
        replaced = (offer.cursor.tenant, int(offer.cursor.lane))
        for staging in [s for s in self._stagings if (s.tenant, int(s.lane)) == replaced]:
            staging.abort()
        if self._cursors:  # otherwise the live generation is empty and takes no room
            self.directory.drop_quarantine()
        with storage_errors():
            staging = Staging(self, offer)
        self._stagings.append(staging)
        return staging

    def adopt(self, staging: Staging, environment: Environment) -> None:
        """Makes a finished staging's generation the live one. Called by the staging."""
        trust(environment.path, self.clock.boot_id())
        self.directory.make_current(environment.path)
        old, self._live = self._live, environment
        self.forget(staging)
        self._load(self._live)
        self._retired.append(old)

    def forget(self, staging: Staging) -> None:
        """Drops a staging that ended. Called by the staging."""
        self._stagings.remove(staging)

    def remove_retired(self) -> None:
        """Deletes generations no longer live. For another thread, some seconds after a swap.

        By then readers have let go, so the tenths of a second it takes to free a large file are spent here.
        """
        retired, self._retired = self._retired, []
        for old in retired:
            shutil.rmtree(old.path, ignore_errors=True)
            old.close()

    def maintain(self) -> int:
        """Frees the slots of readers that died, returns how many; call it every few seconds.

        Raises UnreadableError if a reader marked the live generation suspect: reopen the writer, which examines it.
        """
        if is_suspect(self._live.path):
            raise UnreadableError(f"{self._live.path.name} is marked suspect")
        return self._live.env.reader_check()

    def scrub(self) -> Iterator[Finding | None]:
        """See `scrub.scrub`, of the live generation."""
        return scrub(self._live)

    def condemn(self) -> None:
        """Quarantines the live generation, after a finding of the scrub, and starts an empty one."""
        for staging in list(self._stagings):
            staging.abort()
        old = self._live
        self._live = self._fresh()
        old.close()
        self._quarantine(old.path, "condemned")
        self._load(self._live)

    def close(self) -> None:
        """Gives up what is being staged and releases the directory. What was committed stays."""
        for staging in list(self._stagings):
            staging.abort()
        self._live.close()
        self.remove_retired()
        os.close(self._lock)

    def _open(self, pulse: Callable[[], None]) -> Environment:
        generation = self.directory.current()
        if generation is None:
            return self._fresh()
        problem: str | None = None
        if not is_trusted(generation, self.clock.boot_id()) or shortfall(generation) != 0:
            problem = examine(generation, map_size=self.map_size, pulse=pulse)
            if problem is None:
                trust(generation, self.clock.boot_id())
        if problem is None:
            try:
                environment = open_for_writing(generation, map_size=self.map_size)
            except (NotLoadedError, lmdb.Error) as error:
                problem = str(error)
            else:
                try:
                    self._load(environment)
                except (DamagedRowError, lmdb.Error) as error:
                    environment.close()
                    problem = str(error)
                else:
                    return environment
        fresh = self._fresh()
        self._quarantine(generation, problem)
        return fresh

    def _quarantine(self, generation: Path, problem: str) -> None:
        self.quarantined += 1
        _log.error("generation quarantined: %s", problem)
        self.directory.quarantine(generation)

    def _fresh(self) -> Environment:
        generation = self.directory.new_generation()
        with storage_errors():
            environment = open_for_writing(generation, map_size=self.map_size, create=True)
            environment.env.sync(True)
            trust(generation, self.clock.boot_id())
            self.directory.make_current(generation)
        return environment

    def _load(self, environment: Environment) -> None:
        with _bookkeeping(environment) as rows:
            cursors = {
                keys.parse_lane_row(keys.META_CURSOR, key): keys.unpack_cursor(key, value)
                for key, value in rows(keys.META_CURSOR)
            }
            scopes = [keys.unpack_scope(value) for _, value in rows(keys.META_SCOPE)]
        self._cursors, self._scope = cursors, next(iter(scopes), None)

    def _drop_slice(self, db: lmdb._Database, prefix: bytes) -> bool:
        with self._live.write() as txn:
            cursor = txn.cursor(db)
            for _ in range(_DROP_SLICE):
                if not (cursor.set_range(prefix) and cursor.key().startswith(prefix)):
                    return False
                cursor.delete()
        return True


@contextmanager
def _bookkeeping(environment: Environment) -> Iterator[Callable[[bytes], Iterator[tuple[bytes, bytes]]]]:
    """Reads bookkeeping rows by what their keys start with. A damaged one makes the generation suspect."""
    try:
        with environment.env.begin() as txn:
            yield lambda kind: keys.iterate(txn.cursor(environment.dbs.meta), kind)
    except DamagedRowError as error:
        environment.mark_suspect(str(error))
        raise


def parse_delta(raw: bytes) -> pb.Delta:
    """A Delta whose tenant and lane make sense. Raises UndecodableError."""
    try:
        delta = pb.Delta.FromString(raw)
        Lane(delta.lane)
    except (DecodeError, ValueError):
        raise UndecodableError("a delta cannot be decoded") from None
    if not delta.tenant:
        raise UndecodableError("a delta names no tenant")
    return delta


def is_repetition(delta: pb.Delta, cursor: Cursor) -> bool:
    """Whether the lane already holds what the delta leads to."""
    return (delta.epoch, delta.revision) <= (cursor.epoch, cursor.revision)
