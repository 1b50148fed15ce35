"""What the workers of a pod know together of recent spends: who may settle which, and which request was answered how.

A small LMDB environment in `DATA_DIR/leases/reservations/`, written by whichever worker spends. What is in it survives the death
of every process but not of the node: another boot begins an empty one, for then every slice counts as spent anyway.

    reservations   decision id -> Reservation, for an hour
    repeats        key of a request (see front/repeats.py) -> Answered, for five minutes
    order          when a repeat expires, ms, big-endian | its key -> nothing
    outbox         decision id -> Reservation that was settled and that the control plane does not know of yet
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import lmdb
import msgspec

from engine.errors import SidestepError

if TYPE_CHECKING:
    from lmdb import _Database

SETTLE_S: Final = 3600.0
"""How long a spend can be settled. Afterwards it stays spent."""
REPEAT_S: Final = 300.0
"""How long a repeat is recognised in every worker of the pod."""
MAX_RESERVATIONS: Final = 100_000
MAX_REPEATS: Final = 10_000
MAX_OUTBOX: Final = 100_000
MAX_ANSWER_BYTES: Final = 16 << 10
"""Of an answer and its decision together, to be kept for repeats."""
# More than all that may be in it takes; a sparse file.
_MAP_BYTES: Final = 1 << 30

EXECUTED: Final = "EXECUTED"
CANCELLED: Final = "CANCELLED"

_T = TypeVar("_T")


class UnknownDecisionError(SidestepError):
    """No spend of this caller is known by the decision id, or it is too old."""


class AlreadySettledError(SidestepError):
    """It was settled otherwise."""


class ReservationsError(SidestepError):
    """The reservations cannot be read or written."""


class Reservation(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a decision spent, and for whom. `at`: CLOCK_BOOTTIME, seconds. `state`: empty until it is settled."""

    tenant: str
    grant: str
    subject: str
    period: int
    holder: str
    count: int
    nanos: int
    at: float
    caller: str = ""
    currency: str = ""
    state: str = ""
    # Of its request, empty if that has no id.
    key: bytes = b""


class Answered(msgspec.Struct, frozen=True, omit_defaults=True):
    """A request that spent. `until`: CLOCK_BOOTTIME, seconds. `decision`, as MessagePack: empty until its record is in the
    journal. `answer`: also empty where the journal had to tell that there is such a record."""

    content: bytes
    until: float
    decision: bytes = b""
    answer: bytes = b""
    # Of the spend.
    decision_id: bytes = b""
    # Who is about to spend.
    holder: str = ""


class Spending(msgspec.Struct, frozen=True):
    """A spend whose record is in the journal. `key`: of its request, empty if that has no id."""

    decision_id: bytes
    reservation: Reservation
    key: bytes = b""
    answered: Answered | None = None


class Reservations:
    """The environment, open in one process. Thread-safe: reads do not wait, writes do for each other, for microseconds."""

    def __init__(self, directory: Path, boot: str) -> None:
        """Opens it, empty if it is of another boot. Raises ReservationsError."""
        path = directory / "reservations"
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            with (directory / "reservations.lock").open("a+") as lock:
                # Workers and agent start together.
                fcntl.flock(lock, fcntl.LOCK_EX)
                lock.seek(0)
                if lock.read() != boot:
                    shutil.rmtree(path, ignore_errors=True)
                    lock.truncate(0)
                    lock.write(boot)
                    lock.flush()
                    os.fsync(lock.fileno())
                self._open(path)
        except (OSError, lmdb.Error) as error:
            raise ReservationsError(f"{path}: {error}") from error

    def _open(self, path: Path) -> None:
        self._env: lmdb.Environment = lmdb.open(
            str(path), map_size=_MAP_BYTES, max_dbs=4, sync=False, metasync=False, max_readers=126, mode=0o600
        )
        self._reservations: _Database = self._env.open_db(b"reservations")
        self._repeats: _Database = self._env.open_db(b"repeats")
        self._order: _Database = self._env.open_db(b"order")
        self._outbox: _Database = self._env.open_db(b"outbox")

    def close(self) -> None:
        """Closes it in this process."""
        self._env.close()

    def repeat(self, key: bytes, now: float) -> Answered | None:
        """The request that came first with this key. `now`: CLOCK_BOOTTIME, as everywhere here. Raises ReservationsError."""
        try:
            with self._env.begin() as txn:
                found = _get(txn, key, self._repeats, Answered)
        except (lmdb.Error, msgspec.MsgspecError) as error:
            raise ReservationsError(str(error)) from error
        return found if found is not None and now < found.until else None

    def claim(
        self,
        key: bytes,
        content: bytes,
        now: float,
        instead_of: bytes = b"",
        *,
        decision_id: bytes = b"",
        holder: str = "",
    ) -> bool:
        """Says that a request is about to spend, by which decision and whose slice. False: another with its key is, or did.
        `instead_of`: id of an earlier decision that no longer holds, and does not hinder. Raises ReservationsError."""

        def put(txn: lmdb.Transaction[bytes]) -> bool:
            found = _get(txn, key, self._repeats, Answered)
            if found is not None and now < found.until:
                made_way = bool(instead_of and found.decision and found.decision_id == instead_of)
                if not made_way:
                    return False
            claimed = Answered(content, now + REPEAT_S, decision_id=decision_id, holder=holder)
            self._put_repeat(txn, key, claimed, found)
            return True

        return self._write(put)

    def release(self, keys: Iterable[bytes]) -> None:
        """They did not spend after all. Raises ReservationsError."""

        def drop(txn: lmdb.Transaction[bytes]) -> None:
            for key in keys:
                found = _get(txn, key, self._repeats, Answered)
                if found is not None:
                    self._drop_repeat(txn, key, found)

        self._write(drop)

    def unanswered(self, holder: str) -> list[tuple[bytes, Answered]]:
        """Requests that were about to spend of a holder's slices, and of which nothing more is known. Raises
        ReservationsError."""
        found = []
        try:
            with self._env.begin(self._repeats) as txn, txn.cursor() as cursor:
                for key, value in cursor:
                    claimed = msgspec.msgpack.decode(value, type=Answered)
                    if claimed.holder == holder and not claimed.decision:
                        found.append((bytes(key), claimed))
        except (lmdb.Error, msgspec.MsgspecError) as error:
            raise ReservationsError(str(error)) from error
        return found

    def resolve(self, key: bytes, claimed: Answered, spending: Spending | None) -> None:
        """The journal of its dead holder tells what became of such a request: `spending`, or nothing. Raises
        ReservationsError."""

        def put(txn: lmdb.Transaction[bytes]) -> None:
            found = _get(txn, key, self._repeats, Answered)
            if found != claimed:
                return
            if spending is None or spending.answered is None:
                self._drop_repeat(txn, key, found)
            else:
                txn.put(spending.decision_id, msgspec.msgpack.encode(spending.reservation), db=self._reservations)
                self._put_repeat(txn, key, spending.answered, found)

        self._write(put)

    def keep(self, spendings: Sequence[Spending], now: float) -> None:
        """Keeps spends whose records are in the journal, before they are answered. Raises ReservationsError."""

        def put(txn: lmdb.Transaction[bytes]) -> None:
            for spending in spendings:
                txn.put(spending.decision_id, msgspec.msgpack.encode(spending.reservation), db=self._reservations)
                if spending.answered is not None:
                    claimed = _get(txn, spending.key, self._repeats, Answered)
                    self._put_repeat(txn, spending.key, spending.answered, claimed)
            self._prune(txn, now, 2 * len(spendings))

        self._write(put)

    def settle(self, decision_id: bytes, caller: str, state: str, now: float) -> Reservation:
        """Settles a spend, and puts it in the outbox. Settling it the same way again changes nothing. What was given back is no
        answer to a repeat any more: that spends again.

        Raises UnknownDecisionError, AlreadySettledError, ReservationsError.
        """

        def put(txn: lmdb.Transaction[bytes]) -> Reservation:
            found = _get(txn, decision_id, self._reservations, Reservation)
            if found is None or found.caller != caller or now - found.at > SETTLE_S:
                raise UnknownDecisionError("decision_id: no spend of this caller is known by it")
            if found.state == state:
                return found
            if found.state:
                raise AlreadySettledError(f"decision_id: was settled as {found.state}")
            if txn.stat(self._outbox)["entries"] >= MAX_OUTBOX:
                raise ReservationsError("too many settlements wait for the control plane")
            settled = msgspec.structs.replace(found, state=state)
            value = msgspec.msgpack.encode(settled)
            txn.put(decision_id, value, db=self._reservations)
            txn.put(decision_id, value, db=self._outbox)
            if state == CANCELLED and settled.key:
                answered = _get(txn, settled.key, self._repeats, Answered)
                if answered is not None and answered.decision_id in (b"", decision_id):
                    self._drop_repeat(txn, settled.key, answered)
            return settled

        return self._write(put)

    def unsent(self, limit: int) -> list[tuple[bytes, Reservation]]:
        """The oldest settlements the control plane does not know of. Raises ReservationsError."""
        found = []
        try:
            with self._env.begin(self._outbox) as txn, txn.cursor() as cursor:
                for key, value in cursor:
                    found.append((key, msgspec.msgpack.decode(value, type=Reservation)))
                    if len(found) >= limit:
                        break
        except (lmdb.Error, msgspec.MsgspecError) as error:
            raise ReservationsError(str(error)) from error
        return found

    def sent(self, decision_ids: Iterable[bytes]) -> None:
        """The control plane knows of them. Raises ReservationsError."""
        self._write(lambda txn: [txn.delete(each, db=self._outbox) for each in decision_ids])

    def _write(self, change: Callable[[lmdb.Transaction[bytes]], _T]) -> _T:
        """All of a change or nothing of it."""
        try:
            with self._env.begin(write=True) as txn:
                return change(txn)
        except (lmdb.Error, msgspec.MsgspecError) as error:
            raise ReservationsError(str(error)) from error

    def _drop_repeat(self, txn: lmdb.Transaction[bytes], key: bytes, found: Answered) -> None:
        txn.delete(key, db=self._repeats)
        txn.delete(_order(found.until, key), db=self._order)

    def _put_repeat(self, txn: lmdb.Transaction[bytes], key: bytes, value: Answered, old: Answered | None) -> None:
        if old is not None:
            txn.delete(_order(old.until, key), db=self._order)
        txn.put(key, msgspec.msgpack.encode(value), db=self._repeats)
        txn.put(_order(value.until, key), b"", db=self._order)

    def _prune(self, txn: lmdb.Transaction[bytes], now: float, most: int) -> None:
        surplus = txn.stat(self._reservations)["entries"] - MAX_RESERVATIONS
        self._drop_reservations(txn, most, lambda found: surplus > 0 or now - found.at > SETTLE_S)
        many = txn.stat(self._repeats)["entries"] - MAX_REPEATS
        self._drop_repeats(txn, most, lambda until: many > 0 or until <= now)

    def _drop_reservations(self, txn: lmdb.Transaction[bytes], most: int, old: Callable[[Reservation], bool]) -> None:
        # Decision ids rise with time.
        with txn.cursor(self._reservations) as cursor:
            for _ in range(most):
                if not cursor.first() or not old(msgspec.msgpack.decode(cursor.value(), type=Reservation)):
                    return
                cursor.delete()

    def _drop_repeats(self, txn: lmdb.Transaction[bytes], most: int, old: Callable[[float], bool]) -> None:
        with txn.cursor(self._order) as cursor:
            for _ in range(most):
                if not cursor.first() or not old(int.from_bytes(cursor.key()[:8], "big") / 1000):
                    return
                txn.delete(cursor.key()[8:], db=self._repeats)
                cursor.delete()


def _order(until: float, key: bytes) -> bytes:
    return int(until * 1000).to_bytes(8, "big") + key


def _get(txn: lmdb.Transaction[bytes], key: bytes, db: _Database, kind: type[_T]) -> _T | None:
    value = txn.get(key, db=db)
    return None if value is None else msgspec.msgpack.decode(value, type=kind)
