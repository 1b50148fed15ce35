"""One open generation. LMDB allows a path to be open once per process, so whoever needs it here shares the handle."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Condition, Lock
from typing import TYPE_CHECKING, Final

import lmdb

from engine.names import Collection, Lane, lane_of
from sidecar.store import keys
from sidecar.store.errors import NotLoadedError, StorageFullError, StoreError, UnreadableError
from sidecar.store.generation import DATA, mark_suspect

if TYPE_CHECKING:
    from lmdb import _Database

GUARD: Final = Lock()
"""Guards every Environment's counts. Held for a microsecond, except while a generation is opened or closed."""
_RELEASED: Final = Condition(GUARD)

MAX_DATABASES: Final = 128
MAX_READERS: Final = 126
MAP_SIZE: Final = 16 << 30
"""Address space, not memory or disk; also the most a generation may grow to."""
_RESIZE_WAIT_S = 1.0
_PAGE_SIZE = mmap.PAGESIZE
_MAX_FREE_TAIL = 1024 * _PAGE_SIZE


@dataclass(slots=True)
class Databases:
    """The named databases of a generation. `records` has the collections this version knows."""

    records: dict[int, _Database]
    meta: _Database
    device: _Database
    blocked: _Database
    grant: _Database
    prefix: _Database
    signals: _Database
    indexes: dict[bytes, _Database]


class Environment:
    """An open generation. Counts its users and read transactions, and closes when the last one is done."""

    def __init__(self, path: Path, env: lmdb.Environment, dbs: Databases, *, writable: bool) -> None:
        self.path = path
        self.env = env
        self.dbs = dbs
        self.writable = writable
        self._users = 1
        self._reads = 0
        self._opaque: dict[tuple[int, Lane], _Database] = {}
        self._file = os.open(path / DATA, os.O_RDWR | os.O_CLOEXEC) if writable else -1

    def begin_read(self) -> lmdb.Transaction[bytes]:
        """A read transaction, to be given back with `end_read`. The caller holds GUARD."""
        try:
            txn = self.env.begin()
        except lmdb.MapResizedError:
            # The writer's map outgrew ours. It can be adopted only while this process reads nothing.
            if not _RELEASED.wait_for(lambda: self._reads == 0, _RESIZE_WAIT_S):
                raise UnreadableError(f"{self.path.name}: cannot follow its growth, reads are in progress") from None
            self.env.set_mapsize(0)
            txn = self.env.begin()
        self._reads += 1
        return txn

    def end_read(self, txn: lmdb.Transaction[bytes]) -> None:
        """Ends what `begin_read` began."""
        txn.abort()
        with GUARD:
            self._reads -= 1
            if self._reads == 0:
                _RELEASED.notify_all()
                if self._users == 0:
                    self._shut()

    @contextmanager
    def write(self) -> Iterator[lmdb.Transaction[bytes]]:
        """A write transaction, committed on leaving, aborted on an exception. Only the writer's thread may use it.

        Raises StorageFullError, and UnreadableError if LMDB cannot go on; the generation is then marked suspect.
        """
        try:
            with storage_errors(), self.env.begin(write=True) as txn:
                yield txn
        except lmdb.Error as error:
            self.mark_suspect(str(error))
            raise UnreadableError(f"{self.path.name}: {error}") from error
        self._cover_free_tail()

    def share(self) -> Environment:
        """One more use, to be given up with `close`. The caller holds GUARD."""
        self._users += 1
        return self

    def close(self) -> None:
        """Gives up one use; the last one closes the file once its read transactions have ended."""
        with GUARD:
            self._users -= 1
            if self._users == 0 and self._reads == 0:
                self._shut()

    def mark_suspect(self, reason: str) -> None:
        """See `generation.mark_suspect`."""
        mark_suspect(self.path, reason)

    def collection(self, collection: int, lane: Lane) -> _Database:
        """The database of any collection, created if this version does not know it. Not inside a transaction."""
        known = self.dbs.records.get(collection)
        if known is not None:
            return known
        db = self._opaque.get((collection, lane))
        if db is None:
            db = self._opaque[collection, lane] = self.env.open_db(keys.collection_name(collection, lane))
        return db

    def lane_collections(self, lane: Lane) -> list[tuple[int, _Database]]:
        """All collections of a lane that exist here, known or opaque, by number. Not inside a transaction."""
        found = [(number, db) for number, db in self.dbs.records.items() if lane_of(number) is lane]
        for name in self.env.dbs():
            parsed = keys.parse_collection_name(name)
            if parsed is not None and parsed[0] not in self.dbs.records and parsed[1] is lane:
                found.append((parsed[0], self.collection(parsed[0], lane)))
        return sorted(found, key=lambda entry: entry[0])

    def _cover_free_tail(self) -> None:
        """Lengthens the file over pages that LMDB counts but, having freed them at once, did not write.

        So a file that is shorter than its meta page says is a damaged one, and everyone can tell before mapping it.
        """
        info = self.env.info()
        expected = (info["last_pgno"] + 1) * _PAGE_SIZE
        missing = expected - os.fstat(self._file).st_size
        if missing > _MAX_FREE_TAIL:
            self.mark_suspect("the data file was truncated")
            raise UnreadableError(f"{self.path.name}: the data file was truncated by {missing} bytes")
        if missing > 0:
            os.ftruncate(self._file, expected)

    def _shut(self) -> None:
        _OPEN.pop(self.path, None)
        if self._file >= 0:
            os.close(self._file)
        self.env.close()


_OPEN: Final[dict[Path, Environment]] = {}


def open_for_writing(generation: Path, *, map_size: int = MAP_SIZE, create: bool = False) -> Environment:
    """Opens a generation to write it, or creates one in an empty directory.

    Commits are not synced: they survive the death of any process, and after the death of the machine the generation is
    examined. Raises NotLoadedError for another format, lmdb.Error for an unreadable file.
    """
    path = generation.resolve()
    with GUARD:
        shared = _OPEN.get(path)
        if shared is not None:
            if not shared.writable:
                raise StoreError(f"{path.name} is open read-only in this process")
            return shared.share()
        env = lmdb.open(
            str(path),
            map_size=map_size,
            max_dbs=MAX_DATABASES,
            max_readers=MAX_READERS,
            max_spare_txns=8,
            sync=False,
            metasync=False,
            create=create,
            mode=0o600,
        )
        return _register(path, env, writable=True, create=create)


def open_for_reading(generation: Path, *, map_size: int = MAP_SIZE, max_readers: int = MAX_READERS) -> Environment:
    """Opens a generation to read it. Raises NotLoadedError for another format, lmdb.Error for an unreadable file."""
    path = generation.resolve()
    with GUARD:
        shared = _OPEN.get(path)
        if shared is not None:
            return shared.share()
        env = lmdb.open(
            str(path),
            map_size=map_size,
            max_dbs=MAX_DATABASES,
            max_readers=max_readers,
            max_spare_txns=8,
            readonly=True,
            create=False,
        )
        return _register(path, env, writable=False, create=False)


def _register(path: Path, env: lmdb.Environment, *, writable: bool, create: bool) -> Environment:
    try:
        dbs = _open_databases(path, env, create=create)
    except BaseException:
        env.close()
        raise
    environment = _OPEN[path] = Environment(path, env, dbs, writable=writable)
    return environment


def _open_databases(path: Path, env: lmdb.Environment, *, create: bool) -> Databases:
    try:
        meta = env.open_db(keys.META, create=create)
        if create:
            with env.begin(write=True) as txn:
                txn.put(keys.META_FORMAT, keys.FORMAT, db=meta)
        with env.begin() as txn:
            found = txn.get(keys.META_FORMAT, db=meta)
        if found != keys.FORMAT:
            raise NotLoadedError(f"{path.name} has format {found!r}, this version reads {keys.FORMAT!r}")
        lanes = ((int(collection), lane_of(collection)) for collection in Collection)
        records = {
            number: env.open_db(keys.collection_name(number, lane), create=create)
            for number, lane in lanes
            if lane is not None
        }
        indexes = {name: env.open_db(name, create=create) for name in keys.INDEXES}
    except lmdb.NotFoundError as error:
        raise NotLoadedError(f"{path.name} lacks a database: {error}") from None
    return Databases(
        records=records,
        meta=meta,
        device=indexes[keys.I_DEVICE],
        blocked=indexes[keys.I_BLOCKED],
        grant=indexes[keys.I_GRANT],
        prefix=indexes[keys.I_PREFIX],
        signals=records[Collection.SIGNALS],
        indexes=indexes,
    )


@contextmanager
def storage_errors() -> Iterator[None]:
    """Turns LMDB's ways to say "full" into StorageFullError."""
    try:
        yield
    except (lmdb.MapFullError, lmdb.DbsFullError, lmdb.TxnFullError) as error:
        raise StorageFullError(str(error)) from None
    except (OSError, lmdb.Error) as error:
        code = error.errno if isinstance(error, OSError) else error.code
        if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StorageFullError(str(error)) from None
        raise
