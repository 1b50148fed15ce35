"""The table of findings over the fleet. A finding is kept as the message that tells of it."""

from __future__ import annotations

from sidestep.v1 import usage_pb2
from sqlalchemy import Column, Integer, LargeBinary, Table, select
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane.errors import ChangedError
from controlplane.store.columns import Name, Real
from controlplane.store.database import Database, Kind, Lock
from controlplane.store.dialect import Upsert
from controlplane.store.tables import METADATA

FINDINGS = Table(
    "findings",
    METADATA,
    Column("tenant", Name, primary_key=True),
    Column("id", Name, primary_key=True),
    Column("state", Integer, nullable=False),
    Column("last_at", Real, nullable=False),
    Column("value", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)

MAX_LISTED = 1_000
_PUT = Upsert(FINDINGS, ["state", "last_at", "value"])


class FindingTable:
    """Findings by (tenant, id). All methods raise StoreError when the database fails."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, tenant: str, finding_id: str) -> usage_pb2.FleetFinding | None:
        """One finding."""
        query = select(FINDINGS.c.value).where(FINDINGS.c.tenant == tenant, FINDINGS.c.id == finding_id)
        async with self._database.reading() as conn:
            value = await conn.scalar(query)
        return None if value is None else usage_pb2.FleetFinding.FromString(value)

    async def put(
        self,
        tenant: str,
        finding_id: str,
        finding: usage_pb2.FleetFinding,
        known: usage_pb2.FleetFinding | None = None,
    ) -> None:
        """Creates or replaces one that is still as it was `known` (None: not at all). Durable when it returns.

        Raises ChangedError if it changed meanwhile.
        """
        row = {
            "tenant": tenant,
            "id": finding_id,
            "state": int(finding.state),
            "last_at": finding.last_time.ToNanoseconds() / 1e9,
            "value": finding.SerializeToString(deterministic=True),
        }
        query = select(FINDINGS.c.value).where(FINDINGS.c.tenant == tenant, FINDINGS.c.id == finding_id)

        async def write(conn: AsyncConnection) -> None:
            value = await conn.scalar(query)
            if (None if value is None else usage_pb2.FleetFinding.FromString(value)) != known:
                raise ChangedError(f"tenants/{tenant}/findings/{finding_id}")
            await conn.execute(_PUT.on(conn), row)

        await self._database.write(Kind.FINDINGS, write, (Lock(Kind.FINDINGS, tenant),))

    async def list(self, tenant: str, *, settled: bool) -> list[usage_pb2.FleetFinding]:
        """The newest first; with `settled` also those that are."""
        query = select(FINDINGS.c.value).where(FINDINGS.c.tenant == tenant)
        if not settled:
            query = query.where(FINDINGS.c.state == int(usage_pb2.FINDING_STATE_OPEN))
        async with self._database.reading() as conn:
            rows = await conn.execute(query.order_by(FINDINGS.c.last_at.desc(), FINDINGS.c.id).limit(MAX_LISTED))
            return [usage_pb2.FleetFinding.FromString(value) for value in rows.scalars()]
