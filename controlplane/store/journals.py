"""The tables of the sidecars' journals: how far each chain has got, and its anchors.

Every sidecar reports every few seconds, and a transaction costs the same for one report as for hundreds. So reports that
come while one is being written are written together, in the next one.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from sidestep.v1 import admin_pb2, report_pb2
from sqlalchemy import Select, and_, column, delete, select, tuple_, values
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane.errors import NotFoundError
from controlplane.store.chain import ChainState
from controlplane.store.columns import Name
from controlplane.store.database import Database, Kind, Lock
from controlplane.store.dialect import Upsert
from controlplane.store.tables import JOURNAL_ANCHORS, JOURNAL_CHAINS

# Chains of one transaction, and of one query in it.
_GROUP = 2_000
_LOOK_UP = 500
# Chains forgotten in one transaction: each may have thousands of anchors.
_FORGET = 16

_KEY = tuple_(JOURNAL_CHAINS.c.sidecar, JOURNAL_CHAINS.c.chain)
_PUT_CHAIN = Upsert(JOURNAL_CHAINS, [column.name for column in JOURNAL_CHAINS.columns if not column.primary_key])
_PUT_ANCHOR = Upsert(JOURNAL_ANCHORS, ["head", "reported_at"])

Key = tuple[str, str]


class _Report(NamedTuple):
    sidecar: str
    chains: Sequence[report_pb2.JournalChain]
    # Gets the names of the chains that contradict.
    answer: asyncio.Future[list[str]]


class JournalTable:
    """Chains by (sidecar, chain). All methods raise StoreError when the database fails."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: deque[_Report] = deque()
        self._writer: asyncio.Task[None] | None = None

    async def report(self, sidecar: str, chains: Sequence[report_pb2.JournalChain]) -> list[str]:
        """Takes over a sidecar's report (see `ChainState.take`); returns the names of chains that contradict earlier ones.

        Durable when it returns. Of a report whose caller has gone nothing need be kept.
        """
        report = _Report(sidecar, chains, asyncio.get_running_loop().create_future())
        self._waiting.append(report)
        if self._writer is None:
            self._writer = asyncio.create_task(self._write())
        return await report.answer

    async def read(self, sidecar: str, after: Key, limit: int) -> list[admin_pb2.JournalChainStatus]:
        """Chains of one sidecar, or of all (""), ordered by (sidecar, chain), behind `after`. `connected` is not set."""
        query = select(JOURNAL_CHAINS).where(tuple_(*after) < _KEY).order_by(*_KEY.clauses).limit(limit)
        if sidecar:
            query = query.where(JOURNAL_CHAINS.c.sidecar == sidecar)
        async with self._database.reading() as conn:
            return [_status(ChainState(**row)) for row in (await conn.execute(query)).mappings()]

    async def anchors(self, sidecar: str, chain: str, after: int, limit: int) -> list[admin_pb2.JournalAnchor]:
        """Anchors of a chain with more than `after` records, oldest first; the chain's newest is the last of all.

        Raises NotFoundError for a chain nothing was reported of.
        """
        of_chain = (JOURNAL_ANCHORS.c.sidecar == sidecar, JOURNAL_ANCHORS.c.chain == chain)
        query = select(JOURNAL_ANCHORS).where(*of_chain, JOURNAL_ANCHORS.c.records > after)
        async with self._database.reading() as conn:
            newest = (await conn.execute(_find([(sidecar, chain)]))).one_or_none()
            if newest is None:
                raise NotFoundError(f"chain {chain} of sidecar {sidecar}")
            rows = (await conn.execute(query.order_by(JOURNAL_ANCHORS.c.records).limit(limit))).all()
        anchors = [_anchor(row.records, row.head, row.reported_at) for row in rows]
        reached = anchors[-1].records if anchors else after
        if len(anchors) < limit and newest.records > reached:
            anchors.append(_anchor(newest.records, newest.head, newest.head_at))
        return anchors

    async def forget(self, reported_before: float) -> int:
        """Removes chains not reported since, with their anchors; returns how many."""
        forgotten = 0
        old = select(*_KEY.clauses).where(JOURNAL_CHAINS.c.last_report_at < reported_before).limit(_FORGET)

        async def write(conn: AsyncConnection) -> int:
            # A chain that is reported at this moment keeps its row from being deleted, or comes back as a new one.
            found = old.with_for_update(skip_locked=True)
            keys = [tuple(row) for row in await conn.execute(found)]
            for table in (JOURNAL_ANCHORS, JOURNAL_CHAINS) if keys else ():
                await conn.execute(delete(table).where(tuple_(table.c.sidecar, table.c.chain).in_(keys)))
            return len(keys)

        while True:
            removed = await self._database.write(Kind.JOURNALS, write)
            forgotten += removed
            if removed < _FORGET:
                return forgotten

    async def close(self) -> None:
        """Lets what was reported be written."""
        if self._writer is not None:
            await asyncio.wait([self._writer])

    async def _write(self) -> None:
        while group := self._take_group():
            try:
                conflicts = await self._take(group)
            except Exception as error:
                for report in group:
                    if not report.answer.done():
                        report.answer.set_exception(error)
            else:
                for report, names in zip(group, conflicts, strict=True):
                    if not report.answer.done():
                        report.answer.set_result(names)
        self._writer = None

    async def _take(self, group: Collection[_Report]) -> list[list[str]]:
        locks = [Lock(Kind.JOURNALS, report.sidecar) for report in group]
        return await self._database.write(Kind.JOURNALS, lambda conn: _merge(conn, group, time.time()), locks)

    def _take_group(self) -> list[_Report]:
        """The oldest reports that are still waited for."""
        group: list[_Report] = []
        chains = 0
        while self._waiting and chains < _GROUP:
            report = self._waiting.popleft()
            if not report.answer.done():
                group.append(report)
                chains += len(report.chains)
        return group


async def _merge(conn: AsyncConnection, group: Collection[_Report], now: float) -> list[list[str]]:
    """Writes the reports in the order given; returns the contradicting chains of each."""
    keys = sorted({(report.sidecar, chain.chain) for report in group for chain in report.chains})
    states: dict[Key, ChainState] = {}
    for at in range(0, len(keys), _LOOK_UP):
        rows = await conn.execute(_find(keys[at : at + _LOOK_UP]))
        states.update({(row["sidecar"], row["chain"]): ChainState(**row) for row in rows.mappings()})
    anchors: list[dict[str, Any]] = []
    conflicts: list[list[str]] = []
    for sidecar, chains, _ in group:
        conflicts.append([])
        for chain in chains:
            state = states.setdefault((sidecar, chain.chain), ChainState(sidecar, chain.chain, now, now))
            taken = state.take(chain, now)
            if taken.conflict:
                conflicts[-1].append(chain.chain)
            if taken.anchor:
                key = {"sidecar": sidecar, "chain": chain.chain, "records": chain.records}
                anchors.append(key | {"head": chain.head, "reported_at": now})
    if states:
        await conn.execute(_PUT_CHAIN.on(conn), [asdict(state) for state in states.values()])
    if anchors:
        await conn.execute(_PUT_ANCHOR.on(conn), anchors)
    return conflicts


def _find(keys: Sequence[Key]) -> Select[Any]:
    # Joined, not compared with a list: for a list of pairs SQLite reads the whole table.
    wanted = values(column("sidecar", Name), column("chain", Name)).data(keys).cte("wanted")
    same = and_(JOURNAL_CHAINS.c.sidecar == wanted.c.sidecar, JOURNAL_CHAINS.c.chain == wanted.c.chain)
    return select(JOURNAL_CHAINS).join(wanted, same)


def _status(state: ChainState) -> admin_pb2.JournalChainStatus:
    status = admin_pb2.JournalChainStatus(sidecar=state.sidecar, conflicts=state.conflicts)
    for field in report_pb2.JournalChain.DESCRIPTOR.fields:
        if field.name != "report_time":
            setattr(status.chain, field.name, getattr(state, field.name))
    status.chain.report_time.FromNanoseconds(state.reported_ns)
    status.first_report_time.FromNanoseconds(int(state.first_report_at * 1e9))
    status.last_report_time.FromNanoseconds(int(state.last_report_at * 1e9))
    return status


def _anchor(records: int, head: bytes, reported_at: float) -> admin_pb2.JournalAnchor:
    anchor = admin_pb2.JournalAnchor(records=records, head=head)
    anchor.report_time.FromNanoseconds(int(reported_at * 1e9))
    return anchor
