"""A journal record as an OTLP span, in protobuf's wire format.

Written by hand, because building the message objects costs several times as much as everything else in shipping; a
test reads the result back with opentelemetry-proto. The vocabulary is that of DESIGN section 12. Which attributes a
span has:

    always       rpc.system.name, rpc.method, sidestep.{decision.id, outcome, basis, reasons, tenant, action, revision,
                 journal.chain, journal.seq}
    if known     sidestep.{data_age_s, policy.name[], policy.version[], grant.id, achieved_acr, required_acr[],
                 waived_acr[], shadow.policy[], shadow.outcome[], factor.*.score, factor.*.passed, request_id, caller},
                 user.hash, client.address
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from struct import Struct
from struct import error as struct_error

import msgspec

from sidecar.journal.segment import JournalError

_METHOD = "sidestep.v1.DecisionService/Evaluate"
_KIND_SERVER = 2
# OTLP Span.flags: whether the parent is remote is known, and it is.
_REMOTE_PARENT = 0x300
_TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_FIXED64 = Struct("<Q")
_DOUBLE = Struct("<d")
_FIXED32 = Struct("<I")


# Only what a span needs of a Record: everything else is skipped while decoding.


class _Data(msgspec.Struct, frozen=True, gc=False):
    revision: int = 0
    age_s: float | None = None


class _Facts(msgspec.Struct, frozen=True, gc=False):
    tenant: str
    action: str
    data: _Data = _Data()


class _Reason(msgspec.Struct, frozen=True, gc=False):
    code: str
    clause: str = ""


class _Requirement(msgspec.Struct, frozen=True, gc=False):
    acrs: tuple[str, ...] = ()


class _Factor(msgspec.Struct, frozen=True, gc=False):
    name: str
    passed: bool
    score: float | None = None


class _Shadow(msgspec.Struct, frozen=True, gc=False):
    policy: str
    outcome: str


class _Decision(msgspec.Struct, frozen=True, gc=False):
    outcome: str
    basis: str
    reasons: tuple[_Reason, ...] = ()
    requirement: _Requirement = _Requirement()
    achieved_acr: str = ""
    waived_acrs: tuple[str, ...] = ()
    grant: str = ""
    policies: tuple[str, ...] = ()
    factors: tuple[_Factor, ...] = ()
    shadows: tuple[_Shadow, ...] = ()


class _Record(msgspec.Struct, frozen=True, gc=False):
    decision_id: bytes
    at: float
    duration_us: int
    facts: _Facts
    decision: _Decision
    request_id: str = ""
    traceparent: str = ""
    caller: str = ""
    user_hash: str = ""
    client_address: str = ""


_DECODER = msgspec.msgpack.Decoder(_Record)


class UnreadableRecordError(JournalError):
    """The bytes are no record this version can turn into a span."""


def encode_span(record: bytes, chain: str, sequence: int) -> bytes:
    """An encoded `Span`, as a field of `ScopeSpans`. Raises UnreadableRecordError.

    The same record always gives the same ids: the span id is the decision id's second half, and without a valid
    traceparent (W3C Trace Context) the decision id is the trace id. So a collector can recognise a record that was
    sent twice.
    """
    try:
        r = _DECODER.decode(record)
        if len(r.decision_id) != 16:
            raise UnreadableRecordError("the decision id is not 16 bytes long")
        return _field(2, b"".join(_span(r, chain, sequence)))
    except (msgspec.MsgspecError, ValueError, OverflowError, struct_error) as error:
        raise UnreadableRecordError(str(error)) from None


def encode_request(spans: list[bytes], resource: bytes) -> bytes:
    """An encoded `ExportTraceServiceRequest` of spans from `encode_span` and a resource from `encode_resource`."""
    return _field(1, resource + _field(2, _SCOPE + b"".join(spans)))


def encode_resource(attributes: Mapping[str, str]) -> bytes:
    """An encoded `Resource`, as a field of `ResourceSpans`."""
    return _field(1, b"".join(_field(1, _pair(key, _text(value))) for key, value in attributes.items()))


def _span(r: _Record, chain: str, sequence: int) -> list[bytes]:
    trace_id, parent, flags = _parent(r.traceparent)
    start_ns = round(r.at * 1e6) * 1000  # a float holds no more than microseconds
    parts = [
        b"\x0a\x10" + (trace_id or r.decision_id),
        b"\x12\x08" + r.decision_id[8:],
        _NAME_AND_KIND,
        b"\x39" + _FIXED64.pack(start_ns) + b"\x41" + _FIXED64.pack(start_ns + max(0, r.duration_us) * 1000),
        _ALWAYS,
    ]
    if parent:
        parts.append(b"\x22\x08" + parent)
        parts.append(b"\x85\x01" + _FIXED32.pack(flags))
    _attributes(r, parts)
    parts.append(_string("sidestep.journal.chain", chain))
    parts.append(_integer("sidestep.journal.seq", sequence))
    return parts


def _attributes(r: _Record, parts: list[bytes]) -> None:
    facts, decision, text = r.facts, r.decision, r.decision_id.hex()
    parts += (
        _ID_PREFIX + f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}".encode(),
        _string("sidestep.outcome", decision.outcome),
        _string("sidestep.basis", decision.basis),
        _strings("sidestep.reasons", tuple([f"{x.code} {x.clause}" if x.clause else x.code for x in decision.reasons])),
        _string("sidestep.tenant", facts.tenant),
        _string("sidestep.action", facts.action),
        _integer("sidestep.revision", facts.data.revision),
    )
    if facts.data.age_s is not None:
        parts.append(_AGE_PREFIX + _DOUBLE.pack(facts.data.age_s))
    if decision.policies:
        parts.append(_policies(decision.policies))
    if decision.grant:
        parts.append(_string("sidestep.grant.id", decision.grant))
    if decision.achieved_acr:
        parts.append(_string("sidestep.achieved_acr", decision.achieved_acr))
    if decision.requirement.acrs:
        parts.append(_strings("sidestep.required_acr", decision.requirement.acrs))
    if decision.waived_acrs:
        parts.append(_strings("sidestep.waived_acr", decision.waived_acrs))
    for factor in decision.factors:
        passed, score_prefix = _factor(factor.name, factor.passed)
        parts.append(passed)
        if factor.score is not None:
            parts.append(score_prefix + _DOUBLE.pack(factor.score))
    if decision.shadows:
        parts.append(_strings("sidestep.shadow.policy", tuple([x.policy for x in decision.shadows])))
        parts.append(_strings("sidestep.shadow.outcome", tuple([x.outcome for x in decision.shadows])))
    for key, value in (
        ("sidestep.request_id", r.request_id),
        ("sidestep.caller", r.caller),
        ("user.hash", r.user_hash),
        ("client.address", r.client_address),
    ):
        if value:
            parts.append(_fresh_string(key, value))


def _parent(traceparent: str) -> tuple[bytes, bytes, int]:
    """Trace id, span id and span flags of the caller; empty if there is no valid traceparent."""
    match = _TRACEPARENT.fullmatch(traceparent) if traceparent else None
    if match is None or (match[1] == "00" and match[5]):
        return b"", b"", 0
    trace_id, parent = bytes.fromhex(match[2]), bytes.fromhex(match[3])
    if not any(trace_id) or not any(parent):
        return b"", b"", 0
    return trace_id, parent, int(match[4], 16) | _REMOTE_PARENT


# Protobuf's wire format. Field numbers: opentelemetry/proto/trace/v1/trace.proto and common/v1/common.proto.


_ONE_BYTE = tuple(bytes((value,)) for value in range(128))


def _varint(value: int) -> bytes:
    if value < 128:
        return _ONE_BYTE[value]
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, data: bytes) -> bytes:
    """A length-delimited field with a number below 16."""
    return _ONE_BYTE[number << 3 | 2] + _varint(len(data)) + data


def _text(value: str) -> bytes:
    """An AnyValue."""
    return _field(1, value.encode("utf-8", "replace"))


def _pair(key: str, value: bytes) -> bytes:
    """A KeyValue."""
    return _key(key) + _field(2, value)


@lru_cache(maxsize=256)
def _key(key: str) -> bytes:
    return _field(1, key.encode())


def _attribute(key: str, value: bytes) -> bytes:
    """A KeyValue, as a field of Span."""
    return _field(9, _pair(key, value))


def _fresh_string(key: str, value: str) -> bytes:
    return _attribute(key, _text(value))


# Values that come again and again are encoded once. Bounded: a tenant may have any number of them.
_string = lru_cache(maxsize=4096)(_fresh_string)


@lru_cache(maxsize=4096)
def _strings(key: str, values: tuple[str, ...]) -> bytes:
    return _attribute(key, _field(5, b"".join(_field(1, _text(value)) for value in values)))


@lru_cache(maxsize=1024)
def _policies(policies: tuple[str, ...]) -> bytes:
    """From `name@version`."""
    parts = [policy.rpartition("@") for policy in policies]
    names = tuple(name or version for name, _, version in parts)
    versions = tuple(version if name else "" for name, _, version in parts)
    return _strings("sidestep.policy.name", names) + _strings("sidestep.policy.version", versions)


@lru_cache(maxsize=64)
def _factor(name: str, passed: bool) -> tuple[bytes, bytes]:
    """`passed` as a whole, and `score` up to its value."""
    whole = _attribute(f"sidestep.factor.{name}.passed", b"\x10\x01" if passed else b"\x10\x00")
    return whole, _double(f"sidestep.factor.{name}.score", 0.0)[: -_DOUBLE.size]


def _integer(key: str, value: int) -> bytes:
    return _attribute(key, b"\x18" + _varint(value & 0xFFFFFFFFFFFFFFFF))


def _double(key: str, value: float) -> bytes:
    return _attribute(key, b"\x21" + _DOUBLE.pack(value))


_NAME_AND_KIND = _field(5, _METHOD.encode()) + bytes((6 << 3, _KIND_SERVER))
_ALWAYS = _fresh_string("rpc.system.name", "grpc") + _fresh_string("rpc.method", _METHOD)
# Attributes of a fixed length, up to their value.
_ID_PREFIX = _fresh_string("sidestep.decision.id", 36 * "0")[:-36]
_AGE_PREFIX = _double("sidestep.data_age_s", 0.0)[: -_DOUBLE.size]
_SCOPE = _field(1, _field(1, b"sidestep"))
