"""The table of findings over the fleet. A finding is kept as the message that tells of it."""

from __future__ import annotations

import asyncio

from sidestep.v1 import usage_pb2
from sqlalchemy import Column, Double, Integer, LargeBinary, Table, Text, select
from sqlalchemy.ext.asyncio import AsyncEngine

from controlplane.store.dialect import for_writing, translated_errors, upsert
from controlplane.store.tables import METADATA

FINDINGS = Table(
    "findings",
    METADATA,
    Column("tenant", Text, primary_key=True),
    Column("id", Text, primary_key=True),
    Column("state", Integer, nullable=False),
    Column("last_at", Double, nullable=False),
    Column("value", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)

MAX_LISTED = 1_000
_PUT = upsert(FINDINGS, ["state", "last_at", "value"])


class FindingTable:
    """Findings by (tenant, id). All methods raise StoreError when the database fails."""

    def __init__(self, engine: AsyncEngine, writing: asyncio.Lock) -> None:
        self._engine = engine
        self._writing = writing

    async def get(self, tenant: str, finding_id: str) -> usage_pb2.FleetFinding | None:
        """One finding."""
        query = select(FINDINGS.c.value).where(FINDINGS.c.tenant == tenant, FINDINGS.c.id == finding_id)
        with translated_errors():
            async with self._engine.connect() as conn:
                value = await conn.scalar(query)
        return None if value is None else usage_pb2.FleetFinding.FromString(value)

    async def put(self, tenant: str, finding_id: str, finding: usage_pb2.FleetFinding) -> None:
        """Creates or replaces one. Durable when it returns."""
        row = {
            "tenant": tenant,
            "id": finding_id,
            "state": int(finding.state),
            "last_at": finding.last_time.ToNanoseconds() / 1e9,
            "value": finding.SerializeToString(deterministic=True),
        }
        with translated_errors():
            async with self._writing, for_writing(self._engine).begin() as conn:
                await conn.execute(_PUT, row)

    async def list(self, tenant: str, *, settled: bool) -> list[usage_pb2.FleetFinding]:
        """The newest first; with `settled` also those that are."""
        query = select(FINDINGS.c.value).where(FINDINGS.c.tenant == tenant)
        if not settled:
            query = query.where(FINDINGS.c.state == int(usage_pb2.FINDING_STATE_OPEN))
        with translated_errors():
            async with self._engine.connect() as conn:
                rows = await conn.execute(query.order_by(FINDINGS.c.last_at.desc(), FINDINGS.c.id).limit(MAX_LISTED))
                return [usage_pb2.FleetFinding.FromString(value) for value in rows.scalars()]
