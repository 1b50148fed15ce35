"""The tables of the budgets: the subjects' periods, and the books with their holders and settlements.

Rooms are kept as JSON: amounts are integers without bound, and nothing is added up in the database.
"""

from __future__ import annotations

import json

from sqlalchemy import Boolean, Column, Index, Table

from controlplane.store.columns import Int64, Name, Real
from controlplane.store.tables import METADATA
from engine.books import Row, Totals
from engine.escrow import Room

# By subject. No row: the first period, which no strong authentication began.
BUDGET_PERIODS = Table(
    "budget_periods",
    METADATA,
    Column("tenant", Name, primary_key=True),
    Column("subject", Name, primary_key=True),
    Column("number", Int64, nullable=False),
    Column("started_at", Real, nullable=False),
)

# `engine.books.Totals`.
BUDGET_TOTALS = Table(
    "budget_totals",
    METADATA,
    Column("tenant", Name, primary_key=True),
    Column("grant_id", Name, primary_key=True),
    Column("subject", Name, primary_key=True),
    Column("period", Int64, primary_key=True, autoincrement=False),
    Column("state", Name, nullable=False),
    Column("updated_at", Real, nullable=False),
    sqlite_with_rowid=False,
)

# `engine.books.Row`.
BUDGET_ROWS = Table(
    "budget_rows",
    METADATA,
    Column("tenant", Name, primary_key=True),
    Column("holder", Name, primary_key=True),
    Column("grant_id", Name, primary_key=True),
    Column("subject", Name, primary_key=True),
    Column("period", Int64, primary_key=True, autoincrement=False),
    Column("state", Name, nullable=False),
    sqlite_with_rowid=False,
)

BUDGET_HOLDERS = Table(
    "budget_holders",
    METADATA,
    Column("tenant", Name, primary_key=True),
    Column("holder", Name, primary_key=True),
    Column("sidecar", Name, nullable=False),
    Column("closed", Boolean, nullable=False),
    Column("seen_at", Real, nullable=False),
)

BUDGET_SETTLEMENTS = Table(
    "budget_settlements",
    METADATA,
    Column("tenant", Name, primary_key=True),
    Column("decision_id", Name, primary_key=True),
    Column("executed", Boolean, nullable=False),
    Column("settled_at", Real, nullable=False),
    # Whose spend it was; NULL: settled before version 4.
    Column("grant_id", Name),
    Column("subject", Name),
    Column("period", Int64),
)
Index("budget_settlements_age", BUDGET_SETTLEMENTS.c.settled_at)


def write_totals(totals: Totals) -> str:
    """As it is kept."""
    return json.dumps([totals.taken, totals.spent, totals.cancelled, totals.holders, totals.currency])


def read_totals(state: str) -> Totals:
    """What `write_totals` wrote."""
    taken, spent, cancelled, holders, currency = json.loads(state)
    return Totals(Room(*taken), Room(*spent), Room(*cancelled), holders, currency)


def write_row(row: Row) -> str:
    """As it is kept."""
    return json.dumps([row.granted, row.spent, row.returned, row.cancelled, row.sequence, row.closed])


def read_row(state: str) -> Row:
    """What `write_row` wrote."""
    granted, spent, returned, cancelled, sequence, closed = json.loads(state)
    return Row(Room(*granted), Room(*spent), Room(*returned), Room(*cancelled), sequence, closed)
