"""The shipper against a real receiver: what goes into the journal comes out, whatever the receiver does meanwhile."""

from __future__ import annotations

import asyncio
import functools
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import grpc
import msgspec
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from sidecar.journal import ship
from sidecar.journal.export import OtlpExporter
from sidecar.journal.reader import SegmentReader
from sidecar.journal.segment import SegmentWriter, list_segments
from sidecar.journal.ship import Shipper
from sidecar.journal.span import encode_resource
from sidecar.page import AgentWord, Page
from tests.fakes.otlp import OtlpReceiver, Refusal, always, attributes
from tests.fakes.records import encoded_records

MIB = 1 << 20
RESOURCE = encode_resource({"service.name": "sidestep"})


def in_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


class Bench:
    """One journal directory, its shipper's counters, and a way to run the shipper for a while."""

    def __init__(self, directory: Path) -> None:
        self.journal = directory / "journal"
        self.page = Page.create(directory / "page", 1)

    def count(self, word: AgentWord) -> int:
        return self.page.agent.get(word)

    def writer(self, segment_bytes: int = 4 * MIB) -> SegmentWriter:
        return SegmentWriter(self.journal, "w0", 256 * MIB, segment_bytes=segment_bytes)

    def shipper(self, exporter: OtlpExporter | None, quarantine_bytes: int = MIB) -> Shipper:
        return Shipper(self.journal, exporter, self.page.agent, resource=RESOURCE, quarantine_bytes=quarantine_bytes)

    @asynccontextmanager
    async def shipping(self, endpoint: str, timeout_s: float = 5.0) -> AsyncIterator[Shipper]:
        """A running shipper; stopped and closed at the end."""
        exporter = OtlpExporter(endpoint, insecure=True, headers={"x-tenant": "acme"}, timeout_s=timeout_s)
        shipper = self.shipper(exporter)
        stop = asyncio.Event()
        task = asyncio.create_task(shipper.run(stop))
        try:
            yield shipper
        finally:
            stop.set()
            await task
            shipper.close()
            await exporter.close()

    async def until(self, condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, self.state()
            await asyncio.sleep(0.01)

    def state(self) -> str:
        return ", ".join(f"{word.name} {self.count(word)}" for word in AgentWord)

    def files(self) -> list[str]:
        return sorted(path.name for path in self.journal.iterdir())


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture(autouse=True)
def short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ship, "_BACKOFF_LAST_S", 0.12)


def ids(records: list[bytes]) -> list[str]:
    return [str(UUID(bytes=msgspec.msgpack.decode(record)["decision_id"])) for record in records]


@in_a_loop
async def test_everything_arrives_once_and_in_order_and_the_files_go(bench: Bench) -> None:
    records = encoded_records(1500)
    with OtlpReceiver() as receiver:
        writer = bench.writer(segment_bytes=100_000)
        async with bench.shipping(receiver.endpoint):
            for at in range(0, 1500, 50):
                writer.append(records[at : at + 50])
            await bench.until(lambda: len(receiver.spans) == 1500)
            writer.close()
            await bench.until(lambda: not list_segments(bench.journal))
        assert receiver.decision_ids() == ids(records)
        assert [attributes(span)["sidestep.journal.seq"] for span in receiver.spans] == list(range(1500))
        assert receiver.resources[0] == {"service.name": "sidestep"}
        assert receiver.metadata[0]["x-tenant"] == "acme"
    assert bench.files() == ["cursor"]
    assert bench.count(AgentWord.JOURNAL_SHIPPED) == 1500
    assert bench.count(AgentWord.JOURNAL_LOST) == 0


@in_a_loop
async def test_a_batch_holds_at_most_512_records(bench: Bench) -> None:
    sizes: list[int] = []
    with OtlpReceiver() as receiver:
        receiver.fail = lambda request: sizes.append(len(request.resource_spans[0].scope_spans[0].spans))
        bench.writer().append(encoded_records(1200))
        async with bench.shipping(receiver.endpoint):
            await bench.until(lambda: len(receiver.spans) == 1200)
    assert sizes == [512, 512, 176]


@in_a_loop
async def test_a_receiver_that_is_down_costs_nothing_but_time(bench: Bench) -> None:
    records = encoded_records(300)
    with OtlpReceiver() as receiver:
        receiver.stop()
        bench.writer().append(records)
        async with bench.shipping(receiver.endpoint):
            await bench.until(lambda: bench.count(AgentWord.EXPORT_FAILURES) >= 3)
            assert bench.count(AgentWord.JOURNAL_BACKLOG_BYTES) > sum(map(len, records))
            receiver.start()
            await bench.until(lambda: bench.count(AgentWord.JOURNAL_SHIPPED) == 300)
            await bench.until(lambda: bench.count(AgentWord.JOURNAL_BACKLOG_BYTES) == 0)
        assert receiver.decision_ids() == ids(records)


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
            receiver.fail = None
            await bench.until(lambda: bench.count(AgentWord.JOURNAL_SHIPPED) == 20)
        assert receiver.decision_ids() == ids(records)
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
async def test_a_slow_receiver_is_given_up_after_the_timeout_and_asked_again(bench: Bench) -> None:
    with OtlpReceiver() as receiver:
        receiver.delay_s = 0.6
        bench.writer().append(encoded_records(5))
        async with bench.shipping(receiver.endpoint, timeout_s=0.2):
            await bench.until(lambda: bench.count(AgentWord.EXPORT_FAILURES) >= 1)
            receiver.delay_s = 0.0
            await bench.until(lambda: bench.count(AgentWord.JOURNAL_SHIPPED) == 5)


@in_a_loop
async def test_partial_success_is_counted_not_retried(bench: Bench) -> None:
    with OtlpReceiver() as receiver:
        receiver.reject = 3
        bench.writer().append(encoded_records(10))
        async with bench.shipping(receiver.endpoint):
            await bench.until(lambda: bench.count(AgentWord.JOURNAL_SHIPPED) == 7)
        assert bench.count(AgentWord.JOURNAL_REJECTED) == 3
        assert len(receiver.calls) == 1


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
    (name,) = list_segments(bench.journal)
    reader = SegmentReader(bench.journal / str(name))
    assert [entry.payload for entry in reader.read(10)] == [records[123]]
    reader.close()


@in_a_loop
async def test_a_full_quarantine_stops_shipping_rather_than_dropping(bench: Bench) -> None:
    records = encoded_records(200)
    with OtlpReceiver() as receiver:
        receiver.fail = always(grpc.StatusCode.INVALID_ARGUMENT)
        bench.writer().append(records)
        exporter = OtlpExporter(receiver.endpoint, insecure=True, headers={}, timeout_s=5)
        shipper = bench.shipper(exporter, quarantine_bytes=8192)
        stop = asyncio.Event()
        task = asyncio.create_task(shipper.run(stop))
        try:
            await bench.until(lambda: bench.count(AgentWord.JOURNAL_QUARANTINED) >= 5)
            failures = bench.count(AgentWord.EXPORT_FAILURES)
            await bench.until(lambda: bench.count(AgentWord.EXPORT_FAILURES) >= failures + 5)
            receiver.fail = None
            aside = bench.count(AgentWord.JOURNAL_QUARANTINED)
            await bench.until(lambda: bench.count(AgentWord.JOURNAL_SHIPPED) == 200 - aside)
            assert aside < 15
            assert receiver.decision_ids() == ids(records)[aside:]
        finally:
            stop.set()
            await task
            shipper.close()
            await exporter.close()


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
async def test_a_torn_tail_is_cut_and_counted(bench: Bench) -> None:
    writer = bench.writer()
    records = encoded_records(10)
    writer.append(records)
    writer.close()
    (name,) = list_segments(bench.journal)
    path = bench.journal / str(name)
    path.write_bytes(path.read_bytes()[:-7])
    with OtlpReceiver() as receiver:
        async with bench.shipping(receiver.endpoint):
            await bench.until(lambda: not list_segments(bench.journal))
        assert receiver.decision_ids() == ids(records)[:9]
    assert bench.count(AgentWord.JOURNAL_TORN) == 1


@in_a_loop
async def test_damaged_and_missing_records_are_counted_by_their_numbers(bench: Bench) -> None:
    writer = bench.writer(segment_bytes=10_000)
    records = encoded_records(60)
    for record in records:
        writer.append([record])
    writer.close()
    first, second, *_ = list_segments(bench.journal)
    damaged = bytearray((bench.journal / str(first)).read_bytes())
    damaged[60] ^= 1  # within the first record
    (bench.journal / str(first)).write_bytes(damaged)
    gone = 0
    reader = SegmentReader(bench.journal / str(second))
    while batch := reader.read(100):
        gone += len(batch)
    reader.close()
    (bench.journal / str(second)).unlink()
    assert gone > 3
    with OtlpReceiver() as receiver:
        async with bench.shipping(receiver.endpoint):
            await bench.until(lambda: not list_segments(bench.journal))
        assert len(receiver.spans) == 60 - 1 - gone
        seen = {attributes(span)["sidestep.journal.seq"] for span in receiver.spans}
    assert bench.count(AgentWord.JOURNAL_LOST) == 1 + gone
    assert 0 not in seen


@in_a_loop
async def test_a_segment_with_a_damaged_header_is_kept_aside(bench: Bench) -> None:
    bench.writer().append(encoded_records(1))
    (name,) = list_segments(bench.journal)
    (bench.journal / str(name)).write_bytes(b"garbage" * 10)
    with OtlpReceiver() as receiver:
        async with bench.shipping(receiver.endpoint):
            await bench.until(lambda: bench.count(AgentWord.JOURNAL_TORN) == 1)
    assert any(file.endswith(".damaged") for file in bench.files())


@in_a_loop
async def test_a_restarted_shipper_goes_on_from_its_cursor(bench: Bench) -> None:
    records = encoded_records(100)
    writer = bench.writer()
    with OtlpReceiver() as receiver:
        writer.append(records[:60])
        async with bench.shipping(receiver.endpoint):
            await bench.until(lambda: len(receiver.spans) == 60)
        writer.append(records[60:])
        async with bench.shipping(receiver.endpoint):
            await bench.until(lambda: len(receiver.spans) >= 100)
        assert receiver.decision_ids() == ids(records)
    writer.close()


@in_a_loop
async def test_segments_removed_just_before_a_crash_do_not_look_lost(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ship, "_CURSOR_EVERY_S", 1000.0)
    writer = bench.writer(segment_bytes=20_000)
    with OtlpReceiver() as receiver:
        exporter = OtlpExporter(receiver.endpoint, insecure=True, headers={}, timeout_s=5)
        writer.append(encoded_records(1))
        first = bench.shipper(exporter)
        await first.step()
        first.close()  # saves the cursor, within the first segment
        crashed = bench.shipper(exporter)
        for record in encoded_records(100):
            writer.append([record])
        while len(receiver.spans) < 101:
            await crashed.step()
        assert len(list_segments(bench.journal)) == 1
        for record in encoded_records(100):
            writer.append([record])
        writer.close()
        restarted = bench.shipper(exporter)
        assert await restarted.drain(time.monotonic() + 10)
        restarted.close()
        await exporter.close()
        assert len({span.span_id for span in receiver.spans}) == 201
    assert bench.count(AgentWord.JOURNAL_LOST) == 0


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"segments": {"x": "y"}}'])
@in_a_loop
async def test_without_a_usable_cursor_everything_is_sent_again(bench: Bench, content: bytes) -> None:
    records = encoded_records(10)
    writer = bench.writer()
    writer.append(records)
    with OtlpReceiver() as receiver:
        async with bench.shipping(receiver.endpoint):
            await bench.until(lambda: len(receiver.spans) == 10)
        (bench.journal / "cursor").write_bytes(content)
        async with bench.shipping(receiver.endpoint):
            await bench.until(lambda: len(receiver.spans) == 20)
        assert receiver.decision_ids() == ids(records) * 2
    writer.close()


@in_a_loop
async def test_an_acknowledgement_that_is_lost_means_the_same_span_again(bench: Bench) -> None:
    bench.writer().append(encoded_records(10))
    with OtlpReceiver() as receiver:
        receiver.fail_after = always(grpc.StatusCode.UNAVAILABLE)
        async with bench.shipping(receiver.endpoint):
            await bench.until(lambda: len(receiver.spans) >= 20)
            receiver.fail_after = None
            await bench.until(lambda: bench.count(AgentWord.JOURNAL_SHIPPED) == 10)
        spans = receiver.spans
    assert {(s.trace_id, s.span_id) for s in spans[:10]} == {(s.trace_id, s.span_id) for s in spans[10:20]}


@in_a_loop
async def test_without_a_collector_records_are_discarded_and_counted(bench: Bench) -> None:
    writer = bench.writer()
    writer.append(encoded_records(100))
    shipper = bench.shipper(None)
    stop = asyncio.Event()
    task = asyncio.create_task(shipper.run(stop))
    await bench.until(lambda: bench.count(AgentWord.JOURNAL_DISCARDED) == 100)
    writer.close()
    await bench.until(lambda: not list_segments(bench.journal))
    stop.set()
    await task
    shipper.close()
    assert bench.count(AgentWord.JOURNAL_SHIPPED) == 0


@in_a_loop
async def test_drain_ships_what_is_left_and_says_so(bench: Bench) -> None:
    writer = bench.writer()
    writer.append(encoded_records(700))
    writer.close()
    with OtlpReceiver() as receiver:
        exporter = OtlpExporter(receiver.endpoint, insecure=True, headers={}, timeout_s=5)
        shipper = bench.shipper(exporter)
        assert await shipper.drain(time.monotonic() + 10)
        assert len(receiver.spans) == 700
        shipper.close()
        await exporter.close()
    assert not list_segments(bench.journal)


@in_a_loop
async def test_drain_gives_up_at_its_deadline_and_keeps_the_records(bench: Bench) -> None:
    bench.writer().append(encoded_records(10))
    with OtlpReceiver() as receiver:
        receiver.delay_s = 1.2
        exporter = OtlpExporter(receiver.endpoint, insecure=True, headers={}, timeout_s=10)
        shipper = bench.shipper(exporter)
        began = time.monotonic()
        assert not await shipper.drain(began + 0.3)
        assert time.monotonic() - began < 1.0
        shipper.close()
        await exporter.close()
        receiver.delay_s = 0.0
    assert len(list_segments(bench.journal)) == 1


_WRITER = """
import sys, threading
from pathlib import Path
from sidecar.journal.segment import SegmentWriter
from tests.fakes.records import encoded_records
records = encoded_records(int(sys.argv[2]))
writer = SegmentWriter(Path(sys.argv[1]), sys.argv[3], 1 << 28, segment_bytes=1 << 16)
pause = threading.Event()
for at in range(0, len(records), 10):
    writer.append(records[at : at + 10])
    pause.wait(0.001)
import uuid, msgspec
for record in records:
    print(uuid.UUID(bytes=msgspec.msgpack.decode(record)["decision_id"]))
"""


@in_a_loop
async def test_nothing_is_lost_while_writers_write_and_the_receiver_dies_three_times(bench: Bench) -> None:
    """Two writer processes at full speed; the receiver is killed with calls in flight and comes back, three times."""
    bench.journal.mkdir()
    count = 4000
    with OtlpReceiver() as receiver:
        receiver.delay_s = 0.01
        writers = [
            subprocess.Popen(  # noqa: ASYNC220
                [sys.executable, "-c", _WRITER, str(bench.journal), str(count), f"w{index}"],
                stdout=subprocess.PIPE,
                text=True,
            )
            for index in range(2)
        ]
        try:
            async with bench.shipping(receiver.endpoint):
                for wave in range(1, 4):
                    want = wave * count // 3
                    await bench.until(lambda want=want: len(receiver.spans) >= want)  # type: ignore[misc]
                    await asyncio.to_thread(receiver.stop)
                    await asyncio.sleep(random.uniform(0.0, 0.2))
                    await asyncio.to_thread(receiver.start)
                written = [
                    line for writer in writers for line in (await asyncio.to_thread(writer.communicate))[0].split()
                ]
                await bench.until(lambda: not list_segments(bench.journal))
        finally:
            for writer in writers:
                writer.kill()
                writer.wait()
        arrived = receiver.decision_ids()
    assert len(written) == 2 * count
    assert set(arrived) == set(written)
    assert bench.count(AgentWord.JOURNAL_LOST) == 0
    assert bench.count(AgentWord.JOURNAL_SHIPPED) == 2 * count
    # At least once: a batch whose acknowledgement was lost came twice, and nothing else did.
    assert len(arrived) - len(set(arrived)) <= 3 * ship.MAX_BATCH_RECORDS
