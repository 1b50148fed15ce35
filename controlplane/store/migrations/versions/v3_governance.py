"""The audit log and what else governs exemptions: proposals, budgets, usage, findings, proofs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from controlplane.store.columns import Int64, Name, Real

revision = "3"
down_revision = "2"


def upgrade() -> None:
    """Applies the step."""
    create_tables()
    op.execute("UPDATE schema SET version = 3")


def create_tables() -> None:
    """Tables of before the first release, which may lack some of them."""
    _create_governance()
    _create_budgets()
    _create_usage()


def _create_governance() -> None:
    op.create_table(
        "audit",
        sa.Column("tenant", Name, primary_key=True),
        sa.Column("number", Int64, primary_key=True, autoincrement=False),
        sa.Column("entry", sa.LargeBinary, nullable=False),
        sa.Column("previous_hash", sa.LargeBinary, nullable=False),
        sa.Column("hash", sa.LargeBinary, nullable=False),
        sqlite_with_rowid=False,
        if_not_exists=True,
    )
    op.create_table(
        "audit_heads",
        sa.Column("tenant", Name, primary_key=True),
        sa.Column("number", Int64, nullable=False),
        sa.Column("hash", sa.LargeBinary, nullable=False),
        if_not_exists=True,
    )
    op.create_table(
        "proposals",
        sa.Column("tenant", Name, primary_key=True),
        sa.Column("id", Name, primary_key=True),
        sa.Column("number", Int64, nullable=False),
        sa.Column("pending", sa.Boolean, nullable=False),
        sa.Column("expires_at", Real, nullable=False),
        sa.Column("proposal", sa.LargeBinary, nullable=False),
        sqlite_with_rowid=False,
        if_not_exists=True,
    )
    op.create_index("proposals_order", "proposals", ["tenant", "number"], if_not_exists=True)
    op.create_table(
        "findings",
        sa.Column("tenant", Name, primary_key=True),
        sa.Column("id", Name, primary_key=True),
        sa.Column("state", sa.Integer, nullable=False),
        sa.Column("last_at", Real, nullable=False),
        sa.Column("value", sa.LargeBinary, nullable=False),
        sqlite_with_rowid=False,
        if_not_exists=True,
    )
    op.create_table(
        "proofs",
        sa.Column("tenant", Name, primary_key=True),
        sa.Column("issuer", Name, primary_key=True),
        sa.Column("jti", sa.LargeBinary, primary_key=True),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("forget_at", Real, nullable=False),
        sqlite_with_rowid=False,
        if_not_exists=True,
    )
    op.create_index("proofs_forget", "proofs", ["forget_at"], if_not_exists=True)


def _create_budgets() -> None:
    op.create_table(
        "budget_periods",
        sa.Column("tenant", Name, primary_key=True),
        sa.Column("subject", Name, primary_key=True),
        sa.Column("number", Int64, nullable=False),
        sa.Column("started_at", Real, nullable=False),
        if_not_exists=True,
    )
    op.create_table(
        "budget_totals",
        sa.Column("tenant", Name, primary_key=True),
        sa.Column("grant_id", Name, primary_key=True),
        sa.Column("subject", Name, primary_key=True),
        sa.Column("period", Int64, primary_key=True, autoincrement=False),
        sa.Column("state", Name, nullable=False),
        sa.Column("updated_at", Real, nullable=False),
        sqlite_with_rowid=False,
        if_not_exists=True,
    )
    op.create_table(
        "budget_rows",
        sa.Column("tenant", Name, primary_key=True),
        sa.Column("holder", Name, primary_key=True),
        sa.Column("grant_id", Name, primary_key=True),
        sa.Column("subject", Name, primary_key=True),
        sa.Column("period", Int64, primary_key=True, autoincrement=False),
        sa.Column("state", Name, nullable=False),
        sqlite_with_rowid=False,
        if_not_exists=True,
    )
    op.create_table(
        "budget_holders",
        sa.Column("tenant", Name, primary_key=True),
        sa.Column("holder", Name, primary_key=True),
        sa.Column("sidecar", Name, nullable=False),
        sa.Column("closed", sa.Boolean, nullable=False),
        sa.Column("seen_at", Real, nullable=False),
        if_not_exists=True,
    )
    op.create_table(
        "budget_settlements",
        sa.Column("tenant", Name, primary_key=True),
        sa.Column("decision_id", Name, primary_key=True),
        sa.Column("executed", sa.Boolean, nullable=False),
        sa.Column("settled_at", Real, nullable=False),
        if_not_exists=True,
    )
    op.create_index("budget_settlements_age", "budget_settlements", ["settled_at"], if_not_exists=True)


def _create_usage() -> None:
    op.create_table(
        "usage_chains",
        sa.Column("sidecar", Name, primary_key=True),
        sa.Column("chain", Name, primary_key=True),
        sa.Column("number", Int64, nullable=False),
        sa.Column("taken_at", Real, nullable=False),
        sqlite_with_rowid=False,
        if_not_exists=True,
    )
    op.create_table(
        "usage_counts",
        sa.Column("tenant", Name, primary_key=True),
        sa.Column("hour", Int64, primary_key=True, autoincrement=False),
        sa.Column("kind", Name, primary_key=True),
        sa.Column("name", Name, primary_key=True),
        sa.Column("count", Int64, nullable=False),
        sqlite_with_rowid=False,
        if_not_exists=True,
    )
    op.create_table(
        "grant_uses",
        sa.Column("tenant", Name, primary_key=True),
        sa.Column("grant_id", Name, primary_key=True),
        sa.Column("uses", Int64, nullable=False),
        sa.Column("last_at", Real, nullable=False),
        sqlite_with_rowid=False,
        if_not_exists=True,
    )
    op.create_table(
        "spot_checks",
        sa.Column("tenant", Name, primary_key=True),
        sa.Column("sample", sa.LargeBinary, primary_key=True),
        sa.Column("grant_id", Name, nullable=False),
        sa.Column("grant_class", Name, nullable=False),
        sa.Column("rate", Real, nullable=False),
        sa.Column("drawn_at", Real, nullable=False),
        sa.Column("outcome", sa.Integer, nullable=False),
        sqlite_with_rowid=False,
        if_not_exists=True,
    )
    op.create_table(
        "fingerprint_subjects",
        sa.Column("tenant", Name, primary_key=True),
        sa.Column("key", sa.LargeBinary, primary_key=True),
        sa.Column("fingerprint", sa.LargeBinary, primary_key=True),
        sa.Column("sidecar", Name, primary_key=True),
        sa.Column("hour", Int64, primary_key=True, autoincrement=False),
        sa.Column("subjects", sa.LargeBinary, nullable=False),
        sqlite_with_rowid=False,
        if_not_exists=True,
    )
    op.create_table(
        "fingerprint_devices",
        sa.Column("tenant", Name, primary_key=True),
        sa.Column("key", sa.LargeBinary, primary_key=True),
        sa.Column("fingerprint", sa.LargeBinary, primary_key=True),
        sa.Column("subject", Name, primary_key=True),
        sa.Column("device", Name, primary_key=True),
        sa.Column("seen_at", Real, nullable=False),
        sqlite_with_rowid=False,
        if_not_exists=True,
    )
    op.create_index("spot_checks_drawn", "spot_checks", ["tenant", "drawn_at"], if_not_exists=True)
