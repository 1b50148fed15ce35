"""Everything that differs between databases: how to open one, how its transactions begin, how it upserts, how it fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, cast

import aiosqlite
import asyncpg
from sqlalchemy import Connection, Table, event
from sqlalchemy.dialects.postgresql import insert as postgres_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.sql.dml import Insert

from controlplane.errors import SettingsError, StoreError
from engine.errors import InvalidInputError

SQLITE, POSTGRES = "sqlite+aiosqlite", "postgresql+asyncpg"
_WRITES = "sidestep_writes"
_BUSY_TIMEOUT_S = 10.0
_CONNECT_TIMEOUT_S = 5.0
# Of one statement: a database that no longer answers, without the connection breaking.
_COMMAND_TIMEOUT_S = 30.0
_RETRY_S = 0.01
_EXAMPLE = f"{SQLITE}:///PATH or {POSTGRES}://USER:PASSWORD@HOST/DATABASE"
_INSERTS: dict[str, Any] = {"sqlite": sqlite_insert, "postgresql": postgres_insert}
# Serialization failure, deadlock.
_COLLISIONS = frozenset({"40001", "40P01"})


class CollisionError(StoreError):
    """The transaction failed because of another at the same time; nothing of it was kept, and it may be done again."""


def open_engine(url: str) -> AsyncEngine:
    """An engine for a database URL. Raises SettingsError for a URL it cannot serve, StoreError for its folder."""
    parsed = _parse(url)
    # Snapshot builds and import comparisons each keep a connection for a while; the rest are short.
    if parsed.drivername == POSTGRES:
        return create_async_engine(
            parsed,
            pool_size=8,
            max_overflow=16,
            pool_timeout=30,
            # After the database was restarted, connections of before are noticed and replaced before they are used.
            pool_pre_ping=True,
            connect_args={
                "timeout": _CONNECT_TIMEOUT_S,
                "command_timeout": _COMMAND_TIMEOUT_S,
                "server_settings": {
                    "application_name": "sidestep-controlplane",
                    "lock_timeout": f"{int(_BUSY_TIMEOUT_S * 1000)}",
                    "synchronous_commit": "on",
                },
            },
        )
    path = Path(parsed.database or "")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{path.parent}: {error.strerror}") from error
    engine = create_async_engine(
        parsed, pool_size=8, max_overflow=24, pool_timeout=30, connect_args={"timeout": _BUSY_TIMEOUT_S}
    )
    event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


def check_url(url: str) -> None:
    """Raises SettingsError for a URL that cannot be served."""
    _parse(url)


def database_path(url: str) -> Path | None:
    """The file of a SQLite URL; snapshots live beside it. None: PostgreSQL. Raises SettingsError."""
    parsed = _parse(url)
    return Path(parsed.database or "") if parsed.drivername == SQLITE else None


def is_postgres(engine: AsyncEngine) -> bool:
    """Whether it is PostgreSQL, else SQLite."""
    return engine.dialect.name == "postgresql"


def for_writing(engine: AsyncEngine) -> AsyncEngine:
    """The same engine, for transactions that write.

    On SQLite they take the write lock when they begin: it fails a transaction that reads first and writes later if another wrote
    in between; this one waits its turn. On PostgreSQL every statement sees what was committed before it, also
    while the transaction waited for a lock.
    """
    if is_postgres(engine):
        return engine.execution_options(isolation_level="READ COMMITTED")
    return engine.execution_options(**{_WRITES: True})


def for_reading(engine: AsyncEngine) -> AsyncEngine:
    """The same engine, for transactions that see one moment; on SQLite any does."""
    if is_postgres(engine):
        return engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    return engine


@asynccontextmanager
async def connected(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A connection. Raises StoreError if none can be had."""
    try:
        conn = await engine.connect()
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise StoreError(f"database: cannot connect: {error or type(error).__name__}") from error
    try:
        yield conn
    finally:
        await conn.close()


class Upsert:
    """An INSERT that overwrites the columns `values` of a row whose key exists.

    With `newer` only if that column does not fall; without `values` nothing: what is there first stays.
    """

    def __init__(self, table: Table, values: Sequence[str], *, newer: str = "") -> None:
        self._statements = {
            name: _conflicting(insert(table), table, values, newer) for name, insert in _INSERTS.items()
        }

    def on(self, conn: AsyncConnection) -> Insert:
        """The statement for the database of a connection."""
        return self._statements[conn.dialect.name]


def _conflicting(statement: Any, table: Table, values: Sequence[str], newer: str) -> Insert:
    key = list(table.primary_key.columns)
    if not values:
        return cast("Insert", statement.on_conflict_do_nothing(index_elements=key))
    set_ = {name: statement.excluded[name] for name in values}
    where = statement.excluded[newer] >= table.c[newer] if newer else None
    return cast("Insert", statement.on_conflict_do_update(index_elements=key, set_=set_, where=where))


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turns the driver's errors into StoreError; refusals of values (`columns`) stay what they are."""
    try:
        yield
    except DBAPIError as error:
        kind = CollisionError if getattr(error.orig, "sqlstate", None) in _COLLISIONS else StoreError
        raise kind(f"database: {_said(error.orig)}") from error
    except StatementError as error:
        if isinstance(error.orig, InvalidInputError):
            raise error.orig from None
        raise
    except PoolTimeoutError as error:
        raise StoreError("database: no connection became free") from error
    except (ConnectionError, TimeoutError) as error:
        raise StoreError(f"database: the connection was lost: {error or type(error).__name__}") from error


def _said(error: BaseException | None) -> str:
    """What the database said, without the name of the driver's class, in one line."""
    return " ".join(str(error).rpartition(">: ")[2].split())


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise SettingsError(f"the database URL is malformed (use {_EXAMPLE})") from None
    if parsed.drivername == POSTGRES:
        if not parsed.database or set(parsed.query) - {"host", "port", "ssl"}:
            raise SettingsError(
                f"the database URL must name a database, and knows host, port and ssl besides (use {_EXAMPLE})"
            )
        return parsed
    if parsed.drivername != SQLITE:
        raise SettingsError(f"database {parsed.drivername!r} is not supported (use {_EXAMPLE})")
    if not parsed.database or parsed.database == ":memory:" or parsed.query:
        raise SettingsError(f"the database URL must name a file ({SQLITE}:///PATH)")
    return parsed


def _prepare_sqlite(connection: Any, _record: ConnectionPoolEntry) -> None:
    # The driver would begin transactions by itself, and only before some statements: we begin them all, below.
    connection.isolation_level = None
    connection.run_async(_use_write_ahead_log)
    cursor = connection.cursor()
    for pragma in (
        "synchronous = FULL",
        f"busy_timeout = {int(_BUSY_TIMEOUT_S * 1000)}",
        "cache_size = -32768",
        # A long read makes the write-ahead log grow; this lets it shrink again.
        "journal_size_limit = 67108864",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


async def _use_write_ahead_log(connection: aiosqlite.Connection) -> None:
    """Leaves the database in WAL mode. The switch, which only a new one needs, does not wait for a lock as all else does."""
    deadline = time.monotonic() + _BUSY_TIMEOUT_S
    while True:
        try:
            async with connection.execute("PRAGMA journal_mode = WAL"):
                return
        except aiosqlite.OperationalError:
            if time.monotonic() >= deadline:
                raise
            await asyncio.sleep(_RETRY_S)


def _begin_sqlite(connection: Connection) -> None:
    options: dict[str, Any] = dict(connection.get_execution_options())
    connection.exec_driver_sql("BEGIN IMMEDIATE" if options.get(_WRITES) else "BEGIN")
