"""The audit log's chain: what goes into an entry, how entries are hashed together, and whether a chain is whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from typing import NamedTuple

from google.protobuf.message import DecodeError
from sidestep.v1 import audit_pb2

from controlplane.actor import Actor

HASH_BYTES = 32
MAX_DETAIL = 2_000
MAX_REASON = 1_000
MAX_TICKET = 128
_DOMAIN = b"sidestep audit 1\0"


class Note(NamedTuple):
    """What somebody does, before the log gives it number, time and hash. Fields as in sidestep.v1.AuditEntry."""

    actor: Actor
    action: str
    name: str
    detail: str = ""
    reason: str = ""
    ticket: str = ""


class Finding(NamedTuple):
    """What is wrong with a chain, and the number of the entry it is wrong with."""

    number: int
    problem: str


def genesis(tenant: str) -> bytes:
    """What stands before a tenant's first entry."""
    return sha256(_DOMAIN + tenant.encode()).digest()


def link(previous_hash: bytes, entry: bytes) -> bytes:
    """The hash of an entry."""
    return sha256(previous_hash + entry).digest()


def record_digest(values: Mapping[tuple[int, str], bytes | None]) -> bytes:
    """`before_digest` or `after_digest` of records by (collection, id); None: there is no such record."""
    if len(values) == 1:
        (value,) = values.values()
        return b"" if value is None else sha256(value).digest()
    digest = sha256()
    present = False
    for (collection, record_id), value in sorted(values.items(), key=lambda item: item[0]):
        if value is not None:
            present = True
            digest.update(collection.to_bytes(4, "big") + record_id.encode() + b"\0" + len(value).to_bytes(8, "big"))
            digest.update(value)
    return digest.digest() if present else b""


def verify(
    tenant: str, records: Iterable[audit_pb2.AuditRecord], *heads: audit_pb2.AuditHead | None
) -> Iterator[Finding]:
    """What is wrong with a tenant's chain, read from its first entry; nothing if it is whole.

    A single edit, gap, repetition or exchange is told with its exact entry. With `heads`, known from elsewhere, also a tail that
    was cut, and a chain that was made anew from some entry on.
    """
    told = [head for head in heads if head is not None]
    expected, previous = 1, genesis(tenant)
    for record in records:
        entry = audit_pb2.AuditEntry()
        try:
            entry.ParseFromString(record.entry)
        except DecodeError:
            yield Finding(expected, "was edited: it is no entry")
            expected, previous = expected + 1, record.hash
            continue
        if link(record.previous_hash, record.entry) != record.hash:
            # Its number may be what was edited.
            yield Finding(expected, "was edited: its content does not have its hash")
        elif entry.tenant != tenant:
            yield Finding(expected, f"is of tenant {entry.tenant!r}")
        elif entry.number < expected:
            yield Finding(entry.number, "is there twice, or out of its place")
            continue
        elif entry.number > expected:
            yield Finding(expected, _missing(entry.number - 1 - expected, entry.number - 1))
            expected = entry.number
        elif record.previous_hash != previous:
            yield _unlinked(expected)
        if any(head.number == expected and head.hash != record.hash for head in told):
            yield Finding(expected, "is not the entry that the given head tells of")
        expected, previous = expected + 1, record.hash
    last = max((head.number for head in told), default=0)
    if last >= expected:
        yield Finding(expected, f"{_missing(last - expected, last)}: the tail was cut")


def _missing(more: int, last: int) -> str:
    return f"is missing, and all up to {last}" if more else "is missing"


def _unlinked(number: int) -> Finding:
    if number == 1:
        return Finding(1, "is not the first of this tenant's chain")
    return Finding(number - 1, f"was replaced: entry {number} does not follow it")
