"""The data directory: generations, which one is CURRENT, and whether it may be trusted. Standard library only.

    CURRENT          name of the live generation, replaced by rename
    gen-N/           one LMDB environment, with `boot` (the boot whose page cache it can count on) and maybe `suspect`
    quarantine-N/    the last generation that could not be read, kept for the curious
    writer.lock      held by the one writer

Files are never reused, truncated or changed by anything but LMDB, since a reader may have them mapped.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import struct
import sys
from pathlib import Path
from typing import Final

from sidecar.store.errors import LockedError

_NAME = re.compile(r"(?:gen|quarantine)-(\d+)")
_CURRENT = "CURRENT"
_BOOT: Final = "boot"
_SUSPECT: Final = "suspect"


def mark_suspect(generation: Path, reason: str) -> None:
    """Says that a reader could not read a generation, or died of it. No reader opens it before the writer examined it.

    Does nothing if the generation is gone.
    """
    try:
        (generation / _SUSPECT).write_text(reason, encoding="utf-8")
    except FileNotFoundError:
        return


def is_suspect(generation: Path) -> bool:
    """Whether the generation is marked suspect."""
    return (generation / _SUSPECT).exists()


def is_trusted(generation: Path, boot_id: str) -> bool:
    """Whether the generation was written or examined in this boot and is not suspect, so that it may be served at once.

    After another boot what was not synced may be missing, so it must be examined first.
    """
    try:
        boot = (generation / _BOOT).read_text(encoding="ascii")
    except (FileNotFoundError, UnicodeDecodeError):
        return False
    return boot == boot_id and not is_suspect(generation)


def trust(generation: Path, boot_id: str) -> None:
    """Records that the generation is sound as of this boot, and clears `suspect`."""
    _replace(generation / _BOOT, boot_id)
    (generation / _SUSPECT).unlink(missing_ok=True)


_MAGIC = 0xBEEFC0DE
_PAGE_HEADER = 16
_META = struct.Struct("=IIQQ")  # mm_magic, mm_version, mm_address, mm_mapsize
_META_DBS = 2 * 48  # two MDB_db records follow, then mm_last_pg and mm_txnid
_TAIL = struct.Struct("=QQ")
_PAGE_SIZE_AT = _PAGE_HEADER + _META.size
_META_BYTES = _PAGE_SIZE_AT + _META_DBS + _TAIL.size
DATA: Final = "data.mdb"


def shortfall(generation: Path) -> int | None:
    """Bytes by which the data file is shorter than LMDB's own meta pages say; None if they make no sense.

    Reading what is missing through the map would be a SIGBUS. The writer keeps this at 0.
    """
    try:
        with (generation / DATA).open("rb") as file:
            file.seek(_PAGE_SIZE_AT)
            page_size = int.from_bytes(file.read(4), sys.byteorder)
            if page_size not in {512 << n for n in range(8)}:
                return None
            newest, last_page = -1, -1
            for page in range(2):
                file.seek(page * page_size)
                head = file.read(_META_BYTES)
                if _META.unpack_from(head, _PAGE_HEADER)[0] != _MAGIC:
                    return None
                page_number, txnid = _TAIL.unpack_from(head, _PAGE_SIZE_AT + _META_DBS)
                if txnid > newest:
                    newest, last_page = txnid, page_number
            size = file.seek(0, os.SEEK_END)  # last: a writer may lengthen the file meanwhile, never shorten it
    except (OSError, struct.error):
        return None
    return max(0, (int(last_page) + 1) * page_size - size)


class DataDir:
    """The directory that holds the generations. Created if missing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._current = path / _CURRENT

    def lock(self) -> int:
        """Takes the writer's lock; it lasts until the returned descriptor is closed. Raises LockedError."""
        fd = os.open(self.path / "writer.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise LockedError(f"{self.path} is in use by another writer") from None
        return fd

    def signature(self) -> tuple[int, int] | None:
        """Changes whenever CURRENT does; None: there is none. Costs one stat."""
        try:
            stat = os.stat(self._current)  # half the cost of Path.stat(), and this is on the decision path
        except FileNotFoundError:
            return None
        return stat.st_ino, stat.st_mtime_ns

    def current(self) -> Path | None:
        """The live generation; None if there is none or CURRENT makes no sense."""
        try:
            name = self._current.read_text(encoding="utf-8").strip()
        except (FileNotFoundError, UnicodeDecodeError):
            return None
        generation = self.path / name
        return generation if name.startswith("gen-") and _NAME.fullmatch(name) and generation.is_dir() else None

    def new_generation(self) -> Path:
        """An empty directory with a number higher than any present."""
        numbers = [int(match[1]) for entry in self.path.iterdir() if (match := _NAME.fullmatch(entry.name))]
        generation = self.path / f"gen-{max(numbers, default=0) + 1}"
        generation.mkdir(mode=0o700)
        return generation

    def make_current(self, generation: Path) -> None:
        """Makes a generation the live one, atomically and durably. What it holds must have been synced before."""
        _sync_directory(generation)
        _replace(self._current, generation.name)

    def quarantine(self, generation: Path) -> Path:
        """Moves a generation that is no longer CURRENT out of the way, replacing any quarantined before."""
        self.drop_quarantine()
        target = self.path / generation.name.replace("gen-", "quarantine-")
        generation.rename(target)
        _sync_directory(self.path)
        return target

    def drop_quarantine(self) -> None:
        """Removes what is quarantined, to make room."""
        for entry in self.path.glob("quarantine-*"):
            shutil.rmtree(entry, ignore_errors=True)

    def clean(self) -> None:
        """Removes what a crash left behind: generations other than CURRENT, and half-written files."""
        current = self.current()
        for entry in self.path.glob("gen-*"):
            if entry != current:
                shutil.rmtree(entry, ignore_errors=True)
        for entry in self.path.glob("*.tmp"):
            entry.unlink(missing_ok=True)


def _replace(path: Path, text: str) -> None:
    draft = path.with_name(path.name + ".tmp")
    with draft.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
