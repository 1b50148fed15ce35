"""What falls due by itself: grants whose time is over expire, and those nobody reviewed lapse.

Sidecars refuse such grants by their own clock, at once. This makes the record say so, for whoever looks at it, and enters it in
the audit log. Any number of replicas may do it at once: each change is made only of the bytes that were read, and once.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from typing import Final

from google.protobuf.message import DecodeError
from sidestep.v1 import resources_pb2 as pb

from controlplane.actor import SYSTEM, system
from controlplane.api.differences import difference
from controlplane.audit import Note
from controlplane.errors import ConflictError
from controlplane.grants import Terms, change_grant, life_of, read_terms
from controlplane.store import Store, Write
from engine.errors import SidestepError
from engine.lifecycle import Step, Transition, due, due_at
from engine.names import SINGLETON_ID, Collection, Lane

_LOG = logging.getLogger(__name__)

_PAGE: Final = 1_000
_REASONS: Final = {
    Transition.EXPIRE: "its time is over",
    Transition.LAPSE: "nobody reviewed it in time",
}


class DueGrants:
    """Expires and lapses grants. `look_every_s`: how often it looks; a tenant is read only if something of it changed or may be
    due."""

    def __init__(self, store: Store, look_every_s: float) -> None:
        self._store = store
        self._look_every_s = look_every_s
        # Tenant -> the revision it was read at, and when something of it is due next.
        self._next: dict[str, tuple[tuple[int, int], float]] = {}

    async def run(self) -> None:
        """Looks now and then, until cancelled."""
        while True:
            try:
                await self.look(time.time())
            except SidestepError as error:
                _LOG.error("grants that may be due could not be looked at, and wait: %s", error)
            await asyncio.sleep(self._look_every_s)

    async def look(self, now: float) -> int:
        """Does what is due at `now`; returns how many grants changed. Raises StoreError."""
        changed = 0
        for head in await self._store.heads():
            if head.lane is not Lane.URGENT:
                continue
            revision = (head.epoch, head.revision)
            seen, at = self._next.get(head.tenant, (None, -math.inf))
            if seen == revision and now < at:
                continue
            done, next_at = await self._look_at(head.tenant, now)
            changed += done
            self._next[head.tenant] = (revision, next_at)
        return changed

    async def _look_at(self, tenant: str, now: float) -> tuple[int, float]:
        """How many grants of a tenant changed, and when the next is due."""
        settings = await self._store.get(tenant, Collection.SETTINGS, SINGLETON_ID)
        terms = read_terms(settings)
        changed, next_at, after = 0, math.inf, ""
        while rows := await self._store.list(tenant, Collection.GRANTS, after=after, limit=_PAGE):
            after = rows[-1][0]
            for record_id, value in rows:
                grant = _parsed(value)
                if grant is None:
                    continue
                life = life_of(grant, terms)
                transition = due(life, now)
                if transition is None:
                    at = due_at(life)
                    next_at = next_at if at is None else min(next_at, at)
                elif await self._change(tenant, record_id, grant, value, settings, terms, transition, now):
                    changed += 1
        return changed, next_at

    async def _change(
        self,
        tenant: str,
        record_id: str,
        grant: pb.Grant,
        value: bytes,
        settings: bytes | None,
        terms: Terms,
        transition: Transition,
        now: float,
    ) -> bool:
        """Whether it was changed here, and not by somebody else meanwhile."""
        reason = _REASONS[transition]
        after = change_grant(grant, Step(transition, SYSTEM, reason), terms, now)
        after.update_time.FromNanoseconds(int(now * 1e9))
        detail = difference(Collection.GRANTS, value, after)
        note = Note(system(), f"grant.{transition}", grant.name, detail, reason)
        key = (Collection.GRANTS, record_id)
        expect: dict[tuple[int, str], bytes | None] = {key: value, (Collection.SETTINGS, SINGLETON_ID): settings}
        write = Write(Collection.GRANTS, record_id, after.SerializeToString(deterministic=True))
        try:
            committed = await self._store.commit(tenant, [write], expect=expect, audit=note)
        except ConflictError:
            return False
        return bool(committed.changed)


def _parsed(value: bytes) -> pb.Grant | None:
    """A stored grant; None for what is none, or has no end: sidecars do not use it either."""
    try:
        grant = pb.Grant.FromString(value)
    except DecodeError:
        return None
    return grant if grant.HasField("expire_time") else None
