"""The schema on both databases: made by migrations, the same as the tables say, one process at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, text

from controlplane.errors import SchemaError, SettingsError, StoreError
from controlplane.store import Store, Write
from controlplane.store.database import Database
from controlplane.store.dialect import open_engine
from controlplane.store.schema import migrate
from controlplane.store.tables import METADATA, SCHEMA_VERSION
from engine.names import Collection, Lane

if TYPE_CHECKING:
    from tests.fakes.postgres import Postgres


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """The URL of a database with nothing in it."""
    if request.param == "sqlite":
        yield f"sqlite+aiosqlite:///{tmp_path}/new.db"
        return
    server: Postgres = request.getfixturevalue("postgres")
    made = server.create(empty=True)
    yield made
    server.drop(made)


def on(url: str, work: Callable[[Database], Awaitable[Any]]) -> Any:
    async def body() -> Any:
        database = Database(open_engine(url))
        try:
            return await work(database)
        finally:
            await database.close()

    return asyncio.run(body())


def execute(url: str, sql: str) -> None:
    from controlplane.store.database import Kind

    on(url, lambda database: database.write(Kind.SCHEMA, lambda conn: conn.execute(text(sql))))


def test_migrations_make_what_the_tables_say(empty: str) -> None:
    def differences(conn: Connection) -> list[Any]:
        context = MigrationContext.configure(conn, opts={"compare_type": False})
        return compare_metadata(context, METADATA)

    async def work(database: Database) -> None:
        assert await migrate(database) == (0, SCHEMA_VERSION)
        assert await migrate(database) == (SCHEMA_VERSION, SCHEMA_VERSION)
        async with database.reading() as conn:
            assert await conn.run_sync(differences) == []

    on(empty, work)


@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION))
def test_every_earlier_version_is_brought_up_to_date_with_what_it_holds(empty: str, version: int) -> None:
    on(empty, lambda database: migrate(database, version))
    # As a program of that time left it: without Alembic's mark.
    execute(empty, "DROP TABLE alembic_version")
    execute(empty, "INSERT INTO records (tenant, collection, id, value) VALUES ('acme', 1, 'p', 'x')")
    execute(empty, "INSERT INTO heads (tenant, lane, revision, digest, digest_key) VALUES ('acme', 1, 7, 'd', 'k')")

    async def scenario() -> None:
        store = await Store.open(empty, migrating=True)
        try:
            assert await store.get("acme", Collection.POLICIES, "p") == b"x"
            committed = await store.commit("acme", [Write(Collection.GRANTS, "g", b"x")])
            assert committed.heads[Lane.URGENT].revision == 8
            if version == 1:
                assert (await store.rules("acme", 1, 7)).records == [(Collection.POLICIES, "p", b"x")]
        finally:
            await store.close()

    if empty.startswith("postgresql"):
        execute(empty, "UPDATE records SET value = convert_to('x', 'UTF8')")
        with pytest.raises(SchemaError, match=f"version {version}.*sidestep-controlplane migrate"):
            asyncio.run(Store.open(empty))
        execute(
            empty, f"UPDATE heads SET digest = decode('{'00' * 32}', 'hex'), digest_key = decode('{'00' * 32}', 'hex')"
        )
    else:
        execute(empty, f"UPDATE heads SET digest = x'{'00' * 32}', digest_key = x'{'00' * 32}'")
        execute(empty, "UPDATE records SET value = x'78'")
    asyncio.run(scenario())


def test_many_that_migrate_at_once_find_one_schema(empty: str) -> None:
    async def scenario() -> None:
        stores = await asyncio.gather(*(Store.open(empty, migrating=True) for _ in range(4)))
        await stores[0].commit("acme", [Write(Collection.GRANTS, "g", b"x")])
        assert [len(await store.heads()) for store in stores] == [2] * 4
        for store in stores:
            await store.close()

    asyncio.run(scenario())


def test_a_migration_that_fails_leaves_nothing(empty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_conn: Connection) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr("controlplane.store.rules.begin_history", broken)
    with pytest.raises(StoreError, match="the disk is full"):
        on(empty, migrate)
    monkeypatch.undo()
    assert on(empty, migrate) == (0, SCHEMA_VERSION)


def test_a_newer_or_foreign_database_is_refused(empty: str) -> None:
    execute(empty, "CREATE TABLE users (id INTEGER)")
    with pytest.raises(SchemaError, match="not Sidestep's"):
        on(empty, migrate)
    execute(empty, "DROP TABLE users")
    on(empty, migrate)
    execute(empty, "UPDATE schema SET version = 99")
    for migrating in (True, False):
        with pytest.raises(SchemaError, match="99"):
            asyncio.run(Store.open(empty, migrating=migrating))


def test_an_empty_postgresql_is_not_served(postgres: Postgres) -> None:
    url = postgres.create(empty=True)
    with pytest.raises(SchemaError, match="is empty: run `sidestep-controlplane migrate`"):
        asyncio.run(Store.open(url))
    postgres.drop(url)


def test_a_database_that_cannot_be_reached_is_a_store_error(tmp_path: Path) -> None:
    for url in (
        f"postgresql+asyncpg://postgres@/x?host={tmp_path}",
        "postgresql+asyncpg://postgres:secret@127.0.0.1:1/x",
    ):
        with pytest.raises(StoreError, match="cannot connect") as error:
            asyncio.run(Store.open(url))
        assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    "bad",
    [
        "postgresql://x/y",
        "postgresql+asyncpg://host",
        "postgresql+asyncpg://h/d?sslmode=require",
        "postgresql+asyncpg://h:p/d",
    ],
)
def test_a_postgresql_url_that_cannot_be_served_is_refused(bad: str) -> None:
    with pytest.raises(SettingsError):
        asyncio.run(Store.open(bad))


def test_a_restart_of_postgresql_is_survived(postgres: Postgres) -> None:
    """Errors meanwhile say so, and afterwards everything goes on by itself with the same store."""
    url = postgres.create()

    async def read_across_a_restart(store: Store) -> None:
        async with store.read_lane("acme", Lane.URGENT) as (_, batches):
            await asyncio.to_thread(postgres.restart)
            assert [batch async for batch in batches] == []

    async def scenario() -> None:
        store = await Store.open(url)
        try:
            await store.commit("acme", [Write(Collection.GRANTS, "g", b"1")])
            await asyncio.gather(*(store.heads() for _ in range(8)))
            await asyncio.to_thread(postgres.stop)
            for call in (store.heads(), store.commit("acme", [Write(Collection.GRANTS, "g", b"2")])):
                with pytest.raises(StoreError):
                    await call
            await asyncio.to_thread(postgres.start)
            assert await store.get("acme", Collection.GRANTS, "g") == b"1"
            assert (await store.commit("acme", [Write(Collection.GRANTS, "g", b"2")])).changed == 1
            # In the middle of transactions too.
            with pytest.raises(StoreError):
                await read_across_a_restart(store)
            assert len(await store.heads()) == 2
        finally:
            await store.close()

    asyncio.run(scenario())
    postgres.drop(url)
