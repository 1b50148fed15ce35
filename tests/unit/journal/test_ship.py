"""The shipper against a real receiver: what goes into the journal comes out, whatever the receiver does meanwhile."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from pathlib import Path

import grpc
import pytest

from sidecar.journal import sender, ship
from sidecar.journal.reader import SegmentReader
from sidecar.journal.segment import FRAME, HEADER, list_segments
from sidecar.page import AgentWord
from tests.fakes.otlp import OtlpReceiver, always, attributes
from tests.fakes.records import encoded_records
from tests.fakes.shipping import Bench, ids, in_a_loop


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture(autouse=True)
def short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "_BACKOFF_LAST_S", 0.12)
    monkeypatch.setattr(sender, "_DENIED_LAST_S", 0.12)


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
async def test_a_full_batch_is_followed_at_once_and_a_smaller_one_after_a_pause(bench: Bench) -> None:
    # Under load there is always a record more: sent as soon as it is there, each would be an export of its own.
    with OtlpReceiver() as receiver:
        writer = bench.writer()
        writer.append(encoded_records(600))
        async with bench.exporting(receiver.endpoint) as exporter:
            shipper = bench.shipper(exporter)
            assert await shipper.step() == 0
            assert await shipper.step() > 0
            writer.append(encoded_records(1))
            assert await shipper.step() > 0
            shipper.close()
        assert len(receiver.spans) == 601


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
    damaged[HEADER.size + FRAME.size + 5] ^= 1  # within the first record
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
        async with bench.exporting(receiver.endpoint) as exporter:
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
        async with bench.exporting(receiver.endpoint) as exporter:
            shipper = bench.shipper(exporter)
            assert await shipper.drain(time.monotonic() + 10)
            assert len(receiver.spans) == 700
            shipper.close()
    assert not list_segments(bench.journal)


@in_a_loop
async def test_drain_gives_up_at_its_deadline_and_keeps_the_records(bench: Bench) -> None:
    bench.writer().append(encoded_records(10))
    with OtlpReceiver() as receiver:
        receiver.delay_s = 1.2
        async with bench.exporting(receiver.endpoint, timeout_s=10) as exporter:
            shipper = bench.shipper(exporter)
            began = time.monotonic()
            assert not await shipper.drain(began + 0.3)
            assert time.monotonic() - began < 1.0
            shipper.close()
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
    assert len(arrived) - len(set(arrived)) <= 3 * sender.MAX_BATCH_RECORDS
