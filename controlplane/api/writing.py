"""Putting and deleting one record: checked, completed, linked to others, under change control, and entered in the audit log."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from hashlib import sha256
from typing import Any, NamedTuple

from sidestep.v1 import resources_pb2 as pb
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane.actor import ANONYMOUS
from controlplane.api.differences import difference
from controlplane.api.fingerprints import FingerprintHasher
from controlplane.api.guard import guards, load_control, refusal
from controlplane.api.links import check_links, linked_whole
from controlplane.api.resources import Checked, check, complete
from controlplane.audit import Note
from controlplane.errors import ConflictError, NotFoundError, RefusedError
from controlplane.store import Committed, Head, Store, Write
from engine.names import Collection, Lane, Name, lane_of

ATTEMPTS = 5


class Approved(NamedTuple):
    """A change that a second person agreed to: of a record that still has these bytes (SHA-256; empty: no record).

    `also` commits with it; what it raises undoes the change.
    """

    base_digest: bytes
    also: Callable[[AsyncConnection, Committed], Awaitable[None]]


class Written(NamedTuple):
    """What a write did, or would do. `rules`: those by which it needs a second person."""

    record: Any
    changed: bool
    warnings: list[str]
    head: Head | None
    stored: bytes | None
    rules: list[str]


class Writer:
    """Writes records of the admin API. One instance serves all calls, in one event loop."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def put(
        self, resource: pb.Resource, note: Note | None, approved: Approved | None = None, *, actor: str = ANONYMOUS
    ) -> Written:
        """Creates or replaces a record; equal content changes nothing. Without a note nothing is written, only checked, as if
        `actor` put it.

        Raises InvalidInputError, ConflictError, RefusedError for a guarded change that is not approved.
        """
        checked = check(resource)
        warnings = await self._hash_fingerprint(checked)
        written = await self._put(checked, note, approved, actor if note is None else note.actor.name)
        return written._replace(warnings=[*warnings, *written.warnings])

    async def delete(self, name: Name, note: Note | None, approved: Approved | None = None) -> Written:
        """Deletes a record. Without a note nothing is written, only checked. Raises NotFoundError, RefusedError."""
        key = (name.collection, name.id)
        for attempt in range(1, ATTEMPTS + 1):
            stored = await self._store.get(name.tenant, *key)
            if stored is None:
                raise NotFoundError(str(name))
            rules = await self._rules(name, stored, None, note, approved)
            if note is None:
                return Written(None, True, [], await self._head(name), stored, rules)
            told = note._replace(detail=_told(note, "deleted"))
            head = await self._commit(name, None, {key: stored}, told, approved, last=attempt == ATTEMPTS)
            if head is not None:
                return Written(None, True, [], head, stored, rules)
        raise AssertionError("unreachable")

    async def _put(self, checked: Checked, note: Note | None, approved: Approved | None, actor: str) -> Written:
        """Reads, completes and writes one record; again, a few times, if someone else wrote it in between."""
        name = checked.name
        key = (name.collection, name.id)
        for attempt in range(1, ATTEMPTS + 1):
            stored = await self._store.get(name.tenant, *key)
            expect = await check_links(self._store, checked)
            completed = complete(checked, stored, time.time(), links=expect, actor=actor)
            record, changed, warnings = completed
            rules = await self._rules(name, stored, record, note, approved) if changed else []
            if approved is not None and not changed:
                raise RefusedError(f"{name}: is so already; reject the proposal")
            if note is None or not changed:
                return Written(record, changed, warnings, await self._head(name), stored, rules)
            told = note._replace(detail=_told(note, difference(name.collection, stored, record)))
            expect[key] = stored
            whole = linked_whole(checked)
            head = await self._commit(
                name, completed.value, expect, told, approved, last=attempt == ATTEMPTS, whole=whole
            )
            if head is not None:
                return Written(record, changed, warnings, head, stored, rules)
        raise AssertionError("unreachable")

    async def _rules(
        self, name: Name, stored: bytes | None, after: Any | None, note: Note | None, approved: Approved | None
    ) -> list[str]:
        """Raises RefusedError for a guarded write that nobody approved, or whose base has changed since."""
        if approved is not None:
            if digest_of(stored) != approved.base_digest:
                raise RefusedError(f"{name}: has changed since this was proposed; propose it again")
            return []
        control = await load_control(self._store, name.tenant)
        rules = await guards(self._store, control, name, stored, after, time.time())
        if rules and note is not None:
            raise refusal(name, rules)
        return rules

    async def _commit(
        self,
        name: Name,
        value: bytes | None,
        expect: dict[tuple[int, str], bytes | None],
        note: Note,
        approved: Approved | None,
        *,
        last: bool,
        whole: frozenset[int] = frozenset(),
    ) -> Head | None:
        """The head after the commit; None if somebody wrote in between and it may be tried again."""
        try:
            committed = await self._store.commit(
                name.tenant,
                [Write(name.collection, name.id, value)],
                expect=expect,
                audit=note,
                also=approved.also if approved is not None else None,
                whole=whole,
            )
        except ConflictError:
            if last:
                raise
            return None
        return committed.heads[lane(name.collection)]

    async def _head(self, name: Name) -> Head | None:
        heads = {head.lane: head for head in await self._store.heads([name.tenant])}
        return heads.get(lane(name.collection))

    async def _hash_fingerprint(self, checked: Checked) -> list[str]:
        """Replaces the raw fingerprint of a device by its stored form. Returns warnings."""
        name, record = checked
        if not (isinstance(record, pb.Device) and record.fingerprint):
            return []
        hasher = await FingerprintHasher.load(self._store, name.tenant, time.time())
        return hasher.hash(record, "device")


def digest_of(stored: bytes | None) -> bytes:
    """SHA-256 of a record's bytes; empty: there is no record."""
    return b"" if stored is None else sha256(stored).digest()


def lane(collection: Collection) -> Lane:
    """The lane of a known collection."""
    found = lane_of(collection)
    assert found is not None
    return found


def _told(note: Note, detail: str) -> str:
    """What the note already says, and what changes."""
    return f"{note.detail}; {detail}" if note.detail else detail
