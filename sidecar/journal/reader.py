"""Reads segments, also while they are being written."""

from __future__ import annotations

import fcntl
import os
import zlib
from pathlib import Path
from struct import Struct
from typing import NamedTuple

from sidecar.journal.segment import FORMAT, FRAME, HEADER, MAGIC, MAX_RECORD_BYTES, JournalError, checksum

_LENGTH = Struct("<I")
_CHUNK_BYTES = 512 << 10
_HOP_BYTES = 64 << 10
_SLICE_RECORDS = 512
# Holds a damaged record and the one behind it, however large.
_LARGEST_BYTES = 2 * (MAX_RECORD_BYTES + FRAME.size)


class Position(NamedTuple):
    """A place in a segment: the offset of a frame, and the sequence number of its record."""

    offset: int
    sequence: int


class Entry(NamedTuple):
    """One record with its chain hash, and the place behind it.

    `skipped`: records before it that are damaged, and so gone.
    """

    sequence: int
    payload: bytes
    hash: bytes
    after: Position
    skipped: int


class SegmentReader:
    """Reads one segment from a position on (None: from its beginning). Holds no lock; used by one thread.

    `first`: the place of its first record; `previous`: the chain hash before that. Raises JournalError if the file is no
    segment, of another format, or its header is damaged; FileNotFoundError if there is none.
    """

    def __init__(self, path: Path, position: Position | None = None) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            header = os.pread(self._fd, HEADER.size, 0)
            if header.startswith(MAGIC) and header[len(MAGIC) :][:1] not in (b"", bytes((FORMAT,))):
                raise JournalError(f"{path}: its header says format {header[len(MAGIC)]}; this version reads {FORMAT}")
            if len(header) < HEADER.size:
                raise JournalError(f"{path}: cut within its header")
            magic, _, first, self.created_ms, self.previous, crc = HEADER.unpack(header)
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

        Damaged records with a sound one behind them are skipped, as far as their lengths lead to it. Damage without a sound
        record behind is a torn tail: reading stops there.
        """
        entries = self._parse(os.pread(self._fd, _CHUNK_BYTES, self.position.offset), max_records)
        if not entries and self.rest() > _CHUNK_BYTES:
            entries = self._parse(os.pread(self._fd, _LARGEST_BYTES, self.position.offset), max_records)
        return entries

    def last(self) -> Entry | None:
        """The last whole record behind the position, which moves behind it; None if there is none.

        Hops from length to length and examines that record's checksum only; if it is wrong, everything is read instead.
        """
        start = self.position
        found = self._hop(start)
        if found is None:
            return None
        self.position = found
        entries = self.read(1)
        if entries:
            return entries[0]
        self.position = start
        last = None
        while entries := self.read(_SLICE_RECORDS):
            last = entries[-1]
        return last

    def _hop(self, start: Position) -> Position | None:
        """The place of the last frame that lies within the file by its own account."""
        size = os.fstat(self._fd).st_size
        at, sequence = start
        found = None
        while at < size:
            data = os.pread(self._fd, _HOP_BYTES, at)
            base = at
            while at - base + FRAME.size <= len(data):
                (length,) = _LENGTH.unpack_from(data, at - base)
                end = at + FRAME.size + length
                if not 0 < length <= MAX_RECORD_BYTES or end > size:
                    return found
                found = Position(at, sequence)
                at, sequence = end, sequence + 1
            if at == base:  # less than a frame
                return found
        return found

    def _parse(self, data: bytes, max_records: int) -> list[Entry]:
        start = self.position
        entries: list[Entry] = []
        at, skipped = 0, 0
        while len(entries) < max_records:
            found = _sound(data, at)
            if found is None:
                damaged = _damaged(data, at)
                if damaged is None:
                    break
                at, skipped = damaged[0], skipped + damaged[1]
                continue
            at, chain_hash, payload = found
            sequence = self.position.sequence + skipped
            self.position = Position(start.offset + at, sequence + 1)
            entries.append(Entry(sequence, payload, chain_hash, self.position, skipped))
            skipped = 0
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
    (length,) = _LENGTH.unpack_from(data, at)
    end = at + FRAME.size + int(length)
    return end if 0 < length <= MAX_RECORD_BYTES and end <= len(data) else None


def _damaged(data: bytes, at: int) -> tuple[int, int] | None:
    """Of damaged frames from `at` on: where the first sound one behind them is, and how many they are; None if there is none."""
    count = 0
    while (behind := _end(data, at)) is not None:
        at, count = behind, count + 1
        if _sound(data, at) is not None:
            return at, count
    return None


def _sound(data: bytes, at: int) -> tuple[int, bytes, bytes] | None:
    """The frame at `at`, if it is whole and its checksum matches: where it ends, its chain hash and its payload."""
    if at + FRAME.size > len(data):
        return None
    length, crc, chain_hash = FRAME.unpack_from(data, at)
    end = at + FRAME.size + length
    if not 0 < length <= MAX_RECORD_BYTES or end > len(data):
        return None
    payload = data[at + FRAME.size : end]
    return (end, chain_hash, payload) if checksum(length, chain_hash, payload) == crc else None
