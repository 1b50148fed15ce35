"""The service's own token on the way to the sidecar, so that it knows who asks."""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import time
from typing import Final

from sidestep.client._trace import Metadata

_TOKEN: Final = re.compile(rb"[\x21-\x7e]+")
_MAX_FILE_BYTES: Final = 64 << 10
# A file that changed just now may change again without its times showing it: clocks of file systems are that coarse.
_COARSE_NS: Final = 1_000_000_000

_log = logging.getLogger("sidestep.client")

_Stamp = tuple[int, ...]


class Credentials:
    """Makes the metadata of calls. Thread-safe.

    Of `token_file` the first line that is not empty counts; it is read again when it has changed, and if it cannot be read
    then, what it said before holds.
    """

    def __init__(
        self, address: str, token: str | None, token_file: str | os.PathLike[str] | None, insecure: bool
    ) -> None:
        """`insecure`: the token may leave this machine unencrypted. Raises ValueError."""
        if token is not None and token_file is not None:
            raise ValueError("token, token_file: only one of them")
        self._path = None if token_file is None else os.fspath(token_file)
        self._problem = ""
        self._metadata: Metadata = ()
        self._stamp: _Stamp = ()
        if token is None and self._path is None:
            return
        if not insecure and not is_local(address):
            raise ValueError(
                f"address: {address} may be reached over a network, where the token would be readable; "
                "if something else protects it, say insecure_token=True"
            )
        if token is not None:
            self._metadata = _metadata(token.encode(errors="replace"), "token")
            return
        try:
            self._read(self._path or "")
        except OSError as error:
            raise ValueError(f"token_file: {self._path}: {error.strerror}") from None

    def metadata(self) -> Metadata:
        """The `authorization` header; nothing without a token."""
        if self._path is None:
            return self._metadata
        try:
            if _stamp(os.stat(self._path)) != self._stamp:
                self._read(self._path)
            self._problem = ""
        except (OSError, ValueError) as error:
            problem = str(error)
            if problem != self._problem:
                self._problem = problem
                _log.warning("the token file cannot be used, what it said before holds: %s", problem)
        return self._metadata

    def _read(self, path: str) -> None:
        with open(path, "rb") as file:
            found = os.fstat(file.fileno())
            lines = file.read(_MAX_FILE_BYTES).splitlines()
        first = next((line.strip() for line in lines if line.strip()), b"")
        self._metadata = _metadata(first, f"token_file: {path}")
        changed_ns = max(found.st_mtime_ns, found.st_ctime_ns)
        self._stamp = () if 0 <= time.time_ns() - changed_ns < _COARSE_NS else _stamp(found)


def is_local(address: str) -> bool:
    """Whether what is sent there stays on this machine."""
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    host = address.rpartition(":")[0]
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False


def _metadata(token: bytes, field: str) -> Metadata:
    """Raises ValueError, which does not repeat the token."""
    if not _TOKEN.fullmatch(token):
        raise ValueError(f"{field}: " + ("a token is printable ASCII without spaces" if token else "holds no token"))
    return (("authorization", f"Bearer {token.decode()}"),)


def _stamp(found: os.stat_result) -> _Stamp:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
