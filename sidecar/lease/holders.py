"""Holder files: which holder a worker's journal chain spends for, and which account each number in its records means.

A holder is one worker's name towards the control plane, for which it is leased slices of budgets. It is made of random bytes and
never used again by another process: not after a restart, and not in a copy of the data directory. Its file in
`DATA_DIR/leases/` is `CHAIN-NUMBER.holder`:

    header   magic (8) | CRC-32 | length | JSON: holder, chain, boot id, inode and device of this very file
    entries  CRC-32 | length | JSON: the number of an account, and what it is an account of

All integers are little-endian. An account's entry is there before anything is spent of it, and one for its tenant before the
control plane is asked for anything, so that the file names all there may be to account for. A torn entry was never used. The
worker holds an exclusive flock on the file. One without it belongs to a worker that has died: the agent counts in the journal
what it spent, tells the control plane, and removes the file (outbox/closed_holders.py). A file that is gone is a holder that was
closed, or whose slices count as spent.
"""

from __future__ import annotations

import fcntl
import logging
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from struct import Struct
from typing import BinaryIO, NamedTuple, TypeVar

import msgspec

from engine.errors import SidestepError

_MAGIC = b"SSHOLD\x00\x01"
_FRAME = Struct("<II")
_SUFFIX = ".holder"
_MAX_ENTRY_BYTES = 4096
# More than a header takes.
_HEADER_BYTES = 1024
HOLDER_BYTES = 16

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class HolderError(SidestepError):
    """A holder file cannot be written."""


class AccountPeriod(msgspec.Struct, frozen=True):
    """What is accounted for together: one subject's use of one grant in one period of its budget. Without a grant: that
    the holder has asked for slices of some account of the tenant."""

    tenant: str
    grant: str = ""
    subject: str = ""
    period: int = 0


class Header(msgspec.Struct, frozen=True):
    """Whose file it is. `inode` and `device` are the file's own, so that a copy can be told from it."""

    # 32 hexadecimal digits.
    holder: str
    chain: str
    boot: str
    inode: int
    device: int


class _Entry(msgspec.Struct, frozen=True):
    number: int
    account: AccountPeriod


class Holder(NamedTuple):
    """A holder file as it was read. `alive`: its worker runs."""

    path: Path
    header: Header
    accounts: dict[int, AccountPeriod]
    alive: bool

    def trusted(self, boot: str) -> bool:
        """Whether the journal beside it tells all that was spent: not if the node died, and not in a copy of the directory, whose
        original may be spending on."""
        try:
            status = self.path.stat()
        except OSError:
            return False
        here = (boot, status.st_ino, status.st_dev)
        return here == (self.header.boot, self.header.inode, self.header.device)


class HolderFile:
    """The file of a holder of this process. For one thread; `close` gives up the lock and leaves the file."""

    def __init__(self, directory: Path, chain: str, number: int, boot: str) -> None:
        """Makes a holder, and its file durable. Raises HolderError."""
        self.holder = os.urandom(HOLDER_BYTES).hex()
        self.path = directory / f"{chain}-{number:06d}{_SUFFIX}"
        self._numbers: dict[AccountPeriod, int] = {}
        # A write failed: nobody could read what came behind.
        self._torn = False
        fresh = self.path.with_suffix(".new")
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise HolderError(f"{directory}: {error.strerror}") from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            status = os.fstat(self._fd)
            header = Header(self.holder, chain, boot, status.st_ino, status.st_dev)
            _write(self._fd, _MAGIC + _frame(msgspec.json.encode(header)))
            os.fsync(self._fd)
            fresh.rename(self.path)
            _sync(directory)
        except OSError as error:
            os.close(self._fd)
            raise HolderError(f"{self.path}: {error.strerror}") from error

    def number(self, account: AccountPeriod) -> int:
        """The account's number, which is in the file when this returns. Raises HolderError."""
        number = self._numbers.get(account)
        if number is not None:
            return number
        if self._torn:
            raise HolderError(f"{self.path}: ends in half an entry")
        number = len(self._numbers)
        try:
            self._torn = True
            _write(self._fd, _frame(msgspec.json.encode(_Entry(number, account))))
            self._torn = False
        except OSError as error:
            raise HolderError(f"{self.path}: {error.strerror}") from error
        self._numbers[account] = number
        return number

    def __len__(self) -> int:
        return len(self._numbers)

    def remove(self) -> None:
        """The control plane knows all that the holder spent."""
        self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Leaves the file to the agent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with suppress(OSError):
                os.close(fd)


class HolderFiles:
    """The holder files of one data directory, as the agent sees them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def read(self) -> list[Holder]:
        """All that can be read. What cannot be is put aside: its slices count as spent. Raises OSError."""
        return self._read(read_holder)

    def dead(self) -> list[Holder]:
        """As `read`, only those whose workers have died."""
        return [holder for holder in self._read(_read_if_dead) if holder is not None]

    def names(self) -> set[str]:
        """The holders that have files."""
        return set(self._read(_read_name))

    def _read(self, how: Callable[[Path], _T]) -> list[_T]:
        found = []
        for path in self._paths():
            try:
                found.append(how(path))
            except FileNotFoundError:
                continue
            except HolderError as error:
                _log.error("leases: %s; its slices count as spent", error)
                path.unlink(missing_ok=True)
        return found

    def open_chains(self) -> set[str]:
        """Chains of which somebody may still want to know what was spent."""
        return {path.name.rpartition("-")[0] for path in self._paths()}

    def condemn(self, chain: str) -> None:
        """What was spent by the chain's holders can no longer be told exactly: their slices count as spent."""
        for path in self._paths():
            if path.name.rpartition("-")[0] == chain:
                _log.warning("leases: the slices of %s count as spent", path.stem)
                path.unlink(missing_ok=True)

    def _paths(self) -> list[Path]:
        try:
            names = sorted(os.listdir(self._directory))
        except FileNotFoundError:
            return []
        return [self._directory / name for name in names if name.endswith(_SUFFIX)]


def read_holder(path: Path) -> Holder:
    """Reads a holder file, up to a torn end. Raises HolderError if its header is damaged, FileNotFoundError."""
    with path.open("rb") as file:
        # Asked first: of a dead one, nothing comes behind what is read.
        alive = _locked(file)
        return _parse(path, file.read(), alive)


def _read_if_dead(path: Path) -> Holder | None:
    with path.open("rb") as file:
        return None if _locked(file) else _parse(path, file.read(), False)


def _read_name(path: Path) -> str:
    with path.open("rb") as file:
        return _parse(path, file.read(_HEADER_BYTES), False).header.holder


def _locked(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _parse(path: Path, data: bytes, alive: bool) -> Holder:
    frames = _frames(data[len(_MAGIC) :]) if data.startswith(_MAGIC) else iter(())
    try:
        header = msgspec.json.decode(next(frames), type=Header)
        entries = [msgspec.json.decode(frame, type=_Entry) for frame in frames]
    except (StopIteration, msgspec.MsgspecError):
        raise HolderError(f"{path}: is damaged") from None
    return Holder(path, header, {entry.number: entry.account for entry in entries}, alive)


def _frames(data: bytes) -> Iterator[bytes]:
    at = 0
    while at + _FRAME.size <= len(data):
        crc, length = _FRAME.unpack_from(data, at)
        frame = data[at + _FRAME.size : at + _FRAME.size + length]
        if not 0 < length <= _MAX_ENTRY_BYTES or len(frame) < length or zlib.crc32(frame) != crc:
            return
        yield frame
        at += _FRAME.size + length


def _frame(content: bytes) -> bytes:
    return _FRAME.pack(zlib.crc32(content), len(content)) + content


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
