"""From the records of a vector to the bytes a control plane would send."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from datetime import datetime
from functools import cache
from typing import Any

import yaml
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from sidestep.v1 import resources_pb2

from engine.names import SEGMENTS, Collection
from engine.policy import parse_policy
from tests.conformance import tokens
from tests.conformance.vectors import resolve

Records = dict[tuple[Collection, str], bytes]
"""By (collection, id)."""

_COLLECTIONS = {segment: collection for collection, segment in SEGMENTS.items()}
_MESSAGES: dict[Collection, type[Message]] = {
    Collection.GRANTS: resources_pb2.Grant,
    Collection.SUBJECTS: resources_pb2.Subject,
    Collection.DEVICE_STATES: resources_pb2.DeviceState,
    Collection.REVOKED_SESSIONS: resources_pb2.RevokedSession,
    Collection.KEYS: resources_pb2.Key,
    Collection.POSTURES: resources_pb2.Posture,
    Collection.SETTINGS: resources_pb2.Settings,
    Collection.GRANT_CLASSES: resources_pb2.GrantClassState,
    Collection.DEVICES: resources_pb2.Device,
    Collection.SIGNALS: resources_pb2.Signal,
}
# Components that are version ordinals in the built-in catalogue.
_VERSIONS = frozenset({"os_version", "browser_version"})
_DRAW = re.compile(r"draw\((\S+), (\S+), (\S+)\)(?: of (\S+))?( \+ 2\^-48)?")


def build(tenant: str, records: dict[str, Any], now: datetime) -> Records:
    """The stored form of a tenant's records: `{collection}/{id}` -> body."""
    built: Records = {}
    for name, body in records.items():
        segment, _, record_id = name.partition("/")
        built[_COLLECTIONS[segment], record_id] = _encoded(tenant, segment, record_id, json.dumps(body), now)
    return built


@cache
def _encoded(tenant: str, segment: str, record_id: str, body: str, now: datetime) -> bytes:
    """Kept, since most records are the same in most vectors and a policy takes a while to compile."""
    resource = f"tenants/{tenant}/{segment}/{record_id}"
    record = _record(_COLLECTIONS[segment], resource, record_id, tenant, json.loads(body), now)
    return record.SerializeToString(deterministic=True)


def secret(key_id: str) -> bytes:
    """The 32 bytes of a FINGERPRINT or TENANT key: SHA-256 of its id."""
    return hashlib.sha256(key_id.encode()).digest()


def spot_draw(tenant: str, subject: str, device: str, grant: str, now: datetime) -> float:
    """The spot-check draw of the day under key `tenant-1`, as docs/conformance.md states it."""
    parts = (tenant, subject, device, grant, str(int(now.timestamp()) // 86400))
    drawn = hmac.new(secret("tenant-1"), b"spot-check\0" + "\0".join(parts).encode(), hashlib.sha256).digest()
    return int.from_bytes(drawn[:6], "big") / 2**48


def _record(
    collection: Collection, resource: str, record_id: str, tenant: str, body: dict[str, Any], now: datetime
) -> Message:
    if collection is Collection.POLICIES:
        return _policy(resource, record_id, tenant, body, now)
    body = resolve(body, now)
    if collection is Collection.KEYS:
        body = _key(record_id, body)
    elif collection is Collection.DEVICES:
        body = _device(body)
    elif collection is Collection.SIGNALS:
        kind, value, source = record_id.split("~")
        body = {"kind": f"SIGNAL_KIND_{kind.upper()}", "value": value.replace("_", "/"), "source": source, **body}
    return ParseDict({"name": resource, **body}, _MESSAGES[collection]())


def _policy(resource: str, name: str, tenant: str, spec: dict[str, Any], now: datetime) -> resources_pb2.Policy:
    """A policy as `sidestep policy put` leaves it. `document` instead of a spec: these very words, good or bad."""
    if "document" in spec:
        return resources_pb2.Policy(name=resource, document=spec["document"], version=1)
    exemptions = spec.get("exemptions", {})
    drawn = _DRAW.fullmatch(str(exemptions.get("spotCheckRate", "")))
    if drawn is not None:
        day = now if drawn[4] is None else datetime.fromisoformat(f"{drawn[4]}T00:00:00Z")
        rate = spot_draw(tenant, drawn[1], drawn[2], drawn[3], day) + (2**-48 if drawn[5] else 0.0)
        spec = {**spec, "exemptions": {**exemptions, "spotCheckRate": rate}}
    source = yaml.safe_dump(
        {
            "apiVersion": "sidestep.dev/v1",
            "kind": "Policy",
            "metadata": {"name": name, "tenant": tenant},
            "spec": spec,
        }
    )
    return resources_pb2.Policy(name=resource, document=parse_policy(source).document, source=source, version=1)


def _key(key_id: str, body: dict[str, Any]) -> dict[str, Any]:
    if body["kind"] == "KEY_KIND_ISSUER":
        return {"jwk": json.dumps(tokens.signing_key(key_id).jwk), **body}
    return {"secret": tokens.base64(secret(key_id)), **body}


def _device(body: dict[str, Any]) -> dict[str, Any]:
    """`fingerprint`: the raw values it was registered with; `bound_to`: the signing key it holds."""
    body = dict(body)
    shown: dict[str, str] = body.pop("fingerprint", {})
    key_id = body.setdefault("key_id", "fp-1")
    body["components"] = {
        name: tokens.base64(
            hmac.new(secret(key_id), name.encode() + b"\0" + value.encode(), hashlib.sha256).digest()[:16]
        )
        for name, value in shown.items()
        if name not in _VERSIONS
    }
    body["versions"] = {name: int(value.split(".")[0]) for name, value in shown.items() if name in _VERSIONS}
    if bound_to := body.pop("bound_to", ""):
        body["jkt"] = tokens.signing_key(bound_to).thumbprint
    return body
