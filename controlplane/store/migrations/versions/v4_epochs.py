"""Epochs that can be raised; settlements with their account and period."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from controlplane.store.columns import Int64, Name, Real

revision = "4"
down_revision = "3"


def upgrade() -> None:
    """Applies the step."""
    op.create_table(
        "epochs",
        sa.Column("epoch", Int64, primary_key=True, autoincrement=False),
        sa.Column("raised_at", Real, nullable=False),
    )
    op.create_table(
        "epoch_starts",
        sa.Column("tenant", Name, primary_key=True),
        sa.Column("epoch", Int64, primary_key=True, autoincrement=False),
        sa.Column("revision", Int64, nullable=False),
    )
    op.add_column("budget_settlements", sa.Column("grant_id", Name))
    op.add_column("budget_settlements", sa.Column("subject", Name))
    op.add_column("budget_settlements", sa.Column("period", Int64))
    op.execute("UPDATE schema SET version = 4")
