"""The history of the rules: every version of a tenant's policies and settings, by the revision that brought it.

Recorded facts are decided again by it (docs/adr/0011-rules-by-revision.md), so it is written in the commit itself and outlives
the change log.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from sqlalchemy import Connection, and_, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane.errors import NotFoundError
from controlplane.store.epochs import shared_history
from controlplane.store.tables import HEADS, RECORDS, RULE_HISTORY, RULE_HISTORY_STARTS, SCHEMA
from engine.names import Collection, Lane

RULE_COLLECTIONS = (Collection.POLICIES, Collection.SETTINGS)

_HISTORY = RULE_HISTORY.c


class Rules(NamedTuple):
    """The rules from one revision of the urgent lane on and before another (0: still): (collection, id, value), sorted."""

    from_revision: int
    until_revision: int
    records: list[tuple[int, str, bytes]]


async def record_rules(
    conn: AsyncConnection, tenant: str, revision: int, changes: Mapping[tuple[int, str], bytes | None]
) -> None:
    """Adds what of a commit's changes to the urgent lane are rules; `revision` is the one that the commit makes."""
    rows = [
        {"tenant": tenant, "collection": collection, "id": record_id, "revision": revision, "value": value}
        for (collection, record_id), value in changes.items()
        if collection in RULE_COLLECTIONS
    ]
    if rows:
        await conn.execute(insert(RULE_HISTORY), rows)


def begin_history(conn: Connection) -> None:
    """Begins the history of a database that had none: with the rules of every tenant as they are now."""
    heads = HEADS.c
    current = select(RECORDS.c.tenant, RECORDS.c.collection, RECORDS.c.id, heads.revision, RECORDS.c.value)
    current = current.join(HEADS, and_(heads.tenant == RECORDS.c.tenant, heads.lane == int(Lane.URGENT)))
    current = current.where(RECORDS.c.collection.in_(RULE_COLLECTIONS))
    conn.execute(insert(RULE_HISTORY).from_select([column.name for column in RULE_HISTORY.columns], current))
    starts = select(heads.tenant, heads.revision).where(heads.lane == int(Lane.URGENT))
    conn.execute(insert(RULE_HISTORY_STARTS).from_select(["tenant", "revision"], starts))


async def read_rules(conn: AsyncConnection, tenant: str, epoch: int, revision: int) -> Rules:
    """The rules at (epoch, revision) of the tenant's urgent lane.

    Raises NotFoundError, saying why, for an unknown tenant and for a revision that is not there yet, lies before the history
    began, or belongs to another epoch.
    """
    head = select(SCHEMA.c.epoch, HEADS.c.revision).select_from(HEADS.join(SCHEMA, SCHEMA.c.id == 1))
    of_lane = head.where(HEADS.c.tenant == tenant, HEADS.c.lane == int(Lane.URGENT))
    row = (await conn.execute(of_lane)).one_or_none()
    if row is None:
        raise NotFoundError(f"tenants/{tenant}")
    if epoch != row.epoch:
        shared = await shared_history(conn, tenant, epoch, row.epoch)
        if shared is None:
            raise _unknown(tenant, f"of epoch {epoch} are not recorded here, this is epoch {row.epoch}")
        if revision > shared:
            raise _unknown(
                tenant,
                f"of epoch {epoch} were lost after revision {shared}, when epoch {row.epoch} or one before it began",
            )
    if revision > row.revision:
        raise _unknown(tenant, f"of revision {revision} are not there yet, the head is revision {row.revision}")
    starts = select(RULE_HISTORY_STARTS.c.revision).where(RULE_HISTORY_STARTS.c.tenant == tenant)
    start = await conn.scalar(starts) or 0
    if revision < start:
        raise _unknown(tenant, f"were not recorded before revision {start}")
    of_tenant = _HISTORY.tenant == tenant
    until_now = and_(of_tenant, _HISTORY.revision <= revision)
    since = await conn.scalar(select(func.max(_HISTORY.revision)).where(until_now))
    until = await conn.scalar(select(func.min(_HISTORY.revision)).where(of_tenant, _HISTORY.revision > revision))
    # The last version of each record up to then. Its key alone is read to find it.
    last = select(_HISTORY.collection, _HISTORY.id, func.max(_HISTORY.revision).label("revision")).where(until_now)
    found = last.group_by(_HISTORY.collection, _HISTORY.id).subquery()
    versions = select(_HISTORY.collection, _HISTORY.id, _HISTORY.value).join(
        found,
        and_(
            of_tenant,
            _HISTORY.collection == found.c.collection,
            _HISTORY.id == found.c.id,
            _HISTORY.revision == found.c.revision,
        ),
    )
    rows = await conn.execute(versions.where(_HISTORY.value.is_not(None)).order_by(_HISTORY.collection, _HISTORY.id))
    return Rules(since or start, until or 0, [(collection, record_id, value) for collection, record_id, value in rows])


def _unknown(tenant: str, why: str) -> NotFoundError:
    return NotFoundError(f"tenants/{tenant}", f"the rules {why}")
