"""What goes in and out of the store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import NamedTuple

from engine.errors import InvalidInputError
from engine.names import Lane, check_tenant, lane_of

MAX_WRITES = 1_000
MAX_VALUE_BYTES = 192 * 1024
# One commit is one message on every stream, and gRPC refuses messages above 4 MiB unless told otherwise.
MAX_COMMIT_BYTES = 3 * 1024 * 1024

# Runs of (collection, id, value).
Batches = AsyncIterator[Sequence[tuple[int, str, bytes]]]


class Write(NamedTuple):
    """Puts a record, or deletes it (`value` None)."""

    collection: int
    id: str
    value: bytes | None


class Head(NamedTuple):
    """Where a (tenant, lane) stands. `digest` and `digest_key` are those of engine.digest."""

    tenant: str
    lane: Lane
    epoch: int
    revision: int
    digest: bytes
    digest_key: bytes


class Committed(NamedTuple):
    """What a commit did: how many records changed, and both lanes' heads after it."""

    changed: int
    heads: dict[Lane, Head]


class Entry(NamedTuple):
    """One commit in the change log; `delta` is an encoded sync_pb2.Delta."""

    revision: int
    delta: bytes


class Backlog(NamedTuple):
    """How much of the change log lies after a revision."""

    entries: int
    records: int
    bytes: int


def check_writes(tenant: str, writes: Iterable[Write]) -> dict[tuple[int, str], bytes | None]:
    """The writes by (collection, id), a later one replacing an earlier one. Raises InvalidInputError beyond a limit."""
    check_tenant(tenant)
    wanted: dict[tuple[int, str], bytes | None] = {}
    size = 0
    for index, write in enumerate(writes):
        if index >= MAX_WRITES:
            raise InvalidInputError("writes", f"more than {MAX_WRITES} in one commit")
        if lane_of(write.collection) is None:
            raise InvalidInputError(f"writes[{index}].collection", f"{write.collection} belongs to no lane")
        if not write.id:
            raise InvalidInputError(f"writes[{index}].id", "must not be empty")
        if write.value is not None:
            if len(write.value) > MAX_VALUE_BYTES:
                raise InvalidInputError(f"writes[{index}].value", f"larger than {MAX_VALUE_BYTES} bytes")
            size += len(write.value)
        wanted[(write.collection, write.id)] = write.value
    if size > MAX_COMMIT_BYTES:
        raise InvalidInputError("writes", f"{size} bytes in one commit, more than {MAX_COMMIT_BYTES}")
    return wanted
