"""What the control plane knows in chaos: the tenant of tests/fakes/stock.py, many devices, and grants that come and go."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import yaml
from google.protobuf.json_format import ParseDict
from google.protobuf.timestamp_pb2 import Timestamp
from sidestep.v1 import resources_pb2

from tests.conformance import tokens
from tests.fakes.stock import RECORDS, TENANT

_FIELDS = {
    "policies": "policy",
    "grants": "grant",
    "subjects": "subject",
    "keys": "key",
    "settings": "settings",
    "devices": "device",
}


def resources() -> Iterator[resources_pb2.Resource]:
    """The stock's records as an operator writes them, without Alice's grant. Keys come before the devices that need them."""
    yesterday = (datetime.now(UTC) - timedelta(days=1)).isoformat()
    laptop = {"validate_time": yesterday, "authentications": [{"acr": "phr", "auth_time": yesterday}]}
    for name, body in RECORDS.items():
        if name != "grants/g1":
            yield resource(name, body | laptop if name == "devices/laptop" else body)


def grant(number: int, *, active: bool) -> resources_pb2.Resource:
    """Alice's grant of this number: what `exempted` needs to be allowed."""
    state = "GRANT_STATE_ACTIVE" if active else "GRANT_STATE_REVOKED"
    return resource(f"grants/chaos-{number}", RECORDS["grants/g1"] | {"state": state})


def subject(name: str) -> resources_pb2.Resource:
    """An active subject."""
    return resource(f"subjects/{name}", {"state": "SUBJECT_STATE_ACTIVE"})


def device(number: int, version: int = 0, *, tenant: str = TENANT) -> resources_pb2.Device:
    """Some device of some subject, a little different in each version."""
    validated = Timestamp()
    validated.FromDatetime(datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=number + version))
    return resources_pb2.Device(
        name=f"tenants/{tenant}/devices/d{number:07d}",
        subject=f"s{number // 2}",
        components={"os": number.to_bytes(16, "big")},
        versions={"browser_version": 100 + version % 50},
        key_id="fp-1",
        validate_time=validated,
    )


def trust(number: int, *, quarantined: bool) -> resources_pb2.Resource:
    """The standing of a device: a row of the index of blocked ones, or none."""
    level = "DEVICE_TRUST_QUARANTINED" if quarantined else "DEVICE_TRUST_ACTIVE"
    return resource(f"deviceStates/d{number:07d}", {"subject": f"s{number // 2}", "trust": level})


def resource(name: str, body: dict[str, Any]) -> resources_pb2.Resource:
    """A record as an operator writes it: `resource("grants/g1", {...})`."""
    segment, _, record_id = name.partition("/")
    if segment == "policies":
        source = {
            "apiVersion": "sidestep.dev/v1",
            "kind": "Policy",
            "metadata": {"name": record_id, "tenant": TENANT},
            "spec": body,
        }
        body = {"source": yaml.safe_dump(source)}
    elif segment == "keys" and body["kind"] == "KEY_KIND_ISSUER":
        body = {"jwk": json.dumps(tokens.signing_key(record_id).jwk), **body}
    field = _FIELDS.get(segment, "deviceState")
    return ParseDict({field: {"name": f"tenants/{TENANT}/{segment}/{record_id}", **body}}, resources_pb2.Resource())
