"""Applying one delta inside a write transaction: the same for the live generation and for a staged one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import lmdb
from sidestep.v1 import sync_pb2 as pb

from engine.digest import Digest
from engine.names import Collection, Lane, lane_of
from sidecar.store import index, keys
from sidecar.store.environment import Environment, storage_errors
from sidecar.store.errors import DigestMismatchError, GapError, UndecodableError
from sidecar.store.keys import Cursor

if TYPE_CHECKING:
    from lmdb import _Database

_MAX_COLLECTION: Final = 0xFFFF  # the digest counts them in 16 bits

Check = Callable[[int, str, bytes], None]
"""Called with (collection, id, value) for each record that must compile; raises RefusedError."""

CHECKED: Final = frozenset({Collection.POLICIES, Collection.GRANTS, Collection.KEYS, Collection.SETTINGS})
"""The collections whose records are checked before they are committed."""


def apply_delta(environment: Environment, delta: pb.Delta, cursor: Cursor | None, check: Check | None) -> Cursor:
    """Applies a delta to the lane that stands at `cursor`, in one transaction, and returns the new cursor, also written.

    On any error nothing was changed: GapError, DigestMismatchError, UndecodableError, RefusedError, StorageFullError.
    """
    tenant, lane = delta.tenant, Lane(delta.lane)
    if cursor is None:
        raise GapError(f"{lane.name.lower()}: nothing was loaded yet")
    if delta.epoch != cursor.epoch or delta.revision != cursor.revision + 1:
        raise GapError(
            f"{lane.name.lower()}: {delta.epoch}/{delta.revision} does not follow {cursor.epoch}/{cursor.revision}"
        )
    if delta.previous_digest != cursor.digest:
        raise DigestMismatchError(f"{lane.name.lower()}: revision {cursor.revision} has another digest here")
    tables = open_collections(environment, lane, {int(change.collection) for change in delta.changes})
    with environment.write() as txn:
        key = txn.get(keys.lane_row(keys.META_KEY, tenant, lane), db=environment.dbs.meta)
        if key is None:
            raise GapError(f"{lane.name.lower()}: there is no digest key")
        digest = Digest(key, cursor.digest)
        for change in delta.changes:
            _apply(txn, environment, tables[change.collection], tenant, change, digest, check)
        fresh = Cursor(delta.epoch, delta.revision, digest.value())
        if fresh.digest != delta.digest:
            raise DigestMismatchError(f"{lane.name.lower()}: revision {fresh.revision} would have another digest here")
        put_cursor(txn, environment, tenant, lane, fresh)
    return fresh


def open_collections(environment: Environment, lane: Lane, collections: set[int]) -> dict[int, _Database]:
    """The databases of collections that came in on a lane; made if need be, so not inside a transaction.

    Raises UndecodableError if one does not belong there, StorageFullError.
    """
    for collection in collections:
        if not 0 < collection <= _MAX_COLLECTION or lane_of(collection) not in (lane, None):
            raise UndecodableError(f"collection {collection} in lane {lane.name.lower()}")
    with storage_errors():
        return {collection: environment.collection(collection, lane) for collection in collections}


def put_cursor(txn: lmdb.Transaction[bytes], environment: Environment, tenant: str, lane: Lane, cursor: Cursor) -> None:
    """Writes where a lane stands."""
    key = keys.lane_row(keys.META_CURSOR, tenant, lane)
    txn.put(key, keys.pack_cursor(key, cursor), db=environment.dbs.meta)


def _apply(
    txn: lmdb.Transaction[bytes],
    environment: Environment,
    db: _Database,
    tenant: str,
    change: pb.Change,
    digest: Digest,
    check: Check | None,
) -> None:
    collection, record_id = int(change.collection), change.id
    key = index.checked_record_key(tenant, record_id)
    if change.WhichOneof("change") == "value":
        value: bytes | None = change.value
        if check is not None and collection in CHECKED:
            check(collection, record_id, change.value)
        old = txn.replace(key, change.value, db=db)
        digest.add(collection, record_id, change.value)
    elif change.deleted:
        value = None
        old = txn.pop(key, db=db)
    else:
        raise UndecodableError(f"collection {collection}: a change says neither value nor deleted")
    if old is not None:
        digest.remove(collection, record_id, old)
    before = index.rows(collection, tenant, record_id, old) if old is not None else ()
    after = index.rows(collection, tenant, record_id, value) if value is not None else ()
    if before != after:
        for row in before:
            remove_row(txn, environment, row)
        for row in after:
            add_row(txn, environment, row)


def add_row(txn: lmdb.Transaction[bytes], environment: Environment, row: index.Row, times: int = 1) -> None:
    """Adds an index row, or raises its count."""
    db = environment.dbs.indexes[row.name]
    if row.value is not None:
        txn.put(row.key, row.value, db=db)
    else:
        txn.put(row.key, b"%d" % (int(txn.get(row.key, b"0", db=db)) + times), db=db)


def remove_row(txn: lmdb.Transaction[bytes], environment: Environment, row: index.Row) -> None:
    """Removes an index row, or lowers its count and removes it at zero."""
    db = environment.dbs.indexes[row.name]
    count = 0 if row.value is not None else int(txn.get(row.key, b"1", db=db)) - 1
    if count > 0:
        txn.put(row.key, b"%d" % count, db=db)
    else:
        txn.delete(row.key, db=db)
