"""The tables, the same on every database.

Ids are compared as bytes (the default of SQLite), so `ORDER BY id` is the order of their UTF-8 encoding.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Double, Index, Integer, LargeBinary, MetaData, Table, Text

SCHEMA_VERSION = 1

METADATA = MetaData()

# One row.
SCHEMA = Table(
    "schema",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("version", Integer, nullable=False),
    Column("epoch", BigInteger, nullable=False),
)

HEADS = Table(
    "heads",
    METADATA,
    Column("tenant", Text, primary_key=True),
    Column("lane", Integer, primary_key=True, autoincrement=False),
    Column("revision", BigInteger, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("digest_key", LargeBinary, nullable=False),
)

# The key carries the value along: a record is found, and a lane read in order, without a second look-up.
RECORDS = Table(
    "records",
    METADATA,
    Column("tenant", Text, primary_key=True),
    Column("collection", Integer, primary_key=True, autoincrement=False),
    Column("id", Text, primary_key=True),
    Column("value", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)

# `records` and `bytes` stand before `delta`, so that adding them up does not read the deltas themselves.
CHANGES = Table(
    "changes",
    METADATA,
    Column("tenant", Text, primary_key=True),
    Column("lane", Integer, primary_key=True, autoincrement=False),
    Column("revision", BigInteger, primary_key=True, autoincrement=False),
    Column("records", Integer, nullable=False),
    Column("bytes", Integer, nullable=False),
    Column("delta", LargeBinary, nullable=False),
)

SIDECARS = Table(
    "sidecars",
    METADATA,
    Column("sidecar", Text, primary_key=True),
    Column("connected", Boolean, nullable=False),
    Column("seen_at", Double, nullable=False),
    Column("recorded_at", Double, nullable=False),
    Column("status", LargeBinary, nullable=False),
)
Index("sidecars_seen", SIDECARS.c.seen_at)
