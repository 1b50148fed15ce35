"""The schema of the database: makes it, brings an older one up to date, refuses any other.

The row of table `schema` says which version a database has, since the first one; Alembic's own mark follows it.
"""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, inspect, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane.errors import SchemaError

# Modules with tables of their own: what they add to METADATA belongs to the schema.
from controlplane.store import audit as _audit  # noqa: F401
from controlplane.store import budget_tables as _budget_tables  # noqa: F401
from controlplane.store import epochs as _epochs  # noqa: F401
from controlplane.store import findings as _findings  # noqa: F401
from controlplane.store import proofs as _proofs  # noqa: F401
from controlplane.store import proposals as _proposals  # noqa: F401
from controlplane.store import usage as _usage  # noqa: F401
from controlplane.store.database import Database, Kind, Lock
from controlplane.store.tables import CHANGES, HEADS, RECORDS, SCHEMA, SCHEMA_VERSION, SIDECARS

# What every version since the first has.
_FIRST_TABLES: Final = frozenset(table.name for table in (SCHEMA, HEADS, RECORDS, CHANGES, SIDECARS))
_MARK: Final = "alembic_version"
COMMAND: Final = "sidestep-controlplane migrate"


async def migrate(database: Database, version: int = SCHEMA_VERSION) -> tuple[int, int]:
    """Leaves the database with the schema of a version, whole or not at all; returns the former version (0: it was empty) and the
    present one. Of several processes at once one does it, and the others find it done.

    Raises SchemaError for a database that is not Sidestep's, or of a newer version.
    """

    async def write(conn: AsyncConnection) -> tuple[int, int]:
        before = await conn.run_sync(_version)
        if before < version:
            await conn.run_sync(_upgrade, before, version)
        return before, max(before, version)

    return await database.write(Kind.SCHEMA, write, (Lock(Kind.SCHEMA),))


async def check_schema(database: Database) -> None:
    """Raises SchemaError unless the database has the schema of this version."""
    async with database.reading() as conn:
        version = await conn.run_sync(_version)
    if version < SCHEMA_VERSION:
        what = "is empty" if version == 0 else f"has schema version {version}, this program needs {SCHEMA_VERSION}"
        raise SchemaError(f"the database {what}: run `{COMMAND}` first (or set SIDESTEP_CP_MIGRATE=auto)")


def _version(conn: Connection) -> int:
    """The version of a database; 0: there is nothing in it."""
    tables = set(inspect(conn).get_table_names()) - {_MARK}
    if not tables:
        if conn.dialect.name == "postgresql" and conn.scalar(text("SHOW server_encoding")) != "UTF8":
            raise SchemaError("the database must have the encoding UTF8")
        return 0
    if not tables >= _FIRST_TABLES:
        raise SchemaError("the database holds tables that are not Sidestep's")
    version = conn.scalar(select(SCHEMA.c.version))
    if version is None or not 1 <= version <= SCHEMA_VERSION:
        raise SchemaError(f"the database has schema version {version}; this program knows {SCHEMA_VERSION}")
    return int(version)


def _upgrade(conn: Connection, before: int, version: int) -> None:
    with as_file(files("controlplane.store") / "migrations") as steps:
        config = _config(steps, conn)
        if before:
            # A database of before there were marks.
            command.stamp(config, str(before), purge=True)
        command.upgrade(config, str(version))


def _config(steps: Path, conn: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(steps).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = conn
    return config
