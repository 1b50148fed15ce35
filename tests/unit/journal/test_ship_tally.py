"""What the shipper counts: every record once, chain by chain, whatever dies in between."""

from __future__ import annotations

import asyncio
import errno
import time
from bisect import bisect_left
from pathlib import Path

import pytest

from sidecar.journal import exemplars, sender, ship
from sidecar.journal.chain import genesis
from sidecar.journal.cursor import Tally, load_cursor, save_cursor
from sidecar.journal.reader import SegmentReader
from sidecar.journal.record import encode_record
from sidecar.journal.segment import FRAME, HEADER, SegmentWriter, list_segments
from sidecar.journal.ship import Shipper
from sidecar.page import EXEMPLAR_WORDS, LATENCY_BOUNDS_S, AgentWord
from tests.fakes.otlp import OtlpReceiver
from tests.fakes.records import encoded_records, make_batch, make_record, make_unrecorded
from tests.fakes.shipping import Bench, in_a_loop


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture(autouse=True)
def short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "_BACKOFF_LAST_S", 0.12)


def write(bench: Bench, count: int, segment_bytes: int = 10_000, name: str = "w0") -> SegmentWriter:
    """One finished chain of so many records, one append each."""
    writer = bench.writer(segment_bytes, name)
    for record in encoded_records(count):
        writer.append([record])
    writer.close()
    return writer


def records_of(bench: Bench, position: int) -> int:
    """How many records the chain's segment at `position` holds."""
    reader = SegmentReader(bench.journal / str(list_segments(bench.journal)[position]))
    count = len(reader.read(1000))
    reader.close()
    return count


async def ship_all(bench: Bench, receiver: OtlpReceiver) -> dict[str, Tally]:
    async with bench.exporting(receiver.endpoint) as exporter:
        shipper = bench.shipper(exporter)
        assert await shipper.drain(time.monotonic() + 20)
        shipper.close()
        return shipper.tallies()


@in_a_loop
async def test_every_chain_is_tallied_with_the_hash_of_its_last_settled_record(bench: Bench) -> None:
    with OtlpReceiver() as receiver:
        first, second = write(bench, 30), write(bench, 20, name="w1")
        tallies = await ship_all(bench, receiver)
    assert tallies == {first.chain: Tally(30, first.head), second.chain: Tally(20, second.head)}
    cursor = load_cursor(bench.journal)
    assert cursor is not None
    assert cursor.chains == tallies
    assert cursor.segments == {}


@in_a_loop
async def test_the_head_of_a_chain_in_the_making_is_that_of_the_last_record_shipped(bench: Bench) -> None:
    with OtlpReceiver() as receiver:
        writer = bench.writer()
        async with bench.exporting(receiver.endpoint) as exporter:
            shipper = bench.shipper(exporter)
            for count in (3, 5):
                writer.append(encoded_records(count))
                head = writer.head
                await shipper.step()
                tally = shipper.tallies()[writer.chain]
                assert tally.head == head
            assert tally.settled == 8
            assert head != genesis(writer.chain)
            shipper.close()
        writer.close()


@in_a_loop
async def test_what_is_sent_again_after_a_crash_is_counted_once(bench: Bench) -> None:
    with OtlpReceiver() as receiver:
        writer = bench.writer()
        writer.append(encoded_records(100))
        async with bench.exporting(receiver.endpoint) as exporter:
            crashed = bench.shipper(exporter)
            await crashed.step()
            assert crashed.tallies()[writer.chain].settled == 100
            writer.append(encoded_records(10))
            writer.close()
            tallies = await ship_all(bench, receiver)  # another one, with no cursor of the first
        assert len(receiver.spans) == 210
    assert tallies[writer.chain] == Tally(110, writer.head)
    assert bench.count(AgentWord.JOURNAL_LOST) == 0


@in_a_loop
async def test_discarded_records_are_tallied_as_such(bench: Bench) -> None:
    writer = write(bench, 12)
    shipper = bench.shipper(None)
    assert await shipper.drain(time.monotonic() + 10)
    shipper.close()
    assert shipper.tallies() == {writer.chain: Tally(12, writer.head, discarded=12)}


@in_a_loop
async def test_records_of_a_segment_that_is_damaged_or_gone_are_lost_to_the_number(bench: Bench) -> None:
    writer = write(bench, 60)
    other = write(bench, 5, name="w1")
    names = [name for name in list_segments(bench.journal) if name.worker == 0]
    assert len(names) >= 5
    gone, damaged = records_of(bench, 0), records_of(bench, 2)
    with OtlpReceiver() as receiver:
        shipper = bench.shipper(None)
        shipper.close()  # so that there is a cursor which knows nothing of the chain
        (bench.journal / str(names[0])).unlink()
        (bench.journal / str(names[2])).write_bytes(b"garbage" * 10)
        tallies = await ship_all(bench, receiver)
    assert tallies[writer.chain] == Tally(60, writer.head, lost=gone + damaged)
    assert tallies[other.chain] == Tally(5, other.head)
    assert bench.count(AgentWord.JOURNAL_LOST) == gone + damaged
    assert len(receiver.spans) == 65 - gone - damaged
    assert f"{str(names[2]).removesuffix('.seg')}.damaged" in bench.files()


@in_a_loop
async def test_a_record_that_is_damaged_is_lost_in_its_own_chain(bench: Bench) -> None:
    writer, other = write(bench, 10, 1 << 20), write(bench, 10, 1 << 20, name="w1")
    path = bench.journal / str(list_segments(bench.journal)[0])
    content = bytearray(path.read_bytes())
    content[HEADER.size + FRAME.size + 5] ^= 1
    path.write_bytes(content)
    with OtlpReceiver() as receiver:
        tallies = await ship_all(bench, receiver)
    assert tallies == {writer.chain: Tally(10, writer.head, lost=1), other.chain: Tally(10, other.head)}


@in_a_loop
async def test_without_a_cursor_records_before_the_first_segment_are_not_taken_for_lost(bench: Bench) -> None:
    writer = write(bench, 60)
    before = records_of(bench, 0)
    (bench.journal / str(list_segments(bench.journal)[0])).unlink()
    with OtlpReceiver() as receiver:
        tallies = await ship_all(bench, receiver)
    assert tallies[writer.chain] == Tally(60, writer.head)
    assert bench.count(AgentWord.JOURNAL_LOST) == 0
    assert len(receiver.spans) == 60 - before


@in_a_loop
async def test_a_cursor_that_knows_a_chain_but_not_the_place_in_its_segment_counts_nothing_twice(bench: Bench) -> None:
    writer = bench.writer()
    writer.append(encoded_records(6))
    shipper = bench.shipper(None)
    await shipper.step()
    shipper.close()
    cursor = load_cursor(bench.journal)
    assert cursor is not None
    cursor.segments.clear()
    save_cursor(bench.journal, cursor.encode())
    writer.append(encoded_records(4))
    writer.close()
    again = bench.shipper(None)
    assert await again.drain(time.monotonic() + 10)
    again.close()
    assert again.tallies() == {writer.chain: Tally(10, writer.head, discarded=10)}


@in_a_loop
async def test_chains_are_forgotten_once_they_have_no_segment(bench: Bench) -> None:
    with OtlpReceiver() as receiver:
        ended = write(bench, 10)
        running = bench.writer(name="w1")
        running.append(encoded_records(3))
        async with bench.shipping(receiver.endpoint) as shipper:
            await bench.until(lambda: bench.count(AgentWord.JOURNAL_SHIPPED) == 13)
            await bench.until(lambda: len(list_segments(bench.journal)) == 1)
            shipper.forget([ended.chain, running.chain, "w7-000000000000"])
            assert set(shipper.tallies()) == {running.chain}
        running.close()
    cursor = load_cursor(bench.journal)
    assert cursor is not None
    assert set(cursor.chains) == {running.chain}


@in_a_loop
async def test_the_backlog_is_counted_in_records_and_bytes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ship, "_CURSOR_EVERY_S", 0.0)
    with OtlpReceiver() as receiver:
        receiver.stop()
        write(bench, 30)
        async with bench.shipping(receiver.endpoint):
            await bench.until(lambda: bench.count(AgentWord.JOURNAL_BACKLOG) == 30)
            assert bench.count(AgentWord.JOURNAL_BACKLOG_BYTES) > 30 * 500
            receiver.start()
            await bench.until(lambda: bench.count(AgentWord.JOURNAL_BACKLOG) == 0)
            assert bench.count(AgentWord.JOURNAL_BACKLOG_BYTES) == 0


@in_a_loop
async def test_on_a_full_disk_segments_that_were_shipped_are_removed_all_the_same(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise nothing would ever make room."""

    def full(directory: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = write(bench, 30)
    with OtlpReceiver() as receiver:
        with monkeypatch.context() as disk:
            disk.setattr("sidecar.journal.backlog.save_cursor", full)
            tallies = await ship_all(bench, receiver)
        assert not list_segments(bench.journal)
        assert tallies[writer.chain].settled == 30
        assert len(receiver.spans) == 30


@in_a_loop
async def test_when_the_cursor_cannot_be_saved_for_another_reason_segments_stay(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(directory: Path, content: bytes) -> None:
        raise OSError(errno.EIO, "Input/output error")

    write(bench, 30)
    with OtlpReceiver() as receiver:
        with monkeypatch.context() as disk:
            disk.setattr("sidecar.journal.backlog.save_cursor", broken)
            async with bench.exporting(receiver.endpoint) as exporter:
                shipper = bench.shipper(exporter)
                await shipper.drain(time.monotonic() + 10)
                assert len(list_segments(bench.journal)) > 1
                shipper.close()
        await ship_all(bench, receiver)
        assert not list_segments(bench.journal)
        assert len({span.span_id for span in receiver.spans}) == 30


@in_a_loop
async def test_a_save_that_nobody_waits_for_any_more_does_not_garble_the_cursor(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step is cancelled while it saves; the next save must not meet it half way."""
    running: list[Path] = []

    def slow(directory: Path, content: bytes) -> None:
        running.append(directory)
        assert len(running) == 1, "two saves at once"
        time.sleep(0.2)
        save_cursor(directory, content)
        running.pop()

    monkeypatch.setattr("sidecar.journal.backlog.save_cursor", slow)
    writer = write(bench, 30)
    shipper = Shipper(bench.journal, None, bench.page.agent, resource=b"", quarantine_bytes=1 << 20)
    step = asyncio.create_task(shipper.step())
    await bench.until(lambda: bool(running))
    step.cancel()
    await asyncio.gather(step, return_exceptions=True)
    assert running
    assert await shipper.drain(time.monotonic() + 10)
    shipper.close()
    cursor = load_cursor(bench.journal)
    assert cursor is not None
    assert cursor.chains == {writer.chain: Tally(30, writer.head, discarded=30)}


@in_a_loop
async def test_exemplars_are_the_last_decisions_of_their_bucket_that_were_accepted(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exemplars, "_EVERY_S", 0.0)
    quick, slow = make_record(duration_us=37), make_record(duration_us=3_000_000, traceparent="")
    writer = bench.writer()
    with OtlpReceiver() as receiver:
        async with bench.exporting(receiver.endpoint) as exporter:
            shipper = bench.shipper(exporter)
            receiver.stop()
            writer.append([encode_record(make_record(duration_us=37)), encode_record(slow)])
            await shipper.step()
            assert all(word == 0 for word in _exemplar(bench, 37e-6)), "only what the collector has"
            receiver.start()
            writer.append([encode_record(each) for each in (quick, *make_batch(duration_us=38), make_unrecorded())])
            await bench.until(lambda: bench.count(AgentWord.EXPORT_FAILURES) > 0)
            assert await shipper.drain(time.monotonic() + 10) is True
            shipper.close()
    writer.close()
    batched = next(span for span in reversed(receiver.spans) if span.name.endswith("/Evaluate"))
    assert _exemplar(bench, 38e-6) == _words(batched.trace_id, batched.span_id, 38_000, batched.end_time_unix_nano)
    assert _exemplar(bench, 3.0) == _words(
        slow.decision_id, slow.decision_id[8:], 3_000_000_000, round(slow.at * 1e6) * 1000 + 3_000_000_000
    )
    assert all(word == 0 for word in _exemplar(bench, 0.7))


def _words(trace_id: bytes, span_id: bytes, duration_ns: int, end_ns: int) -> list[int]:
    parts = (trace_id[:8], trace_id[8:], span_id)
    return [*(int.from_bytes(part, "big") for part in parts), duration_ns, end_ns]


def _exemplar(bench: Bench, duration_s: float) -> list[int]:
    first = bisect_left(LATENCY_BOUNDS_S, duration_s) * EXEMPLAR_WORDS
    return [bench.page.agent.get(AgentWord.EXEMPLARS, first + index) for index in range(EXEMPLAR_WORDS)]
