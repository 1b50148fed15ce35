"""Alembic runs this to apply the steps; the connection comes from `controlplane.store.schema`."""

from __future__ import annotations

from alembic import context

from controlplane.store.tables import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    # All steps and their bookkeeping commit together, in the caller's transaction, on SQLite too.
    transactional_ddl=True,
)
context.run_migrations()
