"""The shipper's cursor: how far each segment has been acknowledged, in a small file beside the segments.

It may lag behind what was acknowledged (then some records are sent twice) and is never ahead of it.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from sidecar.journal.reader import Position
from sidecar.journal.segment import sync_directory

_NAME = "cursor"


class CursorFile(msgspec.Struct):
    """`segments`: acknowledged up to here. `next`: per writer, its chain and the sequence number due next."""

    segments: dict[str, Position] = {}
    next: dict[str, tuple[str, int]] = {}

    def save(self, directory: Path) -> None:
        """Replaces the file, durably. Raises OSError."""
        fresh = directory / (_NAME + ".new")
        with fresh.open("wb") as file:
            file.write(msgspec.json.encode(self))
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(directory / _NAME)
        sync_directory(directory)


def load_cursor(directory: Path) -> CursorFile:
    """Reads the file; an empty cursor if there is none or it is damaged, so that everything is sent (again)."""
    try:
        return msgspec.json.decode((directory / _NAME).read_bytes(), type=CursorFile)
    except (FileNotFoundError, msgspec.MsgspecError):
        return CursorFile()
