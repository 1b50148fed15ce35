"""How records, index rows and bookkeeping are keyed in LMDB (docs/architecture.md, "Data on the wire and on disk").

Tenant, subject and record ids hold no NUL, so NUL separates the parts of a key and a tenant's rows are contiguous.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import Final, Literal, NamedTuple
from zlib import crc32

import lmdb

from engine.names import Collection, Lane
from sidecar.store.errors import DamagedRowError

MAX_KEY_BYTES: Final = 511
"""LMDB's limit on keys."""

LAYOUT: Final = 2
"""Rises when keys, index rows or bookkeeping change shape."""

FORMAT: Final = f"{LAYOUT}:{','.join(str(int(c)) for c in Collection)}".encode()
"""What a generation must say of itself to be read: the layout and the collections whose indexes it holds."""

META: Final = b"meta"
I_DEVICE: Final = b"i.device"
I_BLOCKED: Final = b"i.blocked"
I_GRANT: Final = b"i.grant"
I_PREFIX: Final = b"i.prefix"
INDEXES: Final = (I_DEVICE, I_BLOCKED, I_GRANT, I_PREFIX)

META_FORMAT: Final = b"format"
META_SCOPE: Final = b"scope"
META_CURSOR: Final = b"cursor\0"
META_KEY: Final = b"key\0"
META_CONFIRMED: Final = b"confirmed\0"
META_TIME: Final = b"time"
META_DROP: Final = b"drop\0"
SEALED: Final = (META_CURSOR, META_CONFIRMED, META_DROP, META_SCOPE, META_TIME)
"""What the keys of bookkeeping rows start with whose values are sealed. A META_KEY row proves itself in the digest."""

GrantScope = Literal["s", "r", "d"]
"""Subject, role or device."""

_CURSOR = Struct(">QQ32s")
_CONFIRMED = Struct(">dd")
_SEAL = Struct(">I")


class Cursor(NamedTuple):
    """Where a (tenant, lane) stands: which history, which change in it, and the digest of all its records."""

    epoch: int
    revision: int
    digest: bytes


class Confirmation(NamedTuple):
    """When the control plane last confirmed a lane: CLOCK_BOOTTIME seconds within boot `boot_id`, and wall time."""

    boot_id: str
    boottime: float
    wall: float


def collection_name(collection: int, lane: Lane) -> bytes:
    """Name of the database of a collection. Numbers above 127 have no lane of their own, so the name carries it."""
    return b"c%d" % collection if collection <= 127 else b"c%d.%d" % (collection, lane)


def parse_collection_name(name: bytes) -> tuple[int, Lane] | None:
    """The inverse of `collection_name`; None for any other database."""
    if not name.startswith(b"c"):
        return None
    number, _, lane = name[1:].partition(b".")
    if not number.isdigit():
        return None
    collection = int(number)
    if lane:
        return collection, Lane(int(lane))
    return collection, Lane.URGENT if collection <= 63 else Lane.BULK


def tenant_prefix(tenant: str) -> bytes:
    """What every record key and index row of a tenant starts with."""
    return tenant.encode() + b"\0"


def record_key(tenant: str, record_id: str) -> bytes:
    """Key of a record in its collection's database."""
    return f"{tenant}\0{record_id}".encode()


def subject_prefix(tenant: str, subject: str) -> bytes:
    """What the `i.device` and `i.blocked` rows of a subject start with; the device id follows."""
    return f"{tenant}\0{subject}\0".encode()


def grant_prefix(tenant: str, scope: GrantScope, value: str) -> bytes:
    """What the `i.grant` rows of a scope start with; the grant id follows."""
    return f"{tenant}\0{scope}{value}\0".encode()


def prefix_row(tenant: str, family: Literal[4, 6], length: int) -> bytes:
    """Key of the `i.prefix` counter of a prefix length."""
    return b"%s\0%d%c" % (tenant.encode(), family, length)


def lane_row(kind: bytes, tenant: str, lane: Lane) -> bytes:
    """Key of a bookkeeping row of a (tenant, lane); `kind` is META_CURSOR, META_KEY or META_CONFIRMED."""
    return b"%s%s\0%d" % (kind, tenant.encode(), lane)


def parse_lane_row(kind: bytes, key: bytes) -> tuple[str, Lane]:
    """The (tenant, lane) of a bookkeeping row. Raises DamagedRowError."""
    tenant, _, lane = key[len(kind) :].partition(b"\0")
    try:
        return tenant.decode(), Lane(int(lane))
    except ValueError:
        raise DamagedRowError(f"a {_kind_of(key)} row names no lane") from None


def seal(key: bytes, body: bytes) -> bytes:
    """A bookkeeping row's value: its content and a CRC-32 over key and content.

    No digest covers these rows, and one flipped bit would make a lane claim to be newer, or confirmed later, than it is.
    """
    return body + _SEAL.pack(crc32(body, crc32(key)))


def unseal(key: bytes, value: bytes) -> bytes:
    """The content of a bookkeeping row. Raises DamagedRowError if key or value are not as they were written."""
    body = value[: -_SEAL.size]
    if len(value) < _SEAL.size or _SEAL.unpack(value[-_SEAL.size :])[0] != crc32(body, crc32(key)):
        raise DamagedRowError(f"a {_kind_of(key)} row is not as it was written")
    return body


def pack_cursor(key: bytes, cursor: Cursor) -> bytes:
    """A cursor as stored under `key`."""
    return seal(key, _CURSOR.pack(cursor.epoch, cursor.revision, cursor.digest))


def unpack_cursor(key: bytes, value: bytes) -> Cursor:
    """A stored cursor. Raises DamagedRowError."""
    return Cursor(*_CURSOR.unpack(unseal(key, value)))


def pack_confirmation(key: bytes, confirmation: Confirmation) -> bytes:
    """A confirmation as stored under `key`."""
    return seal(key, _CONFIRMED.pack(confirmation.boottime, confirmation.wall) + confirmation.boot_id.encode())


def unpack_confirmation(key: bytes, value: bytes) -> Confirmation:
    """A stored confirmation. Raises DamagedRowError."""
    body = unseal(key, value)
    boottime, wall = _CONFIRMED.unpack_from(body)
    return Confirmation(body[_CONFIRMED.size :].decode(), boottime, wall)


def pack_scope(tenants: frozenset[str]) -> bytes:
    """A scope as stored under META_SCOPE."""
    return seal(META_SCOPE, b"\0".join(sorted(tenant.encode() for tenant in tenants)))


def unpack_scope(value: bytes) -> frozenset[str]:
    """A stored scope. Raises DamagedRowError."""
    return frozenset(tenant.decode() for tenant in unseal(META_SCOPE, value).split(b"\0") if tenant)


def check_meta_row(key: bytes, value: bytes) -> None:
    """Raises DamagedRowError for a bookkeeping row of no kind this layout has, or whose seal is broken."""
    if key.startswith(SEALED):
        unseal(key, value)
    elif key != META_FORMAT and not key.startswith(META_KEY):
        raise DamagedRowError("a bookkeeping row is of no known kind")


def _kind_of(key: bytes) -> str:
    return next((kind.rstrip(b"\0").decode() for kind in (*SEALED, META_KEY) if key.startswith(kind)), "bookkeeping")


def iterate(cursor: lmdb.Cursor[bytes], prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The rows whose keys start with `prefix`, in order."""
    more = cursor.set_range(prefix)
    while more:
        key = cursor.key()
        if not key.startswith(prefix):
            return
        yield key, cursor.value()
        more = cursor.next()
