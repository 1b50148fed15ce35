"""The table of proposals: changes that wait for a second person. A proposal and its audit entry commit together."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from sidestep.v1 import audit_pb2
from sqlalchemy import Boolean, Column, Index, LargeBinary, Table, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane.audit import Note
from controlplane.errors import NotFoundError, RefusedError
from controlplane.store.audit import Result, append_entry, audit_lock
from controlplane.store.columns import Int64, Name, Real
from controlplane.store.database import Database, Kind
from controlplane.store.model import Committed
from controlplane.store.tables import METADATA

# `pending`: not decided yet, be it expired. `proposal` is an encoded sidestep.v1.Proposal, secrets of what it puts included.
PROPOSALS = Table(
    "proposals",
    METADATA,
    Column("tenant", Name, primary_key=True),
    Column("id", Name, primary_key=True),
    # Rises; orders them.
    Column("number", Int64, nullable=False),
    Column("pending", Boolean, nullable=False),
    Column("expires_at", Real, nullable=False),
    Column("proposal", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)
Index("proposals_order", PROPOSALS.c.tenant, PROPOSALS.c.number)

MAX_PENDING: Final = 1_000
"""Proposals of one tenant that wait."""
KEPT_S: Final = 90 * 86_400.0
"""How long a decided or expired one can be looked at. The audit log tells of it for good."""


class ProposalTable:
    """Proposals by (tenant, id). All methods raise StoreError when the database fails."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, tenant: str, proposal_id: str, proposal: audit_pb2.Proposal, note: Note) -> None:
        """Keeps a proposal and enters it in the audit log; forgets old ones. Durable when it returns.

        Raises RefusedError if too many wait.
        """
        now = time.time()
        of_tenant = PROPOSALS.c.tenant == tenant
        waiting = select(func.count()).where(of_tenant, PROPOSALS.c.pending, PROPOSALS.c.expires_at > now)

        async def write(conn: AsyncConnection) -> None:
            if (await conn.scalar(waiting) or 0) >= MAX_PENDING:
                raise RefusedError(f"{MAX_PENDING} proposals are waiting already")
            # What expires later than it is decided is kept that little longer.
            await conn.execute(delete(PROPOSALS).where(of_tenant, PROPOSALS.c.expires_at < now - KEPT_S))
            last = await conn.scalar(select(func.max(PROPOSALS.c.number)).where(of_tenant)) or 0
            row = {
                "tenant": tenant,
                "id": proposal_id,
                "number": last + 1,
                "pending": True,
                "expires_at": proposal.expire_time.ToNanoseconds() / 1e9,
                "proposal": proposal.SerializeToString(),
            }
            await conn.execute(insert(PROPOSALS), row)
            await append_entry(conn, tenant, note, Result(audit_pb2.AUDIT_OUTCOME_DONE), now)

        # The lock of the entry it needs anyway also keeps others from counting and numbering at the same time.
        await self._database.write(Kind.AUDIT, write, (audit_lock(tenant),))

    async def get(self, tenant: str, proposal_id: str) -> audit_pb2.Proposal:
        """A proposal. Raises NotFoundError."""
        query = select(PROPOSALS.c.proposal).where(PROPOSALS.c.tenant == tenant, PROPOSALS.c.id == proposal_id)
        async with self._database.reading() as conn:
            value = await conn.scalar(query)
        if value is None:
            raise NotFoundError(f"tenants/{tenant}/proposals/{proposal_id}")
        return audit_pb2.Proposal.FromString(value)

    async def list(
        self, tenant: str, before: int, limit: int, now: float, *, pending_only: bool
    ) -> list[tuple[int, audit_pb2.Proposal]]:
        """At most `limit` proposals with their numbers, the newest first, below number `before` (0: from the newest)."""
        query = select(PROPOSALS.c.number, PROPOSALS.c.proposal).where(PROPOSALS.c.tenant == tenant)
        if before:
            query = query.where(PROPOSALS.c.number < before)
        if pending_only:
            query = query.where(PROPOSALS.c.pending, PROPOSALS.c.expires_at > now)
        async with self._database.reading() as conn:
            rows = await conn.execute(query.order_by(PROPOSALS.c.number.desc()).limit(limit))
            return [(number, audit_pb2.Proposal.FromString(value)) for number, value in rows]

    async def close(self, tenant: str, proposal_id: str, proposal: audit_pb2.Proposal, note: Note) -> None:
        """Ends a proposal without a change, and enters it in the audit log. Raises RefusedError if it is ended already."""

        async def write(conn: AsyncConnection) -> None:
            await _end(conn, tenant, proposal_id, proposal)
            await append_entry(conn, tenant, note, Result(audit_pb2.AUDIT_OUTCOME_DONE), time.time())

        await self._database.write(Kind.AUDIT, write, (audit_lock(tenant),))

    async def expire(self, now: float) -> None:
        """Ends, in all tenants, what nobody decided about in time, so that no secret stays that was proposed.

        No entry of the audit log tells of it: it has been over since its time came.
        """
        due = select(PROPOSALS.c.tenant, PROPOSALS.c.id, PROPOSALS.c.proposal).where(
            PROPOSALS.c.pending, PROPOSALS.c.expires_at <= now
        )

        async def write(conn: AsyncConnection) -> None:
            # Every replica does this; what another has at hand is left to it.
            for tenant, proposal_id, value in (await conn.execute(due.with_for_update(skip_locked=True))).all():
                proposal = audit_pb2.Proposal.FromString(value)
                proposal.state = audit_pb2.PROPOSAL_STATE_EXPIRED
                forget_secret(proposal)
                await _end(conn, tenant, proposal_id, proposal)

        await self._database.write(Kind.AUDIT, write)

    def closing(
        self, tenant: str, proposal_id: str, finished: Callable[[Committed], audit_pb2.Proposal]
    ) -> Callable[[AsyncConnection, Committed], Awaitable[None]]:
        """What belongs into the commit of an approved change: it ends the proposal, or undoes all if that is ended already."""

        async def also(conn: AsyncConnection, committed: Committed) -> None:
            await _end(conn, tenant, proposal_id, finished(committed))

        return also


def forget_secret(proposal: audit_pb2.Proposal) -> None:
    """Takes the secret out of what a proposal puts: once it is ended it is not needed there."""
    if proposal.put.HasField("key"):
        proposal.put.key.ClearField("secret")


async def _end(conn: AsyncConnection, tenant: str, proposal_id: str, proposal: audit_pb2.Proposal) -> None:
    values: dict[str, Any] = {"pending": False, "proposal": proposal.SerializeToString()}
    ended = await conn.execute(
        update(PROPOSALS)
        .where(PROPOSALS.c.tenant == tenant, PROPOSALS.c.id == proposal_id, PROPOSALS.c.pending)
        .values(**values)
    )
    if ended.rowcount != 1:
        raise RefusedError(f"tenants/{tenant}/proposals/{proposal_id}: was decided meanwhile")
