"""Makes the schema in an empty database, and brings that of an older version up to date."""

from __future__ import annotations

from sqlalchemy import insert, inspect, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane.errors import SchemaError

# Modules with tables of their own: what they add to METADATA must be there before anything is created.
from controlplane.store import audit as _audit  # noqa: F401
from controlplane.store import budget_tables as _budget_tables  # noqa: F401
from controlplane.store import findings as _findings  # noqa: F401
from controlplane.store import proofs as _proofs  # noqa: F401
from controlplane.store import proposals as _proposals  # noqa: F401
from controlplane.store import usage as _usage  # noqa: F401
from controlplane.store.rules import begin_history
from controlplane.store.tables import CHANGES, HEADS, METADATA, RECORDS, SCHEMA, SCHEMA_VERSION, SIDECARS

_FIRST_EPOCH = 1
# What every version since the first has.
_FIRST_TABLES = frozenset(table.name for table in (SCHEMA, HEADS, RECORDS, CHANGES, SIDECARS))


async def ensure_schema(conn: AsyncConnection) -> None:
    """Leaves the database with the schema of this version, in the transaction it is given.

    Tables are only ever added. Raises SchemaError for a database that is not Sidestep's, or of a newer version.
    """
    tables = set(await conn.run_sync(lambda sync: inspect(sync).get_table_names()))
    if not tables:
        await conn.run_sync(METADATA.create_all)
        await conn.execute(insert(SCHEMA), {"id": 1, "version": SCHEMA_VERSION, "epoch": _FIRST_EPOCH})
        return
    if not tables >= _FIRST_TABLES:
        raise SchemaError("the database holds tables that are not Sidestep's")
    version = await conn.scalar(select(SCHEMA.c.version))
    if version is None or not 1 <= version <= SCHEMA_VERSION:
        raise SchemaError(f"the database has schema version {version}; this program knows {SCHEMA_VERSION}")
    if version < SCHEMA_VERSION:
        await conn.run_sync(METADATA.create_all)
        if version < 2:
            await begin_history(conn)
        await conn.execute(update(SCHEMA).values(version=SCHEMA_VERSION))
