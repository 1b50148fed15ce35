"""Rules that span records: what a record must agree with in others. Raise InvalidInputError naming the field."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from sidestep.v1 import resources_pb2 as pb

from controlplane.api.resources import Checked, decode
from controlplane.kinds import KINDS
from controlplane.store import Store
from engine.errors import InvalidInputError
from engine.names import SINGLETON_ID, Collection

MAX_USABLE_FINGERPRINT_KEYS = 2
_PAGE = 1000
# Device and state share their id and must be about the same subject.
_TWINS = {Collection.DEVICES: Collection.DEVICE_STATES, Collection.DEVICE_STATES: Collection.DEVICES}


async def check_links(store: Store, checked: Checked, field: str = "") -> dict[tuple[int, str], bytes | None]:
    """Checks a record against others, and returns what was read, for the commit to expect unchanged."""
    name, record = checked
    field = field or KINDS[name.collection].field
    twin = _TWINS.get(name.collection)
    if twin is not None:
        value = await store.get(name.tenant, twin, name.id)
        if value is not None:
            check_twin(record, decode(twin, value), field)
        return {(twin, name.id): value}
    if name.collection is Collection.GRANTS:
        # What the classes say of it must still hold when it is written.
        key = (Collection.SETTINGS, SINGLETON_ID)
        return {key: await store.get(name.tenant, *key)}
    if isinstance(record, pb.Key) and record.kind == pb.KEY_KIND_FINGERPRINT:
        expect: dict[tuple[int, str], bytes | None] = {}
        keys = [record]
        async for key_id, value in records(store, name.tenant, Collection.KEYS):
            if key_id == name.id:
                continue
            expect[(Collection.KEYS, key_id)] = value
            other = decode(Collection.KEYS, value)
            if other.kind == pb.KEY_KIND_FINGERPRINT:
                keys.append(other)
        _check_overlap(keys, f"{field}.start_time")
        return expect
    return {}


def linked_whole(checked: Checked) -> frozenset[int]:
    """Collections of which `check_links` read every record: the commit must expect that there are no others."""
    record = checked.record
    if isinstance(record, pb.Key) and record.kind == pb.KEY_KIND_FINGERPRINT:
        return frozenset({int(Collection.KEYS)})
    return frozenset()


def check_twin(record: pb.Device | pb.DeviceState, twin: pb.Device | pb.DeviceState, field: str) -> None:
    """Raises InvalidInputError unless a device and its state name the same subject, so that a block hits."""
    if record.subject != twin.subject:
        raise InvalidInputError(
            f"{field}.subject", f"{record.subject!r} does not agree with {twin.name}, which says {twin.subject!r}"
        )


async def records(store: Store, tenant: str, collection: Collection) -> AsyncIterator[tuple[str, bytes]]:
    """Every record of a collection, by id. Records written meanwhile may or may not be among them."""
    after = ""
    while page := await store.list(tenant, collection, after=after, limit=_PAGE):
        for item in page:
            yield item
        after = page[-1][0]


def _check_overlap(keys: Sequence[pb.Key], field: str) -> None:
    def start(key: pb.Key) -> int:
        return key.start_time.ToNanoseconds() if key.HasField("start_time") else -(2**63)

    # The number of usable keys only rises where one starts, so looking there is enough.
    for moment in map(start, keys):
        usable = [
            key
            for key in keys
            if start(key) <= moment and not (key.HasField("expire_time") and key.expire_time.ToNanoseconds() <= moment)
        ]
        if len(usable) > MAX_USABLE_FINGERPRINT_KEYS:
            others = ", ".join(sorted(key.name.rpartition("/")[2] for key in usable))
            raise InvalidInputError(
                field, f"{len(usable)} fingerprint keys would be usable at once ({others}); at most two may"
            )
