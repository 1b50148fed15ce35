"""The shipper's cursor: how far each segment has been dealt with, and what became of each chain's records.

A small file beside the segments. It may lag behind the truth by what was acknowledged since it was saved (those records are
sent again) and is never ahead of it. Positions and tallies are saved as one, so a record that is sent twice is counted once.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import msgspec

from engine.decision import Spend
from sidecar.journal.reader import Position
from sidecar.journal.segment import sync_directory

CURSOR_FILE = "cursor"

_log = logging.getLogger(__name__)


class Tally(msgspec.Struct, frozen=True):
    """What became of one chain's records. Only ever rises.

    Fields as in `JournalChain` of sidestep/v1/report.proto.
    """

    # All records below this number are delivered, quarantined, discarded or known to be lost.
    settled: int = 0
    # Chain hash of the last of them, or of the last spooled one; empty: not known.
    head: bytes = b""
    quarantined: int = 0
    discarded: int = 0
    lost: int = 0
    # Records copied to the spool: those from `settled` on, which will not be settled here any more.
    spooled: int = 0


class Spent(msgspec.Struct):
    """What one holder's records spent that are settled, by the number of the slice: uses, and billionths of a currency's unit."""

    chain: str
    slices: dict[int, tuple[int, int, str]] = {}

    def add(self, spend: Spend) -> None:
        """Counts one more record."""
        uses, nanos, _ = self.slices.get(spend.slice, (0, 0, ""))
        self.slices[spend.slice] = (uses + spend.uses, nanos + spend.nanos, spend.currency)


class CursorFile(msgspec.Struct, omit_defaults=True):
    """`segments`: dealt with up to here. `chains`: the tally of every chain that has segments, is still to be reported, or has a
    holder that is not closed. `spent`: by holder, in hexadecimal digits; only of records that are settled."""

    segments: dict[str, Position] = {}
    chains: dict[str, Tally] = {}
    spent: dict[str, Spent] = {}

    def encode(self) -> bytes:
        """The file's content."""
        return msgspec.json.encode(self)


def save_cursor(directory: Path, content: bytes) -> None:
    """Replaces the file with `CursorFile.encode()`'s bytes, durably. Raises OSError."""
    replace_file(directory / CURSOR_FILE, content)


def load_cursor(directory: Path) -> CursorFile | None:
    """Reads the file; None if there is none or it is damaged: then everything is sent (again)."""
    try:
        return msgspec.json.decode((directory / CURSOR_FILE).read_bytes(), type=CursorFile)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError:
        _log.error("journal: %s is damaged: records are sent again", directory / CURSOR_FILE)
        return None


def replace_file(path: Path, content: bytes) -> None:
    """Writes a small file so that, whatever happens, either the old or the new content is there. Raises OSError."""
    fresh = path.with_name(path.name + ".new")
    with fresh.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    sync_directory(path.parent)
