"""The table of sidecars: who is connected, what each has applied, what it refuses.

Statuses change with every acknowledgement of every stream, so they are kept in memory and written every few seconds in
one transaction; reading lays memory over the table. A row that says `connected` counts only while it is renewed: the
process that wrote it may have died.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any

from sidestep.v1 import admin_pb2
from sqlalchemy import delete, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane.store.database import Database, Kind, Lock
from controlplane.store.dialect import Upsert
from controlplane.store.tables import SIDECARS

RENEW_S = 30.0
CONNECTED_FOR_S = 90.0

# A process that notices late that a stream broke must not overwrite what another knows of the next one.
_UPSERT = Upsert(SIDECARS, ["connected", "seen_at", "recorded_at", "status"], newer="seen_at")


class SidecarTable:
    """Statuses by sidecar name; a name has one status, the latest recorded."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._latest: dict[str, admin_pb2.SidecarStatus] = {}
        self._written_at: dict[str, float] = {}

    def record(self, status: admin_pb2.SidecarStatus) -> None:
        """Takes a status over. The message stays the caller's to change; each change is recorded by another call."""
        self._latest[status.sidecar] = status
        self._written_at.pop(status.sidecar, None)

    async def flush(self) -> None:
        """Writes what changed, and renews who is still connected. Raises StoreError; then all stays to be written."""
        now = time.time()
        due = {
            name: status
            for name, status in self._latest.items()
            if (written_at := self._written_at.get(name)) is None or (status.connected and now - written_at >= RENEW_S)
        }
        if not due:
            return
        rows = [_to_row(status, now) for status in due.values()]

        async def write(conn: AsyncConnection) -> None:
            await conn.execute(_UPSERT.on(conn), rows)

        self._written_at.update(dict.fromkeys(due, now))
        try:
            await self._database.write(Kind.SIDECARS, write, (Lock(Kind.SIDECARS),))
        except BaseException:
            for name in due:
                self._written_at.pop(name, None)
            raise
        for name in due:
            # Gone, and not recorded again while it was written: from here on the table alone remembers it.
            if name in self._written_at and not self._latest[name].connected:
                del self._latest[name], self._written_at[name]

    async def read(self, tenant: str | None, after: str, limit: int) -> list[admin_pb2.SidecarStatus]:
        """Statuses ordered by name, those that follow `tenant` only if one is given."""
        now = time.time()
        found: list[admin_pb2.SidecarStatus] = []
        while len(found) < limit:
            async with self._database.reading() as conn:
                query = select(SIDECARS).where(SIDECARS.c.sidecar > after).order_by(SIDECARS.c.sidecar).limit(limit)
                rows = {row.sidecar: row for row in await conn.execute(query)}
            # Beyond a full page the table knows more names, so names of memory behind it must wait for the next page.
            upto = max(rows) if len(rows) == limit else None
            names = sorted({*rows, *(name for name in self._latest if name > after and (upto is None or name <= upto))})
            for name in names:
                latest, row = self._latest.get(name), rows.get(name)
                status = _copy(latest) if latest is not None and not _is_newer(row, latest) else _from_row(row, now)
                if tenant is None or any(cursor.tenant == tenant for cursor in status.cursors):
                    found.append(status)
            if upto is None:
                break
            after = upto
        return found[:limit]

    async def identity(self, name: str) -> str:
        """The certificate identity that has this name; empty: none has."""
        latest = self._latest.get(name)
        if latest is not None:
            return latest.identity
        query = select(SIDECARS.c.status).where(SIDECARS.c.sidecar == name)
        async with self._database.reading() as conn:
            row = (await conn.execute(query)).scalar()
        return "" if row is None else admin_pb2.SidecarStatus.FromString(row).identity

    async def claim(self, name: str, identity: str) -> None:
        """Gives a name that no identity has to one; durable with the next `flush`."""
        async with self._database.reading() as conn:
            row = (await conn.execute(select(SIDECARS).where(SIDECARS.c.sidecar == name))).one_or_none()
        status = admin_pb2.SidecarStatus(sidecar=name) if row is None else _from_row(row, time.time())
        status = self._latest.get(name, status)
        status.identity = identity
        status.seen_time.FromNanoseconds(time.time_ns())
        self.record(status)

    async def connected(self, names: Collection[str]) -> set[str]:
        """Which of them have a stream open."""
        fresh = SIDECARS.c.recorded_at > time.time() - CONNECTED_FOR_S
        query = select(SIDECARS.c.sidecar).where(SIDECARS.c.sidecar.in_(names), SIDECARS.c.connected, fresh)
        async with self._database.reading() as conn:
            found = set((await conn.execute(query)).scalars())
        # Here or at another replica: it may have gone from here because it went there.
        return {name for name in names if name in found or (name in self._latest and self._latest[name].connected)}

    async def forget(self, seen_before: float) -> int:
        """Removes those not connected and not seen since; returns how many."""
        gone = or_(SIDECARS.c.connected.is_(False), SIDECARS.c.recorded_at < time.time() - CONNECTED_FOR_S)

        async def write(conn: AsyncConnection) -> int:
            return (await conn.execute(delete(SIDECARS).where(SIDECARS.c.seen_at < seen_before, gone))).rowcount

        return await self._database.write(Kind.SIDECARS, write, (Lock(Kind.SIDECARS),))


def _to_row(status: admin_pb2.SidecarStatus, now: float) -> dict[str, Any]:
    return {
        "sidecar": status.sidecar,
        "connected": status.connected,
        "seen_at": _seen_at(status),
        "recorded_at": now,
        "status": status.SerializeToString(),
    }


def _is_newer(row: Any, latest: admin_pb2.SidecarStatus) -> bool:
    """Whether another process knows more of a sidecar than this one, from which it has gone."""
    return row is not None and not latest.connected and row.seen_at > _seen_at(latest)


def _seen_at(status: admin_pb2.SidecarStatus) -> float:
    return status.seen_time.ToNanoseconds() / 1e9


def _from_row(row: Any, now: float) -> admin_pb2.SidecarStatus:
    status = admin_pb2.SidecarStatus.FromString(row.status)
    status.connected = row.connected and now - row.recorded_at < CONNECTED_FOR_S
    return status


def _copy(status: admin_pb2.SidecarStatus) -> admin_pb2.SidecarStatus:
    copy = admin_pb2.SidecarStatus()
    copy.CopyFrom(status)
    return copy
