"""The tables, the same on every database.

What differs from what `controlplane/store/migrations` makes is a mistake that a test finds.
"""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Index, Integer, LargeBinary, MetaData, Table

from controlplane.store.columns import Int64, Name, Real

# What each brought: `controlplane/store/migrations/versions`.
SCHEMA_VERSION = 4

METADATA = MetaData()

# One row.
SCHEMA = Table(
    "schema",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("version", Integer, nullable=False),
    Column("epoch", Int64, nullable=False),
)

HEADS = Table(
    "heads",
    METADATA,
    Column("tenant", Name, primary_key=True),
    Column("lane", Integer, primary_key=True, autoincrement=False),
    Column("revision", Int64, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("digest_key", LargeBinary, nullable=False),
)

# The key carries the value along: a record is found, and a lane read in order, without a second look-up.
RECORDS = Table(
    "records",
    METADATA,
    Column("tenant", Name, primary_key=True),
    Column("collection", Integer, primary_key=True, autoincrement=False),
    Column("id", Name, primary_key=True),
    Column("value", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)

# `records` and `bytes` stand before `delta`, so that adding them up does not read the deltas themselves.
CHANGES = Table(
    "changes",
    METADATA,
    Column("tenant", Name, primary_key=True),
    Column("lane", Integer, primary_key=True, autoincrement=False),
    Column("revision", Int64, primary_key=True, autoincrement=False),
    Column("records", Integer, nullable=False),
    Column("bytes", Integer, nullable=False),
    Column("delta", LargeBinary, nullable=False),
)

SIDECARS = Table(
    "sidecars",
    METADATA,
    Column("sidecar", Name, primary_key=True),
    Column("connected", Boolean, nullable=False),
    Column("seen_at", Real, nullable=False),
    Column("recorded_at", Real, nullable=False),
    Column("status", LargeBinary, nullable=False),
)
Index("sidecars_seen", SIDECARS.c.seen_at)

# Where each chain of a sidecar's journal stands: what sidestep.v1.JournalChain says, its hash of the last record included.
JOURNAL_CHAINS = Table(
    "journal_chains",
    METADATA,
    Column("sidecar", Name, primary_key=True),
    Column("chain", Name, primary_key=True),
    Column("records", Int64, nullable=False),
    Column("head", LargeBinary, nullable=False),
    Column("settled", Int64, nullable=False),
    Column("quarantined", Int64, nullable=False),
    Column("discarded", Int64, nullable=False),
    Column("lost", Int64, nullable=False),
    Column("unrecorded", Int64, nullable=False),
    Column("spooled", Int64, nullable=False),
    Column("ended", Boolean, nullable=False),
    # By the sidecar's clock, Unix ns: tells a late or repeated report from a newer one.
    Column("reported_ns", Int64, nullable=False),
    # By ours.
    Column("first_report_at", Real, nullable=False),
    Column("last_report_at", Real, nullable=False),
    # When `records` and `head` last changed, and when the newest row of `journal_anchors` was added.
    Column("head_at", Real, nullable=False),
    Column("anchored_at", Real, nullable=False),
    Column("conflicts", Int64, nullable=False),
    sqlite_with_rowid=False,
)

# Earlier anchors of a chain, thinned out. The newest is in its row of `journal_chains`.
JOURNAL_ANCHORS = Table(
    "journal_anchors",
    METADATA,
    Column("sidecar", Name, primary_key=True),
    Column("chain", Name, primary_key=True),
    Column("records", Int64, primary_key=True, autoincrement=False),
    Column("head", LargeBinary, nullable=False),
    Column("reported_at", Real, nullable=False),
    sqlite_with_rowid=False,
)

# Every version of the records that decisions are made by besides facts: policies and settings. `revision` (of the urgent lane)
# is the one that brought it; `value` NULL: it was deleted. Never compacted.
RULE_HISTORY = Table(
    "rule_history",
    METADATA,
    Column("tenant", Name, primary_key=True),
    Column("collection", Integer, primary_key=True, autoincrement=False),
    Column("id", Name, primary_key=True),
    Column("revision", Int64, primary_key=True, autoincrement=False),
    Column("value", LargeBinary),
)
Index("rule_history_revisions", RULE_HISTORY.c.tenant, RULE_HISTORY.c.revision)

# Tenants older than the history, and the first revision at which it knows their rules. Of all others it knows every revision.
RULE_HISTORY_STARTS = Table(
    "rule_history_starts",
    METADATA,
    Column("tenant", Name, primary_key=True),
    Column("revision", Int64, nullable=False),
)
