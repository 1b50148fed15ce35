"""Records as messages: which message a collection holds, how one is encoded, and which fields the server sets.

Stored bytes are the deterministic serialisation of the message, so that equal content is equal bytes.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, NamedTuple

from google.protobuf.message import Message
from sidestep.v1 import resources_pb2 as pb

from controlplane.actor import ANONYMOUS
from controlplane.api import validation
from controlplane.grants import put_grant, read_terms
from controlplane.kinds import KINDS
from controlplane.store import MAX_VALUE_BYTES
from engine.errors import InvalidInputError
from engine.names import SEGMENTS, SINGLETON_ID, Collection, Name, parse_name
from engine.policy import PolicyError, parse_policy

HASH_BYTES = 16
_NANOS = 10**9


_COLLECTIONS = {kind.field: collection for collection, kind in KINDS.items()}


class Checked(NamedTuple):
    """A record that may be stored, with its parsed name."""

    name: Name
    record: Any


class Completed(NamedTuple):
    """A record with what the server sets; or, `changed` False, the stored one if that says the same."""

    record: Any
    changed: bool
    warnings: list[str]

    @property
    def value(self) -> bytes:
        """The bytes to store."""
        return encode(self.record)


def check(resource: pb.Resource, field: str = "resource") -> Checked:
    """Takes a record out of its envelope and validates it on its own. Raises InvalidInputError."""
    name = name_of(resource, field)
    kind = KINDS[name.collection].field
    prefix = kind if field == "resource" else f"{field}.{kind}"
    record = getattr(resource, kind)
    _refuse_unknown_fields(record, prefix)
    validation.check(record, name, prefix)
    return Checked(name, record)


def name_of(resource: pb.Resource, field: str = "resource") -> Name:
    """The name of the record in an envelope. Raises InvalidInputError."""
    kind = resource.WhichOneof("resource")
    if kind is None:
        raise InvalidInputError(field, "must hold one record of a kind this control plane knows")
    prefix = kind if field == "resource" else f"{field}.{kind}"
    name = parse_name(getattr(resource, kind).name, f"{prefix}.name")
    if name.collection is not _COLLECTIONS[kind]:
        raise InvalidInputError(f"{prefix}.name", f"a {kind} belongs into {SEGMENTS[_COLLECTIONS[kind]]}")
    return name


def complete(
    checked: Checked,
    stored: bytes | None,
    now: float,
    field: str = "",
    *,
    links: Mapping[tuple[int, str], bytes | None] | None = None,
    actor: str = ANONYMOUS,
) -> Completed:
    """What a put of `checked` leaves in the store, where `stored` is now (None: nothing).

    Sets document and version of a policy, the secret of a key, the revoke_time of a session, the state and marks of a grant, and
    every update_time. `links`: the other records it depends on, from check_links; None: it is only looked at by itself, and not
    to be written. `actor`: the name of who puts it. Raises InvalidInputError if the policy does not compile, the grant's class
    does not allow it, or the result is too large; RefusedError for what may not become of a grant. `field` names the record.
    """
    collection = checked.name.collection
    field = field or KINDS[collection].field
    old = decode(collection, stored) if stored is not None else None
    record = KINDS[collection].message()
    record.CopyFrom(checked.record)
    warnings: list[str] = []
    if isinstance(record, pb.Policy):
        warnings = _complete_policy(record, old, checked.name, field)
    elif isinstance(record, pb.Key):
        _complete_key(record, old, field)
    elif isinstance(record, pb.Grant):
        if links is not None:
            settings = links.get((Collection.SETTINGS, SINGLETON_ID))
            put_grant(record, old, read_terms(settings), actor, now, field)
    elif isinstance(record, pb.Subject):
        _complete_subject(record, old, now, field)
    elif isinstance(record, pb.RevokedSession) and not record.HasField("revoke_time"):
        if old is not None and old.HasField("revoke_time"):
            record.revoke_time.CopyFrom(old.revoke_time)
        else:
            record.revoke_time.FromNanoseconds(int(now * _NANOS))
        validation.check(record, checked.name, field)
    if old is not None and _content(record) == _content(old):
        return Completed(old, False, warnings)
    if "update_time" in record.DESCRIPTOR.fields_by_name:
        record.update_time.FromNanoseconds(int(now * _NANOS))
    if record.ByteSize() > MAX_VALUE_BYTES:
        raise InvalidInputError(field, f"is larger than {MAX_VALUE_BYTES} bytes")
    return Completed(record, True, warnings)


def encode(record: Message) -> bytes:
    """The bytes of a record: equal records, equal bytes (maps are sorted)."""
    return record.SerializeToString(deterministic=True)


def decode(collection: Collection, value: bytes) -> Any:
    """The record that was stored as `value`."""
    record = KINDS[collection].message()
    record.ParseFromString(value)
    return record


def public(collection: Collection, record: Message) -> pb.Resource:
    """A record in its envelope as the API shows it: without secrets."""
    resource = pb.Resource()
    shown = getattr(resource, KINDS[collection].field)
    shown.CopyFrom(record)
    if isinstance(shown, pb.Key):
        shown.ClearField("secret")
    return resource


def content_hash(record: Message) -> bytes:
    """16 bytes that differ when a put would change something (and sometimes when it would not, see `complete`)."""
    if isinstance(record, pb.Policy):
        return hash_value(record.source.encode())
    return hash_value(_content(record))


def hash_value(value: bytes) -> bytes:
    """The hash by which an import compares values; the store's `digests` computes the same."""
    return blake2b(value, digest_size=HASH_BYTES).digest()


def has_server_fields(collection: Collection) -> bool:
    """Whether the server adds anything to records of this collection."""
    return collection not in (Collection.DEVICES, Collection.SIGNALS)


def _content(record: Any) -> bytes:
    """The bytes of what a record says, without the marks the server puts on it."""
    fields = record.DESCRIPTOR.fields_by_name
    if "update_time" not in fields and "version" not in fields:
        return encode(record)
    copy = type(record)()
    copy.CopyFrom(record)
    for mark in ("update_time", "version"):
        if mark in fields:
            copy.ClearField(mark)
    return encode(copy)


def _complete_policy(record: pb.Policy, old: pb.Policy | None, name: Name, field: str) -> list[str]:
    try:
        parsed = parse_policy(record.source)
    except PolicyError as error:
        raise InvalidInputError(f"{field}.source", validation.describe(error)) from None
    if parsed.name != name.id:
        raise InvalidInputError(
            f"{field}.source", f"metadata.name is {parsed.name!r}, the resource name says {name.id!r}"
        )
    if parsed.tenant and parsed.tenant != name.tenant:
        raise InvalidInputError(
            f"{field}.source", f"metadata.tenant is {parsed.tenant!r}, the resource name says {name.tenant!r}"
        )
    record.document = parsed.document
    if old is None:
        record.version = 1
    else:
        record.version = old.version + (old.document != record.document)
    return list(parsed.warnings)


def _complete_key(record: pb.Key, old: pb.Key | None, field: str) -> None:
    if old is not None and old.kind != record.kind:
        raise InvalidInputError(f"{field}.kind", "a key keeps its kind; delete it first")
    if old is not None and record.secret and record.secret != old.secret:
        # Devices hashed with the old one would differ from everything, also the blocked ones from what is shown of them.
        raise InvalidInputError(f"{field}.secret", "a key keeps its secret; put a new key beside it")
    if record.kind == pb.KEY_KIND_ISSUER or record.secret:
        return
    record.secret = old.secret if old is not None else secrets.token_bytes(validation.SECRET_BYTES)


def _complete_subject(record: pb.Subject, old: pb.Subject | None, now: float, field: str) -> None:
    """Keeps the events that a put does not mention: somebody who does not know of one must not undo it. When the last strong
    authentication was is what a proof said, not what somebody writes."""
    for event in validation.SUBJECT_EVENTS:
        at = getattr(record, event)
        if record.HasField(event) and at.ToNanoseconds() > int((now + validation.MAX_SKEW_S) * _NANOS):
            raise InvalidInputError(f"{field}.{event}", "lies in the future")
        if old is not None and old.HasField(event) and not record.HasField(event):
            at.CopyFrom(getattr(old, event))
    # What reports say of its devices is not for a put to say.
    record.ClearField("suspects")
    if old is not None:
        record.suspects.extend(old.suspects)
    for proved in validation.SUBJECT_PROVED:
        known_ns = 0 if old is None else getattr(old, proved).ToNanoseconds()
        if getattr(record, proved).ToNanoseconds() > known_ns:
            raise InvalidInputError(f"{field}.{proved}", "is set by the control plane alone")
        record.ClearField(proved)
        if known_ns:
            getattr(record, proved).FromNanoseconds(known_ns)


def _refuse_unknown_fields(record: Message, field: str) -> None:
    # A field of a newer API may restrict something; storing the record without it would say more than its author meant.
    size = record.ByteSize()
    record.DiscardUnknownFields()
    if record.ByteSize() != size:
        raise InvalidInputError(field, "has fields this control plane does not know; is the client newer?")
