"""The tables of the audit log: one chain of entries per tenant, added to in the transaction of the change they tell of."""

from __future__ import annotations

from typing import NamedTuple

from sidestep.v1 import audit_pb2, resources_pb2
from sqlalchemy import Column, LargeBinary, Table, bindparam, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane.audit import MAX_DETAIL, MAX_REASON, MAX_TICKET, Note, genesis, link
from controlplane.store.columns import Int64, Name
from controlplane.store.database import Database, Kind, Lock, take
from controlplane.store.dialect import Upsert
from controlplane.store.tables import HEADS, METADATA

AUDIT = Table(
    "audit",
    METADATA,
    Column("tenant", Name, primary_key=True),
    Column("number", Int64, primary_key=True, autoincrement=False),
    Column("entry", LargeBinary, nullable=False),
    Column("previous_hash", LargeBinary, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)

# Locked by whoever adds an entry. It also tells when the newest entries were taken away.
AUDIT_HEADS = Table(
    "audit_heads",
    METADATA,
    Column("tenant", Name, primary_key=True),
    Column("number", Int64, nullable=False),
    Column("hash", LargeBinary, nullable=False),
)

MAX_PAGE = 1_000
_LOCK_HEAD = (
    select(AUDIT_HEADS.c.number, AUDIT_HEADS.c.hash)
    .where(AUDIT_HEADS.c.tenant == bindparam("tenant"))
    .with_for_update()
)
_PUT_HEAD = Upsert(AUDIT_HEADS, ["number", "hash"])


class Result(NamedTuple):
    """What became of what a note tells, as the entry says it."""

    outcome: audit_pb2.AuditOutcome
    detail: str = ""
    before_digest: bytes = b""
    after_digest: bytes = b""
    # Epoch and number.
    revision: tuple[int, int] | None = None
    repeats: int = 0


async def append_entry(conn: AsyncConnection, tenant: str, note: Note, result: Result, now: float) -> int:
    """Adds an entry to the tenant's chain in the transaction it is given, which takes `audit_lock`. Returns its number."""
    await take(conn, (audit_lock(tenant),))
    head = (await conn.execute(_LOCK_HEAD, {"tenant": tenant})).one_or_none()
    number, previous = (head.number + 1, head.hash) if head is not None else (1, genesis(tenant))
    entry = audit_pb2.AuditEntry(
        tenant=tenant,
        number=number,
        actor=note.actor.name,
        evidence=resources_pb2.EVIDENCE_VERIFIED if note.actor.verified else resources_pb2.EVIDENCE_ASSERTED,
        action=note.action,
        name=note.name,
        outcome=result.outcome,
        detail=_cut(result.detail or note.detail, MAX_DETAIL),
        before_digest=result.before_digest,
        after_digest=result.after_digest,
        reason=_cut(note.reason, MAX_REASON),
        ticket=_cut(note.ticket, MAX_TICKET),
        repeats=result.repeats,
    )
    entry.time.FromNanoseconds(int(now * 1e9))
    if result.revision is not None:
        entry.revision.epoch, entry.revision.revision = result.revision
    encoded = entry.SerializeToString(deterministic=True)
    row = {"tenant": tenant, "number": number, "hash": link(previous, encoded)}
    await conn.execute(insert(AUDIT), row | {"entry": encoded, "previous_hash": previous})
    await conn.execute(_PUT_HEAD.on(conn), row)
    return number


def audit_lock(tenant: str) -> Lock:
    """The lock of a tenant's chain: where it ends is known only to who holds it. The last to be taken."""
    return Lock(Kind.AUDIT, tenant)


class AuditTable:
    """Entries by (tenant, number). All methods raise StoreError when the database fails."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, tenant: str, note: Note, result: Result, now: float) -> int:
        """Adds an entry that comes with no change. Returns its number; 0: there is no such tenant, and nothing is kept of it.

        Durable when it returns.
        """
        known = select(HEADS.c.tenant).where(HEADS.c.tenant == tenant).limit(1)
        async with self._database.reading() as conn:
            if await conn.scalar(known) is None:
                # Anybody could fill the database with the names of tenants there might be.
                return 0
        return await self._database.write(Kind.AUDIT, lambda conn: append_entry(conn, tenant, note, result, now))

    async def read(
        self, tenant: str, after: int, limit: int, *, newest_first: bool = False
    ) -> list[tuple[int, audit_pb2.AuditRecord]]:
        """At most `limit` (1-1000) entries with numbers above `after`; with `newest_first` below it (0: from the newest).

        Each with the number it is kept under.
        """
        query = select(AUDIT.c.number, AUDIT.c.entry, AUDIT.c.previous_hash, AUDIT.c.hash).where(
            AUDIT.c.tenant == tenant
        )
        if not newest_first:
            query = query.where(AUDIT.c.number > after).order_by(AUDIT.c.number)
        else:
            query = (query.where(AUDIT.c.number < after) if after else query).order_by(AUDIT.c.number.desc())
        async with self._database.reading() as conn:
            rows = await conn.execute(query.limit(max(1, min(limit, MAX_PAGE))))
            return [
                (number, audit_pb2.AuditRecord(entry=entry, previous_hash=previous, hash=own))
                for number, entry, previous, own in rows
            ]

    async def head(self, tenant: str) -> audit_pb2.AuditHead:
        """Where the tenant's chain stands; number 0 if it has none."""
        return (await self.extent(tenant))[0]

    async def extent(self, tenant: str) -> tuple[audit_pb2.AuditHead, int]:
        """Where the tenant's chain stands, and the number of its newest entry: the same, unless somebody changed the tables."""
        query = select(AUDIT_HEADS.c.number, AUDIT_HEADS.c.hash).where(AUDIT_HEADS.c.tenant == tenant)
        newest = select(func.max(AUDIT.c.number)).where(AUDIT.c.tenant == tenant)
        # One transaction: of one moment.
        async with self._database.reading() as conn:
            row = (await conn.execute(query)).one_or_none()
            head = audit_pb2.AuditHead() if row is None else audit_pb2.AuditHead(number=row[0], hash=row[1])
            return head, await conn.scalar(newest) or 0


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."
