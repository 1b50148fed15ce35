"""One consistent look at the store: everything a decision reads, in one LMDB read transaction."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Final, Literal

import lmdb

from engine.names import Lane
from sidecar.clock import Clock
from sidecar.store import keys
from sidecar.store.errors import DamagedRowError, UnreadableError
from sidecar.store.keys import Cursor, GrantScope
from sidecar.store.prefix import address_text

if TYPE_CHECKING:
    from sidecar.store.environment import Databases, Environment

__all__ = ["Cursor", "GrantScope", "ReadView"]

MAX_SUBJECT_DEVICES: Final = 64


class ReadView:
    """A read transaction, entered with `with`. Sees whole revisions only, and the same ones until it is left.

    Used by one thread, briefly: a view that stays open keeps old pages and old generations alive. Raises
    UnreadableError on leaving if LMDB could not read the data or a bookkeeping row was damaged.
    """

    __slots__ = ("_begin", "_dbs", "_env", "_txn")

    def __init__(self, begin: Callable[[], tuple[Environment, lmdb.Transaction[bytes]]]) -> None:
        self._begin = begin

    def __enter__(self) -> ReadView:
        self._env, self._txn = self._begin()
        self._dbs: Databases = self._env.dbs
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._env.end_read(self._txn)
        # A key of impossible size is the caller's fault, not the file's.
        if isinstance(error, (lmdb.Error, DamagedRowError)) and not isinstance(error, lmdb.BadValsizeError):
            self._env.mark_suspect(str(error))
            raise UnreadableError(f"{self._env.path.name}: {error}") from error

    def cursor(self, tenant: str, lane: Lane) -> Cursor | None:
        """Where the lane stands; None: it was never loaded."""
        key = keys.lane_row(keys.META_CURSOR, tenant, lane)
        value = self._txn.get(key, db=self._dbs.meta)
        return None if value is None else keys.unpack_cursor(key, value)

    def age_s(self, tenant: str, clock: Clock) -> float | None:
        """Seconds since the control plane last confirmed that both lanes are complete, the older of the two.

        Boot time counts within one boot, wall time across boots. None if never confirmed, or if the clocks make the age
        impossible: to be treated as stale.
        """
        oldest = 0.0
        for lane in Lane:
            key = keys.lane_row(keys.META_CONFIRMED, tenant, lane)
            value = self._txn.get(key, db=self._dbs.meta)
            if value is None:
                return None
            at = keys.unpack_confirmation(key, value)
            age = clock.boottime() - at.boottime if at.boot_id == clock.boot_id() else clock.wall() - at.wall
            if not math.isfinite(age) or age < 0.0:
                return None
            oldest = max(oldest, age)
        return oldest

    def clock_offset_s(self, clock: Clock) -> float | None:
        """By how much the wall clock is ahead of the control plane's, as last stated; None: it never was.

        After another boot only that it is not behind what was stated then can be told.
        """
        value = self._txn.get(keys.META_TIME, db=self._dbs.meta)
        if value is None:
            return None
        at = keys.unpack_confirmation(keys.META_TIME, value)
        if at.boot_id != clock.boot_id():
            return min(0.0, clock.wall() - at.wall)
        return clock.wall() - (at.wall + clock.boottime() - at.boottime)

    def scope(self) -> frozenset[str] | None:
        """The tenants this sidecar follows; None: the control plane never said."""
        value = self._txn.get(keys.META_SCOPE, db=self._dbs.meta)
        return None if value is None else keys.unpack_scope(value)

    def get(self, collection: int, tenant: str, record_id: str) -> bytes | None:
        """A record's bytes as the control plane wrote them, or None."""
        db = self._dbs.records.get(collection)
        return None if db is None else self._txn.get(keys.record_key(tenant, record_id), db=db)

    def scan(self, collection: int, tenant: str) -> Iterator[tuple[str, bytes]]:
        """All records of a tenant's collection as (id, bytes), in the order of their ids' bytes."""
        db = self._dbs.records.get(collection)
        if db is not None:
            prefix = keys.tenant_prefix(tenant)
            for key, value in keys.iterate(self._txn.cursor(db), prefix):
                yield key[len(prefix) :].decode(), value

    def subject_devices(self, tenant: str, subject: str, limit: int = MAX_SUBJECT_DEVICES) -> list[str]:
        """Ids of the devices known for a subject, at most `limit`."""
        return self._ids(self._dbs.device, keys.subject_prefix(tenant, subject), limit)

    def blocked_devices(self, tenant: str, subject: str) -> list[str]:
        """Ids of the subject's devices whose state is anything but ACTIVE."""
        return self._ids(self._dbs.blocked, keys.subject_prefix(tenant, subject))

    def grant_ids(self, tenant: str, scope: GrantScope, value: str, limit: int | None = None) -> list[str]:
        """Ids of the grants, in any state, for a subject (`s`), role (`r`) or device (`d`), at most `limit`."""
        return self._ids(self._dbs.grant, keys.grant_prefix(tenant, scope, value), limit)

    def signals(self, tenant: str, kind: str, value: str) -> list[bytes]:
        """Every source's signal about exactly this value; `kind` as in `engine.names.SIGNAL_KINDS`."""
        prefix = f"{tenant}\0{kind}~{value.replace('/', '_')}~".encode()
        return [record for _, record in keys.iterate(self._txn.cursor(self._dbs.signals), prefix)]

    def has_signals(self, tenant: str, kind: str) -> bool:
        """Whether there is any signal of this kind, about whatever value."""
        prefix = f"{tenant}\0{kind}~".encode()
        cursor = self._txn.cursor(self._dbs.signals)
        return cursor.set_range(prefix) and cursor.key().startswith(prefix)

    def ip_signals(self, tenant: str, address: bytes) -> list[bytes]:
        """Every signal whose prefix covers an address of 4 or 16 bytes, shortest prefix first.

        Costs one probe for each prefix length that exists. An IPv4-mapped IPv6 address is looked up as IPv6.
        """
        bits = len(address) * 8
        family: Literal[4, 6] = 4 if bits == 32 else 6
        counters = keys.prefix_row(tenant, family, 0)[:-1]
        lengths = [key[-1] for key, _ in keys.iterate(self._txn.cursor(self._dbs.prefix), counters)]
        if not lengths:
            return []
        number = int.from_bytes(address, "big")
        cursor = self._txn.cursor(self._dbs.signals)
        found: list[bytes] = []
        for length in lengths:
            network = (number >> (bits - length) << (bits - length)).to_bytes(len(address), "big")
            prefix = f"{tenant}\0ip~{address_text(network)}_{length}~".encode()
            if cursor.set_range(prefix) and cursor.key().startswith(prefix):
                found.append(cursor.value())
                while cursor.next() and cursor.key().startswith(prefix):
                    found.append(cursor.value())
        return found

    def _ids(self, db: lmdb._Database, prefix: bytes, limit: int | None = None) -> list[str]:
        cursor = self._txn.cursor(db)
        ids: list[str] = []
        start = len(prefix)
        more = cursor.set_range(prefix)
        while more and len(ids) != limit:
            key = cursor.key()
            if not key.startswith(prefix):
                break
            ids.append(key[start:].decode())
            more = cursor.next()
        return ids
