"""The index rows of a record. The writer adds and removes them with the record; the scrub recomputes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from google.protobuf.message import DecodeError
from sidestep.v1 import resources_pb2 as pb

from engine.names import Collection, Lane
from sidecar.store import keys
from sidecar.store.errors import UndecodableError
from sidecar.store.prefix import parse_prefix


class Row(NamedTuple):
    """A row of an index. `value` None: the row holds a count, and this record adds one to it."""

    name: bytes
    key: bytes
    value: bytes | None


LANES: Final[dict[bytes, Lane]] = {
    keys.I_DEVICE: Lane.BULK,
    keys.I_BLOCKED: Lane.URGENT,
    keys.I_GRANT: Lane.URGENT,
    keys.I_PREFIX: Lane.BULK,
}
"""The lane whose records make up an index."""


def checked_record_key(tenant: str, record_id: str) -> bytes:
    """The key of a record that arrived from outside. Raises UndecodableError if it cannot be one."""
    key = keys.record_key(tenant, record_id)
    if not record_id or key.count(b"\0") != 1 or len(key) > keys.MAX_KEY_BYTES:
        raise UndecodableError("a record id that is empty, too long or holds a zero byte")
    return key


def rows(collection: int, tenant: str, record_id: str, value: bytes) -> tuple[Row, ...]:
    """The index rows of one record. Collections without an index, or unknown ones, have none.

    Raises UndecodableError if the record is not what its collection holds; its message is logged, so it names no ids, which
    may be those of subjects, sessions or addresses.
    """
    derive = _DERIVATIONS.get(collection)
    if derive is None:
        return ()
    try:
        return derive(tenant, record_id, value)
    except DecodeError:
        raise UndecodableError(f"collection {collection}: a record is not the message it should be") from None


def _device(tenant: str, record_id: str, value: bytes) -> tuple[Row, ...]:
    subject = pb.Device.FromString(value).subject
    return (Row(keys.I_DEVICE, _key(keys.subject_prefix(tenant, subject), record_id, 2), b""),)


def _device_state(tenant: str, record_id: str, value: bytes) -> tuple[Row, ...]:
    state = pb.DeviceState.FromString(value)
    if state.trust == pb.DEVICE_TRUST_ACTIVE:
        return ()
    trust = b"%d" % state.trust
    return (Row(keys.I_BLOCKED, _key(keys.subject_prefix(tenant, state.subject), record_id, 2), trust),)


_SCOPES: Final[dict[str, keys.GrantScope]] = {"subject": "s", "role": "r", "device": "d"}


def _grant(tenant: str, record_id: str, value: bytes) -> tuple[Row, ...]:
    grant = pb.Grant.FromString(value)
    scope = grant.WhichOneof("scope")
    if scope is None:
        return ()
    prefix = keys.grant_prefix(tenant, _SCOPES[scope], getattr(grant, scope))
    return (Row(keys.I_GRANT, _key(prefix, record_id, 2), b""),)


def _signal(tenant: str, record_id: str, value: bytes) -> tuple[Row, ...]:
    kind, _, rest = record_id.partition("~")
    if kind != "ip":
        return ()
    try:
        family, length = parse_prefix(rest.partition("~")[0])
    except ValueError:
        raise UndecodableError("a signal whose id begins as that of an IP prefix and is none") from None
    return (Row(keys.I_PREFIX, keys.prefix_row(tenant, family, length), None),)


def _key(prefix: bytes, record_id: str, separators: int) -> bytes:
    key = prefix + record_id.encode()
    if key.count(b"\0") != separators or len(key) > keys.MAX_KEY_BYTES:
        raise UndecodableError("a record that refers to an impossible id")
    return key


_DERIVATIONS: Final[dict[int, Callable[[str, str, bytes], tuple[Row, ...]]]] = {
    Collection.DEVICES: _device,
    Collection.DEVICE_STATES: _device_state,
    Collection.GRANTS: _grant,
    Collection.SIGNALS: _signal,
}
