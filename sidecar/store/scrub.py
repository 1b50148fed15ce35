"""The scrub: recomputes every digest and every index row from the records on disk.

LMDB has no checksums: after a flipped byte inside a value neither a read nor its verifier complains. This does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final, Literal, NamedTuple

import lmdb

from engine.digest import Digest
from engine.names import Lane
from sidecar.store import index, keys
from sidecar.store.environment import GUARD, Environment
from sidecar.store.errors import DamagedRowError, UndecodableError

SLICE: Final = 500
"""Records looked at between two yields: a few milliseconds."""


class Finding(NamedTuple):
    """Something on disk that is not as it must be. `where` is a tenant, or an index; never a record's content."""

    kind: Literal["digest", "index", "record", "cursor"]
    where: str
    detail: str

    def __str__(self) -> str:
        return f"{self.kind} of {self.where}: {self.detail}"


def scrub(environment: Environment) -> Iterator[Finding | None]:
    """Yields each finding, and None after every slice so that the caller can do other things.

    Reads one consistent revision of each lane, in a read transaction that lasts until the iterator is exhausted or
    closed. Records of a tenant that is being dropped are skipped.
    """
    collections = [(lane, number, db) for lane in Lane for number, db in environment.lane_collections(lane)]
    with GUARD:
        txn = environment.begin_read()
    try:
        run = _Scrub(environment, txn)
        yield from run.cursors()
        for lane, number, db in collections:
            for seen, (key, value) in enumerate(txn.cursor(db)):
                if seen % SLICE == SLICE - 1:
                    yield None
                yield from run.record(lane, number, key, value)
        yield from run.conclude()
    except lmdb.Error as error:
        yield Finding("record", environment.path.name, str(error))
    finally:
        environment.end_read(txn)


class _Scrub:
    def __init__(self, environment: Environment, txn: lmdb.Transaction[bytes]) -> None:
        self._txn = txn
        self._name = environment.path.name
        self._meta = environment.dbs.meta
        self._indexes = environment.dbs.indexes
        self._cursors: dict[tuple[str, Lane], keys.Cursor] = {}
        self._digests: dict[tuple[str, Lane], Digest] = {}
        self._rows: Counter[bytes] = Counter()
        self._counts: Counter[tuple[bytes, bytes]] = Counter()
        drops = (key for key, _ in txn.cursor(self._meta) if key.startswith(keys.META_DROP))
        self._dropping = {key[len(keys.META_DROP) :] for key in drops}

    def cursors(self) -> Iterator[Finding]:
        for key, value in self._txn.cursor(self._meta):
            try:
                keys.check_meta_row(key, value)
                if key.startswith(keys.META_CURSOR):
                    lane_id = keys.parse_lane_row(keys.META_CURSOR, key)
                    digest_key = self._txn.get(keys.lane_row(keys.META_KEY, *lane_id), db=self._meta)
                    self._digests[lane_id] = Digest(digest_key or b"")
                    self._cursors[lane_id] = keys.unpack_cursor(key, value)
            except (DamagedRowError, ValueError) as error:
                yield Finding("cursor", self._name, str(error))

    def record(self, lane: Lane, number: int, key: bytes, value: bytes) -> Iterator[Finding]:
        tenant_bytes, _, id_bytes = key.partition(b"\0")
        if tenant_bytes in self._dropping:
            return
        try:
            tenant, record_id = tenant_bytes.decode(), id_bytes.decode()
            self._digests[tenant, lane].add(number, record_id, value)
            rows = index.rows(number, tenant, record_id, value)
        except KeyError:
            yield Finding("record", f"c{number}", "belongs to a lane that was never loaded")
            return
        except (UnicodeDecodeError, UndecodableError) as error:
            yield Finding("record", f"c{number}", str(error))
            return
        for row in rows:
            if row.value is None:
                self._counts[row.name, row.key] += 1
                continue
            self._rows[row.name] += 1
            if self._txn.get(row.key, db=self._indexes[row.name]) != row.value:
                yield Finding("index", row.name.decode(), "a row is missing or differs")

    def conclude(self) -> Iterator[Finding]:
        for lane_id, digest in self._digests.items():
            if digest.value() != self._cursors[lane_id].digest:
                yield Finding("digest", lane_id[0], f"lane {lane_id[1].name.lower()} differs from its cursor")
        for (name, key), count in self._counts.items():
            self._rows[name] += 1
            if self._txn.get(key, db=self._indexes[name]) != b"%d" % count:
                yield Finding("index", name.decode(), "a count differs")
        # All derived rows exist, so an index is exactly right if it holds no more rows than those.
        for name, db in self._indexes.items():
            found = self._txn.stat(db)["entries"]
            for tenant in self._dropping:
                found -= sum(1 for _ in keys.iterate(self._txn.cursor(db), tenant + b"\0"))
            if found != self._rows[name]:
                yield Finding("index", name.decode(), f"holds {found} rows, not {self._rows[name]}")
