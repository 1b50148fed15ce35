"""Records, heads, change log, sidecars."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from controlplane.store.columns import Int64, Name, Real

revision = "1"
down_revision = None


def upgrade() -> None:
    """Applies the step."""
    op.create_table(
        "schema",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("epoch", Int64, nullable=False),
    )
    op.create_table(
        "heads",
        sa.Column("tenant", Name, primary_key=True),
        sa.Column("lane", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("revision", Int64, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("digest_key", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "records",
        sa.Column("tenant", Name, primary_key=True),
        sa.Column("collection", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("id", Name, primary_key=True),
        sa.Column("value", sa.LargeBinary, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "changes",
        sa.Column("tenant", Name, primary_key=True),
        sa.Column("lane", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("revision", Int64, primary_key=True, autoincrement=False),
        sa.Column("records", sa.Integer, nullable=False),
        sa.Column("bytes", sa.Integer, nullable=False),
        sa.Column("delta", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "sidecars",
        sa.Column("sidecar", Name, primary_key=True),
        sa.Column("connected", sa.Boolean, nullable=False),
        sa.Column("seen_at", Real, nullable=False),
        sa.Column("recorded_at", Real, nullable=False),
        sa.Column("status", sa.LargeBinary, nullable=False),
    )
    op.create_index("sidecars_seen", "sidecars", ["seen_at"])
    op.execute("INSERT INTO schema (id, version, epoch) VALUES (1, 1, 1)")
