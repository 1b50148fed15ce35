"""The database's schema, step by step: an Alembic environment that runs in the transaction it is given.

Steps are never changed once released. `controlplane.store.schema` applies them.
"""
