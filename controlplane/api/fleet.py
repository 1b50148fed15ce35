"""The fleet as operators see it: who has what, how far behind, and whether everyone has got it.

Every replica answers for all: statuses of sidecars connected elsewhere come from the table, a few seconds old.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Final

from sidestep.v1 import admin_pb2, resources_pb2, sync_pb2

from controlplane.actor import Permission
from controlplane.api.identity import admit
from controlplane.api.paging import page_size, read_token, write_token
from controlplane.errors import CompactedError
from controlplane.store import Head, Store
from controlplane.store.store import MAX_PAGE
from engine.errors import InvalidInputError
from engine.names import Lane, check_tenant, parse_parent

MAX_MISSING: Final = 100
MAX_TARGETS: Final = 20_000
DEFAULT_SEEN_S: Final = 60.0
_MAX_SEEN_S: Final = 86_400.0
# Commits looked up in the log for one answer; what is behind by others has no age.
_MAX_LOOKED_UP: Final = 200

Heads = Mapping[tuple[str, int], Head]


async def list_sidecars(store: Store, request: admin_pb2.ListSidecarsRequest) -> admin_pb2.ListSidecarsResponse:
    """A page of the sidecars connected or seen lately, by name."""
    tenant = parse_parent(request.parent) if request.parent else None
    admit(Permission.READ, tenant)
    limit = page_size(request.page_size)
    lags = Lags(store, await _heads(store, tenant))
    found: list[admin_pb2.SidecarStatus] = []
    after = read_token(request.page_token)
    while len(found) < limit:
        page = await store.sidecars(tenant, after=after, limit=limit)
        for status in page:
            await lags.fill(status)
            if len(found) < limit and _wanted(status, request):
                found.append(status)
        if len(page) < limit:
            return admin_pb2.ListSidecarsResponse(sidecars=found)
        after = page[-1].sidecar
    return admin_pb2.ListSidecarsResponse(sidecars=found, next_page_token=write_token(found[-1].sidecar))


async def get_rollout(store: Store, request: admin_pb2.GetRolloutRequest) -> admin_pb2.GetRolloutResponse:
    """Who has acknowledged what was asked for. Raises InvalidInputError for a revision that was not committed yet."""
    tenant = parse_parent(request.parent) if request.parent else None
    admit(Permission.READ, tenant)
    seen_s = request.seen_within.ToNanoseconds() / 1e9 if request.HasField("seen_within") else DEFAULT_SEEN_S
    if not 0 <= seen_s <= _MAX_SEEN_S:
        raise InvalidInputError("seen_within", f"must be between 0 s and {_MAX_SEEN_S:g} s")
    heads = await _heads(store, tenant)
    targets = _targets(request.targets, heads)
    lags = Lags(store, heads)
    response = admin_pb2.GetRolloutResponse(targets=targets.values())
    seen_after = time.time() - seen_s
    async for status in _all(store, tenant):
        if not status.connected and status.seen_time.ToNanoseconds() / 1e9 < seen_after:
            continue
        reached = [
            (cursor.epoch, cursor.revision) >= (target.epoch, target.revision)
            for cursor in status.cursors
            if (target := targets.get((cursor.tenant, cursor.lane))) is not None
        ]
        # Connected and told nothing yet: it may be about to follow any tenant.
        if not reached and not (status.connected and not status.cursors):
            continue
        response.sidecars += 1
        if reached and all(reached):
            response.current += 1
        elif len(response.missing) < MAX_MISSING:
            await lags.fill(status)
            response.missing.append(status)
    return response


class Lags:
    """Fills in how far statuses are behind some heads, looking each commit up once."""

    def __init__(self, store: Store, heads: Heads) -> None:
        self._store = store
        self._heads = heads
        self._now = time.time()
        self._committed_at: dict[tuple[str, int, int], float | None] = {}

    async def fill(self, status: admin_pb2.SidecarStatus) -> None:
        """Sets `lags`. Raises StoreError."""
        del status.lags[:]
        for cursor in status.cursors:
            head = self._heads.get((cursor.tenant, cursor.lane))
            if head is None or (cursor.epoch, cursor.revision) == (head.epoch, head.revision):
                continue
            lag = status.lags.add(tenant=cursor.tenant, lane=cursor.lane)
            if cursor.epoch == head.epoch and cursor.revision < head.revision:
                lag.revisions = head.revision - cursor.revision
                committed_at = await self._commit_time(cursor)
                if committed_at is not None:
                    lag.age.FromNanoseconds(int(max(0.0, self._now - committed_at) * 1e9))

    async def _commit_time(self, cursor: sync_pb2.Cursor) -> float | None:
        """When the commit after a cursor was made."""
        key = (cursor.tenant, int(cursor.lane), cursor.revision)
        if key not in self._committed_at and len(self._committed_at) < _MAX_LOOKED_UP:
            self._committed_at[key] = None
            try:
                entries = await self._store.changes(cursor.tenant, Lane(cursor.lane), cursor.revision, limit=1)
            except CompactedError:
                entries = []
            for entry in entries:
                delta = sync_pb2.Delta.FromString(entry.delta)
                self._committed_at[key] = delta.commit_time.ToNanoseconds() / 1e9
        return self._committed_at.get(key)


def _wanted(status: admin_pb2.SidecarStatus, request: admin_pb2.ListSidecarsRequest) -> bool:
    return (
        (not request.behind or len(status.lags) > 0)
        and (not request.refusing or bool(status.refusal))
        and (not request.disconnected or not status.connected)
    )


async def _heads(store: Store, tenant: str | None) -> Heads:
    return {(head.tenant, int(head.lane)): head for head in await store.heads(None if tenant is None else [tenant])}


async def _all(store: Store, tenant: str | None) -> AsyncIterator[admin_pb2.SidecarStatus]:
    after = ""
    while page := await store.sidecars(tenant, after=after, limit=MAX_PAGE):
        for status in page:
            yield status
        after = page[-1].sidecar


def _targets(asked: Iterable[sync_pb2.Cursor], heads: Heads) -> dict[tuple[str, int], sync_pb2.Cursor]:
    targets: dict[tuple[str, int], sync_pb2.Cursor] = {}
    for index, cursor in enumerate(asked):
        field = f"targets[{index}]"
        if index >= MAX_TARGETS:
            raise InvalidInputError("targets", f"more than {MAX_TARGETS}")
        check_tenant(cursor.tenant, f"{field}.tenant")
        head = heads.get((cursor.tenant, cursor.lane))
        if head is None:
            raise InvalidInputError(field, "there is no such lane in reach")
        if (cursor.epoch or head.epoch, cursor.revision) > (head.epoch, head.revision):
            raise InvalidInputError(f"{field}.revision", f"the newest is {head.epoch}:{head.revision}")
        targets[cursor.tenant, cursor.lane] = _cursor(
            head, cursor.epoch or head.epoch, cursor.revision or head.revision
        )
    if targets:
        return targets
    return {key: _cursor(head, head.epoch, head.revision) for key, head in heads.items() if head.lane is Lane.URGENT}


def _cursor(head: Head, epoch: int, revision: int) -> sync_pb2.Cursor:
    lane = resources_pb2.Lane.Name(head.lane)
    return sync_pb2.Cursor(tenant=head.tenant, lane=lane, epoch=epoch, revision=revision)
