"""A small LMDB environment in `DATA_DIR/local/` that all workers and the agent of a pod share: written rarely, by any of them.

    authentications   tenant 0 subject -> those reported lately, newest first
    proofs            SHA-256 of tenant, issuer and jti -> until when it cannot be used again
    order             expiry (ms, big-endian) | table | key -> nothing: what to look at for pruning
    outbox            number, rising -> kind and payload of what the control plane must be told, oldest first

Commits are synced: what is in it survives the death of every process and of the node. Rows are sealed, since nothing else would
notice a flipped bit. A file found damaged when the first process opens it is put aside and begun anew; from then on no proof of
an earlier authentication is taken, as it may have been used. So losing it is favourable to nobody.
"""

from __future__ import annotations

import fcntl
import logging
import shutil
import struct
import time
from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import lmdb
import msgspec

from engine.errors import SidestepError
from sidecar.store.errors import DamagedRowError
from sidecar.store.keys import seal, unseal

if TYPE_CHECKING:
    from lmdb import _Database

MAP_BYTES: Final = 256 << 20
"""Most the file may take; it is sparse."""
MAX_OUTBOX: Final = 10_000
MAX_PAYLOAD_BYTES: Final = 32 << 10
MAX_PER_SUBJECT: Final = 16
KEEP_S: Final = 12 * 3600.0
"""How long a reported authentication counts here. The control plane knows of it long before, unless it is out of reach."""

_FORMAT: Final = b"format"
_SINCE: Final = b"since"
_LAYOUT: Final = b"1"
_SEQUENCE: Final = struct.Struct(">Q")
_TIME: Final = struct.Struct(">d")
_PRUNED_PER_WRITE: Final = 8
# What eight bytes hold; a proof may name any end.
_LATEST_MS: Final = 2**64 - 1
_TABLES: Final = (b"a", b"p")
# A damaged tree may kill who reads it; but one process may also be killed for another reason just then.
_MAX_DEATHS: Final = 3

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class LocalStoreError(SidestepError):
    """The pod's own store cannot be read or written, or is full. Nothing of the call was kept."""


class UsedProofError(SidestepError):
    """The `jti` was used."""


class StaleProofError(SidestepError):
    """A later authentication, or this one, is known already."""


class ReportedAuthentication(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """An authentication that a service reported with its proof. Times are Unix seconds.

    `acr` as its issuer might claim it then; `kid` of the key that signed, empty if the token named none. `session_proved`: the
    proof itself names the session. `device`: id of the device it happened on, empty: not known. `registering`: it is a new one,
    which the control plane is to register.
    """

    acr: str
    amr: tuple[str, ...]
    at: float
    issuer: str
    kid: str
    until: float
    session: str = ""
    session_proved: bool = False
    device: str = ""
    registering: bool = False


class Outgoing(msgspec.Struct, frozen=True):
    """Something on its way up. `number`: its place in the queue."""

    number: int
    kind: str
    payload: bytes


class LocalStore:
    """The environment, open in one process; one instance per process. Thread-safe."""

    def __init__(self, directory: Path) -> None:
        """Opens it; the first process examines it. Raises LocalStoreError."""
        self._path = directory / "env"
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Held shared as long as it is open, so that nobody puts aside what another one uses.
            self._lock = (directory / "lock").open("a+")
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                fcntl.flock(self._lock, fcntl.LOCK_SH)
                self._open()
            else:
                self._open_first(directory)
                fcntl.flock(self._lock, fcntl.LOCK_SH)
        except (OSError, lmdb.Error, DamagedRowError) as error:
            raise LocalStoreError(f"{self._path}: {error}") from error

    def close(self) -> None:
        """Closes it in this process."""
        self._env.close()
        self._lock.close()

    @property
    def since(self) -> float:
        """Proofs of authentications that are not later than this may have been used; 0: it was never lost."""
        return self._since

    def record(
        self,
        tenant: str,
        subject: str,
        jti: str,
        jti_until: float,
        event: ReportedAuthentication,
        payload: bytes,
        now: float,
        *,
        kind: str = "authentication",
    ) -> None:
        """Takes a reported authentication over, whole or not at all: its jti is used, it counts, and `payload` goes up.

        Durable, and seen by every process, when it returns. Raises UsedProofError, StaleProofError, LocalStoreError.
        """
        used = sha256(b"\0".join(part.encode() for part in (tenant, event.issuer, jti))).digest()
        key = _subject_key(tenant, subject)

        def put(txn: lmdb.Transaction[bytes]) -> None:
            if txn.get(used, db=self._proofs) is not None:  # a damaged row too: it says that there was one
                raise UsedProofError("its jti was used before")
            if event.at <= self._since:
                raise StaleProofError("it is older than what this sidecar knows of used proofs")
            known = [past for past in self._decoded(txn, key) if past.until > now]
            if any(past.session == event.session and past.at >= event.at for past in known):
                raise StaleProofError("its auth_time is not later than that of the last one reported for the session")
            if event.registering and any(_registers_another(past, event) for past in known):
                raise StaleProofError("its auth_time is not later than that of the last one that registered a device")
            known = sorted((event, *known), key=lambda past: past.at, reverse=True)[:MAX_PER_SUBJECT]
            self._prune(txn, now)
            self._put_expiring(txn, b"p", used, b"", jti_until)
            self._put_expiring(txn, b"a", key, msgspec.msgpack.encode(known), max(past.until for past in known))
            self._enqueue(txn, kind, payload)

        self._write(put)

    def leave_device(self, tenant: str, subject: str, issuer: str, at: float, device: str) -> None:
        """An authentication no longer counts for a device: the control plane has refused to record it there, as its proof was
        used in another pod for another one, say. In its session it goes on counting. Raises LocalStoreError."""
        key = _subject_key(tenant, subject)

        def leave(txn: lmdb.Transaction[bytes]) -> None:
            known = self._decoded(txn, key)
            left = [
                msgspec.structs.replace(past, device="", registering=False)
                if (past.issuer, past.at, past.device) == (issuer, at, device)
                else past
                for past in known
            ]
            if left != known:
                self._put_expiring(txn, b"a", key, msgspec.msgpack.encode(left), max(past.until for past in left))

        self._write(leave)

    def authentications(self, tenant: str, subject: str, now: float) -> tuple[ReportedAuthentication, ...]:
        """Those reported for the subject that still count, newest first. What cannot be read is none."""
        try:
            with self._env.begin() as txn:
                found = self._decoded(txn, _subject_key(tenant, subject))
        except lmdb.Error:
            return ()
        return tuple(past for past in found if past.until > now) if found else ()

    def put(self, kind: str, payload: bytes) -> None:
        """Adds something to the outbox. Durable when it returns. Raises LocalStoreError, also if the outbox is full."""
        self._write(lambda txn: self._enqueue(txn, kind, payload))

    def take(self, kinds: Iterable[str], limit: int) -> list[Outgoing]:
        """The oldest in the outbox of these kinds, at most `limit`; they stay until they are settled. Raises LocalStoreError.

        A row that is not as it was written is logged and dropped.
        """
        wanted = frozenset(kinds)
        found: list[Outgoing] = []
        damaged: list[int] = []
        try:
            with self._env.begin(self._outbox) as txn, txn.cursor() as cursor:
                for key, value in cursor:
                    number = _SEQUENCE.unpack(key)[0]
                    kind, payload = _outgoing(key, value)
                    if not kind:
                        damaged.append(number)
                    elif kind in wanted:
                        found.append(Outgoing(number, kind, payload))
                    if len(found) >= limit:
                        break
        except lmdb.Error as error:
            raise LocalStoreError(str(error)) from error
        if damaged:
            _log.error("%d reports to the control plane were damaged on disk and cannot be sent", len(damaged))
            self.settle(damaged)
        return found

    def settle(self, numbers: Iterable[int]) -> None:
        """They have arrived, or never will. Raises LocalStoreError."""
        keys = [_SEQUENCE.pack(number) for number in numbers]

        def drop(txn: lmdb.Transaction[bytes]) -> None:
            for key in keys:
                txn.delete(key, db=self._outbox)

        self._write(drop)

    def waiting(self) -> int:
        """How many there are in the outbox."""
        with self._env.begin() as txn:
            return int(txn.stat(self._outbox)["entries"])

    def _open_first(self, directory: Path) -> None:
        """Opens it alone: a damaged one is put aside."""
        lost = False
        if self._path.exists():
            attempts = directory / "examining"
            try:
                died = len(attempts.read_bytes()) if attempts.exists() else 0
                if died >= _MAX_DEATHS:
                    raise DamagedRowError(f"{died} processes died of examining it")
                with attempts.open("ab") as file:
                    file.write(b".")
                self._open()
                self._examine()
            except (lmdb.Error, DamagedRowError, OSError) as error:
                lost = True
                self._put_aside(directory, error)
            attempts.unlink(missing_ok=True)
            if not lost:
                return
        self._path.mkdir(mode=0o700)
        self._open(create=True, since=time.time() if lost else 0.0)

    def _put_aside(self, directory: Path, error: Exception) -> None:
        aside = directory / f"damaged-{time.time_ns()}"
        _log.error("%s is damaged and was put aside as %s: %s", self._path, aside.name, error)
        if hasattr(self, "_env"):
            self._env.close()
        for older in directory.glob("damaged-*"):
            shutil.rmtree(older, ignore_errors=True)  # one is enough to look into
        self._path.rename(aside)

    def _open(self, *, create: bool = False, since: float = 0.0) -> None:
        self._env: lmdb.Environment = lmdb.open(
            str(self._path), map_size=MAP_BYTES, max_dbs=8, metasync=False, max_readers=126, mode=0o600
        )
        # Before anything is read: beyond the end of a file that was cut there is only SIGBUS.
        if (self._path / "data.mdb").stat().st_size < (self._env.info()["last_pgno"] + 1) * self._env.stat()["psize"]:
            raise DamagedRowError("it is shorter than it claims")
        self._authentications: _Database = self._env.open_db(b"authentications")
        self._proofs: _Database = self._env.open_db(b"proofs")
        self._order: _Database = self._env.open_db(b"order")
        self._outbox: _Database = self._env.open_db(b"outbox")
        meta: _Database = self._env.open_db(b"meta")
        with self._env.begin(write=True) as txn:
            if create:
                txn.put(_FORMAT, seal(_FORMAT, _LAYOUT), db=meta)
                txn.put(_SINCE, seal(_SINCE, _TIME.pack(since)), db=meta)
            if unseal(_FORMAT, txn.get(_FORMAT, db=meta) or b"") != _LAYOUT:
                raise DamagedRowError("it has another layout")
            self._since: float = _TIME.unpack(unseal(_SINCE, txn.get(_SINCE, db=meta) or b""))[0]

    def _examine(self) -> None:
        """Raises DamagedRowError or lmdb.Error unless every row is as it was written."""
        with self._env.begin() as txn:
            for table in (self._authentications, self._proofs, self._outbox):
                with txn.cursor(table) as cursor:
                    for key, value in cursor:
                        unseal(key, value)

    def _decoded(self, txn: lmdb.Transaction[bytes], key: bytes) -> list[ReportedAuthentication]:
        value = txn.get(key, db=self._authentications)
        if value is None:
            return []
        try:
            return msgspec.msgpack.decode(unseal(key, value)[_TIME.size :], type=list[ReportedAuthentication])
        except (DamagedRowError, msgspec.MsgspecError):
            return []

    def _put_expiring(self, txn: lmdb.Transaction[bytes], table: bytes, key: bytes, body: bytes, until: float) -> None:
        txn.put(key, seal(key, _TIME.pack(until) + body), db=self._of(table))
        txn.put(min(int(until * 1000), _LATEST_MS).to_bytes(8, "big") + table + key, b"", db=self._order)

    def _enqueue(self, txn: lmdb.Transaction[bytes], kind: str, payload: bytes) -> None:
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise LocalStoreError(f"more than {MAX_PAYLOAD_BYTES} bytes cannot be sent up")
        if txn.stat(self._outbox)["entries"] >= MAX_OUTBOX:
            raise LocalStoreError(f"{MAX_OUTBOX} reports wait for the control plane")
        with txn.cursor(self._outbox) as cursor:
            number = _SEQUENCE.unpack(cursor.key())[0] + 1 if cursor.last() else time.time_ns()
        key = _SEQUENCE.pack(number)
        txn.put(key, seal(key, msgspec.msgpack.encode((kind, payload))), db=self._outbox)

    def _prune(self, txn: lmdb.Transaction[bytes], now: float) -> None:
        """Removes some of what has expired: a little with each write, so that none takes long."""
        with txn.cursor(self._order) as cursor:
            for _ in range(_PRUNED_PER_WRITE):
                if not cursor.first():
                    return
                row = cursor.key()
                table, key = row[8:9], row[9:]
                if int.from_bytes(row[:8], "big") / 1000 >= now:
                    return
                if table in _TABLES and self._expired(txn, table, key, now):
                    txn.delete(key, db=self._of(table))
                cursor.delete()

    def _expired(self, txn: lmdb.Transaction[bytes], table: bytes, key: bytes, now: float) -> bool:
        """Whether the row has expired by its own word; it may have been put again since."""
        value = txn.get(key, db=self._of(table))
        try:
            return value is not None and float(_TIME.unpack_from(unseal(key, value))[0]) <= now
        except (DamagedRowError, struct.error):
            return False

    def _of(self, table: bytes) -> _Database:
        return self._authentications if table == b"a" else self._proofs

    def _write(self, change: Callable[[lmdb.Transaction[bytes]], _T]) -> _T:
        """All of a change or nothing of it."""
        try:
            with self._env.begin(write=True) as txn:
                return change(txn)
        except (lmdb.Error, OSError) as error:
            raise LocalStoreError(f"{self._path}: {error}") from error


def _registers_another(past: ReportedAuthentication, event: ReportedAuthentication) -> bool:
    """Whether an authentication not earlier than this one was to register another device: one login registers one."""
    return past.registering and past.device != event.device and past.at >= event.at


def _subject_key(tenant: str, subject: str) -> bytes:
    return f"{tenant}\0{subject}".encode()


def _outgoing(key: bytes, value: bytes) -> tuple[str, bytes]:
    try:
        return msgspec.msgpack.decode(unseal(key, value), type=tuple[str, bytes])
    except (DamagedRowError, msgspec.MsgspecError):
        return "", b""
