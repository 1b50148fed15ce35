"""Reading and filling a store in tests."""

from __future__ import annotations

from collections.abc import Callable

import lmdb

from engine.names import Lane
from sidecar.store import keys
from sidecar.store.environment import Environment
from sidecar.store.keys import Cursor
from sidecar.store.writer import Writer
from tests.fakes.history import History

Content = dict[bytes, dict[bytes, bytes]]


def load(
    writer: Writer, history: History, chunk_records: int = 100, between: Callable[[], None] | None = None
) -> Cursor:
    """Puts a snapshot of the history into the store, as a sync would. `between` is called between all its steps."""
    tell = between or (lambda: None)
    offer, chunks, end = history.snapshot(chunk_records)
    scope = writer.scope() or frozenset()
    if history.tenant not in scope:
        writer.set_scope(scope | {history.tenant})
    staging = writer.stage(offer)
    for chunk in chunks:
        staging.add(chunk)
        tell()
    for _ in staging.finish(end):
        tell()
    staging.sync()
    tell()
    cursor = staging.commit()
    writer.remove_retired()
    return cursor


def content(environment: Environment) -> Content:
    """Every non-empty database as it is, without bookkeeping other than cursors."""
    found: Content = {}
    with environment.env.begin() as txn:
        for name in environment.env.dbs():
            rows = dict(txn.cursor(_db(environment.env, name, txn)))
            if name == keys.META:
                rows = {key: value for key, value in rows.items() if key.startswith(keys.META_CURSOR)}
            if rows:
                found[name] = rows
    return found


def records(environment: Environment, tenant: str, lane: Lane) -> dict[tuple[int, str], bytes]:
    """The records of one lane."""
    found = {}
    prefix = keys.tenant_prefix(tenant)
    for number, db in environment.lane_collections(lane):
        with environment.env.begin() as txn:
            for key, value in keys.iterate(txn.cursor(db), prefix):
                found[number, key[len(prefix) :].decode()] = value
    return found


def _db(env: lmdb.Environment, name: bytes, txn: lmdb.Transaction[bytes]) -> lmdb._Database:
    return env.open_db(name, txn=txn, create=False)
