"""One database: its transactions, and the locks that make what several processes decide at once right.

A transaction that writes reads first and decides by what it read. On SQLite it holds the only write lock from its begin on. On
PostgreSQL it runs READ COMMITTED, and takes locks by name before it reads: a row that is not there cannot be locked, and most of
what could go wrong is about such rows. Locks are taken in the order of `Kind`, then of their number, so nobody waits in a circle.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from enum import IntEnum
from hashlib import blake2b
from typing import NamedTuple, TypeVar

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from controlplane.errors import StoreError
from controlplane.store.dialect import (
    CollisionError,
    connected,
    for_reading,
    for_writing,
    is_postgres,
    translated_errors,
)

T = TypeVar("T")

# Names share this many locks per kind, so that a transaction over thousands of names holds few. Sharing one only means to wait.
_BUCKETS = 64
_ATTEMPTS = 6
_PAUSE_S = 0.02
# Told apart from other programs' advisory locks by the upper half.
_SPACE = 0x51DE_0000
_LOCK = text(
    "SELECT set_config('idle_in_transaction_session_timeout', '30s', true),"
    " (SELECT count(CASE WHEN each.shared THEN pg_advisory_xact_lock_shared(each.kind, each.number)::text"
    " ELSE pg_advisory_xact_lock(each.kind, each.number)::text END)"
    " FROM (SELECT kind, number, shared FROM"
    " unnest(CAST(:kinds AS int[]), CAST(:numbers AS int[]), CAST(:shared AS bool[]))"
    " WITH ORDINALITY AS asked (kind, number, shared, at) ORDER BY at OFFSET 0) AS each)"
)


class Kind(IntEnum):
    """What a lock is about, in the order in which they are taken; what is written with one is also written in turn."""

    # Shared by every commit, taken alone by whoever raises the epoch.
    EPOCH = 1
    # By tenant: the lane with its records and its head.
    URGENT = 2
    BULK = 3
    # By tenant: the books.
    BUDGETS = 4
    # By sidecar.
    JOURNALS = 5
    # By sidecar, and by tenant.
    USAGE_SIDECAR = 6
    USAGE_TENANT = 7
    FINDINGS = 8
    PROOFS = 9
    SIDECARS = 10
    # By tenant: the end of its chain, and its proposals, of which each has an entry.
    AUDIT = 11
    RETENTION = 12
    SCHEMA = 13


class Lock(NamedTuple):
    """A lock by name, held to the end of the transaction; `shared` with all who take it shared."""

    kind: Kind
    name: str = ""
    shared: bool = False


class Database:
    """Transactions over one engine. Everything raises StoreError when the database fails; then nothing was kept, unless the
    connection was lost while the commit was under way: then it may have been."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._reader = for_reading(engine)
        self._writer = for_writing(engine)
        # On SQLite there is one writer at a time, and waiting here is cheaper than at its lock. On PostgreSQL each kind of write
        # has one connection at most, so that no crowd of writers takes the connections readers need.
        self._one_turn = None if is_postgres(engine) else asyncio.Lock()
        self._turns = {kind: asyncio.Lock() for kind in Kind}

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that sees the database as it was at its first statement."""
        with translated_errors():
            async with connected(self._reader) as conn:
                yield conn

    async def write(
        self,
        kinds: Kind | Collection[Kind],
        work: Callable[[AsyncConnection], Awaitable[T]],
        locks: Collection[Lock] = (),
    ) -> T:
        """Runs `work` in a transaction that holds `locks`, and commits; in its turn among this process's writes of these kinds.

        What fails because others wrote at the same time is done again, a few times: `work` may be called more than once.
        """
        async with AsyncExitStack() as turns:
            for turn in self._turns_of((kinds,) if isinstance(kinds, Kind) else kinds):
                await turns.enter_async_context(turn)
            for attempt in range(1, _ATTEMPTS + 1):
                try:
                    with translated_errors():
                        async with connected(self._writer) as conn, conn.begin():
                            await take(conn, locks)
                            return await work(conn)
                except CollisionError as error:
                    if attempt == _ATTEMPTS:
                        raise StoreError(str(error)) from error
                    await asyncio.sleep(_PAUSE_S * attempt * random.uniform(0.5, 1.5))  # noqa: S311 (no secret)
        raise AssertionError("unreachable")

    @asynccontextmanager
    async def turn(self, kind: Kind) -> AsyncIterator[None]:
        """Keeps this process's writes of a kind waiting."""
        async with self._turns_of((kind,))[0]:
            yield

    async def close(self) -> None:
        """Closes every connection."""
        await self._engine.dispose()

    def _turns_of(self, kinds: Collection[Kind]) -> list[asyncio.Lock]:
        return [self._turns[kind] for kind in sorted(set(kinds))] if self._one_turn is None else [self._one_turn]


async def take(conn: AsyncConnection, locks: Collection[Lock]) -> None:
    """Takes locks in the transaction it is given, waiting for whoever holds them. On SQLite the transaction holds all already."""
    if not locks or conn.dialect.name != "postgresql":
        return
    wanted: dict[tuple[int, int], bool] = {}
    for lock in locks:
        key = (lock.kind, _number(lock.name))
        wanted[key] = wanted.get(key, True) and lock.shared
    ordered = sorted(wanted)
    await conn.execute(
        _LOCK,
        {
            "kinds": [_SPACE + kind for kind, _ in ordered],
            "numbers": [number for _, number in ordered],
            "shared": [wanted[key] for key in ordered],
        },
    )


def _number(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(errors="replace"), digest_size=4).digest()) % _BUCKETS
