"""Unix sockets on disk: who may reach them, and what to do with one that is already there."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from pathlib import Path

from sidecar.front.transport import TransportError

# Connecting needs write permission on the socket: the pod's group has it, others do not.
_SOCKET_MODE = 0o660
_DIRECTORY_MODE = 0o770


class SocketFile:
    """The file of a Unix socket, before and after something listens on it."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._inode = -1

    def make_way(self) -> None:
        """Sees to it that the directory exists, that others cannot enter it and that nothing listens on the path.

        A file that a dead process left is removed. Raises TransportError.
        """
        directory = Path(self._path).parent
        try:
            directory.mkdir(mode=_DIRECTORY_MODE, exist_ok=True)
            mode = directory.stat().st_mode
        except OSError as error:
            raise TransportError(f"unix://{self._path}: {error.strerror}") from error
        if mode & stat.S_IRWXO:
            raise TransportError(
                f"unix://{self._path}: anyone may enter {directory} (mode {stat.S_IMODE(mode):04o}); use a directory only "
                "the pod's group may enter (mode 0770)"
            )
        try:
            found = os.stat(self._path, follow_symlinks=False)
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(found.st_mode):
            raise TransportError(f"unix://{self._path}: exists and is not a socket")
        if self._answers():
            raise TransportError(f"unix://{self._path}: another process listens there")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)

    def claim(self) -> None:
        """Lets only owner and group connect. To be called once the socket is bound."""
        os.chmod(self._path, _SOCKET_MODE)
        self._inode = os.stat(self._path).st_ino

    def remove(self) -> None:
        """Takes the name away so that nobody connects any more, unless it is another's by now."""
        with contextlib.suppress(FileNotFoundError):
            if os.stat(self._path).st_ino == self._inode:
                os.unlink(self._path)

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(self._path)
            except (ConnectionRefusedError, FileNotFoundError):
                return False
            except OSError:
                # It cannot be told (no permission, a full backlog): then it is not ours to remove.
                return True
            return True
