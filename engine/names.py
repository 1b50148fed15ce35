"""Resource names (AIP-122), collections and lanes.

Collection and lane numbers equal those of `sidestep.v1.Collection` and `sidestep.v1.Lane`; a test holds them together, since
the engine does not import the API.
"""

from __future__ import annotations

import ipaddress
import re
from enum import IntEnum
from typing import NamedTuple

from engine.errors import InvalidInputError

_TENANT = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_ACTION = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")
_SOURCE = re.compile(r"[a-z0-9-]{1,32}")
_BAD_IN_ID = re.compile(r"[\x00-\x1f\x7f/~]")
MAX_ID_BYTES = 128


class Lane(IntEnum):
    """How urgently a change must reach the fleet."""

    URGENT = 1
    BULK = 2


class Collection(IntEnum):
    """A kind of record. 1-63 are urgent, 64-127 bulk."""

    POLICIES = 1
    GRANTS = 2
    SUBJECTS = 3
    DEVICE_STATES = 4
    REVOKED_SESSIONS = 5
    KEYS = 6
    POSTURES = 7
    SETTINGS = 8
    GRANT_CLASSES = 9
    DEVICES = 64
    SIGNALS = 65


SEGMENTS: dict[Collection, str] = {
    Collection.POLICIES: "policies",
    Collection.GRANTS: "grants",
    Collection.SUBJECTS: "subjects",
    Collection.DEVICE_STATES: "deviceStates",
    Collection.REVOKED_SESSIONS: "revokedSessions",
    Collection.KEYS: "keys",
    Collection.POSTURES: "postures",
    Collection.SETTINGS: "settings",
    Collection.GRANT_CLASSES: "grantClasses",
    Collection.DEVICES: "devices",
    Collection.SIGNALS: "signals",
}
_BY_SEGMENT = {segment: collection for collection, segment in SEGMENTS.items()}
SINGLETONS = frozenset({Collection.POSTURES, Collection.SETTINGS})
SINGLETON_ID = "default"
SIGNAL_KINDS = ("ip", "asn", "country", "subject", "device", "session")


class Name(NamedTuple):
    """A parsed resource name."""

    tenant: str
    collection: Collection
    id: str

    def __str__(self) -> str:
        return f"tenants/{self.tenant}/{SEGMENTS[self.collection]}/{self.id}"


def lane_of(collection: int) -> Lane | None:
    """The lane of a collection number, also of one this version does not know; None outside the assigned ranges."""
    if 1 <= collection <= 63:
        return Lane.URGENT
    if 64 <= collection <= 127:
        return Lane.BULK
    return None


def check_tenant(tenant: str, field: str = "tenant") -> str:
    """Returns the tenant id, or raises InvalidInputError."""
    if not _TENANT.fullmatch(tenant):
        raise InvalidInputError(
            field, f"{tenant!r} is not a tenant id (lower-case letters, digits and hyphens, at most 63)"
        )
    return tenant


def check_id(value: str, field: str) -> str:
    """Returns a record id, or raises InvalidInputError: 1-128 bytes without control characters, `/` or `~`."""
    if not value:
        raise InvalidInputError(field, "must not be empty")
    if len(value) > MAX_ID_BYTES or (not value.isascii() and len(value.encode()) > MAX_ID_BYTES):
        raise InvalidInputError(field, f"longer than {MAX_ID_BYTES} bytes")
    if _BAD_IN_ID.search(value):
        raise InvalidInputError(field, "has a control character, '/' or '~'")
    return value


def check_action(action: str, field: str) -> str:
    """Returns an action name, or raises InvalidInputError."""
    if not action:
        raise InvalidInputError(field, "must not be empty")
    if len(action) > MAX_ID_BYTES or not _ACTION.fullmatch(action):
        raise InvalidInputError(
            field, f"{action[:64]!r} is not an action name (dot-separated words, at most {MAX_ID_BYTES} bytes)"
        )
    return action


def check_action_pattern(pattern: str, field: str) -> str:
    """Returns an action pattern (`payments.transfer`, `payments.*` or `*`), or raises InvalidInputError."""
    stem = pattern.removesuffix("*")
    if pattern == "*":
        return pattern
    if pattern.endswith("*") and not stem.endswith("."):
        raise InvalidInputError(field, f"{pattern!r}: '*' stands alone or after a dot")
    check_action(stem[:-1] if pattern.endswith("*") else pattern, field)
    return pattern


def action_matches(pattern: str, action: str) -> bool:
    """Whether a checked pattern covers an action. `payments.*` covers what lies below `payments`, not `payments` itself."""
    if pattern == "*":
        return True
    if pattern.endswith(".*"):
        return action.startswith(pattern[:-1])
    return pattern == action


def signal_id(kind: str, value: str, source: str) -> str:
    """The id of a signal: `{kind}~{value}~{source}`, `/` of a prefix written `_`."""
    return f"{kind}~{value.replace('/', '_')}~{source}"


def canonical_prefix(text: str, field: str = "value") -> str:
    """An address or CIDR prefix in the canonical form of signals; host bits must be zero. Raises InvalidInputError."""
    try:
        network = ipaddress.ip_network(text.strip())
    except ValueError as error:
        raise InvalidInputError(field, str(error)) from None
    if isinstance(network, ipaddress.IPv6Network) and network.network_address.ipv4_mapped and network.prefixlen >= 96:
        return f"{network.network_address.ipv4_mapped}/{network.prefixlen - 96}"
    return str(network)


def check_source(source: str, field: str) -> str:
    """Returns the source of a signal, or raises InvalidInputError."""
    if not _SOURCE.fullmatch(source):
        raise InvalidInputError(field, f"{source!r} is not a source (lower-case letters, digits, hyphens, at most 32)")
    return source


def _check_signal_id(value: str, field: str) -> str:
    parts = value.split("~")
    if len(parts) != 3 or parts[0] not in SIGNAL_KINDS:
        raise InvalidInputError(field, f"{value!r} is not a signal id (kind~value~source)")
    check_id(parts[1], field)
    check_source(parts[2], field)
    return value


def parse_parent(parent: str, field: str = "parent") -> str:
    """The tenant of `tenants/{tenant}`, or raises InvalidInputError."""
    prefix, _, tenant = parent.partition("/")
    if prefix != "tenants":
        raise InvalidInputError(field, f"{parent!r} is not of the form tenants/{{tenant}}")
    return check_tenant(tenant, field)


def make_name(tenant: str, collection: Collection, record_id: str, field: str = "name") -> Name:
    """A checked name from its parts. Raises InvalidInputError."""
    check_tenant(tenant, field)
    if collection is Collection.SIGNALS:
        _check_signal_id(record_id, field)
    else:
        check_id(record_id, field)
    if collection in SINGLETONS and record_id != SINGLETON_ID:
        raise InvalidInputError(field, f"a tenant has one {SEGMENTS[collection]} record, named {SINGLETON_ID!r}")
    return Name(tenant, collection, record_id)


def parse_name(name: str, field: str = "name") -> Name:
    """Parses `tenants/{tenant}/{collection}/{id}`. Raises InvalidInputError naming what is wrong."""
    parts = name.split("/")
    if len(parts) != 4 or parts[0] != "tenants":
        raise InvalidInputError(field, f"{name!r} is not of the form tenants/{{tenant}}/{{collection}}/{{id}}")
    collection = _BY_SEGMENT.get(parts[2])
    if collection is None:
        raise InvalidInputError(field, f"unknown collection {parts[2]!r} (one of {', '.join(sorted(_BY_SEGMENT))})")
    return make_name(parts[1], collection, parts[3], field)
