"""A record's span, read back with OpenTelemetry's own messages."""

from __future__ import annotations

from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from engine.decision import Basis, Decision, Outcome
from engine.facts import Facts
from sidecar.journal.record import AnyRecord, BatchRecord, Record, decode_record, encode_record
from sidecar.journal.segment import MAX_RECORD_BYTES, JournalError
from sidecar.journal.span import UnreadableRecordError, encode_request, encode_resource, encode_span, read_timing
from tests.fakes.otlp import attributes, plain
from tests.fakes.records import TRACEPARENT, make_batch, make_record, make_unrecorded

HASH = bytes(range(32))


def span_of(record: AnyRecord, chain: str = "w0-000000000001", sequence: int = 5) -> Span:
    request = encode_request(
        [encode_span(encode_record(record), chain, sequence, HASH)], encode_resource({"service.name": "s"})
    )
    parsed = ExportTraceServiceRequest.FromString(request)
    assert not parsed.resource_spans[0].scope_spans[0].schema_url
    (span,) = parsed.resource_spans[0].scope_spans[0].spans
    # Nothing landed in fields OTLP does not know.
    assert ExportTraceServiceRequest.FromString(parsed.SerializeToString(deterministic=True)) == parsed
    return span


def test_a_record_is_read_back_as_it_was() -> None:
    for record in (*make_batch(), make_unrecorded()):
        assert decode_record(encode_record(record)) == record


def test_a_record_too_large_for_the_journal_fails_alone() -> None:
    facts = make_record().facts
    fits = msgspec.structs.replace(facts, values={"context.channel": "x" * (MAX_RECORD_BYTES - 4096)})
    assert encode_record(make_record(facts=fits))
    too_large = msgspec.structs.replace(facts, values={"context.channel": "x" * MAX_RECORD_BYTES})
    with pytest.raises(JournalError, match="bytes"):
        encode_record(make_record(facts=too_large))


def test_a_span_carries_the_whole_vocabulary() -> None:
    record = make_record(user_id="alice")
    span = span_of(record)
    assert span.name == "sidestep.v1.DecisionService/Evaluate"
    assert span.kind == Span.SPAN_KIND_SERVER
    assert span.trace_id.hex() == TRACEPARENT.split("-")[1]
    assert span.parent_span_id.hex() == TRACEPARENT.split("-")[2]
    assert span.span_id == record.decision_id[8:]
    assert span.flags == 0x301
    assert span.start_time_unix_nano == 1_700_000_000_250_000_000
    assert span.end_time_unix_nano - span.start_time_unix_nano == 37_000
    assert attributes(span) == {
        "rpc.system.name": "grpc",
        "rpc.method": "sidestep.v1.DecisionService/Evaluate",
        "sidestep.decision.id": str(UUID(bytes=record.decision_id)),
        "sidestep.outcome": "ALLOW",
        "sidestep.basis": "EXEMPTION_GRANT",
        "sidestep.reasons": ["TRIGGER_FIRED payments/high-value", "GRANT_APPLIED g1"],
        "sidestep.tenant": "acme",
        "sidestep.action": "payments.transfer",
        "sidestep.revision": 42,
        "sidestep.data_age_s": 1.5,
        "sidestep.policy.name": ["payments", "base"],
        "sidestep.policy.version": ["3", "1"],
        "sidestep.grant.id": "g1",
        "sidestep.achieved_acr": "nist-aal1",
        "sidestep.required_acr": ["phr", "nist-aal2"],
        "sidestep.waived_acr": ["nist-aal2"],
        "sidestep.factor.identity.passed": True,
        "sidestep.factor.identity.score": 0.75,
        "sidestep.factor.risk.passed": False,
        "sidestep.shadow.policy": ["next"],
        "sidestep.shadow.outcome": ["DENY"],
        "sidestep.request_id": "r-1",
        "sidestep.caller": "payments",
        "user.hash": "5f1b",
        "user.id": "alice",
        "client.address": "203.0.113.0",
        "sidestep.journal.chain": "w0-000000000001",
        "sidestep.journal.seq": 5,
        "sidestep.journal.hash": HASH,
        "sidestep.record": encode_record(record),
    }


def test_what_is_absent_in_the_record_is_absent_in_the_span() -> None:
    bare = Record(
        decision_id=bytes(8) + b"\x80" + bytes(6) + b"\x01",
        at=0.0,
        duration_us=0,
        facts=Facts(now=0.0, tenant="t", action="a"),
        decision=Decision(outcome=Outcome.STEP_UP, basis=Basis.FAIL_SAFE, reasons=()),
    )
    span = span_of(bare)
    assert span.trace_id == bare.decision_id
    assert span.parent_span_id == b""
    assert span.flags == 0
    assert set(attributes(span)) == {
        "rpc.system.name",
        "rpc.method",
        "sidestep.decision.id",
        "sidestep.outcome",
        "sidestep.basis",
        "sidestep.reasons",
        "sidestep.tenant",
        "sidestep.action",
        "sidestep.revision",
        "sidestep.journal.chain",
        "sidestep.journal.seq",
        "sidestep.journal.hash",
        "sidestep.record",
    }


@pytest.mark.parametrize("traceparent", [TRACEPARENT, TRACEPARENT[:-2] + "00", ""])
def test_a_batch_is_one_span_with_one_child_per_decision(traceparent: str) -> None:
    *children, record = make_batch(3, traceparent=traceparent)
    assert isinstance(record, BatchRecord)
    whole = span_of(record)
    assert whole.name == "sidestep.v1.DecisionService/EvaluateBatch"
    assert whole.kind == Span.SPAN_KIND_SERVER
    assert whole.span_id == record.batch[8:]
    assert whole.end_time_unix_nano - whole.start_time_unix_nano == 90_000
    sampled = int(traceparent[-2:] or "0")
    if traceparent:
        assert whole.trace_id.hex() == traceparent.split("-")[1]
        assert whole.parent_span_id.hex() == traceparent.split("-")[2]
        assert whole.flags == 0x300 | sampled
    else:
        assert (whole.trace_id, whole.parent_span_id, whole.flags) == (record.batch, b"", 0)
    assert attributes(whole) == {
        "rpc.system.name": "grpc",
        "rpc.method": "sidestep.v1.DecisionService/EvaluateBatch",
        "sidestep.batch.size": 3,
        "sidestep.batch.errors": 0,
        "sidestep.caller": "payments",
        "sidestep.journal.chain": "w0-000000000001",
        "sidestep.journal.seq": 5,
        "sidestep.journal.hash": HASH,
        "sidestep.record": encode_record(record),
    }
    for child in children:
        assert isinstance(child, Record)
        span = span_of(child)
        assert span.name == "sidestep.v1.DecisionService/Evaluate"
        assert span.kind == Span.SPAN_KIND_INTERNAL
        assert (span.trace_id, span.parent_span_id) == (whole.trace_id, whole.span_id)
        assert span.span_id == child.decision_id[8:]
        assert span.flags == 0x100 | sampled, "its parent is not remote"


def test_unrecorded_decisions_are_a_span_with_an_error() -> None:
    record = make_unrecorded(count=300)
    span = span_of(record)
    assert span.name == "sidestep.journal/Unrecorded"
    assert span.kind == Span.SPAN_KIND_INTERNAL
    assert (span.trace_id, span.span_id, span.parent_span_id) == (record.id, record.id[8:], b"")
    assert span.start_time_unix_nano == 1_700_000_000_250_000_000
    assert span.end_time_unix_nano == 1_700_000_001_500_000_000
    assert span.status == Status(code=Status.STATUS_CODE_ERROR)
    assert attributes(span) == {
        "sidestep.journal.unrecorded": 300,
        "sidestep.journal.chain": "w0-000000000001",
        "sidestep.journal.seq": 5,
        "sidestep.journal.hash": HASH,
        "sidestep.record": encode_record(record),
    }


@pytest.mark.parametrize("traceparent", [TRACEPARENT, ""])
@pytest.mark.parametrize("padding", [0, 100, 20_000])
def test_the_timing_of_a_decision_is_read_from_its_span(traceparent: str, padding: int) -> None:
    for record in make_batch(1, traceparent=traceparent, request_id="x" * padding):
        span = span_of(record)
        timing = read_timing(encode_span(encode_record(record), "w0-000000000001", 5, HASH))
        if isinstance(record, Record):
            assert timing == (span.trace_id, span.span_id, span.start_time_unix_nano, 37_000)
        else:
            assert timing is None
    assert read_timing(encode_span(encode_record(make_unrecorded()), "w0-000000000001", 5, HASH)) is None


@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        "garbage",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
        "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\n",
        "00-0af7651916cd43dd8448eb211c80319g-b7ad6b7169203331-01",
    ],
)
def test_an_invalid_traceparent_makes_a_root_span(traceparent: str) -> None:
    record = make_record(traceparent=traceparent)
    span = span_of(record)
    assert span.trace_id == record.decision_id
    assert not span.parent_span_id


@pytest.mark.parametrize(
    ("traceparent", "flags"),
    [
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00", 0x300),
        ("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-of a later version", 0x301),
    ],
)
def test_unsampled_and_newer_traceparents_are_followed(traceparent: str, flags: int) -> None:
    span = span_of(make_record(traceparent=traceparent))
    assert span.parent_span_id.hex() == "b7ad6b7169203331"
    assert span.flags == flags


@given(
    request_id=st.text(max_size=300),
    at=st.floats(0, 4e9),
    duration_us=st.integers(0, 10**9),
    sequence=st.integers(0, 2**63 - 1),
)
def test_any_value_survives(request_id: str, at: float, duration_us: int, sequence: int) -> None:
    record = make_record(request_id=request_id, at=at, duration_us=duration_us)
    try:
        encode_record(record)
    except UnicodeEncodeError:  # a lone surrogate cannot come over the wire either
        return
    span = span_of(record, sequence=sequence)
    found = attributes(span)
    assert found.get("sidestep.request_id", "") == request_id
    assert found["sidestep.journal.seq"] == sequence
    assert span.start_time_unix_nano == round(at * 1e6) * 1000
    assert span.end_time_unix_nano - span.start_time_unix_nano == duration_us * 1000


@given(st.binary(max_size=200))
def test_bytes_that_are_no_record_are_told_apart(data: bytes) -> None:
    with pytest.raises(UnreadableRecordError):
        encode_span(data, "w0-000000000001", 0, HASH)


def test_a_record_with_a_bad_id_or_time_is_unreadable() -> None:
    for changes in ({"decision_id": b"short"}, {"at": float("nan")}, {"at": -5.0}, {"at": 1e300}):
        with pytest.raises(UnreadableRecordError):
            encode_span(encode_record(make_record(**changes)), "w0-000000000001", 0, HASH)


def test_a_chain_hash_has_32_bytes() -> None:
    with pytest.raises(UnreadableRecordError, match="31 bytes"):
        encode_span(encode_record(make_record()), "w0-000000000001", 0, HASH[1:])


def test_a_kind_of_record_from_a_newer_version_is_unreadable() -> None:
    raw = msgspec.msgpack.decode(encode_record(make_record()))
    for kind in ("something", None):
        raw["kind"] = kind
        with pytest.raises(UnreadableRecordError):
            encode_span(msgspec.msgpack.encode(raw), "w0-000000000001", 0, HASH)


def test_fields_of_a_newer_version_are_ignored() -> None:
    raw = msgspec.msgpack.decode(encode_record(make_record()))
    raw["new"] = {"field": 1}
    raw["decision"]["outcome"] = "SOMETHING_NEW"
    data = encode_span(msgspec.msgpack.encode(raw), "w0-000000000001", 0, HASH)
    request = ExportTraceServiceRequest.FromString(encode_request([data], encode_resource({})))
    assert attributes(request.resource_spans[0].scope_spans[0].spans[0])["sidestep.outcome"] == "SOMETHING_NEW"


def test_the_resource_is_sent_along() -> None:
    resource = encode_resource({"service.name": "sidestep", "host.name": "pod-1"})
    request = ExportTraceServiceRequest.FromString(encode_request([], resource))
    found = {pair.key: plain(pair.value) for pair in request.resource_spans[0].resource.attributes}
    assert found == {"service.name": "sidestep", "host.name": "pod-1"}
    assert request.resource_spans[0].scope_spans[0].scope.name == "sidestep"
