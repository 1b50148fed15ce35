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
from sqlalchemy.ext.asyncio import AsyncEngine

from controlplane.store.dialect import for_writing, translated_errors, upsert
from controlplane.store.tables import SIDECARS

RENEW_S = 30.0
CONNECTED_FOR_S = 90.0

_UPSERT = upsert(SIDECARS, ["connected", "seen_at", "recorded_at", "status"])


class SidecarTable:
    """Statuses by sidecar name; a name has one status, the latest recorded."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
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
        self._written_at.update(dict.fromkeys(due, now))
        try:
            with translated_errors():
                async with for_writing(self._engine).begin() as conn:
                    await conn.execute(_UPSERT, rows)
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
            with translated_errors():
                async with self._engine.connect() as conn:
                    query = select(SIDECARS).where(SIDECARS.c.sidecar > after).order_by(SIDECARS.c.sidecar).limit(limit)
                    rows = {row.sidecar: row for row in await conn.execute(query)}
            # Beyond a full page the table knows more names, so names of memory behind it must wait for the next page.
            upto = max(rows) if len(rows) == limit else None
            names = sorted({*rows, *(name for name in self._latest if name > after and (upto is None or name <= upto))})
            for name in names:
                latest = self._latest.get(name)
                status = _from_row(rows[name], now) if latest is None else _copy(latest)
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
        with translated_errors():
            async with self._engine.connect() as conn:
                row = (await conn.execute(query)).scalar()
        return "" if row is None else admin_pb2.SidecarStatus.FromString(row).identity

    async def claim(self, name: str, identity: str) -> None:
        """Gives a name that no identity has to one; durable with the next `flush`."""
        with translated_errors():
            async with self._engine.connect() as conn:
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
        with translated_errors():
            async with self._engine.connect() as conn:
                found = set((await conn.execute(query)).scalars())
        return {name for name in names if (self._latest[name].connected if name in self._latest else name in found)}

    async def forget(self, seen_before: float) -> int:
        """Removes those not connected and not seen since; returns how many."""
        gone = or_(SIDECARS.c.connected.is_(False), SIDECARS.c.recorded_at < time.time() - CONNECTED_FOR_S)
        with translated_errors():
            async with for_writing(self._engine).begin() as conn:
                result = await conn.execute(delete(SIDECARS).where(SIDECARS.c.seen_at < seen_before, gone))
        return int(result.rowcount)


def _to_row(status: admin_pb2.SidecarStatus, now: float) -> dict[str, Any]:
    return {
        "sidecar": status.sidecar,
        "connected": status.connected,
        "seen_at": status.seen_time.ToNanoseconds() / 1e9,
        "recorded_at": now,
        "status": status.SerializeToString(),
    }


def _from_row(row: Any, now: float) -> admin_pb2.SidecarStatus:
    status = admin_pb2.SidecarStatus.FromString(row.status)
    status.connected = row.connected and now - row.recorded_at < CONNECTED_FOR_S
    return status


def _copy(status: admin_pb2.SidecarStatus) -> admin_pb2.SidecarStatus:
    copy = admin_pb2.SidecarStatus()
    copy.CopyFrom(status)
    return copy
