"""Everything that differs between databases: how to open one, how its transactions begin, how it upserts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiosqlite
from sqlalchemy import Connection, Table, event
from sqlalchemy.dialects.sqlite import Insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from controlplane.errors import SettingsError, StoreError

_WRITES = "sidestep_writes"
_BUSY_TIMEOUT_S = 10.0
_RETRY_S = 0.01


def open_engine(url: str) -> AsyncEngine:
    """An engine for a database URL. Raises SettingsError for a URL it cannot serve, StoreError for its folder."""
    parsed = _parse(url)
    path = Path(parsed.database or "")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{path.parent}: {error.strerror}") from error
    # Snapshot builds and import comparisons each keep a connection for a while; the rest are short.
    engine = create_async_engine(
        parsed, pool_size=8, max_overflow=24, pool_timeout=30, connect_args={"timeout": _BUSY_TIMEOUT_S}
    )
    event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


def database_path(url: str) -> Path:
    """The file of a SQLite URL; snapshots live beside it. Raises SettingsError."""
    return Path(_parse(url).database or "")


def for_writing(engine: AsyncEngine) -> AsyncEngine:
    """The same engine, whose transactions take the write lock when they begin.

    SQLite fails a transaction that reads first and writes later if another wrote in between; this one waits its turn.
    """
    return engine.execution_options(**{_WRITES: True})


def upsert(table: Table, values: Sequence[str]) -> Insert:
    """An INSERT that overwrites the columns `values` of a row whose key exists."""
    statement = sqlite_insert(table)
    return statement.on_conflict_do_update(
        index_elements=list(table.primary_key.columns), set_={name: statement.excluded[name] for name in values}
    )


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turns the driver's errors into StoreError."""
    try:
        yield
    except DBAPIError as error:
        raise StoreError(f"database: {error.orig}") from error
    except PoolTimeoutError as error:
        raise StoreError("database: no connection became free") from error


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise SettingsError("the database URL is malformed (example: sqlite+aiosqlite:///sidestep.db)") from None
    if parsed.drivername != "sqlite+aiosqlite":
        raise SettingsError(f"database {parsed.drivername!r} is not supported (use sqlite+aiosqlite:///PATH)")
    if not parsed.database or parsed.database == ":memory:" or parsed.query:
        raise SettingsError("the database URL must name a file (sqlite+aiosqlite:///PATH)")
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
