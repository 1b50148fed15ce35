"""The file format of a snapshot: one (tenant, lane) at one revision, immutable, sent verbatim to everyone.

    magic, length-prefixed SnapshotOffer      cursor and digest key
    length-prefixed SnapshotRecords ...       at most 256 KiB each, sorted by (collection, id) over the whole file
    footer                                    number of chunks, records and payload bytes; SHA-256 of the chunks as they
                                              are here, lengths included; SHA-256 of all before it

Integers are big-endian. The first checksum is what is signed, whenever the file is offered. A file is written under a temporary
name, synced, and renamed when it is complete.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from struct import Struct
from typing import BinaryIO, NamedTuple

from google.protobuf.message import DecodeError
from sidestep.v1 import resources_pb2, sync_pb2

from controlplane.changes import to_cursor
from controlplane.errors import DamagedError
from controlplane.store import Head
from engine.digest import Digest

MAX_PAYLOAD_BYTES = 256 * 1024
SUFFIX = ".snapshot"
TEMPORARY_SUFFIX = ".partial"

_MAGIC = b"sidestep snapshot 2\n"
_LENGTH = Struct(">I")
_FOOTER = Struct(">IQQ32s")
_CHECKSUM_BYTES = hashlib.sha256().digest_size
# Tags and lengths around one record in a chunk, at most.
_RECORD_OVERHEAD = 20
_MAX_OFFER_BYTES = 64 * 1024
_HASH_BLOCK = 1024 * 1024


class SnapshotFile(NamedTuple):
    """A complete file. `first` is the offset of its first chunk."""

    path: Path
    offer: sync_pb2.SnapshotOffer
    chunks: int
    first: int

    @property
    def revision(self) -> int:
        """The revision whose state it holds."""
        return self.offer.cursor.revision

    @property
    def position(self) -> tuple[int, int]:
        """Epoch and revision."""
        return self.offer.cursor.epoch, self.offer.cursor.revision


class SnapshotWriter:
    """Writes the records of a lane, in order, to `path`; `finish` makes the file appear, `abandon` leaves nothing."""

    def __init__(self, path: Path, head: Head) -> None:
        self._path = path
        self._partial = path.with_suffix(TEMPORARY_SUFFIX)
        self._head = head
        self._digest = Digest(head.digest_key)
        self._hash = hashlib.sha256()
        self._payload_hash = hashlib.sha256()
        self._records = sync_pb2.SnapshotRecords()
        self._size = 0
        self._chunks = 0
        self._count = 0
        self._bytes = 0
        self._file: BinaryIO = self._partial.open("wb")
        offer = sync_pb2.SnapshotOffer(cursor=to_cursor(head), digest_key=head.digest_key).SerializeToString()
        self._write(_MAGIC + _LENGTH.pack(len(offer)) + offer)

    def add(self, records: Iterable[tuple[int, str, bytes]]) -> None:
        """Appends records, given in order of (collection, id). Blocks."""
        for collection, record_id, value in records:
            size = len(record_id.encode()) + len(value) + _RECORD_OVERHEAD
            if self._size + size > MAX_PAYLOAD_BYTES:
                self._flush()
            self._records.records.add(
                collection=resources_pb2.Collection.ValueType(collection), id=record_id, value=value
            )
            self._digest.add(collection, record_id, value)
            self._size += size
            self._count += 1

    def finish(self) -> SnapshotFile:
        """Syncs and renames. Raises DamagedError if the records do not have the head's digest. Blocks."""
        if self._digest.value() != self._head.digest:
            raise DamagedError(f"tenants/{self._head.tenant}: the records of lane {self._head.lane} miss their digest")
        self._flush()
        self._write(_FOOTER.pack(self._chunks, self._count, self._bytes, self._payload_hash.digest()))
        self._file.write(self._hash.digest())
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._partial.rename(self._path)
        _sync_folder(self._path.parent)
        return open_snapshot(self._path)

    def abandon(self) -> None:
        """Removes what was written; does nothing after `finish`."""
        self._file.close()
        self._partial.unlink(missing_ok=True)

    def _flush(self) -> None:
        if not self._size:
            return
        payload = self._records.SerializeToString()
        prefixed = _LENGTH.pack(len(payload)) + payload
        self._payload_hash.update(prefixed)
        self._write(prefixed)
        self._chunks += 1
        self._bytes += len(payload)
        # A cleared message would keep all its memory, and let it grow with every chunk.
        self._records = sync_pb2.SnapshotRecords()
        self._size = 0

    def _write(self, data: bytes) -> None:
        self._hash.update(data)
        self._file.write(data)


class SnapshotReader:
    """Reads the chunks of a file in order. The file may be unlinked meanwhile."""

    def __init__(self, snapshot: SnapshotFile) -> None:
        self._file = snapshot.path.open("rb")
        self._file.seek(snapshot.first)

    def read(self) -> bytes:
        """The next chunk's payload; not to be called more often than there are chunks. Blocks."""
        return _read_prefixed(self._file, MAX_PAYLOAD_BYTES)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._file.closed


def open_snapshot(path: Path) -> SnapshotFile:
    """Reads header and footer. Raises DamagedError, OSError. Blocks."""
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise DamagedError(f"{path.name}: not a snapshot")
        try:
            offer = sync_pb2.SnapshotOffer.FromString(_read_prefixed(file, _MAX_OFFER_BYTES))
        except DecodeError:
            raise DamagedError(f"{path.name}: header does not decode") from None
        first = file.tell()
        footer = file.seek(0, os.SEEK_END) - _CHECKSUM_BYTES - _FOOTER.size
        if footer < first:
            raise DamagedError(f"{path.name}: cut off")
        file.seek(footer)
        offer.chunks, offer.records, offer.bytes, offer.payload_sha256 = _FOOTER.unpack(file.read(_FOOTER.size))
    return SnapshotFile(path, offer, offer.chunks, first)


def verify_snapshot(path: Path) -> None:
    """Reads the whole file and compares its checksum. Raises DamagedError, OSError. Blocks."""
    with path.open("rb") as file:
        left = file.seek(0, os.SEEK_END) - _CHECKSUM_BYTES
        file.seek(0)
        checksum = hashlib.sha256()
        while left > 0:
            block = file.read(min(left, _HASH_BLOCK))
            checksum.update(block)
            left -= len(block)
        if file.read() != checksum.digest():
            raise DamagedError(f"{path.name}: checksum does not match")


def _read_prefixed(file: BinaryIO, limit: int) -> bytes:
    prefix = file.read(_LENGTH.size)
    length = _LENGTH.unpack(prefix)[0] if len(prefix) == _LENGTH.size else limit + 1
    data = file.read(length) if length <= limit else b""
    if len(data) != length:
        raise DamagedError(f"{Path(file.name).name}: cut off or damaged")
    return data


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
