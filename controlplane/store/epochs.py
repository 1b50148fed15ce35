"""Epochs: which history of the database this is. A restored copy begins another, greater than every one before.

The first is 1. A raised one is the Unix time at which it was raised, or one more than the last if that is greater: so a copy made
before an epoch was raised, and restored after it, gets a greater one yet. (epoch, revision) then only ever rises.
"""

from __future__ import annotations

import time
from typing import NamedTuple

from sqlalchemy import Column, Table, func, insert, literal, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane.errors import StoreError
from controlplane.store.columns import Int64, Name, Real
from controlplane.store.database import Database, Kind, Lock
from controlplane.store.tables import HEADS, METADATA, SCHEMA
from engine.names import Lane

FIRST_EPOCH = 1
# 2020: a clock before it has never been set.
_EARLIEST = 1_577_836_800

# Every epoch but the first.
EPOCHS = Table(
    "epochs",
    METADATA,
    Column("epoch", Int64, primary_key=True, autoincrement=False),
    Column("raised_at", Real, nullable=False),
)

# The heads of the urgent lanes when an epoch was raised: up to there its history is that of the one before.
EPOCH_STARTS = Table(
    "epoch_starts",
    METADATA,
    Column("tenant", Name, primary_key=True),
    Column("epoch", Int64, primary_key=True, autoincrement=False),
    Column("revision", Int64, nullable=False),
)


class Era(NamedTuple):
    """The current epoch, and when it was raised (Unix seconds; 0: never)."""

    epoch: int
    raised_at: float

    @property
    def first_period(self) -> int:
        """The least number of a budget's period that began in this epoch: greater than any of one before."""
        return self.epoch if self.raised_at else 1


async def read_era(conn: AsyncConnection) -> Era:
    """The current one."""
    raised = SCHEMA.outerjoin(EPOCHS, SCHEMA.c.epoch == EPOCHS.c.epoch)
    row = (await conn.execute(select(SCHEMA.c.epoch, EPOCHS.c.raised_at).select_from(raised))).one()
    return Era(row.epoch, row.raised_at or 0.0)


async def raise_epoch(database: Database, *, at_least: int = 0) -> tuple[int, int]:
    """Begins another epoch; returns the former and the new one. No commit is of both.

    `at_least`: the new one is this or greater. Raises StoreError if the clock cannot be right.
    """
    now = time.time()
    if now < _EARLIEST:
        raise StoreError("the clock of this machine is not set; an epoch is ordered by it")

    async def write(conn: AsyncConnection) -> tuple[int, int]:
        before = (await read_era(conn)).epoch
        after = max(before + 1, int(now), at_least)
        await conn.execute(insert(EPOCHS), {"epoch": after, "raised_at": now})
        starts = select(HEADS.c.tenant, literal(after, Int64), HEADS.c.revision)
        starts = starts.where(HEADS.c.lane == int(Lane.URGENT))
        await conn.execute(insert(EPOCH_STARTS).from_select(["tenant", "epoch", "revision"], starts))
        await conn.execute(update(SCHEMA).values(epoch=after))
        return before, after

    return await database.write(Kind.EPOCH, write, (Lock(Kind.EPOCH),))


async def shared_history(conn: AsyncConnection, tenant: str, epoch: int, current: int) -> int | None:
    """The last revision of the tenant's urgent lane that an earlier epoch has in common with the current one.

    None: there was no such epoch. 0: nothing, also for a tenant that came into being later.
    """
    if not FIRST_EPOCH <= epoch < current:
        return None
    if epoch != FIRST_EPOCH and await conn.scalar(select(EPOCHS.c.epoch).where(EPOCHS.c.epoch == epoch)) is None:
        return None
    later = (EPOCH_STARTS.c.tenant == tenant, EPOCH_STARTS.c.epoch > epoch)
    return await conn.scalar(select(func.min(EPOCH_STARTS.c.revision)).where(*later)) or 0
