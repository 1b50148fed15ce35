"""Spot checks of this pod: which decisions were one, and outcomes on their way to the control plane.

A small LMDB environment in `DATA_DIR/checks/`, written by whichever worker decides, so that every worker can take an outcome. It
survives the death of every process but not of the node: another boot begins an empty one, and an outcome that was not told by
then counts for nothing.

    open     decision id -> Check, for an hour
    unsent   local/outbox.py, sample -> SpotCheck with its outcome, until the control plane has it
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import lmdb
import msgspec
from sidestep.v1 import report_pb2

from engine.errors import SidestepError
from sidecar.local.outbox import Outbox, OutboxFullError

if TYPE_CHECKING:
    from lmdb import _Database

REPORT_S: Final = 3600.0
"""How long the outcome of a check can be reported."""
MAX_OPEN: Final = 100_000
MAX_OUTBOX: Final = 100_000
_MAP_BYTES: Final = 256 << 20

_T = TypeVar("_T")


class UnknownCheckError(SidestepError):
    """The decision was no spot check of this caller, or it is too old."""


class AlreadyReportedError(SidestepError):
    """Another outcome was reported."""


class ChecksError(SidestepError):
    """The spot checks cannot be read or written."""


class Check(msgspec.Struct, frozen=True, omit_defaults=True):
    """One decision that was a spot check. `check`: a SpotCheck, encoded. `at`: CLOCK_BOOTTIME, seconds. `outcome`: 0 until it is
    reported."""

    check: bytes
    at: float
    caller: str = ""
    outcome: int = 0


class Checks:
    """The environment, open in one process. Thread-safe. `now`: CLOCK_BOOTTIME everywhere."""

    def __init__(self, directory: Path, boot: str) -> None:
        """Opens it, empty if it is of another boot or damaged. Raises ChecksError."""
        path = directory / "env"
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            with (directory / "lock").open("a+") as lock:
                # Workers and agent start together.
                fcntl.flock(lock, fcntl.LOCK_EX)
                lock.seek(0)
                if lock.read() != boot:
                    shutil.rmtree(path, ignore_errors=True)
                    lock.truncate(0)
                    lock.write(boot)
                    lock.flush()
                    os.fsync(lock.fileno())
                try:
                    self._open(path)
                except (lmdb.Error, ChecksError):
                    # What was in it counts for nothing; nobody is exempted by it.
                    shutil.rmtree(path, ignore_errors=True)
                    self._open(path)
        except (OSError, lmdb.Error) as error:
            raise ChecksError(f"{path}: {error}") from error

    def _open(self, path: Path) -> None:
        self._env: lmdb.Environment = lmdb.open(
            str(path), map_size=_MAP_BYTES, max_dbs=4, sync=False, metasync=False, max_readers=126, mode=0o600
        )
        self._checks: _Database = self._env.open_db(b"open")
        self._outbox = Outbox(self._env.open_db(b"unsent"), MAX_OUTBOX)
        self._take_over(self._env.open_db(b"outbox"))

    def _take_over(self, before: _Database) -> None:
        """Outcomes of a version whose outbox had all tenants in one row."""

        def move(txn: lmdb.Transaction[bytes]) -> None:
            with txn.cursor(before) as cursor:
                while cursor.first():
                    tenant, _, sample = bytes(cursor.key()).partition(b"\0")
                    self._outbox.put(txn, tenant.decode(), sample, bytes(cursor.value()))
                    cursor.delete()

        with self._env.begin() as txn:
            waiting = txn.stat(before)["entries"]
        if waiting:
            self._write(move)

    def close(self) -> None:
        """Closes it in this process."""
        self._env.close()

    def keep(self, checks: Iterable[tuple[bytes, Check]], now: float) -> None:
        """Keeps decisions that were spot checks, by id, before they are answered. Raises ChecksError."""

        def put(txn: lmdb.Transaction[bytes]) -> None:
            kept = 0
            for decision_id, check in checks:
                txn.put(decision_id, msgspec.msgpack.encode(check), db=self._checks)
                kept += 1
            self._prune(txn, now, 2 * kept)

        self._write(put)

    def report(self, decision_id: bytes, caller: str, outcome: report_pb2.SpotCheckOutcome, now: float) -> None:
        """Takes an outcome. The same again changes nothing. Raises UnknownCheckError, AlreadyReportedError, ChecksError."""

        def put(txn: lmdb.Transaction[bytes]) -> None:
            value = txn.get(decision_id, db=self._checks)
            found = None if value is None else msgspec.msgpack.decode(value, type=Check)
            if found is None or found.caller != caller or not 0.0 <= now - found.at <= REPORT_S:
                raise UnknownCheckError("decision_id: no recent spot check of this caller is known by it")
            if found.outcome == outcome:
                return
            if found.outcome:
                raise AlreadyReportedError("decision_id: another outcome was reported")
            check = report_pb2.SpotCheck.FromString(found.check)
            check.outcome = outcome
            txn.put(
                decision_id,
                msgspec.msgpack.encode(msgspec.structs.replace(found, outcome=int(outcome))),
                db=self._checks,
            )
            # The first outcome of a sample counts, however often the user is challenged that day.
            self._outbox.put(txn, check.tenant, check.sample, check.SerializeToString())

        self._write(put)

    def waiting(self) -> list[str]:
        """Tenants of outcomes the control plane does not have. Raises ChecksError."""
        return self._read(self._outbox.tenants)

    def unsent(self, tenant: str, limit: int) -> list[tuple[bytes, report_pb2.SpotCheck]]:
        """A tenant's outcomes the control plane does not have, by the key to give to `sent`. Raises ChecksError."""
        items = self._read(lambda txn: self._outbox.page(txn, tenant, limit))
        return [(key, report_pb2.SpotCheck.FromString(value)) for key, value in items]

    def sent(self, tenant: str, keys: Iterable[bytes]) -> None:
        """The control plane has them. Raises ChecksError."""
        self._write(lambda txn: self._outbox.settle(txn, tenant, keys))

    def _read(self, look: Callable[[lmdb.Transaction[bytes]], _T]) -> _T:
        try:
            with self._env.begin() as txn:
                return look(txn)
        except lmdb.Error as error:
            raise ChecksError(str(error)) from error

    def _prune(self, txn: lmdb.Transaction[bytes], now: float, most: int) -> None:
        # Decision ids rise with time.
        surplus = txn.stat(self._checks)["entries"] - MAX_OPEN
        with txn.cursor(self._checks) as cursor:
            for _ in range(most):
                if not cursor.first():
                    return
                if surplus <= 0 and now - msgspec.msgpack.decode(cursor.value(), type=Check).at <= REPORT_S:
                    return
                surplus -= 1
                cursor.delete()

    def _write(self, change: Callable[[lmdb.Transaction[bytes]], _T]) -> _T:
        """All of a change or nothing of it."""
        try:
            with self._env.begin(write=True) as txn:
                return change(txn)
        except (lmdb.Error, msgspec.MsgspecError, OutboxFullError) as error:
            raise ChecksError(str(error)) from error
