"""Where an import waits until all of it has come: a temporary SQLite table on disk, so that size costs no memory.

The table compares itself with what the store has, in both directions, by hashes.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

_SCHEMA = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
CREATE TABLE staged (id TEXT PRIMARY KEY, position INTEGER, hash BLOB, value BLOB) WITHOUT ROWID;
CREATE TABLE kept (id TEXT PRIMARY KEY, hash BLOB) WITHOUT ROWID;
"""
_CHANGED = """
SELECT staged.id, position, value, kept.id IS NULL FROM staged LEFT JOIN kept ON kept.id = staged.id
WHERE kept.hash IS NOT staged.hash ORDER BY staged.id
"""
_REMOVED = "FROM kept LEFT JOIN staged ON staged.id = kept.id WHERE staged.id IS NULL"


class Staged(NamedTuple):
    """A record that was sent. `position` counts from 0 over the whole import; `hash` is of its content."""

    id: str
    position: int
    hash: bytes
    value: bytes


class Change(NamedTuple):
    """A record that is not as it was sent. `added`: the store has none of this id."""

    id: str
    position: int
    value: bytes
    added: bool


class RepeatedError(Exception):
    """The record at `position` has the id of an earlier one."""

    def __init__(self, position: int, record_id: str) -> None:
        super().__init__(position, record_id)
        self.position = position
        self.record_id = record_id


class Staging:
    """One import's records. Usable from any thread, by one at a time. `close`, or the process's end, frees the disk."""

    def __init__(self) -> None:
        # An empty path is a private file that SQLite unlinks at once.
        self._db = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        """Discards everything."""
        self._db.close()

    def add(self, rows: Sequence[Staged]) -> None:
        """Adds records. Raises RepeatedError if an id was there before; then the import is over."""
        try:
            self._db.executemany("INSERT INTO staged VALUES (?, ?, ?, ?)", rows)
        except sqlite3.IntegrityError:
            raise self._repeated(rows) from None

    def keep(self, hashes: Iterable[tuple[str, bytes]]) -> None:
        """Tells what the store has: ids and content hashes."""
        self._db.executemany("INSERT OR REPLACE INTO kept VALUES (?, ?)", hashes)

    def get(self, record_id: str) -> Staged | None:
        """The staged record of an id, if any."""
        row = self._db.execute("SELECT id, position, hash, value FROM staged WHERE id = ?", (record_id,)).fetchone()
        return None if row is None else Staged(*row)

    def kept(self) -> int:
        """How many records the store has."""
        return int(self._db.execute("SELECT count(*) FROM kept").fetchone()[0])

    def added(self) -> int:
        """How many staged records the store has not."""
        query = "SELECT count(*) FROM staged LEFT JOIN kept ON kept.id = staged.id WHERE kept.id IS NULL"
        return int(self._db.execute(query).fetchone()[0])

    def missing(self) -> int:
        """How many records the store has that were not sent."""
        return int(self._db.execute(f"SELECT count(*) {_REMOVED}").fetchone()[0])

    def changed(self) -> Iterator[Change]:
        """Staged records the store has not or has otherwise, by id."""
        return (Change(row[0], row[1], row[2], bool(row[3])) for row in self._db.execute(_CHANGED))

    def removed(self) -> Iterator[str]:
        """Ids the store has that were not sent, in order."""
        return (row[0] for row in self._db.execute(f"SELECT kept.id {_REMOVED} ORDER BY kept.id"))

    def _repeated(self, rows: Sequence[Staged]) -> RepeatedError:
        # Rows of this call up to the first repeated one are in the table, with their own positions.
        for row in rows:
            earlier = self.get(row.id)
            if earlier is not None and earlier.position != row.position:
                return RepeatedError(row.position, row.id)
        return RepeatedError(rows[0].position, rows[0].id)
