"""Journals and their anchors, the history of the rules."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from controlplane.store.columns import Int64, Name, Real
from controlplane.store.rules import begin_history

revision = "2"
down_revision = "1"


def upgrade() -> None:
    """Applies the step; the history of a database that has rules begins with them."""
    op.create_table(
        "journal_chains",
        sa.Column("sidecar", Name, primary_key=True),
        sa.Column("chain", Name, primary_key=True),
        sa.Column("records", Int64, nullable=False),
        sa.Column("head", sa.LargeBinary, nullable=False),
        sa.Column("settled", Int64, nullable=False),
        sa.Column("quarantined", Int64, nullable=False),
        sa.Column("discarded", Int64, nullable=False),
        sa.Column("lost", Int64, nullable=False),
        sa.Column("unrecorded", Int64, nullable=False),
        sa.Column("spooled", Int64, nullable=False),
        sa.Column("ended", sa.Boolean, nullable=False),
        sa.Column("reported_ns", Int64, nullable=False),
        sa.Column("first_report_at", Real, nullable=False),
        sa.Column("last_report_at", Real, nullable=False),
        sa.Column("head_at", Real, nullable=False),
        sa.Column("anchored_at", Real, nullable=False),
        sa.Column("conflicts", Int64, nullable=False),
        sqlite_with_rowid=False,
        if_not_exists=True,
    )
    op.create_table(
        "journal_anchors",
        sa.Column("sidecar", Name, primary_key=True),
        sa.Column("chain", Name, primary_key=True),
        sa.Column("records", Int64, primary_key=True, autoincrement=False),
        sa.Column("head", sa.LargeBinary, nullable=False),
        sa.Column("reported_at", Real, nullable=False),
        sqlite_with_rowid=False,
        if_not_exists=True,
    )
    op.create_table(
        "rule_history",
        sa.Column("tenant", Name, primary_key=True),
        sa.Column("collection", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("id", Name, primary_key=True),
        sa.Column("revision", Int64, primary_key=True, autoincrement=False),
        sa.Column("value", sa.LargeBinary),
        if_not_exists=True,
    )
    op.create_table(
        "rule_history_starts",
        sa.Column("tenant", Name, primary_key=True),
        sa.Column("revision", Int64, nullable=False),
        if_not_exists=True,
    )
    op.create_index("rule_history_revisions", "rule_history", ["tenant", "revision"], if_not_exists=True)
    begin_history(op.get_bind())
    op.execute("UPDATE schema SET version = 2")
