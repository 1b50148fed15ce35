"""Segment files: the journal's format, and its writer.

A writer owns a *chain* of append-only files, `{name}-{start}-{number}.seg`: `name` is `w0` for worker 0, `start` is
new with every start of the writer, `number` counts the chain's files. A file begins with a header and goes on with
frames:

    header   magic (8, the last is the version) | sequence number of the first record, u64 | created, Unix ms, u64 |
             chain hash before the first record (32) | CRC-32 of the foregoing, u32
    frame    length of the payload, u32 | CRC-32 of hash and payload, seeded with the length, u32 |
             chain hash of the record (32) | payload

All little-endian. Records are numbered from 0 within a chain, so a record that is gone leaves a visible gap, and hashed
together with the one before (see chain.py), so a record that was changed is noticed. The writer holds an exclusive flock
on the file it appends to, taken before the file gets its name and given up once the chain's next file has its own: a file
without that lock will never grow again, and a chain whose last file has none has ended.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import threading
import time
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from struct import Struct
from typing import NamedTuple

from engine.errors import SidestepError
from sidecar.journal.chain import HASH_BYTES, genesis, link

FORMAT = 2
MAGIC = b"SSJRNL\x00"
HEADER = Struct(f"<7sBQQ{HASH_BYTES}sI")
FRAME = Struct(f"<II{HASH_BYTES}s")
MAX_RECORD_BYTES = 1 << 20
SEGMENT_BYTES = 4 << 20
_ROOM_BYTES = 256 << 10
_RESCAN_S = 0.1
_RETRY_S = 1.0
_NAME = re.compile(r"([a-z]+)(\d*)-([0-9a-f]{12})-(\d{8})\.seg")


class JournalError(SidestepError):
    """The journal cannot be written or read."""


class SegmentName(NamedTuple):
    """A parsed file name. Names sort in the order they were written, per writer."""

    kind: str
    worker: int
    start: int
    number: int

    @property
    def writer(self) -> str:
        """`w0`: worker 0; `q`: the quarantine."""
        return f"{self.kind}{self.worker}" if self.worker >= 0 else self.kind

    @property
    def chain(self) -> str:
        """What numbers its records: one start of one writer."""
        return f"{self.writer}-{self.start:012x}"

    def __str__(self) -> str:
        return f"{self.chain}-{self.number:08d}.seg"


def parse_segment_name(name: str) -> SegmentName | None:
    """None for a file that is no segment."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    return SegmentName(match[1], int(match[2]) if match[2] else -1, int(match[3], 16), int(match[4]))


def worker_name(index: int) -> str:
    """The writer name of worker `index`."""
    return f"w{index}"


def list_segments(directory: Path) -> list[SegmentName]:
    """All segments, oldest first per writer."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    return sorted(segment for segment in map(parse_segment_name, names) if segment is not None)


class SegmentWriter:
    """Appends one writer's records. Thread-safe.

    `max_bytes` is the writer's bound on the files that wait for shipment: its own chains, plus a `shared_by`-th of
    those no running worker owns (the quarantine, segments of workers that are no longer configured). With `durable`, a
    record is on the disk when `append` returns; otherwise with the kernel, which survives the death of any process but
    not of the node.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        max_bytes: int,
        *,
        shared_by: int = 1,
        durable: bool = False,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        self._directory = directory
        self._name = name
        self._kind, self._worker = _split(name)
        self._limit = max_bytes
        self._room = min(_ROOM_BYTES, max_bytes // 8)
        # Small bounds get small files: what is shipped can only be removed file by file.
        self._segment_bytes = min(segment_bytes, max_bytes // 4)
        self._shared_by = shared_by
        self._durable = durable
        self._lock = threading.Lock()
        self._fd = -1
        self._size = 0
        # Nothing may follow in the open file: a write failed and it ends in half a record, or it was removed.
        self._torn = False
        self._number = 0
        self._sequence = 0
        self._retry_at = 0.0
        self._scan_at = 0.0
        try:
            directory.mkdir(parents=True, exist_ok=True)
            for leftover in directory.glob(f"{name}-*.new"):
                leftover.unlink()
            self._start = self._new_start()
            self._used = self._scan()
        except OSError as error:
            raise JournalError(f"{directory}: {error.strerror}") from error
        self._head = genesis(self.chain)

    @property
    def chain(self) -> str:
        """The chain this writer appends to."""
        return self._segment.chain

    @property
    def records(self) -> int:
        """How many records of the chain are in the journal; the next one gets this number."""
        return self._sequence

    @property
    def head(self) -> bytes:
        """Chain hash of the last of them; of an empty chain the genesis."""
        return self._head

    @property
    def durable(self) -> bool:
        """Whether what is appended is on the disk when `append` returns."""
        return self._durable

    def has_room(self) -> bool:
        """Whether the next batch may be appended without passing the bound. Cheap: asked before every batch is decided.

        The bound is on whole files and may be passed by less than one batch. False also for a second after a failed
        write.
        """
        if self._used + self._room <= self._limit and not self._retry_at:
            return True
        now = time.monotonic()
        if now < self._retry_at:
            return False
        self._retry_at = 0.0
        if now >= self._scan_at:
            self._used = self._scan()
            self._scan_at = now + _RESCAN_S
        return self._used + self._room <= self._limit

    def append(self, records: Sequence[bytes]) -> int:
        """Appends all records in one write and returns the sequence number of the first.

        Raises JournalError if not all of them could be written (disk full, I/O error) or one is empty or larger than
        MAX_RECORD_BYTES. Some of them may be in the journal all the same, each whole or not at all.
        """
        size = 0
        for record in records:
            length = len(record)
            if not 0 < length <= MAX_RECORD_BYTES:
                raise JournalError(f"a record of {length} bytes; 1 to {MAX_RECORD_BYTES} are possible")
            size += FRAME.size + length
        with self._lock:
            hashes, data = _frames(self._head, records)
            try:
                if self._fd < 0 or self._torn or self._size + size > max(self._segment_bytes, HEADER.size + size):
                    self._rotate()
                first = self._sequence
                self._write(data, records, hashes)
            except OSError as error:
                # What was written of the batch stays as a torn tail; the next batch begins a new file.
                self._retry_at = time.monotonic() + _RETRY_S
                raise JournalError(f"cannot append to {self._directory}: {error.strerror}") from error
            return first

    def replace_removed(self) -> None:
        """Begins another file if somebody removed the one being written, and its records with it. To be called often.

        The new file's first number tells how many are gone. Raises OSError if there can be no other file: then there is no room.
        """
        with self._lock:
            if self._fd < 0 or os.fstat(self._fd).st_nlink:
                return
            self._torn = True
            try:
                self._rotate()
            except OSError:
                self._retry_at = time.monotonic() + _RETRY_S
                raise

    def close(self) -> None:
        """Gives the last file free for shipment and removal."""
        with suppress(OSError):
            self.replace_removed()
        with self._lock:
            self._release()

    def _write(self, data: bytes, records: Sequence[bytes], hashes: Sequence[bytes]) -> None:
        written = 0
        self._torn = True
        try:
            while written < len(data):
                written += os.write(self._fd, data[written:] if written else data)
            if self._durable:
                os.fdatasync(self._fd)
            self._torn = False
        finally:
            self._size += written
            self._used += written
            whole = len(records) if written == len(data) else _whole(records, written)
            if whole:
                self._sequence += whole
                self._head = hashes[whole - 1]

    def _rotate(self) -> None:
        """Begins the next file. Only then the last one is given up, so that the chain never looks ended meanwhile."""
        self._used = self._scan()
        self._number += 1
        path = self._directory / str(self._segment)
        fresh = path.with_suffix(".new")
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            header = HEADER.pack(MAGIC, FORMAT, self._sequence, int(time.time() * 1000), self._head, 0)[:-4]
            if os.write(fd, header + zlib.crc32(header).to_bytes(4, "little")) != HEADER.size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if self._durable:
                os.fsync(fd)
            fresh.rename(path)
            if self._durable:
                sync_directory(self._directory)
        except BaseException:
            os.close(fd)
            fresh.unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            raise
        self._release()
        self._fd = fd
        self._size = HEADER.size
        self._used += HEADER.size

    @property
    def _segment(self) -> SegmentName:
        return SegmentName(self._kind, self._worker, self._start, self._number)

    def _release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._size = 0
        self._torn = False

    def _new_start(self) -> int:
        """A start later than any before, also when the clock was set back."""
        earlier = [segment.start for segment in list_segments(self._directory) if segment.writer == self._name]
        return max([int(time.time() * 1000), *(start + 1 for start in earlier)])

    def _scan(self) -> int:
        own = shared = 0
        with os.scandir(self._directory) as entries:
            for entry in entries:
                segment = parse_segment_name(entry.name)
                if segment is None:
                    continue
                try:
                    size = entry.stat().st_size
                except FileNotFoundError:  # shipped and removed meanwhile
                    continue
                if segment.writer == self._name:
                    own += size
                elif segment.kind != "w" or segment.worker >= self._shared_by:
                    shared += size
        return own + -(-shared // self._shared_by)


def sync_directory(directory: Path) -> None:
    """Makes names created, renamed or removed in a directory survive the node."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _split(name: str) -> tuple[str, int]:
    kind = name.rstrip("0123456789")
    return kind, int(name[len(kind) :]) if len(name) > len(kind) else -1


def _frames(head: bytes, records: Sequence[bytes]) -> tuple[list[bytes], bytes]:
    """The chain hash of each record behind `head`, and all of them as frames."""
    hashes: list[bytes] = []
    parts: list[bytes] = []
    for record in records:
        head = link(head, record)
        length = len(record)
        hashes.append(head)
        parts.append(FRAME.pack(length, checksum(length, head, record), head))
        parts.append(record)
    return hashes, b"".join(parts)


def checksum(length: int, chain_hash: bytes, payload: bytes) -> int:
    """A frame's CRC-32."""
    return zlib.crc32(payload, zlib.crc32(chain_hash, length))


def _whole(records: Sequence[bytes], written: int) -> int:
    """How many records fit whole into the bytes written."""
    count = 0
    for record in records:
        written -= FRAME.size + len(record)
        if written < 0:
            break
        count += 1
    return count
