"""Reads segments, also while they are being written."""

from __future__ import annotations

import fcntl
import os
import zlib
from pathlib import Path
from typing import NamedTuple

from sidecar.journal.segment import FRAME, HEADER, MAGIC, MAX_RECORD_BYTES, JournalError

_CHUNK_BYTES = 512 << 10
# Holds a damaged record and the one behind it, however large.
_LARGEST_BYTES = 2 * (MAX_RECORD_BYTES + FRAME.size)


class Position(NamedTuple):
    """A place in a segment: the offset of a frame, and the sequence number of its record."""

    offset: int
    sequence: int


class Entry(NamedTuple):
    """One record, and the place behind it. `skipped`: records before it that are damaged, and so gone."""

    sequence: int
    payload: bytes
    after: Position
    skipped: int


class SegmentReader:
    """Reads one segment from a position on (None: from its beginning). Holds no lock; used by one thread.

    Raises JournalError if the file is no segment or its header is damaged, FileNotFoundError if there is none.
    """

    def __init__(self, path: Path, position: Position | None = None) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            header = os.pread(self._fd, HEADER.size, 0)
            if len(header) < HEADER.size:
                raise JournalError(f"{path}: cut within its header")
            magic, first, self.created_ms, crc = HEADER.unpack(header)
            if magic != MAGIC or crc != zlib.crc32(header[:-4]):
                raise JournalError(f"{path}: its header is damaged")
        except BaseException:
            os.close(self._fd)
            raise
        self.first = Position(HEADER.size, first)
        self.position = position or self.first

    def finished(self) -> bool:
        """Whether the file has got all it will ever get. Ask before reading: then an empty read is the end."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        return True

    def read(self, max_records: int) -> list[Entry]:
        """The next whole records, at most so many; none at the end, or before a record that is still being written.

        A damaged record with a sound one behind it is skipped. Damage without a sound record behind is a torn tail:
        reading stops there.
        """
        entries = self._parse(os.pread(self._fd, _CHUNK_BYTES, self.position.offset), max_records)
        if not entries and self.rest() > _CHUNK_BYTES:
            entries = self._parse(os.pread(self._fd, _LARGEST_BYTES, self.position.offset), max_records)
        return entries

    def _parse(self, data: bytes, max_records: int) -> list[Entry]:
        start = self.position
        entries: list[Entry] = []
        at, skipped = 0, 0
        while len(entries) < max_records:
            end = _sound(data, at)
            if end is None:
                behind = _end(data, at)
                if behind is None or _sound(data, behind) is None:
                    break
                at, skipped = behind, skipped + 1
                continue
            sequence = self.position.sequence + skipped
            self.position = Position(start.offset + end, sequence + 1)
            entries.append(Entry(sequence, data[at + FRAME.size : end], self.position, skipped))
            at, skipped = end, 0
        return entries

    def rest(self) -> int:
        """Bytes behind the position; in a finished segment without further records, the length of its torn tail."""
        return max(0, os.fstat(self._fd).st_size - self.position.offset)

    def close(self) -> None:
        """Closes the file."""
        os.close(self._fd)


def _end(data: bytes, at: int) -> int | None:
    """Where the frame at `at` ends by its own account, if that lies within the data."""
    if at + FRAME.size > len(data):
        return None
    length, _ = FRAME.unpack_from(data, at)
    end = at + FRAME.size + int(length)
    return end if 0 < length <= MAX_RECORD_BYTES and end <= len(data) else None


def _sound(data: bytes, at: int) -> int | None:
    """Where the frame at `at` ends, if it is whole and its checksum matches."""
    end = _end(data, at)
    if end is None:
        return None
    length, crc = FRAME.unpack_from(data, at)
    return end if zlib.crc32(memoryview(data)[at + FRAME.size : end], length) == crc else None
