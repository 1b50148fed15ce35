"""What a change changes, in the few words that an entry of the audit log has for it."""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from sidestep.v1 import resources_pb2 as pb

from controlplane.kinds import KINDS
from engine.names import Collection

_MAX_VALUE = 80
# What the server sets with every write says nothing.
_MARKS = frozenset({"name", "update_time", "version"})
# Derived from others, or too long to be told.
_UNTOLD = frozenset({"document", "source", "jwk", "secret", "fingerprint"})


def difference(collection: Collection, stored: bytes | None, record: Any) -> str:
    """Which fields differ: with both values where they are short (`level: LOW -> HIGH`), by name alone where not.

    `record` None: it is deleted. Secrets are never told.
    """
    if record is None:
        return "deleted"
    old = KINDS[collection].message()
    if stored is not None:
        old.ParseFromString(stored)
    told = [
        _describe(field, old, record)
        for field in record.DESCRIPTOR.fields
        if field.name not in _MARKS and _value(old, field) != _value(record, field)
    ]
    return ("new; " if stored is None else "") + ", ".join(told)


def reason_of(resource: pb.Resource) -> str:
    """The reason that a record itself gives; empty if it has none."""
    kind = resource.WhichOneof("resource")
    return str(getattr(getattr(resource, kind), "reason", "")) if kind else ""


def _describe(field: FieldDescriptor, old: Any, new: Any) -> str:
    before, after = _tell(old, field), _tell(new, field)
    return field.name if before is None or after is None else f"{field.name}: {before} -> {after}"


def _value(record: Any, field: FieldDescriptor) -> Any:
    value = getattr(record, field.name)
    if field.message_type is not None and not field.is_repeated:
        return value.SerializeToString(deterministic=True) if record.HasField(field.name) else None
    if field.is_repeated and field.message_type is not None and field.message_type.GetOptions().map_entry:
        return dict(value)
    return list(value) if field.is_repeated else value


def _tell(record: Any, field: FieldDescriptor) -> str | None:
    """A value in a few characters; None if it takes more."""
    if field.name in _UNTOLD or field.is_repeated or field.type == FieldDescriptor.TYPE_BYTES:
        return None
    value = getattr(record, field.name)
    if field.enum_type is not None:
        found = field.enum_type.values_by_number.get(value)
        prefix = "".join(f"_{char}" if char.isupper() else char.upper() for char in field.enum_type.name).lstrip("_")
        return str(value) if found is None else str(found.name).removeprefix(f"{prefix}_")
    if field.message_type is not None:
        if not record.HasField(field.name):
            return "-"
        if not isinstance(value, Timestamp | Duration):
            return None
        value = value.ToJsonString()
    text = str(value) or "-"
    return text if len(text) <= _MAX_VALUE else None
