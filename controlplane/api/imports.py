"""Importing a collection: stage everything, compare, then write the differences in commits of at most 1,000.

Nothing is written before the whole import has come and passed every check. The commits after that are each whole, but
not one transaction together: if the control plane dies between two, a repeated import writes what still differs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from itertools import islice
from typing import Any, TypeVar

from sidestep.v1 import admin_pb2
from sidestep.v1 import resources_pb2 as pb

from controlplane.actor import Permission
from controlplane.api.fingerprints import FingerprintHasher
from controlplane.api.guard import guards, load_control, refusal
from controlplane.api.identity import begin
from controlplane.api.links import check_links, check_twin, records
from controlplane.api.resources import (
    Checked,
    check,
    complete,
    content_hash,
    decode,
    encode,
    has_server_fields,
)
from controlplane.api.staging import Change, RepeatedError, Staged, Staging
from controlplane.api.writing import ATTEMPTS
from controlplane.audit import Note
from controlplane.changecontrol import concerns, protects, suspected
from controlplane.errors import ConflictError, ShrinkError
from controlplane.kinds import KINDS
from controlplane.store import MAX_VALUE_BYTES, Head, Store, Write
from engine.errors import InvalidInputError
from engine.names import SEGMENTS, Collection, Name, check_source, lane_of, parse_parent

T = TypeVar("T")
# Of these there are few, and most changes of one need a second person.
_ANY_CHANGE = frozenset({Collection.POLICIES, Collection.GRANT_CLASSES})
MAX_BATCH = 2_000
MAX_RECORDS = 50_000_000
MAX_SHRINK = 0.2
_COMMIT_RECORDS = 1_000
_COMMIT_BYTES = 2 * 1024 * 1024
# Put one by one: keys carry secrets and a rule over all of them, and of the other two a tenant has one each.
_NOT_IMPORTED = frozenset({Collection.KEYS, Collection.POSTURES, Collection.SETTINGS})


class Import:
    """One import, in the order start, batches, commit. `close` it whatever happens; that discards what was staged."""

    def __init__(self, store: Store, start: admin_pb2.ImportStart) -> None:
        """Raises InvalidInputError if the start message cannot be followed, ForbiddenError."""
        self._store = store
        self._tenant = self.tenant = parse_parent(start.parent, "start.parent")
        self._collection = _collection(start.collection)
        self._source = _source(self._collection, start.source)
        self._note = begin(Permission.WRITE, self._tenant, "import", _subject_of(start, self._collection))
        self._replace = start.replace
        self._force = start.force
        self._received = 0
        self._hasher: FingerprintHasher | None = None
        self._staging = Staging()
        self._control = pb.ChangeControl()
        self._added = self._updated = self._removed = 0

    async def close(self) -> None:
        """Discards what was staged."""
        await asyncio.to_thread(self._staging.close)

    async def add(self, batch: admin_pb2.ImportBatch) -> None:
        """Validates and stages a batch. Raises InvalidInputError naming the record (by index in the import) and field."""
        if len(batch.resources) > MAX_BATCH:
            raise InvalidInputError("batch.resources", f"{len(batch.resources)} in one batch, more than {MAX_BATCH}")
        if self._received + len(batch.resources) > MAX_RECORDS:
            raise InvalidInputError("batch.resources", f"more than {MAX_RECORDS} in one import")
        if self._collection is Collection.DEVICES and self._hasher is None:
            self._hasher = await FingerprintHasher.load(self._store, self._tenant, time.time())
        await _in_thread(self._stage, batch)
        self._received += len(batch.resources)

    async def commit(self, count: int) -> admin_pb2.ImportResourcesResponse:
        """Writes the differences. Raises InvalidInputError if the count is wrong, ShrinkError,
        RefusedError, ConflictError."""
        if count != self._received:
            raise InvalidInputError("commit.count", f"is {count}, but {self._received} resources arrived")
        await self._load_kept()
        before = await _in_thread(self._staging.kept)
        if self._replace and not self._force:
            await self._refuse_shrinking(before)
        await self._check_twins()
        await self._refuse_guarded()
        await self._write_changed()
        if self._replace:
            await self._write_removed()
        response = admin_pb2.ImportResourcesResponse(
            received=self._received,
            added=self._added,
            updated=self._updated,
            removed=self._removed,
            unchanged=self._received - self._added - self._updated,
        )
        head = await self._head()
        if head is not None:
            response.revision.epoch = head.epoch
            response.revision.revision = head.revision
        return response

    def _stage(self, batch: admin_pb2.ImportBatch) -> None:
        rows = []
        for position, resource in enumerate(batch.resources, start=self._received):
            checked = check(resource, f"resources[{position}]")
            field = f"resources[{position}].{KINDS[checked.name.collection].field}"
            self._check(checked, field)
            if has_server_fields(self._collection):
                # What is stored differs by marks alone, so what fails here would fail when it is written.
                complete(checked, None, time.time(), field)
            value = encode(checked.record)
            if len(value) > MAX_VALUE_BYTES:
                raise InvalidInputError(field, f"is larger than {MAX_VALUE_BYTES} bytes")
            rows.append(Staged(checked.name.id, position, content_hash(checked.record), value))
        try:
            self._staging.add(rows)
        except RepeatedError as error:
            field = f"resources[{error.position}].{KINDS[self._collection].field}.name"
            raise InvalidInputError(field, f"{error.record_id!r} was in this import before") from None

    def _check(self, checked: Checked, field: str) -> None:
        """Checks a record against the start message, and gives a device its stored form."""
        name, record = checked
        if name.collection is not self._collection:
            raise InvalidInputError(field, f"the import is of {SEGMENTS[self._collection]}")
        if name.tenant != self._tenant:
            raise InvalidInputError(f"{field}.name", f"the import is of tenant {self._tenant!r}")
        if self._source and record.source != self._source:
            raise InvalidInputError(f"{field}.source", f"{record.source!r} is not the import's {self._source!r}")
        if self._hasher is not None:
            self._hasher.hash(record, field)

    async def _load_kept(self) -> None:
        where = (self._tenant, self._collection)
        if has_server_fields(self._collection):
            page: list[tuple[str, bytes]] = []
            async for record_id, value in records(self._store, *where):
                page.append((record_id, content_hash(decode(self._collection, value))))
                if len(page) == _COMMIT_RECORDS:
                    await _in_thread(self._staging.keep, page)
                    page = []
            await _in_thread(self._staging.keep, page)
            return
        suffix = f"~{self._source}" if self._source else ""
        async with aclosing(self._store.digests(*where, id_suffix=suffix)) as batches:
            async for batch in batches:
                await _in_thread(self._staging.keep, batch)

    async def _refuse_shrinking(self, before: int) -> None:
        after = before - await _in_thread(self._staging.missing) + await _in_thread(self._staging.added)
        if after < before * (1 - MAX_SHRINK):
            whose = f"source {self._source!r}" if self._source else SEGMENTS[self._collection]
            raise ShrinkError(
                f"import of {whose}: would shrink from {before} to {after} records, by {(before - after) / before:.0%}; "
                f"more than {MAX_SHRINK:.0%} needs force"
            )

    async def _check_twins(self) -> None:
        """Refuses devices and standings that disagree about their subject, before anything is written."""
        if self._collection is Collection.DEVICE_STATES:
            changes = self._staging.changed()
            while batch := await _in_thread(_take, changes):
                for change in batch:
                    device = await self._store.get(self._tenant, Collection.DEVICES, change.id)
                    if device is not None:
                        state = decode(Collection.DEVICE_STATES, change.value)
                        field = f"resources[{change.position}].device_state"
                        check_twin(state, decode(Collection.DEVICES, device), field)
        if self._collection is not Collection.DEVICES:
            return
        async for record_id, value in records(self._store, self._tenant, Collection.DEVICE_STATES):
            staged = await _in_thread(self._staging.get, record_id)
            if staged is not None:
                state = decode(Collection.DEVICE_STATES, value)
                check_twin(decode(Collection.DEVICES, staged.value), state, f"resources[{staged.position}].device")

    async def _write_changed(self) -> None:
        changes = self._staging.changed()
        while batch := await _in_thread(_take, changes):
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    await self._write(batch, fresh=attempt == 1)
                    break
                except ConflictError:
                    if attempt == ATTEMPTS:
                        raise

    async def _write(self, batch: Sequence[Change], *, fresh: bool) -> None:
        """Writes one batch. `fresh`: what is marked as added was not there just now, so it need not be read."""
        if not has_server_fields(self._collection):
            writes = [Write(self._collection, change.id, change.value) for change in batch]
            await self._store.commit(self._tenant, writes, audit=self._tell(len(writes), "written"))
            self._count(batch)
            return
        writes, written = [], []
        expect: dict[tuple[int, str], bytes | None] = {}
        now = time.time()
        for change in batch:
            key = (self._collection, change.id)
            stored = None if change.added and fresh else await self._store.get(self._tenant, *key)
            checked = Checked(Name(self._tenant, *key), decode(self._collection, change.value))
            field = f"resources[{change.position}].{KINDS[self._collection].field}"
            links = await check_links(self._store, checked, field)
            expect.update(links)
            completed = complete(checked, stored, now, field, links=links, actor=self._note.actor.name)
            if completed.changed:
                await self._check_guard(change.id, stored, completed.record, now)
                expect[key] = stored
                writes.append(Write(self._collection, change.id, completed.value))
                written.append(change._replace(added=stored is None))
        if writes:
            await self._store.commit(self._tenant, writes, expect=expect, audit=self._tell(len(writes), "written"))
            self._count(written)

    def _tell(self, records: int, what: str) -> Note:
        """The note of one of its commits: an import is not one transaction, so each is entered with what it did."""
        whose = f" of source {self._source}" if self._source else ""
        return self._note._replace(detail=f"{records} records{whose} {what}")

    def _count(self, written: Sequence[Change]) -> None:
        added = sum(change.added for change in written)
        self._added += added
        self._updated += len(written) - added

    async def _write_removed(self) -> None:
        gone = self._staging.removed()
        concerned = concerns(self._control, self._collection)
        while ids := await _in_thread(lambda: list(islice(gone, _COMMIT_RECORDS))):
            expect: dict[tuple[int, str], bytes | None] = {}
            for gone_id in ids if concerned else ():
                stored = await self._stored(gone_id)
                await self._check_guard(gone_id, stored, None, time.time())
                expect[(self._collection, gone_id)] = stored
            writes = [Write(self._collection, gone_id, None) for gone_id in ids]
            note = self._tell(len(ids), "removed")
            committed = await self._store.commit(self._tenant, writes, expect=expect, audit=note)
            self._removed += committed.changed

    async def _refuse_guarded(self) -> None:
        """Refuses, before anything is written, what change control demands a second person for."""
        self._control = await load_control(self._store, self._tenant)
        if not concerns(self._control, self._collection):
            return
        if self._collection in _ANY_CHANGE:
            await self._refuse_any()
            return
        now = time.time()
        # By what is protected, which is little, and not by what the import brings, which may be a million records.
        if self._collection is not Collection.DEVICES:
            async for record_id, value in records(self._store, self._tenant, self._collection):
                if protects(self._collection, decode(self._collection, value), now):
                    await self._refuse_lifting(record_id, value, now)
            return
        async for device_id, value in records(self._store, self._tenant, Collection.DEVICE_STATES):
            if protects(Collection.DEVICE_STATES, decode(Collection.DEVICE_STATES, value), now):
                await self._refuse_lifting(device_id, await self._stored(device_id), now)
        async for _, value in records(self._store, self._tenant, Collection.SUBJECTS):
            for device_id, _ in suspected(decode(Collection.SUBJECTS, value), now):
                await self._refuse_lifting(device_id, await self._stored(device_id), now)

    async def _refuse_lifting(self, record_id: str, stored: bytes | None, now: float) -> None:
        """Refuses what the import would make of one record."""
        staged = await _in_thread(self._staging.get, record_id)
        if staged is None and (stored is None or not self._replace):
            return
        after = None if staged is None else self._completed(stored, staged, now)
        await self._check_guard(record_id, stored, after, now)

    async def _refuse_any(self) -> None:
        """Where most changes are guarded: looks at each until one is."""
        now = time.time()
        for change in await _in_thread(lambda: list(self._staging.changed())):
            stored = await self._stored(change.id)
            await self._check_guard(change.id, stored, self._completed(stored, change, now), now)
        for gone_id in await _in_thread(lambda: list(self._staging.removed())) if self._replace else ():
            await self._check_guard(gone_id, await self._stored(gone_id), None, now)

    async def _stored(self, record_id: str) -> bytes | None:
        return await self._store.get(self._tenant, self._collection, record_id)

    def _completed(self, stored: bytes | None, staged: Staged | Change, now: float) -> Any:
        """What a write of a staged record would leave. What that does not mention stays as it was, and is not lifted by it."""
        record = decode(self._collection, staged.value)
        if not has_server_fields(self._collection):
            return record
        checked = Checked(Name(self._tenant, self._collection, staged.id), record)
        field = f"resources[{staged.position}].{KINDS[self._collection].field}"
        return complete(checked, stored, now, field).record

    async def _check_guard(self, record_id: str, stored: bytes | None, after: Any | None, now: float) -> None:
        """Raises RefusedError if a second person is needed for one of its changes."""
        if concerns(self._control, self._collection):
            name = Name(self._tenant, self._collection, record_id)
            if rules := await guards(self._store, self._control, name, stored, after, now):
                raise refusal(name, rules)

    async def _head(self) -> Head | None:
        heads: Mapping[Any, Head] = {head.lane: head for head in await self._store.heads([self._tenant])}
        return heads.get(lane_of(self._collection))


async def _in_thread(work: Callable[..., T], *arguments: Any) -> T:
    """Runs work on the staging table aside. Waits for it even when cancelled: the table serves one thread at a time."""
    task = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def _take(changes: Iterator[Change]) -> list[Change]:
    """The next commit's worth: at most 1,000 records and about 2 MiB."""
    batch: list[Change] = []
    size = 0
    for change in changes:
        batch.append(change)
        size += len(change.value)
        if len(batch) == _COMMIT_RECORDS or size >= _COMMIT_BYTES:
            break
    return batch


def _collection(number: int) -> Collection:
    try:
        collection = Collection(number)
    except ValueError:
        raise InvalidInputError("start.collection", "must be a collection this control plane knows") from None
    if collection in _NOT_IMPORTED:
        raise InvalidInputError("start.collection", f"{SEGMENTS[collection]} are put one by one")
    return collection


def _subject_of(start: admin_pb2.ImportStart, collection: Collection) -> str:
    return f"{start.parent}/{SEGMENTS[collection]}"


def _source(collection: Collection, source: str) -> str:
    if collection is not Collection.SIGNALS:
        if source:
            raise InvalidInputError("start.source", "only signals have a source")
        return ""
    return check_source(source, "start.source")
