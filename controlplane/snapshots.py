"""Snapshots on offer: at most one file per (tenant, lane), built once however many ask, replaced when it is outdated.

A file stays on offer while the change log leads from its revision to the head without becoming long. Files of an
earlier run of the program are offered again after their checksum was verified.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import re
import secrets
import sys
import time
from functools import partial
from pathlib import Path

from sidestep.v1 import sync_pb2

from controlplane.changes import LaneKey
from controlplane.errors import CompactedError, DamagedError, OverloadedError, StoreError
from controlplane.snapshot_file import (
    SUFFIX,
    TEMPORARY_SUFFIX,
    SnapshotFile,
    SnapshotReader,
    SnapshotWriter,
    open_snapshot,
    verify_snapshot,
)
from controlplane.store import Batches, Store
from engine.names import Lane

_LOG = logging.getLogger(__name__)

_FILE_NAME = re.compile(r"(?P<tenant>[a-z0-9-]+)\.(?P<lane>[12])\.[0-9]+\.[0-9]+\.[0-9a-f]+" + re.escape(SUFFIX))
# A snapshot followed by this many changed records (or this part of its own, if more) is not worth sending.
_OUTDATED_RECORDS = 1_000
_OUTDATED_PART = 0.25
_MAX_WAITING_BUILDS = 64
_RETRY_S = 2.0


class _Offered:
    """A file on offer, or withdrawn and still being read."""

    def __init__(self, file: SnapshotFile, *, verified: bool) -> None:
        self.file = file
        self.verified = verified
        self.users = 0
        self._withdrawn = False

    def withdraw(self) -> None:
        """Removes the file as soon as nobody reads it."""
        self._withdrawn = True
        self.remove_if_unused()

    def remove_if_unused(self) -> None:
        """To be called when a reader has gone."""
        if self._withdrawn and not self.users:
            self.file.path.unlink(missing_ok=True)


class Lease:
    """The right to read one file: it is not removed, nor the log behind it dropped, before `release`."""

    def __init__(self, offered: _Offered) -> None:
        self._offered = offered
        self._reader = SnapshotReader(offered.file)
        self.offer = offered.file.offer
        self.chunks = offered.file.chunks
        offered.users += 1

    async def read(self) -> bytes:
        """The payload of the next chunk; nothing if the lease ends meanwhile. Raises DamagedError, StoreError."""
        try:
            return await asyncio.to_thread(self._reader.read)
        except ValueError:
            if self._reader.closed:
                return b""
            raise
        except OSError as error:
            raise StoreError(f"snapshot: {error.strerror}") from error

    def release(self) -> None:
        """Ends the lease. Harmless if it has ended."""
        if not self._reader.closed:
            self._reader.close()
            self._offered.users -= 1
            self._offered.remove_if_unused()


class Snapshots:
    """The files of one directory, which no other process may use at the same time."""

    def __init__(self, store: Store, directory: Path, *, max_builds: int = 2) -> None:
        self._store = store
        self._directory = directory
        self._building = asyncio.Semaphore(max_builds)
        self._max_flights = max_builds + _MAX_WAITING_BUILDS
        self._offered: dict[LaneKey, _Offered] = {}
        self._withdrawn: dict[LaneKey, list[_Offered]] = {}
        self._flights: dict[LaneKey, asyncio.Task[_Offered]] = {}
        self._lock: int | None = None
        self.built = self.built_bytes = self.failed = 0
        self.build_s = 0.0

    async def start(self) -> None:
        """Takes the directory over and finds what an earlier run left. Raises StoreError."""
        try:
            await asyncio.to_thread(self._take_over)
        except OSError as error:
            raise StoreError(f"{self._directory}: {error.strerror}") from error

    async def stop(self) -> None:
        """Gives up builds and the directory; files stay."""
        for task in self._flights.values():
            task.cancel()
        await asyncio.gather(*self._flights.values(), return_exceptions=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def lease(self, tenant: str, lane: Lane) -> Lease:
        """A snapshot from which the log leads on.

        Raises NotFoundError for an unknown tenant, OverloadedError if too many wait for one, DamagedError if the records
        do not have their digest, StoreError.
        """
        key = (tenant, lane)
        while True:
            flight = self._flights.get(key)
            if flight is None:
                if len(self._flights) >= self._max_flights:
                    raise OverloadedError("too many snapshots are being built", _RETRY_S)
                flight = asyncio.create_task(self._provide(key), name=f"snapshot {tenant} {lane.name}")
                self._flights[key] = flight
                flight.add_done_callback(partial(self._landed, key))
            offered = await asyncio.shield(flight)
            try:
                return Lease(offered)
            except FileNotFoundError:
                # Replaced between the end of the flight and here.
                continue
            except OSError as error:
                raise StoreError(f"snapshot: {error.strerror}") from error

    def oldest_leased(self, key: LaneKey) -> int | None:
        """The oldest revision someone is reading; the log after it is still needed. None: nobody reads."""
        files = [*self._withdrawn.get(key, ())]
        if key in self._offered:
            files.append(self._offered[key])
        return min((offered.file.revision for offered in files if offered.users), default=None)

    def withdraw(self, key: LaneKey, before: int = sys.maxsize) -> None:
        """Takes a file off the offer if it is older than a revision, because the log does not lead on from it."""
        offered = self._offered.get(key)
        if offered is not None and offered.file.revision < before:
            del self._offered[key]
            still_read = [old for old in self._withdrawn.get(key, []) if old.users]
            self._withdrawn[key] = [*still_read, offered]
            offered.withdraw()

    def _landed(self, key: LaneKey, flight: asyncio.Task[_Offered]) -> None:
        del self._flights[key]
        if not flight.cancelled() and flight.exception() is not None:
            self.failed += 1
            _LOG.warning("no snapshot of tenants/%s lane %s: %s", key[0], key[1].name, flight.exception())

    async def _provide(self, key: LaneKey) -> _Offered:
        offered = self._offered.get(key)
        if offered is not None:
            if await self._leads_on(key, offered) and await self._intact(offered):
                return offered
            self.withdraw(key)
        async with self._building:
            built = _Offered(await self._build(key), verified=True)
        self._offered[key] = built
        return built

    async def _leads_on(self, key: LaneKey, offered: _Offered) -> bool:
        """Whether a file belongs to this history, and the log goes from it to the head without being long."""
        tenant, lane = key
        offer = offered.file.offer
        head = next((head for head in await self._store.heads([tenant]) if head.lane is lane), None)
        if head is None or (head.epoch, head.digest_key) != (offer.cursor.epoch, offer.digest_key):
            return False
        if head.revision <= offer.cursor.revision:
            return head.revision == offer.cursor.revision and head.digest == offer.cursor.digest
        backlog = await self._store.backlog(tenant, lane, offer.cursor.revision)
        if backlog.records > max(_OUTDATED_RECORDS, _OUTDATED_PART * offer.records):
            return False
        try:
            first = await self._store.changes(tenant, lane, offer.cursor.revision, limit=1)
        except CompactedError:
            return False
        return sync_pb2.Delta.FromString(first[0].delta).previous_digest == offer.cursor.digest

    async def _intact(self, offered: _Offered) -> bool:
        if not offered.verified:
            try:
                await asyncio.to_thread(verify_snapshot, offered.file.path)
            except (DamagedError, OSError) as error:
                _LOG.warning("snapshot not used: %s", error)
                return False
            offered.verified = True
        return True

    async def _build(self, key: LaneKey) -> SnapshotFile:
        tenant, lane = key
        began = time.monotonic()
        async with self._store.read_lane(tenant, lane) as (head, batches):
            # No two files share a name, so unlinking one that is no longer read never hits its successor.
            name = f"{tenant}.{int(lane)}.{head.epoch}.{head.revision}.{secrets.token_hex(4)}{SUFFIX}"
            path = self._directory / name
            try:
                writer = await asyncio.to_thread(SnapshotWriter, path, head)
                try:
                    await _write_all(writer, batches)
                    file = await asyncio.to_thread(writer.finish)
                finally:
                    writer.abandon()
            except OSError as error:
                raise StoreError(f"snapshot {path.name}: {error.strerror}") from error
        self.built += 1
        self.built_bytes += file.offer.bytes
        self.build_s += time.monotonic() - began
        _LOG.info("snapshot of tenants/%s lane %s at revision %d built", tenant, lane.name, head.revision)
        return file

    def _take_over(self) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise StoreError(f"{self._directory}: in use by another control plane process") from None
        self._lock = lock
        for path in self._directory.glob(f"*{TEMPORARY_SUFFIX}"):
            path.unlink()
        for path in self._directory.glob(f"*{SUFFIX}"):
            self._adopt(path)

    def _adopt(self, path: Path) -> None:
        """Offers a file of an earlier run, the newest of its lane; unlinks others."""
        match = _FILE_NAME.fullmatch(path.name)
        try:
            file = open_snapshot(path)
        except (DamagedError, OSError) as error:
            _LOG.warning("snapshot removed: %s", error)
            path.unlink(missing_ok=True)
            return
        if match is None or file.offer.cursor.tenant != match["tenant"] or file.offer.cursor.lane != int(match["lane"]):
            path.unlink()
            return
        key = (match["tenant"], Lane(int(match["lane"])))
        known = self._offered.get(key)
        if known is None or known.file.revision < file.revision:
            self.withdraw(key)
            self._offered[key] = _Offered(file, verified=False)
        else:
            path.unlink()


async def _write_all(writer: SnapshotWriter, batches: Batches) -> None:
    """Writes one batch while the next is read."""
    writing: asyncio.Future[None] | None = None
    try:
        async for batch in batches:
            if writing is not None:
                await writing
            writing = asyncio.ensure_future(asyncio.to_thread(writer.add, batch))
        if writing is not None:
            await writing
    finally:
        # The file must not be closed under a thread that writes to it.
        if writing is not None:
            await asyncio.wait((writing,))
