"""The store: SQLAlchemy Core over SQLite. One process or several may use a database at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager
from hashlib import blake2b
from typing import Any, TypeVar

from sidestep.v1 import admin_pb2
from sqlalchemy import ColumnElement, Row, and_, delete, func, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from controlplane.audit import Note
from controlplane.errors import CompactedError, NotFoundError
from controlplane.store.audit import AuditTable
from controlplane.store.budgets import BudgetTable
from controlplane.store.commit import Values, write_commit
from controlplane.store.dialect import for_writing, open_engine, translated_errors
from controlplane.store.findings import FindingTable
from controlplane.store.journals import JournalTable
from controlplane.store.model import Backlog, Batches, Committed, Entry, Head, Write, check_writes
from controlplane.store.proofs import ProofTable
from controlplane.store.proposals import ProposalTable
from controlplane.store.rules import Rules, read_rules
from controlplane.store.schema import ensure_schema
from controlplane.store.sidecars import SidecarTable
from controlplane.store.stock import Stock, read_stock
from controlplane.store.tables import CHANGES, HEADS, RECORDS, SCHEMA
from controlplane.store.usage import UsageTable
from engine.names import Lane

T = TypeVar("T")
# Within the class the word `list` is the method.
Page = list[tuple[str, bytes]]
Heads = list[Head]
Entries = list[Entry]
Sidecars = list[admin_pb2.SidecarStatus]

MAX_PAGE = 1_000
_BATCH = 1_000
# A deletion of many large rows keeps the write lock for long; in slices, commits get in between.
_COMPACT_SLICE = 32
_HEADS = select(HEADS, SCHEMA.c.epoch).select_from(HEADS.join(SCHEMA, SCHEMA.c.id == 1))
_COLLECTIONS = {Lane.URGENT: (1, 63), Lane.BULK: (64, 127)}


class Store:
    """Every write and its change row commit together; revisions of a (tenant, lane) are ordered and without gaps.

    All methods raise StoreError when the database fails. Reads see whole commits only.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._writer = for_writing(engine)
        self._writing = asyncio.Lock()
        self._running: set[asyncio.Task[Any]] = set()
        self._watchers: list[Callable[[Iterable[Head]], None]] = []
        self._sidecars = SidecarTable(engine)
        self.journals = JournalTable(engine, self._writing)
        self.budgets = BudgetTable(engine, self._writing)
        self.audit = AuditTable(engine, self._writing)
        self.usage = UsageTable(engine, self._writing)
        self.findings = FindingTable(engine, self._writing)
        self.proofs = ProofTable(engine, self._writing)
        self.proposals = ProposalTable(engine, self._writing)

    @classmethod
    async def open(cls, url: str) -> Store:
        """Opens the database, making its schema if it is empty, bringing it up to date if it is older.

        Raises SettingsError for a URL that cannot be served, SchemaError for a foreign or newer database.
        """
        engine = open_engine(url)
        try:
            with translated_errors():
                async with for_writing(engine).begin() as conn:
                    await ensure_schema(conn)
        except BaseException:
            await engine.dispose()
            raise
        return cls(engine)

    async def close(self) -> None:
        """Lets running commits and reports finish, writes the sidecars' last statuses and closes every connection."""
        if self._running:
            await asyncio.wait(self._running)
        await self.journals.close()
        await self.budgets.close()
        try:
            await self.flush_sidecars()
        finally:
            await self._engine.dispose()

    def watch(self, on_commit: Callable[[Iterable[Head]], None]) -> None:
        """Calls `on_commit` with the tenant's heads after each commit of this process that changed something."""
        self._watchers.append(on_commit)

    # Records

    async def get(self, tenant: str, collection: int, id: str) -> bytes | None:  # noqa: A002 (the word of the API)
        """The bytes of a record, or None."""
        async with self._reading() as conn:
            value = await conn.scalar(select(RECORDS.c.value).where(_in(tenant, collection), RECORDS.c.id == id))
            return None if value is None else bytes(value)

    async def list(self, tenant: str, collection: int, *, after: str = "", limit: int = 100, prefix: str = "") -> Page:
        """At most `limit` (1-1000) records with ids after `after` that begin with `prefix`, ordered by id."""
        query = select(RECORDS.c.id, RECORDS.c.value).where(_in(tenant, collection), RECORDS.c.id > after)
        if prefix:
            query = query.where(RECORDS.c.id >= prefix, func.substr(RECORDS.c.id, 1, len(prefix)) == prefix)
            if (end := _after_prefix(prefix)) is not None:
                query = query.where(RECORDS.c.id < end)
        async with self._reading() as conn:
            rows = await conn.execute(query.order_by(RECORDS.c.id).limit(max(1, min(limit, MAX_PAGE))))
            return [(record_id, value) for record_id, value in rows]

    async def count(self, tenant: str, collection: int) -> int:
        """How many records a collection has."""
        async with self._reading() as conn:
            return int(await conn.scalar(select(func.count()).where(_in(tenant, collection))) or 0)

    async def digests(self, tenant: str, collection: int, *, id_suffix: str = "") -> AsyncGenerator[Page, None]:
        """A collection at one moment, to compare an import with: batches of (id, BLAKE2b-128 of the value).

        Ordered by id; only ids that end in `id_suffix`. Close the iterator unless it is read to its end.
        """
        query = select(RECORDS.c.id, RECORDS.c.value).where(_in(tenant, collection)).order_by(RECORDS.c.id)
        if id_suffix:
            tail = func.substr(RECORDS.c.id, func.length(RECORDS.c.id) - len(id_suffix) + 1)
            query = query.where(tail == id_suffix)
        after = ""
        async with self._reading() as conn:
            while True:
                rows = (await conn.execute(query.where(RECORDS.c.id > after).limit(_BATCH))).all()
                if not rows:
                    return
                yield [(record_id, blake2b(value, digest_size=16).digest()) for record_id, value in rows]
                after = rows[-1][0]

    async def commit(
        self,
        tenant: str,
        writes: Sequence[Write],
        *,
        expect: Mapping[tuple[int, str], bytes | None] | None = None,
        audit: Note | None = None,
        also: Callable[[AsyncConnection, Committed], Awaitable[None]] | None = None,
    ) -> Committed:
        """Writes at most 1,000 records (3 MiB) in one transaction, with one new revision per lane that changes.

        Writes that change nothing are dropped; of two writes to one record the later counts. `expect` maps
        (collection, id) to the bytes a record must hold now, None for "no such record": ConflictError otherwise.
        `audit` becomes an entry of the audit log in the same transaction, unless nothing changes. `also` writes what else
        belongs into it; what it raises undoes all.
        A tenant comes into being with its first commit. Durable when it returns; a cancelled caller does not interrupt
        it. Raises InvalidInputError beyond a limit or for a collection of no lane.
        """
        wanted = check_writes(tenant, writes)
        return await self._uninterrupted(self._commit(tenant, wanted, dict(expect or {}), audit, also))

    # Heads and the change log

    async def heads(self, tenants: Collection[str] | None = None) -> Heads:
        """The heads of some tenants, or of all, both lanes of each, ordered by (tenant, lane)."""
        query = _HEADS
        if tenants is not None:
            query = query.where(HEADS.c.tenant.in_(tenants))
        async with self._reading() as conn:
            rows = await conn.execute(query.order_by(HEADS.c.tenant, HEADS.c.lane))
            return [
                Head(row.tenant, Lane(row.lane), row.epoch, row.revision, row.digest, row.digest_key) for row in rows
            ]

    async def position(self) -> tuple[int, int, int]:
        """A value that differs after every commit of anyone and every change of epoch; far cheaper than `heads`."""
        totals = select(SCHEMA.c.epoch, func.count(HEADS.c.tenant), func.coalesce(func.sum(HEADS.c.revision), 0))
        query = totals.select_from(SCHEMA.outerjoin(HEADS, SCHEMA.c.id == 1)).group_by(SCHEMA.c.epoch)
        async with self._reading() as conn:
            epoch, tenants, revisions = (await conn.execute(query)).one()
            return int(epoch), int(tenants), int(revisions)

    async def changes(self, tenant: str, lane: Lane, after: int, *, limit: int = 256) -> Entries:
        """The commits right after a revision, oldest first, without gaps; empty if it is the head.

        Raises CompactedError if the first of them is no longer in the log.
        """
        query = select(CHANGES.c.revision, CHANGES.c.delta).where(_log(tenant, lane), CHANGES.c.revision > after)
        async with self._reading() as conn:
            rows = await conn.execute(query.order_by(CHANGES.c.revision).limit(limit))
            entries = [Entry(revision, delta) for revision, delta in rows]
            first = entries[0].revision if entries else await conn.scalar(_revision(tenant, lane)) or 0
            if first > after + bool(entries):
                raise CompactedError(tenant, lane, after)
            return entries

    async def backlog(self, tenant: str, lane: Lane, after: int) -> Backlog:
        """What the log holds after a revision."""
        size = select(func.count(), func.sum(CHANGES.c.records), func.sum(CHANGES.c.bytes))
        async with self._reading() as conn:
            row = (await conn.execute(size.where(_log(tenant, lane), CHANGES.c.revision > after))).one()
            return Backlog(int(row[0]), int(row[1] or 0), int(row[2] or 0))

    async def log_excess(self, tenant: str, lane: Lane, *, max_entries: int, max_bytes: int) -> int:
        """The revision up to which the log must be dropped to stay within both bounds; 0: it does."""
        query = select(CHANGES.c.revision, CHANGES.c.bytes).where(_log(tenant, lane))
        async with self._reading() as conn:
            rows = await conn.execute(query.order_by(CHANGES.c.revision.desc()).limit(max_entries + 1))
            size = 0
            for index, (revision, entry_bytes) in enumerate(rows):
                size += entry_bytes
                if index >= max_entries or size > max_bytes:
                    return int(revision)
        return 0

    async def compact(self, tenant: str, lane: Lane, keep_after: int) -> int:
        """Drops the log up to and including `keep_after`; returns how many commits that were."""
        dropped = 0
        while True:
            oldest = select(CHANGES.c.revision).where(_log(tenant, lane), CHANGES.c.revision <= keep_after)
            async with self._writing, self._transaction() as conn:
                rows = await conn.execute(oldest.order_by(CHANGES.c.revision).limit(_COMPACT_SLICE))
                revisions = list(rows.scalars())
                if not revisions:
                    return dropped
                await conn.execute(delete(CHANGES).where(_log(tenant, lane), CHANGES.c.revision <= revisions[-1]))
            dropped += len(revisions)

    @asynccontextmanager
    async def read_lane(self, tenant: str, lane: Lane) -> AsyncIterator[tuple[Head, Batches]]:
        """A lane at one moment: its head, and batches of (collection, id, value) sorted by (collection, id).

        `async with store.read_lane(tenant, lane) as (head, batches)`. Raises NotFoundError for an unknown tenant.
        """
        async with self._reading() as conn:
            query = _HEADS.where(HEADS.c.tenant == tenant, HEADS.c.lane == int(lane))
            row = (await conn.execute(query)).one_or_none()
            if row is None:
                raise NotFoundError(f"tenants/{tenant}")
            yield _to_head(row), _lane_batches(conn, tenant, lane)

    async def rules(self, tenant: str, epoch: int, revision: int) -> Rules:
        """The policies and settings at a revision of the urgent lane, and the range in which they hold.

        Raises NotFoundError, saying why, for an unknown tenant and for a revision whose rules were never recorded here.
        """
        async with self._reading() as conn:
            return await read_rules(conn, tenant, epoch, revision)

    # Sidecars

    def record_sidecar(self, status: admin_pb2.SidecarStatus) -> None:
        """Takes over what is known of a sidecar; visible to `sidecars` at once, written with the next flush."""
        self._sidecars.record(status)

    async def sidecars(self, tenant: str | None = None, *, after: str = "", limit: int = 100) -> Sidecars:
        """Sidecars connected or seen lately, ordered by name, names after `after`; of one tenant or of all.

        A cursor of revision 0 and epoch 0 means: follows this lane, has acknowledged nothing.
        """
        return await self._sidecars.read(tenant, after, max(1, min(limit, MAX_PAGE)))

    async def connected_sidecars(self, names: Collection[str]) -> set[str]:
        """Which of them have a stream open."""
        return await self._sidecars.connected(names)

    async def flush_sidecars(self) -> None:
        """Writes the statuses recorded since the last flush."""
        async with self._writing:
            await self._sidecars.flush()

    async def forget_sidecars(self, seen_before: float) -> int:
        """Removes sidecars not seen since; returns how many."""
        async with self._writing:
            return await self._sidecars.forget(seen_before)

    async def stock(self, now: float) -> Stock:
        """How much there is of what operators watch; `now` in Unix seconds."""
        return await read_stock(self._engine, now)

    # Transactions

    async def _commit(
        self,
        tenant: str,
        wanted: Values,
        expect: Values,
        audit: Note | None,
        also: Callable[[AsyncConnection, Committed], Awaitable[None]] | None,
    ) -> Committed:
        async with self._writing, self._transaction() as conn:
            committed = await write_commit(conn, tenant, wanted, expect, time.time(), audit)
            if also is not None:
                await also(conn, committed)
        if committed.changed:
            for on_commit in self._watchers:
                on_commit(committed.heads.values())
        return committed

    async def _uninterrupted(self, work: Coroutine[Any, Any, T]) -> T:
        task = asyncio.ensure_future(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[AsyncConnection]:
        with translated_errors():
            async with self._engine.connect() as conn:
                yield conn

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[AsyncConnection]:
        with translated_errors():
            async with self._writer.begin() as conn:
                yield conn


async def _lane_batches(conn: AsyncConnection, tenant: str, lane: Lane) -> Batches:
    query = select(RECORDS.c.collection, RECORDS.c.id, RECORDS.c.value).order_by(RECORDS.c.collection, RECORDS.c.id)
    first, last = _COLLECTIONS[lane]
    collections = select(RECORDS.c.collection).distinct().where(RECORDS.c.tenant == tenant)
    collections = collections.where(RECORDS.c.collection.between(first, last)).order_by(RECORDS.c.collection)
    for collection in (await conn.execute(collections)).scalars().all():
        after = ""
        while True:
            page = query.where(_in(tenant, collection), RECORDS.c.id > after).limit(_BATCH)
            rows = (await conn.execute(page)).all()
            if not rows:
                break
            yield rows
            after = rows[-1][1]


def _to_head(row: Row[Any]) -> Head:
    return Head(row.tenant, Lane(row.lane), row.epoch, row.revision, row.digest, row.digest_key)


def _in(tenant: str, collection: int) -> ColumnElement[bool]:
    return and_(RECORDS.c.tenant == tenant, RECORDS.c.collection == int(collection))


def _log(tenant: str, lane: Lane) -> ColumnElement[bool]:
    return and_(CHANGES.c.tenant == tenant, CHANGES.c.lane == int(lane))


def _revision(tenant: str, lane: Lane) -> Any:
    return select(HEADS.c.revision).where(HEADS.c.tenant == tenant, HEADS.c.lane == int(lane))


def _after_prefix(prefix: str) -> str | None:
    """The first string after all that begin with a prefix; None if there is no such code point to end it with."""
    last = ord(prefix[-1]) + 1
    if 0xD800 <= last <= 0xDFFF:
        last = 0xE000
    return None if last > 0x10FFFF else prefix[:-1] + chr(last)
