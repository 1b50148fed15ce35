"""The control plane's database: records, heads, change log and the table of sidecars."""

from controlplane.store.model import (
    MAX_COMMIT_BYTES,
    MAX_VALUE_BYTES,
    MAX_WRITES,
    Backlog,
    Batches,
    Committed,
    Entry,
    Head,
    Write,
)
from controlplane.store.store import Store

__all__ = [
    "MAX_COMMIT_BYTES",
    "MAX_VALUE_BYTES",
    "MAX_WRITES",
    "Backlog",
    "Batches",
    "Committed",
    "Entry",
    "Head",
    "Store",
    "Write",
]
