"""The spool: a folder, usually on a shared volume, that takes what a sidecar could not ship before it had to end.

    SPOOL/NAME/MILLISECONDS-PID/    segments, quarantine, cursor and resource.json: a journal folder of its own

It gets its name only when all of it is there and on the disk. What was begun and not finished has a name that begins with a
dot and is nobody's: the records are still where they were.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from sidecar.journal.cursor import save_cursor
from sidecar.journal.resource import RESOURCE_FILE
from sidecar.journal.segment import JournalError, sync_directory

BYTES_PER_S = 50e6
"""How fast a spool is expected to take records."""

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]|^\.")
_LEFTOVER_S = 86400.0
# Whoever is to ship it may be another user of the volume's group; it is nobody else's business.
_MODE = 0o770


class SpoolError(JournalError):
    """The spool cannot be used. Nothing was taken from the journal."""


def check_spool(spool: Path) -> None:
    """Whether the spool can be written. Raises SpoolError."""
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".check-", dir=spool))
    except OSError as error:
        raise SpoolError(f"{spool}: {error.strerror}") from None


def copy_to_spool(journal: Path, files: Sequence[str], cursor: bytes, spool: Path, sidecar: str) -> Path:
    """Copies finished segments of a journal folder, with a cursor for them, and makes the copy durable. Returns its folder.

    The spool itself must be there: a missing one is a volume that was not mounted. Raises SpoolError.
    """
    own = spool / _UNSAFE.sub("_", sidecar)
    name = f"{int(time.time() * 1000)}-{os.getpid()}"
    part = own / f".{name}.part"
    try:
        own.mkdir(mode=_MODE, exist_ok=True)
        sync_directory(spool)
        _sweep(own)
        part.mkdir(mode=_MODE)
        for file in (*files, *((RESOURCE_FILE,) if (journal / RESOURCE_FILE).exists() else ())):
            _copy(journal / file, part / file)
        save_cursor(part, cursor)
        part.rename(own / name)
        sync_directory(own)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise SpoolError(f"{error.filename or spool}: {error.strerror}") from None
    return own / name


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    fd = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _sweep(own: Path) -> None:
    """Removes what was begun long ago and never finished."""
    for leftover in own.glob(".*.part"):
        if time.time() - leftover.stat().st_mtime > _LEFTOVER_S:
            shutil.rmtree(leftover, ignore_errors=True)
