"""One commit: records, change rows, heads, history of the rules and audit entry, written in the transaction it is given."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from sidestep.v1 import audit_pb2, resources_pb2, sync_pb2
from sqlalchemy import Row, bindparam, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane.audit import Note, record_digest
from controlplane.errors import ConflictError
from controlplane.store.audit import Result, append_entry
from controlplane.store.database import Kind, Lock
from controlplane.store.dialect import Upsert
from controlplane.store.model import Committed, Head
from controlplane.store.rules import record_rules
from controlplane.store.tables import CHANGES, HEADS, RECORDS, SCHEMA
from engine.digest import EMPTY, KEY_BYTES, Digest
from engine.names import Lane, lane_of

# (collection, id) -> value, None for no such record.
Values = Mapping[tuple[int, str], bytes | None]

_KINDS = {Lane.URGENT: Kind.URGENT, Lane.BULK: Kind.BULK}

_FIND_RECORDS = (
    select(RECORDS.c.id, RECORDS.c.value)
    .where(RECORDS.c.tenant == bindparam("tenant"), RECORDS.c.collection == bindparam("collection"))
    .where(RECORDS.c.id.in_(bindparam("ids", expanding=True)))
)
_UPSERT_RECORD = Upsert(RECORDS, ["value"])
_FIND_OTHERS = (
    select(RECORDS.c.id)
    .where(RECORDS.c.tenant == bindparam("tenant"), RECORDS.c.collection == bindparam("collection"))
    .order_by(RECORDS.c.id)
)
_DELETE_RECORD = delete(RECORDS).where(
    RECORDS.c.tenant == bindparam("of_tenant"),
    RECORDS.c.collection == bindparam("of_collection"),
    RECORDS.c.id == bindparam("of_id"),
)
_LOCK_HEADS = (
    select(HEADS.c.lane, HEADS.c.revision, HEADS.c.digest, HEADS.c.digest_key)
    .where(HEADS.c.tenant == bindparam("tenant"), HEADS.c.lane.in_(bindparam("lanes", expanding=True)))
    .order_by(HEADS.c.lane)
    .with_for_update()
)
_READ_HEADS = (
    select(HEADS.c.lane, HEADS.c.revision, HEADS.c.digest, HEADS.c.digest_key)
    .where(HEADS.c.tenant == bindparam("tenant"))
    .order_by(HEADS.c.lane)
)
_CREATE_HEAD = Upsert(HEADS, [])
_ADVANCE_HEAD = (
    update(HEADS)
    .where(HEADS.c.tenant == bindparam("of_tenant"), HEADS.c.lane == bindparam("of_lane"))
    .values(revision=bindparam("to_revision"), digest=bindparam("to_digest"))
)


def commit_kinds(wanted: Values) -> list[Kind]:
    """In which turns a commit is written."""
    return sorted({_KINDS[lane] for lane in _lanes(wanted)}) or [Kind.URGENT]


def commit_locks(tenant: str, wanted: Values, expect: Values, whole: Collection[int]) -> list[Lock]:
    """What a commit locks before it reads: the lanes it writes, and, shared, those it only expects something of.

    So what it found, and what it found missing, stays so until it has committed. An urgent commit never waits for a bulk one that
    writes a thousand records.
    """
    written = _lanes(wanted)
    read = {lane for lane in (*_lanes(expect), *map(lane_of, whole)) if lane is not None} - written
    locks = [Lock(Kind.EPOCH, shared=True)]
    locks += [Lock(_KINDS[lane], tenant) for lane in written]
    return locks + [Lock(_KINDS[lane], tenant, shared=True) for lane in read]


async def write_commit(
    conn: AsyncConnection,
    tenant: str,
    wanted: Values,
    expect: Values,
    now: float,
    audit: Note | None = None,
    whole: Collection[int] = (),
) -> Committed:
    """Writes what differs, with one change row and one revision per lane touched, and the history of the rules. The heads are
    locked after all records. If anything differs, `audit` becomes an entry of the audit log.

    `whole`: collections of which `expect` names every record but those that are written. Raises ConflictError if a record does
    not hold what `expect` says. The caller holds `commit_locks`, and commits, or rolls back on any error.
    """
    before = await _read(conn, tenant, {*wanted, *expect})
    for key, value in expect.items():
        if before.get(key) != value:
            raise ConflictError(tenant, *key)
    for collection in whole:
        for record_id in (await conn.execute(_FIND_OTHERS, {"tenant": tenant, "collection": collection})).scalars():
            if (collection, record_id) not in expect and (collection, record_id) not in wanted:
                raise ConflictError(tenant, collection, record_id)
    changes = {key: value for key, value in wanted.items() if before.get(key) != value}
    await _write_records(conn, tenant, changes)
    heads = await _lock_heads(conn, tenant, _lanes(changes))
    for lane, head in heads.items():
        of_lane = {key: value for key, value in changes.items() if lane_of(key[0]) is lane}
        if of_lane:
            heads[lane] = await _advance(conn, head, of_lane, before, now)
            if lane is Lane.URGENT:
                await record_rules(conn, tenant, heads[lane].revision, of_lane)
    if audit is not None and changes:
        touched = max(
            (heads[lane] for lane in {lane_of(key[0]) for key in changes} if lane), key=lambda head: head.lane
        )
        result = Result(
            audit_pb2.AUDIT_OUTCOME_DONE,
            before_digest=record_digest({key: before.get(key) for key in changes}),
            after_digest=record_digest(changes),
            revision=(touched.epoch, touched.revision),
        )
        await append_entry(conn, tenant, audit, result, now)
    return Committed(len(changes), heads)


async def _read(conn: AsyncConnection, tenant: str, keys: Collection[tuple[int, str]]) -> dict[tuple[int, str], bytes]:
    found: dict[tuple[int, str], bytes] = {}
    for collection in sorted({collection for collection, _ in keys}):
        ids = [record_id for of_collection, record_id in keys if of_collection == collection]
        rows = await conn.execute(_FIND_RECORDS, {"tenant": tenant, "collection": collection, "ids": ids})
        found.update(((collection, record_id), value) for record_id, value in rows)
    return found


async def _write_records(conn: AsyncConnection, tenant: str, changes: Values) -> None:
    puts: list[dict[str, Any]] = []
    deletes: list[dict[str, Any]] = []
    for (collection, record_id), value in sorted(changes.items(), key=lambda change: change[0]):
        if value is None:
            deletes.append({"of_tenant": tenant, "of_collection": collection, "of_id": record_id})
        else:
            puts.append({"tenant": tenant, "collection": collection, "id": record_id, "value": value})
    if puts:
        await conn.execute(_UPSERT_RECORD.on(conn), puts)
    if deletes:
        await conn.execute(_DELETE_RECORD, deletes)


def _lanes(keys: Iterable[tuple[int, str]]) -> set[Lane]:
    return {lane for lane in (lane_of(collection) for collection, _ in keys) if lane is not None}


async def _lock_heads(conn: AsyncConnection, tenant: str, lanes: Collection[Lane]) -> dict[Lane, Head]:
    """Both heads of the tenant, which comes into being here if it is new; those of `lanes` are locked.

    The others may be those of a moment ago.
    """
    epoch = await conn.scalar(select(SCHEMA.c.epoch))
    assert epoch is not None
    if lanes:
        await conn.execute(_LOCK_HEADS, {"tenant": tenant, "lanes": sorted(map(int, lanes))})
    rows: list[Row[Any]] = list(await conn.execute(_READ_HEADS, {"tenant": tenant}))
    if not rows:
        # The commit of its other lane may make it at this moment: then that waits here, and the heads that are there stay.
        heads = [Head(tenant, lane, epoch, 0, EMPTY, secrets.token_bytes(KEY_BYTES)) for lane in Lane]
        columns = [column.name for column in HEADS.columns]
        for head in heads:
            await conn.execute(_CREATE_HEAD.on(conn), {name: getattr(head, name) for name in columns})
        await conn.execute(_LOCK_HEADS, {"tenant": tenant, "lanes": sorted(map(int, lanes or Lane))})
        rows = list(await conn.execute(_READ_HEADS, {"tenant": tenant}))
    return {
        Lane(row.lane): Head(tenant, Lane(row.lane), epoch, row.revision, row.digest, row.digest_key) for row in rows
    }


async def _advance(conn: AsyncConnection, head: Head, changes: Values, before: Values, now: float) -> Head:
    """The next revision of a lane: its change row and its head."""
    digest = Digest(head.digest_key, head.digest)
    delta = sync_pb2.Delta(
        tenant=head.tenant,
        lane=resources_pb2.Lane.Name(head.lane),
        epoch=head.epoch,
        revision=head.revision + 1,
        previous_digest=head.digest,
    )
    delta.commit_time.FromNanoseconds(int(now * 1e9))
    for (collection, record_id), value in changes.items():
        change = delta.changes.add(collection=resources_pb2.Collection.ValueType(collection), id=record_id)
        old = before.get((collection, record_id))
        if old is not None:
            digest.remove(collection, record_id, old)
        if value is None:
            change.deleted = True
        else:
            change.value = value
            digest.add(collection, record_id, value)
    delta.digest = digest.value()
    after = head._replace(revision=head.revision + 1, digest=delta.digest)
    encoded = delta.SerializeToString()
    await conn.execute(
        insert(CHANGES),
        {
            "tenant": head.tenant,
            "lane": int(head.lane),
            "revision": after.revision,
            "records": len(changes),
            "bytes": len(encoded),
            "delta": encoded,
        },
    )
    await conn.execute(
        _ADVANCE_HEAD,
        {
            "of_tenant": head.tenant,
            "of_lane": int(head.lane),
            "to_revision": after.revision,
            "to_digest": after.digest,
        },
    )
    return after
