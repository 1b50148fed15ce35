"""What the shipper does when the collector does not take what it is sent."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from sidecar.journal import quarantine, sender, ship
from sidecar.journal.quarantine import Quarantined
from sidecar.journal.reader import Entry, SegmentReader
from sidecar.journal.record import encode_record
from sidecar.journal.segment import JournalError, list_segments
from sidecar.page import EXPORT_STATES, AgentWord
from tests.fakes.otlp import OtlpReceiver, Refusal, always, attributes
from tests.fakes.records import encoded_records, make_record
from tests.fakes.shipping import Bench, ids, in_a_loop


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture(autouse=True)
def short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "_BACKOFF_LAST_S", 0.12)
    monkeypatch.setattr(sender, "_DENIED_LAST_S", 0.12)


def state(bench: Bench) -> str:
    return EXPORT_STATES[bench.count(AgentWord.EXPORT_STATE)]


def read(bench: Bench) -> list[Entry]:
    """The records of the only segment there is."""
    (name,) = list_segments(bench.journal)
    reader = SegmentReader(bench.journal / str(name))
    entries = reader.read(1000)
    reader.close()
    return entries


@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    ],
)
@in_a_loop
async def test_a_refusal_that_is_not_about_the_data_is_retried(bench: Bench, code: grpc.StatusCode) -> None:
    records = encoded_records(20)
    with OtlpReceiver() as receiver:
        receiver.fail = always(code)
        bench.writer().append(records)
        async with bench.shipping(receiver.endpoint):
            await bench.until(lambda: bench.count(AgentWord.EXPORT_FAILURES) >= 6)
            denied = code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED)
            assert state(bench) == ("refusing" if denied else "retrying")
            receiver.fail = None
            await bench.until(lambda: bench.count(AgentWord.JOURNAL_SHIPPED) == 20)
        assert receiver.decision_ids() == ids(records)
    assert state(bench) == "accepting"
    assert bench.count(AgentWord.JOURNAL_QUARANTINED) == 0


@pytest.mark.parametrize("code", [grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE])
@in_a_loop
async def test_retry_info_is_obeyed(bench: Bench, code: grpc.StatusCode) -> None:
    with OtlpReceiver() as receiver:
        receiver.fail = always(code, retry_after_s=0.3)  # more than the longest backoff of this test
        bench.writer().append(encoded_records(5))
        async with bench.shipping(receiver.endpoint):
            await bench.until(lambda: len(receiver.calls) >= 2)
            receiver.fail = None
            await bench.until(lambda: len(receiver.spans) == 5)
        gaps = [after - before for before, after in zip(receiver.calls, receiver.calls[1:], strict=False)]
        assert all(gap >= 0.3 for gap in gaps), gaps


@in_a_loop
async def test_the_whole_batch_of_a_partial_success_is_set_aside_and_not_sent_again(bench: Bench) -> None:
    records = encoded_records(10)
    with OtlpReceiver() as receiver:
        receiver.reject = 3
        writer = bench.writer()
        writer.append(records)
        entries = read(bench)
        async with bench.shipping(receiver.endpoint) as shipper:
            await bench.until(lambda: bench.count(AgentWord.JOURNAL_QUARANTINED) == 10)
            receiver.reject = 0
            more = encoded_records(1)
            writer.append(more)
            await bench.until(lambda: bench.count(AgentWord.JOURNAL_SHIPPED) == 1)
            tally = shipper.tallies()[writer.chain]
            assert (tally.settled, tally.quarantined, tally.lost) == (11, 10, 0)
        assert len(receiver.calls) == 2
        assert receiver.decision_ids() == ids(records[3:] + more)
        assert bench.quarantined() == [Quarantined(writer.chain, e.sequence, e.hash, e.payload) for e in entries]
    assert bench.count(AgentWord.JOURNAL_BACKLOG) == 0


@in_a_loop
async def test_after_a_partial_success_batches_are_small_and_grow_again(bench: Bench) -> None:
    sizes: list[int] = []

    def note(request: ExportTraceServiceRequest) -> None:
        sizes.append(len(request.resource_spans[0].scope_spans[0].spans))
        receiver.reject = 1 if len(sizes) == 1 else 0

    with OtlpReceiver() as receiver:
        receiver.fail = note
        bench.writer().append(encoded_records(1100))
        async with bench.shipping(receiver.endpoint, quarantine_bytes=8 << 20):
            await bench.until(lambda: bench.count(AgentWord.JOURNAL_SHIPPED) == 1100 - 512)
    assert sizes == [512, 64, 128, 256, 140]


@in_a_loop
async def test_a_message_with_a_partial_success_that_rejects_nothing_is_a_success(bench: Bench) -> None:
    with OtlpReceiver() as receiver:
        receiver.reject = -1  # a negative count is none
        bench.writer().append(encoded_records(1))
        async with bench.shipping(receiver.endpoint):
            await bench.until(lambda: bench.count(AgentWord.JOURNAL_SHIPPED) == 1)
    assert bench.count(AgentWord.JOURNAL_QUARANTINED) == 0


@in_a_loop
async def test_a_partial_success_the_quarantine_has_no_room_for_waits_and_is_not_sent_again(bench: Bench) -> None:
    records = encoded_records(60)
    with OtlpReceiver() as receiver:
        receiver.reject = 1
        writer = bench.writer()
        writer.append(records[:30])
        async with bench.shipping(receiver.endpoint, quarantine_bytes=8192) as shipper:
            await bench.until(lambda: bench.count(AgentWord.JOURNAL_QUARANTINED) == 30)  # the bound is passed now
            writer.append(records[30:])
            await bench.until(lambda: len(receiver.calls) == 2)
            await bench.until(lambda: state(bench) == "refusing")
            for _ in range(5):
                assert await shipper.step() > 0
            assert len(receiver.calls) == 2
            assert shipper.tallies()[writer.chain].settled == 30
        (name,) = [name for name in list_segments(bench.journal) if name.kind == "q"]
        (bench.journal / str(name)).unlink()  # someone made room
        receiver.reject = 0
        async with bench.shipping(receiver.endpoint):
            await bench.until(lambda: bench.count(AgentWord.JOURNAL_SHIPPED) == 30)
        assert set(receiver.decision_ids()) >= set(ids(records[30:]))


@in_a_loop
async def test_only_the_record_the_receiver_cannot_take_is_set_aside(bench: Bench) -> None:
    records = encoded_records(300)
    bad = ids(records)[123]

    def refuse(request: ExportTraceServiceRequest) -> None:
        spans = request.resource_spans[0].scope_spans[0].spans
        if any(attributes(span)["sidestep.decision.id"] == bad for span in spans):
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "one span is bad")

    with OtlpReceiver() as receiver:
        receiver.fail = refuse
        writer = bench.writer()
        writer.append(records)
        async with bench.shipping(receiver.endpoint):
            await bench.until(lambda: bench.count(AgentWord.JOURNAL_SHIPPED) == 299)
            writer.close()
            await bench.until(lambda: [name.kind for name in list_segments(bench.journal)] == ["q"])
        assert receiver.decision_ids() == [each for each in ids(records) if each != bad]
    assert bench.count(AgentWord.JOURNAL_QUARANTINED) == 1
    (aside,) = bench.quarantined()
    assert (aside.chain, aside.sequence, aside.payload) == (writer.chain, 123, records[123])


@in_a_loop
async def test_a_full_quarantine_stops_shipping_rather_than_dropping(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    records = encoded_records(200)
    with OtlpReceiver() as receiver:
        receiver.fail = always(grpc.StatusCode.INVALID_ARGUMENT)
        bench.writer().append(records)
        async with bench.shipping(receiver.endpoint, quarantine_bytes=8192):
            await bench.until(lambda: bench.count(AgentWord.JOURNAL_QUARANTINED) >= 5)
            failures = bench.count(AgentWord.EXPORT_FAILURES)
            await bench.until(lambda: bench.count(AgentWord.EXPORT_FAILURES) >= failures + 3)
            await bench.until(lambda: "full" in caplog.text)
            assert state(bench) == "refusing"
            receiver.fail = None
            for name in list_segments(bench.journal):  # someone makes room
                if name.kind == "q":
                    (bench.journal / str(name)).unlink()
            await bench.until(lambda: bench.count(AgentWord.JOURNAL_BACKLOG) == 0)
        aside = bench.count(AgentWord.JOURNAL_QUARANTINED)
        assert aside < 15
        assert receiver.decision_ids() == ids(records)[aside:]


@in_a_loop
async def test_bytes_no_span_can_be_made_of_are_set_aside(bench: Bench) -> None:
    records = encoded_records(4)
    bench.writer().append([records[0], records[1], b"no record", records[2], b"nor this", records[3]])
    with OtlpReceiver() as receiver:
        async with bench.shipping(receiver.endpoint):
            await bench.until(lambda: bench.count(AgentWord.JOURNAL_SHIPPED) == 4)
        assert receiver.decision_ids() == ids(records)
        assert [attributes(span)["sidestep.journal.seq"] for span in receiver.spans] == [0, 1, 3, 5]
    assert bench.count(AgentWord.JOURNAL_QUARANTINED) == 2


@in_a_loop
async def test_the_largest_record_there_is_can_be_set_aside(bench: Bench) -> None:
    record = make_record(request_id="x")
    spare = (1 << 20) - 256 - len(encode_record(record)) - 4  # what MessagePack needs more for a longer text
    encoded = encode_record(make_record(request_id="x" * (spare + 1)))
    with pytest.raises(JournalError):
        encode_record(make_record(request_id="x" * (spare + 2)))
    bench.writer().append([encoded])
    with OtlpReceiver() as receiver:
        receiver.fail = always(grpc.StatusCode.INVALID_ARGUMENT)
        async with bench.shipping(receiver.endpoint, quarantine_bytes=8 << 20):
            await bench.until(lambda: bench.count(AgentWord.JOURNAL_QUARANTINED) == 1)
    assert [each.payload for each in bench.quarantined()] == [encoded]


@in_a_loop
async def test_many_records_that_are_set_aside_share_files(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarantine, "_FEW_FILES", 3)
    place = quarantine.Quarantine(bench.journal, 1 << 20)
    for record in encoded_records(10):
        assert place.put([Quarantined("w0-000000000001", 0, bytes(32), record)])
    assert len(quarantine.quarantine_segments(bench.journal)) == 3
    assert len(bench.quarantined()) == 10
    place.close()


@in_a_loop
async def test_a_file_that_many_share_is_finished_once_the_others_were_shipped(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quarantine, "_FEW_FILES", 3)
    monkeypatch.setattr(ship, "_CURSOR_EVERY_S", 0.0)
    writer = bench.writer()
    with OtlpReceiver() as receiver:
        receiver.reject = 1
        async with bench.shipping(receiver.endpoint):
            for count in range(1, 6):
                writer.append(encoded_records(1))
                await bench.until(lambda count=count: bench.count(AgentWord.JOURNAL_QUARANTINED) == count)
            *finished, shared = quarantine.quarantine_segments(bench.journal)
            assert not is_finished(bench.journal / shared)
            for name in finished:
                (bench.journal / name).unlink()
            await bench.until(lambda: is_finished(bench.journal / shared))
            assert len(bench.quarantined()) == 3
    writer.close()


def is_finished(segment: Path) -> bool:
    reader = SegmentReader(segment)
    try:
        return reader.finished()
    finally:
        reader.close()
