"""Who may ship a journal folder: whoever holds the flock on the directory. It goes with its holder, however that ends."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_log = logging.getLogger(__name__)


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Holds an exclusive flock on a file or directory; False: someone else holds it. Raises OSError."""
    directory = path.is_dir()
    fd = os.open(path, os.O_CLOEXEC | (os.O_RDONLY | os.O_DIRECTORY if directory else os.O_RDWR))
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError as error:
            if not directory or error.errno not in (errno.EBADF, errno.ENOLCK):
                raise
            # Some network file systems lock no directories.
            _log.warning("%s cannot be locked: nothing else may ship it meanwhile", path)
        yield True
    finally:
        os.close(fd)
