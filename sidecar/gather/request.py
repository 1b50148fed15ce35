"""The request, checked and normalised: every fault is named by its field before anything is looked up."""

from __future__ import annotations

import re
import socket
from typing import NamedTuple

from google.protobuf.timestamp_pb2 import Timestamp
from sidestep.v1 import decision_pb2

from engine.errors import InvalidInputError
from engine.facts import Amount, Scalar
from engine.money import saturated, to_nanos
from engine.names import check_action, check_id, check_tenant
from engine.policy.model import RESERVED_ATTRIBUTES
from sidecar.gather.dpop import DpopInput

MAX_REQUEST_ID_BYTES = 128
MAX_ATTRIBUTES = 32
MAX_ATTRIBUTE_CHARS = 512
MAX_RESOURCE_CHARS = 512
MAX_COMPONENTS = 32
MAX_COMPONENT_CHARS = 512
MAX_TOKEN_CHARS = 8192
MAX_AUTHENTICATIONS = 16
_COUNTRY = re.compile(r"[A-Z]{2}")
_CURRENCY = re.compile(r"[A-Z]{3}")
_V4_MAPPED = bytes(10) + b"\xff\xff"
_NANOS = 1_000_000_000


class Checked(NamedTuple):
    """What a valid request says. Empty strings and None mean absent."""

    tenant: str
    subject: str
    action: str
    session: str
    token: str
    dpop: DpopInput | None
    device: str
    # Packed, 4 or 16 bytes; v4-mapped addresses are v4.
    address: bytes | None
    asn: int | None
    country: str
    values: dict[str, Scalar]
    amount: Amount | None


def check(request: decision_pb2.EvaluateRequest, default_tenant: str) -> Checked:
    """Raises InvalidInputError naming the field."""
    tenant = request.tenant
    if tenant:
        check_tenant(tenant, "tenant")
    elif not default_tenant:
        raise InvalidInputError("tenant", "is required: this sidecar has no default tenant")
    if len(request.request_id.encode()) > MAX_REQUEST_ID_BYTES:
        raise InvalidInputError("request_id", f"longer than {MAX_REQUEST_ID_BYTES} bytes")
    session = request.session
    device = request.device
    if session.id:
        check_id(session.id, "session.id")
    if len(session.token) > MAX_TOKEN_CHARS:
        raise InvalidInputError("session.token", f"longer than {MAX_TOKEN_CHARS} bytes")
    if len(session.authentications) > MAX_AUTHENTICATIONS:
        raise InvalidInputError("session.authentications", f"more than {MAX_AUTHENTICATIONS}")
    if device.id:
        check_id(device.id, "device.id")
    check_fingerprint(device)
    context = request.context
    return Checked(
        tenant=tenant or default_tenant,
        subject=check_id(request.subject.id, "subject.id"),
        action=check_action(request.action.name, "action.name"),
        session=session.id,
        token=session.token,
        dpop=_dpop(session),
        device=device.id,
        address=_address(context.ip) if context.ip else None,
        asn=context.asn if context.HasField("asn") else None,
        country=_matching(_COUNTRY, context.country, "context.country", "an ISO 3166-1 alpha-2 code in upper case"),
        values=_values(request),
        amount=_amount(context),
    )


def seconds(timestamp: Timestamp, field: str) -> float:
    """A protobuf timestamp as whole seconds since the epoch, rounded down, so that half a timestamp is never a kinder one.

    Raises InvalidInputError outside of years 1-9999.
    """
    whole, nanos = timestamp.seconds, timestamp.nanos
    if not -62135596800 <= whole <= 253402300799 or not 0 <= nanos < _NANOS:
        raise InvalidInputError(field, "is not a valid timestamp")
    return float(whole)


def _dpop(session: decision_pb2.SessionEvidence) -> DpopInput | None:
    if not session.HasField("dpop") or not session.dpop.proof:
        return None
    proof = session.dpop
    if len(proof.proof) > MAX_TOKEN_CHARS:
        raise InvalidInputError("session.dpop.proof", f"longer than {MAX_TOKEN_CHARS} bytes")
    return DpopInput(proof.proof, proof.http_method, proof.http_uri)


def _address(text: str) -> bytes:
    try:
        return socket.inet_pton(socket.AF_INET, text)
    except (OSError, ValueError):
        pass
    try:
        packed = socket.inet_pton(socket.AF_INET6, text)
    except (OSError, ValueError):
        raise InvalidInputError("context.ip", "is not an IPv4 or IPv6 address") from None
    return packed[12:] if packed.startswith(_V4_MAPPED) else packed


def _matching(pattern: re.Pattern[str], value: str, field: str, meaning: str) -> str:
    if value and not pattern.fullmatch(value):
        raise InvalidInputError(field, f"is not {meaning}")
    return value


def check_fingerprint(device: decision_pb2.DeviceEvidence) -> None:
    """Raises InvalidInputError for one beyond its bounds."""
    fingerprint = device.fingerprint
    if len(fingerprint) > MAX_COMPONENTS:
        raise InvalidInputError("device.fingerprint", f"more than {MAX_COMPONENTS} components")
    if device.ByteSize() <= MAX_COMPONENT_CHARS:
        return  # the usual case: all of them together are shorter than one may be
    for component, value in fingerprint.items():
        if len(component) > MAX_COMPONENT_CHARS or len(value) > MAX_COMPONENT_CHARS:
            raise InvalidInputError(
                "device.fingerprint", f"a component is longer than {MAX_COMPONENT_CHARS} characters"
            )


def _values(request: decision_pb2.EvaluateRequest) -> dict[str, Scalar]:
    """What conditions may read, by CEL name."""
    values: dict[str, Scalar] = {}
    context = request.context
    if context.HasField("amount"):
        amount = context.amount
        if abs(amount.nanos) >= _NANOS or (amount.units > 0 > amount.nanos) or (amount.units < 0 < amount.nanos):
            raise InvalidInputError("context.amount.nanos", "must be below one unit and have the sign of units")
        if not amount.currency:
            raise InvalidInputError("context.amount.currency", "is required with an amount")
        values["context.amount.value"] = amount.units + amount.nanos / _NANOS
        values["context.amount.currency"] = _matching(
            _CURRENCY, amount.currency, "context.amount.currency", "an ISO 4217 code in upper case"
        )
    if context.HasField("asn"):
        values["context.asn"] = context.asn
    if context.country:
        values["context.country"] = context.country
    if request.HasField("resource"):
        for part in ("type", "id"):
            if text := getattr(request.resource, part):
                if len(text) > MAX_RESOURCE_CHARS:
                    raise InvalidInputError(f"resource.{part}", f"longer than {MAX_RESOURCE_CHARS} characters")
                values[f"resource.{part}"] = text
    if context.HasField("attributes"):
        _add_attributes(context, values)
    return values


def _amount(context: decision_pb2.Context) -> Amount | None:
    """The amount, exact; checked with the values."""
    if not context.HasField("amount"):
        return None
    return Amount(context.amount.currency, saturated(to_nanos(context.amount.units, context.amount.nanos)))


def _add_attributes(context: decision_pb2.Context, values: dict[str, Scalar]) -> None:
    fields = context.attributes.fields
    if len(fields) > MAX_ATTRIBUTES:
        raise InvalidInputError("context.attributes", f"more than {MAX_ATTRIBUTES}")
    for name, value in fields.items():
        kind = value.WhichOneof("kind")
        field = f"context.attributes.{name[:64]}"
        if kind == "string_value":
            if len(value.string_value) > MAX_ATTRIBUTE_CHARS:
                raise InvalidInputError(field, f"longer than {MAX_ATTRIBUTE_CHARS} characters")
            scalar: Scalar = value.string_value
        elif kind == "number_value":
            scalar = value.number_value
        elif kind == "bool_value":
            scalar = value.bool_value
        else:
            raise InvalidInputError(field, "must be a string, a number or a boolean")
        if name in RESERVED_ATTRIBUTES or "." in name:
            raise InvalidInputError(field, "is a field of the context, not an attribute")
        values[f"context.{name}"] = scalar
