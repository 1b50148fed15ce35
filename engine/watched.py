"""Small files that others replace while we run: read so that a later change can be told without reading them again."""

from __future__ import annotations

import os
import stat
import time
from typing import Final, NamedTuple

# Device, inode, size, and times of the last change: of the file itself, links followed, since Kubernetes replaces links.
_Stamp = tuple[int, ...]
_ABSENT: Final[_Stamp] = ()
# Equal to no file's: whatever is found next counts as a change.
_UNKNOWN: Final[_Stamp] = (-1,)
# A file that changed just now may change again without another stamp: clocks of file systems are that coarse.
_COARSE_NS: Final = 1_000_000_000


class Content(NamedTuple):
    """What a file held. `open_to_others`: users outside its owner and group may read or write it."""

    data: bytes
    open_to_others: bool


class WatchedFiles:
    """Files that were read together."""

    def __init__(self) -> None:
        self._stamps: dict[str, _Stamp] = {}

    def read(self, path: str, max_bytes: int) -> Content | None:
        """A file's content; None if there is none.

        Raises OSError, also for a larger file and for what is no regular file.
        """
        self._stamps[path] = _UNKNOWN
        try:
            # Not blocking: opening a named pipe must not hang.
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            self._stamps[path] = _ABSENT
            return None
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise OSError("not a regular file")
            if found.st_size > max_bytes:
                raise OSError(f"larger than {max_bytes} bytes")
            with open(fd, "rb", closefd=False) as file:
                data = file.read(max_bytes)
        finally:
            os.close(fd)
        changed_ns = max(found.st_mtime_ns, found.st_ctime_ns)
        if not 0 <= time.time_ns() - changed_ns < _COARSE_NS:
            self._stamps[path] = _stamp(found)
        return Content(data, bool(found.st_mode & stat.S_IRWXO))

    def changed(self) -> bool:
        """Whether some file is not as it was read, or was not read as a whole."""
        return any(stamp == _UNKNOWN or stamp != _present(path) for path, stamp in self._stamps.items())


def _present(path: str) -> _Stamp:
    try:
        return _stamp(os.stat(path))
    except FileNotFoundError:
        return _ABSENT
    except OSError:
        return _UNKNOWN


def _stamp(found: os.stat_result) -> _Stamp:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
