"""What is on its way up, by tenant: one form for everything that a pod's store holds for the control plane.

    tenant 0 key -> payload          until it has arrived
    0 tenant     -> how many (big-endian)

A tenant that the control plane will not hear of keeps its rows, and nobody else's: each is paged through by itself, and none may
take more than is left for the others. So one tenant alone can fill half of the outbox, two a third each, and so on (the dynamic
threshold of shared buffers).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

import lmdb

from engine.errors import SidestepError

if TYPE_CHECKING:
    from lmdb import _Database

_COUNT: Final = Struct(">Q")


class OutboxFullError(SidestepError):
    """Too much waits for the control plane, of this tenant or of all."""


class Item(NamedTuple):
    """Something on its way up."""

    key: bytes
    payload: bytes


class Outbox:
    """A named database of an open environment; every call is given a transaction of it. `most`: rows it may hold, about."""

    def __init__(self, database: _Database, most: int) -> None:
        self._database = database
        self._most = most

    def put(self, txn: lmdb.Transaction[bytes], tenant: str, key: bytes, payload: bytes) -> None:
        """Adds something; what is there under the key stays. Raises OutboxFullError."""
        row = _row(tenant, key)
        if txn.get(row, db=self._database) is not None:
            return
        counted = b"\0" + tenant.encode()
        mine = _COUNT.unpack(txn.get(counted, db=self._database) or bytes(_COUNT.size))[0]
        # The rows of counts are few, and err on the safe side.
        if mine >= self._most - txn.stat(self._database)["entries"]:
            raise OutboxFullError(f"{mine} reports of tenant {tenant} wait for the control plane")
        txn.put(row, payload, db=self._database)
        txn.put(counted, _COUNT.pack(mine + 1), db=self._database)

    def tenants(self, txn: lmdb.Transaction[bytes]) -> list[str]:
        """Those something waits of."""
        with txn.cursor(self._database) as cursor:
            return [key[1:].decode() for key in _from(cursor, b"\0") if key[:1] == b"\0"]

    def page(self, txn: lmdb.Transaction[bytes], tenant: str, limit: int) -> list[Item]:
        """What waits of a tenant, in the order of its keys, at most `limit`."""
        start = _row(tenant, b"")
        found: list[Item] = []
        with txn.cursor(self._database) as cursor:
            for key in _from(cursor, start):
                if not key.startswith(start) or len(found) >= limit:
                    break
                found.append(Item(key[len(start) :], bytes(cursor.value())))
        return found

    def settle(self, txn: lmdb.Transaction[bytes], tenant: str, keys: Iterable[bytes]) -> None:
        """They have arrived, or never will."""
        gone = sum(txn.delete(_row(tenant, key), db=self._database) for key in keys)
        counted = b"\0" + tenant.encode()
        value = txn.get(counted, db=self._database)
        left = 0 if value is None else _COUNT.unpack(value)[0] - gone
        if left > 0:
            txn.put(counted, _COUNT.pack(left), db=self._database)
        elif value is not None:
            txn.delete(counted, db=self._database)


def _row(tenant: str, key: bytes) -> bytes:
    return tenant.encode() + b"\0" + key


def _from(cursor: lmdb.Cursor[bytes], start: bytes) -> Iterator[bytes]:
    there = cursor.set_range(start)
    while there:
        key = bytes(cursor.key())
        yield key
        # Counts are few and come first.
        if start == b"\0" and key[:1] != b"\0":
            return
        there = cursor.next()
