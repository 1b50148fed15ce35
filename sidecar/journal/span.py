"""A journal record as an OTLP span, in protobuf's wire format.

Written by hand, because building the message objects costs several times as much as everything else in shipping; a
test reads the result back with opentelemetry-proto. The vocabulary is that of DESIGN section 12. Every kind of record
becomes one span, so that numbers have no holes where spans are kept. Which attributes they have:

    every span   sidestep.journal.{chain, seq, hash}, sidestep.record: the record as the journal has it, so that what was
                 exported can be verified and replayed
    decision     rpc.system.name, rpc.method, sidestep.{decision.id, outcome, basis, reasons, tenant, action, revision}
       if known  sidestep.{data_age_s, policy.name[], policy.version[], grant.id, achieved_acr, required_acr[],
                 waived_acr[], shadow.policy[], shadow.outcome[], factor.*.score, factor.*.passed, request_id, caller},
                 user.hash, user.id, client.address
    batch        rpc.system.name, rpc.method, sidestep.batch.{size, errors}; if known sidestep.caller
    unrecorded   sidestep.journal.unrecorded
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from struct import Struct
from struct import error as struct_error
from typing import NamedTuple

import msgspec

from sidecar.journal.chain import HASH_BYTES
from sidecar.journal.segment import JournalError
from sidecar.journal.wire import (
    DOUBLE,
    attribute,
    double,
    field,
    fresh_integer,
    fresh_string,
    integer,
    pair,
    prefix,
    string,
    strings,
    text,
)

SCOPE = "sidestep"
"""Name of the instrumentation scope of all our spans."""
_METHOD = "sidestep.v1.DecisionService/Evaluate"
_BATCH_METHOD = "sidestep.v1.DecisionService/EvaluateBatch"
_UNRECORDED = "sidestep.journal/Unrecorded"
_KIND_INTERNAL = 1
_KIND_SERVER = 2
# OTLP Span.flags: whether the parent is remote is known; and it is.
_LOCAL_PARENT = 0x100
_REMOTE_PARENT = 0x300
_TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
# Trace id, span id, start and end, each behind its tag (and length).
_BEGIN = Struct("<BB16sBB8sBQBQ")
_TIMING = Struct("<2x16s2x8sxQxQ")
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


class _Record(msgspec.Struct, frozen=True, gc=False, tag_field="kind", tag="decision"):
    decision_id: bytes
    at: float
    duration_us: int
    facts: _Facts
    decision: _Decision
    request_id: str = ""
    traceparent: str = ""
    caller: str = ""
    user_hash: str = ""
    user_id: str = ""
    client_address: str = ""
    batch: bytes = b""


class _Batch(msgspec.Struct, frozen=True, gc=False, tag_field="kind", tag="batch"):
    batch: bytes
    at: float
    duration_us: int
    size: int
    errors: int = 0
    traceparent: str = ""
    caller: str = ""


class _Unrecorded(msgspec.Struct, frozen=True, gc=False, tag_field="kind", tag="unrecorded"):
    id: bytes
    at: float
    until: float
    count: int


_DECODER = msgspec.msgpack.Decoder(_Record | _Batch | _Unrecorded)


class UnreadableRecordError(JournalError):
    """The bytes are no record this version can turn into a span."""


def encode_span(payload: bytes, chain: str, sequence: int, chain_hash: bytes) -> bytes:
    """An encoded `Span`, as a field of `ScopeSpans`. Raises UnreadableRecordError.

    The same record always gives the same ids: the span id is the second half of the id of the decision, the batch or the
    unrecorded ones, and without a valid traceparent (W3C Trace Context) that id, or that of the batch a decision was part
    of, is the trace id. So a collector can recognise a record that was sent twice.
    """
    if len(chain_hash) != HASH_BYTES:
        raise UnreadableRecordError(f"a chain hash of {len(chain_hash)} bytes")
    try:
        record = _DECODER.decode(payload)
        if type(record) is _Record:
            parts = _decision(record)
        elif type(record) is _Batch:
            parts = _batch(record)
        else:
            parts = _unrecorded(record)
        parts += (
            string("sidestep.journal.chain", chain),
            fresh_integer("sidestep.journal.seq", sequence),
            _HASH_PREFIX + chain_hash,
            _record_prefix(len(payload)) + payload,
        )
        return field(2, b"".join(parts))
    except (msgspec.MsgspecError, ValueError, OverflowError, struct_error) as error:
        raise UnreadableRecordError(str(error)) from None


class Timing(NamedTuple):
    """When a decision was taken and how long it took, with what leads to its span."""

    trace_id: bytes
    span_id: bytes
    start_ns: int
    duration_ns: int


def read_timing(span: bytes) -> Timing | None:
    """Out of what `encode_span` returned; None if it is not the span of a decision. Much cheaper than the record."""
    at = 2
    while span[at - 1] > 127:  # behind the length
        at += 1
    if not span.startswith(_NAME, at + _TIMING.size):
        return None
    trace_id, span_id, start_ns, end_ns = _TIMING.unpack_from(span, at)
    return Timing(trace_id, span_id, start_ns, end_ns - start_ns)


def encode_request(spans: list[bytes], resource: bytes) -> bytes:
    """An encoded `ExportTraceServiceRequest` of spans from `encode_span` and a resource from `encode_resource`."""
    size = len(_SCOPE) + sum(map(len, spans))
    scope = prefix(2, size)
    # Joined once: copying a megabyte costs more than encoding some spans.
    return b"".join((prefix(1, len(resource) + len(scope) + size), resource, scope, _SCOPE, *spans))


def encode_resource(attributes: Mapping[str, str]) -> bytes:
    """An encoded `Resource`, as a field of `ResourceSpans`."""
    return field(1, b"".join(field(1, pair(key, text(value))) for key, value in attributes.items()))


def _begin(trace_id: bytes, own_id: bytes, at: float, duration_ns: int) -> bytes:
    """The first fields of every span: ids and times."""
    start_ns = _ns(at)
    return _BEGIN.pack(0x0A, 16, trace_id, 0x12, 8, own_id[8:], 0x39, start_ns, 0x41, start_ns + max(0, duration_ns))


def _ns(at: float) -> int:
    return round(at * 1e6) * 1000  # a float holds no more than microseconds


def _check_id(value: bytes) -> None:
    if len(value) != 16:
        raise UnreadableRecordError("an id is not 16 bytes long")


def _decision(r: _Record) -> list[bytes]:
    _check_id(r.decision_id)
    trace_id, parent, flags = _parent(r.traceparent)
    kind = _SERVER
    if r.batch:
        _check_id(r.batch)
        trace_id, parent, flags = trace_id or r.batch, r.batch[8:], flags & 0xFF | _LOCAL_PARENT
        kind = _INTERNAL
    parts = [_begin(trace_id or r.decision_id, r.decision_id, r.at, r.duration_us * 1000), _NAME, kind, _ALWAYS]
    if parent:
        parts.append(b"\x22\x08" + parent)
        parts.append(b"\x85\x01" + _FIXED32.pack(flags))
    _attributes(r, parts)
    return parts


def _batch(r: _Batch) -> list[bytes]:
    _check_id(r.batch)
    trace_id, parent, flags = _parent(r.traceparent)
    parts = [
        _begin(trace_id or r.batch, r.batch, r.at, r.duration_us * 1000),
        _BATCH_ALWAYS,
        integer("sidestep.batch.size", r.size),
        integer("sidestep.batch.errors", r.errors),
    ]
    if parent:
        parts.append(b"\x22\x08" + parent)
        parts.append(b"\x85\x01" + _FIXED32.pack(flags))
    if r.caller:
        parts.append(string("sidestep.caller", r.caller))
    return parts


def _unrecorded(r: _Unrecorded) -> list[bytes]:
    _check_id(r.id)
    return [
        _begin(r.id, r.id, r.at, _ns(r.until) - _ns(r.at)),
        _UNRECORDED_ALWAYS,
        integer("sidestep.journal.unrecorded", r.count),
    ]


def _attributes(r: _Record, parts: list[bytes]) -> None:
    facts, decision, digits = r.facts, r.decision, r.decision_id.hex()
    parts += (
        _ID_PREFIX + f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}".encode(),
        string("sidestep.outcome", decision.outcome),
        string("sidestep.basis", decision.basis),
        strings("sidestep.reasons", tuple([f"{x.code} {x.clause}" if x.clause else x.code for x in decision.reasons])),
        string("sidestep.tenant", facts.tenant),
        string("sidestep.action", facts.action),
        integer("sidestep.revision", facts.data.revision),
    )
    if facts.data.age_s is not None:
        parts.append(_AGE_PREFIX + DOUBLE.pack(facts.data.age_s))
    if decision.policies:
        parts.append(_policies(decision.policies))
    if decision.grant:
        parts.append(string("sidestep.grant.id", decision.grant))
    if decision.achieved_acr:
        parts.append(string("sidestep.achieved_acr", decision.achieved_acr))
    if decision.requirement.acrs:
        parts.append(strings("sidestep.required_acr", decision.requirement.acrs))
    if decision.waived_acrs:
        parts.append(strings("sidestep.waived_acr", decision.waived_acrs))
    for factor in decision.factors:
        passed, score_prefix = _factor(factor.name, factor.passed)
        parts.append(passed)
        if factor.score is not None:
            parts.append(score_prefix + DOUBLE.pack(factor.score))
    if decision.shadows:
        parts.append(strings("sidestep.shadow.policy", tuple([x.policy for x in decision.shadows])))
        parts.append(strings("sidestep.shadow.outcome", tuple([x.outcome for x in decision.shadows])))
    for key, value in (
        ("sidestep.request_id", r.request_id),
        ("sidestep.caller", r.caller),
        ("user.hash", r.user_hash),
        ("user.id", r.user_id),
        ("client.address", r.client_address),
    ):
        if value:
            parts.append(fresh_string(key, value))


def _parent(traceparent: str) -> tuple[bytes, bytes, int]:
    """Trace id, span id and span flags of the caller; empty if there is no valid traceparent."""
    match = _TRACEPARENT.fullmatch(traceparent) if traceparent else None
    if match is None or (match[1] == "00" and match[5]):
        return b"", b"", 0
    trace_id, parent = bytes.fromhex(match[2]), bytes.fromhex(match[3])
    if not any(trace_id) or not any(parent):
        return b"", b"", 0
    return trace_id, parent, int(match[4], 16) | _REMOTE_PARENT


@lru_cache(maxsize=4096)
def _record_prefix(size: int) -> bytes:
    """The attribute that holds a record of so many bytes, up to the record."""
    return attribute("sidestep.record", field(7, bytes(size)))[:-size]


@lru_cache(maxsize=1024)
def _policies(policies: tuple[str, ...]) -> bytes:
    """From `name@version`."""
    parts = [policy.rpartition("@") for policy in policies]
    names = tuple(name or version for name, _, version in parts)
    versions = tuple(version if name else "" for name, _, version in parts)
    return strings("sidestep.policy.name", names) + strings("sidestep.policy.version", versions)


@lru_cache(maxsize=64)
def _factor(name: str, passed: bool) -> tuple[bytes, bytes]:
    """`passed` as a whole, and `score` up to its value."""
    whole = attribute(f"sidestep.factor.{name}.passed", b"\x10\x01" if passed else b"\x10\x00")
    return whole, double(f"sidestep.factor.{name}.score", 0.0)[: -DOUBLE.size]


def _kind(value: int) -> bytes:
    return bytes((6 << 3, value))


def _rpc(method: str) -> bytes:
    return fresh_string("rpc.system.name", "grpc") + fresh_string("rpc.method", method)


_NAME = field(5, _METHOD.encode())
_SERVER, _INTERNAL = _kind(_KIND_SERVER), _kind(_KIND_INTERNAL)
_ALWAYS = _rpc(_METHOD)
_BATCH_ALWAYS = field(5, _BATCH_METHOD.encode()) + _SERVER + _rpc(_BATCH_METHOD)
# With the status ERROR.
_UNRECORDED_ALWAYS = field(5, _UNRECORDED.encode()) + _INTERNAL + field(15, b"\x18\x02")
# Attributes of a fixed length, up to their value.
_ID_PREFIX = fresh_string("sidestep.decision.id", 36 * "0")[:-36]
_HASH_PREFIX = attribute("sidestep.journal.hash", field(7, bytes(HASH_BYTES)))[:-HASH_BYTES]
_AGE_PREFIX = double("sidestep.data_age_s", 0.0)[: -DOUBLE.size]
_SCOPE = field(1, field(1, SCOPE.encode()))
