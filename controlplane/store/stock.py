"""How much there is of what operators watch: few, cheap queries over all tenants, for metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from sidestep.v1 import resources_pb2 as pb
from sidestep.v1 import usage_pb2
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine

from controlplane.store.audit import AUDIT_HEADS
from controlplane.store.dialect import translated_errors
from controlplane.store.findings import FINDINGS
from controlplane.store.proposals import PROPOSALS
from controlplane.store.tables import RECORDS
from engine.names import Collection

_MAX_CLASSES: Final = 10_000


class Stock(NamedTuple):
    """What the database holds at one moment. `classes`: how many classes of grants are in each state."""

    open_findings: int
    pending_proposals: int
    audit_entries: int
    classes: Mapping[int, int]


async def read_stock(engine: AsyncEngine, now: float) -> Stock:
    """Raises StoreError."""
    findings = select(func.count()).where(FINDINGS.c.state == int(usage_pb2.FINDING_STATE_OPEN))
    proposals = select(func.count()).where(PROPOSALS.c.pending, PROPOSALS.c.expires_at > now)
    entries = select(func.coalesce(func.sum(AUDIT_HEADS.c.number), 0))
    states = select(RECORDS.c.value).where(RECORDS.c.collection == int(Collection.GRANT_CLASSES)).limit(_MAX_CLASSES)
    with translated_errors():
        async with engine.connect() as conn:
            classes: dict[int, int] = {}
            for value in (await conn.execute(states)).scalars():
                state = int(pb.GrantClassState.FromString(bytes(value)).state)
                classes[state] = classes.get(state, 0) + 1
            return Stock(
                int(await conn.scalar(findings) or 0),
                int(await conn.scalar(proposals) or 0),
                int(await conn.scalar(entries) or 0),
                classes,
            )
