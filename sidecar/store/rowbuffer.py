"""Loading an index in sorted runs: rows come in the order of another key, and LMDB rewrites every page they touch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import lmdb

if TYPE_CHECKING:
    from lmdb import _Database

RUN_ROWS: Final = 32_768
"""Rows sorted together: some 4 MiB, and 30 ms to sort."""
_DRAIN_ROWS: Final = 1500


class RowBuffer:
    """Collects index rows and writes them in sorted runs, a slice at a time, so that neighbours share a page."""

    def __init__(self, db: _Database) -> None:
        self._db = db
        self._coming: list[tuple[bytes, bytes]] = []
        self._run: list[tuple[bytes, bytes]] = []
        self._next = 0

    def add(self, rows: list[tuple[bytes, bytes]]) -> None:
        """Takes rows in, in any order."""
        rows.sort()
        self._coming += rows

    def drain(self, txn: lmdb.Transaction[bytes], *, rest: bool = False) -> bool:
        """Writes a slice, of a full run only unless it is about the rest. Returns whether there was something to write."""
        if self._next >= len(self._run):
            if not self._coming or (len(self._coming) < RUN_ROWS and not rest):
                return False
            self._run, self._coming, self._next = self._coming, [], 0
            self._run.sort()
        piece = self._run[self._next : self._next + _DRAIN_ROWS]
        self._next += _DRAIN_ROWS
        txn.cursor(self._db).putmulti(piece)
        return True
