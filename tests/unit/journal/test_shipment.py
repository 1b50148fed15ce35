"""Shipping journals nobody runs any more: everything arrives, nothing is removed that did not."""

from __future__ import annotations

import asyncio
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import grpc
import msgspec
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from sidecar.journal import sender
from sidecar.journal.cursor import Tally, load_cursor
from sidecar.journal.quarantine import Quarantine, Quarantined, quarantine_segments
from sidecar.journal.resource import save_resource
from sidecar.journal.segment import JournalError, SegmentWriter, list_segments
from sidecar.journal.shipment import FolderInUseError, Shipment, find_journals, ship_folder
from tests.fakes.otlp import OtlpReceiver, Refusal, always, attributes
from tests.fakes.records import encoded_records
from tests.fakes.shipping import Bench, ids, in_a_loop, quarantined


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture(autouse=True)
def short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "_BACKOFF_LAST_S", 0.12)


def folder_with(folder: Path, count: int, sidecar: str = "") -> tuple[SegmentWriter, list[str]]:
    """A journal folder with one finished chain; its decision ids."""
    writer = SegmentWriter(folder, "w0", 1 << 28, segment_bytes=10_000)
    records = encoded_records(count)
    for record in records:
        writer.append([record])
    writer.close()
    if sidecar:
        save_resource(folder, {"service.name": "sidestep", "service.instance.id": sidecar})
    return writer, ids(records)


def set_aside(folder: Path, count: int) -> list[Quarantined]:
    records = [Quarantined("w3-000000000003", at, bytes((at,)) * 32, r) for at, r in enumerate(encoded_records(count))]
    quarantine = Quarantine(folder, 1 << 20)
    assert quarantine.put(records)
    quarantine.close()
    return records


def without_bad(bad: str) -> object:
    def refuse(request: ExportTraceServiceRequest) -> None:
        spans = request.resource_spans[0].scope_spans[0].spans
        if any(attributes(span)["sidestep.decision.id"] == bad for span in spans):
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "one span is bad")

    return refuse


async def ship(bench: Bench, receiver: OtlpReceiver, folder: Path, **options: object) -> list[Shipment]:
    async with bench.exporting(receiver.endpoint) as exporter:
        return await ship_folder(folder, exporter, **options)  # type: ignore[arg-type]


@in_a_loop
async def test_every_journal_below_a_folder_is_shipped_under_its_own_name_and_removed(
    bench: Bench, tmp_path: Path
) -> None:
    spool = tmp_path / "spool"
    first, a = folder_with(spool / "pod-1" / "1700000000000-7", 30, "pod-1")
    second, b = folder_with(spool / "pod-2" / "1700000000001-7", 700, "pod-2")
    _, unfinished = folder_with(spool / "pod-2" / ".1700000000002-7.part", 5, "pod-2")
    told: list[tuple[int, int]] = []
    with OtlpReceiver() as receiver:
        one, two = await ship(bench, receiver, spool, on_progress=lambda *at: told.append(at))
        assert sorted(receiver.decision_ids()) == sorted(a + b)
        by_sidecar = [resource["service.instance.id"] for resource in receiver.resources]
        assert by_sidecar == ["pod-1", "pod-2", "pod-2"]
    assert (one.sidecar, one.shipped, one.left, one.problem) == ("pod-1", 30, 0, "")
    assert one.chains == {first.chain: Tally(30, first.head)}
    assert (two.sidecar, two.shipped, two.left) == ("pod-2", 700, 0)
    assert two.chains == {second.chain: Tally(700, second.head)}
    assert told[-1] == (730, 0)
    assert [shipped for shipped, _ in told] == sorted(shipped for shipped, _ in told)
    assert sorted(path.name for path in spool.rglob("*-7*")) == [".1700000000002-7.part"]
    assert unfinished


@in_a_loop
async def test_a_data_directory_keeps_its_cursor(bench: Bench, tmp_path: Path) -> None:
    data = tmp_path / "data"
    writer, records = folder_with(data / "journal", 10, "pod-1")
    (data / "lock").touch()
    with OtlpReceiver() as receiver:
        (shipment,) = await ship(bench, receiver, data)
        assert receiver.decision_ids() == records
        assert shipment.folder == data / "journal"
        cursor = load_cursor(data / "journal")
        assert cursor is not None
        assert cursor.chains == {writer.chain: Tally(10, writer.head)}
        (again,) = await ship(bench, receiver, data)
        assert (again.shipped, again.left) == (0, 0)


@in_a_loop
async def test_a_running_sidecar_s_folder_is_refused_before_anything_is_sent(bench: Bench, tmp_path: Path) -> None:
    folder_with(tmp_path / "a" / "journal", 5)
    data = tmp_path / "b"
    folder_with(data / "journal", 5)
    lock = os.open(data / "lock", os.O_RDWR | os.O_CREAT)
    with OtlpReceiver() as receiver:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(FolderInUseError, match="is running"):
            await ship(bench, receiver, tmp_path)
        os.close(lock)
        writer = SegmentWriter(data / "journal", "w1", 1 << 28)
        writer.append(encoded_records(1))  # no supervisor, but a worker
        with pytest.raises(FolderInUseError, match="is running"):
            await ship(bench, receiver, tmp_path)
        assert not receiver.calls
        writer.close()
        assert sum(shipment.shipped for shipment in await ship(bench, receiver, tmp_path)) == 11


@in_a_loop
async def test_of_a_running_sidecar_s_folder_only_finished_quarantine_files_are_taken(
    bench: Bench, tmp_path: Path
) -> None:
    journal = tmp_path / "data" / "journal"
    journal.parent.mkdir()
    lock = os.open(tmp_path / "data" / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    running = SegmentWriter(journal, "w0", 1 << 28)
    running.append(encoded_records(4))
    aside = set_aside(journal, 3)
    busy = SegmentWriter(journal, "q", 1 << 28)
    busy.append([msgspec.msgpack.encode(Quarantined("w3-000000000003", 3, bytes(32), encoded_records(1)[0]))])
    shipper = bench.shipper(None)
    shipper.close()
    with OtlpReceiver() as receiver:
        (shipment,) = await ship(bench, receiver, tmp_path / "data", quarantined=True)
        assert [attributes(span)["sidestep.journal.chain"] for span in receiver.spans] == ["w3-000000000003"] * 3
        assert [attributes(span)["sidestep.journal.seq"] for span in receiver.spans] == [0, 1, 2]
        assert [attributes(span)["sidestep.journal.hash"] for span in receiver.spans] == [each.hash for each in aside]
        assert receiver.decision_ids() == ids(each.payload for each in aside)
    assert (shipment.shipped, shipment.left, shipment.chains) == (3, 1, {})
    assert shipment.duplicates_possible
    assert not (journal / "cursor").exists(), "that is the sidecar's"
    assert len(list_segments(journal)) == 2
    running.close()
    busy.close()
    os.close(lock)


@in_a_loop
async def test_what_is_refused_stays_and_is_sent_when_asked_for(bench: Bench, tmp_path: Path) -> None:
    folder = tmp_path / "spool" / "pod-1" / "1-1"
    writer, records = folder_with(folder, 40, "pod-1")
    with OtlpReceiver() as receiver:
        receiver.fail = without_bad(records[17])  # type: ignore[assignment]
        (shipment,) = await ship(bench, receiver, tmp_path / "spool")
        assert (shipment.shipped, shipment.left) == (39, 1)
        assert shipment.chains[writer.chain] == Tally(40, writer.head, quarantined=1)
        (kept,) = quarantined(folder)
        assert (kept.chain, kept.sequence) == (writer.chain, 17)
        (again,) = await ship(bench, receiver, tmp_path / "spool")  # not asked for
        assert (again.shipped, again.left) == (0, 1)
        (refused,) = await ship(bench, receiver, tmp_path / "spool", quarantined=True)
        assert (refused.shipped, refused.left) == (0, 1)
        assert quarantined(folder) == [kept]
        receiver.fail = None
        (taken,) = await ship(bench, receiver, tmp_path / "spool", quarantined=True)
        assert (taken.shipped, taken.left) == (1, 0)
        assert sorted(receiver.decision_ids()) == sorted(records)
    assert not folder.exists()


@in_a_loop
async def test_a_quarantine_file_is_kept_whole_while_one_of_its_records_is_refused(
    bench: Bench, tmp_path: Path
) -> None:
    aside = set_aside(tmp_path / "q", 20)
    names = ids(each.payload for each in aside)
    with OtlpReceiver() as receiver:
        receiver.fail = without_bad(names[5])  # type: ignore[assignment]
        (shipment,) = await ship(bench, receiver, tmp_path / "q", quarantined=True)
        assert (shipment.shipped, shipment.left) == (19, 20)
        assert set(receiver.decision_ids()) == set(names) - {names[5]}
    assert len(quarantine_segments(tmp_path / "q")) == 1


@in_a_loop
async def test_a_collector_that_will_not_have_it_ends_the_shipment_with_its_words(bench: Bench, tmp_path: Path) -> None:
    folder_with(tmp_path / "j", 5)
    with OtlpReceiver() as receiver:
        receiver.fail = always(grpc.StatusCode.UNAUTHENTICATED)
        (shipment,) = await ship(bench, receiver, tmp_path / "j")
        assert (shipment.shipped, shipment.left) == (0, 5)
        assert "UNAUTHENTICATED: told to" in shipment.problem
        assert len(receiver.calls) == 1
        receiver.fail = None
        (again,) = await ship(bench, receiver, tmp_path / "j")
        assert (again.shipped, again.left, again.problem) == (5, 0, "")


@in_a_loop
async def test_a_collector_that_is_down_is_waited_for_and_given_up(bench: Bench, tmp_path: Path) -> None:
    folder_with(tmp_path / "j", 5)
    with OtlpReceiver() as receiver:
        receiver.stop()
        began = time.monotonic()
        (shipment,) = await ship(bench, receiver, tmp_path / "j", patience_s=0.5)
        assert time.monotonic() - began > 0.3
        assert (shipment.shipped, shipment.left) == (0, 5)
        assert "UNAVAILABLE" in shipment.problem
        assert shipment.duplicates_possible
        waiting = asyncio.create_task(ship(bench, receiver, tmp_path / "j"))
        await asyncio.sleep(0)
        receiver.start()
        (shipment,) = await waiting
        assert (shipment.shipped, shipment.left) == (5, 0)


@in_a_loop
async def test_asked_to_wait_longer_than_it_has_patience_it_does_not(bench: Bench, tmp_path: Path) -> None:
    folder_with(tmp_path / "j", 5)
    with OtlpReceiver() as receiver:
        receiver.fail = always(grpc.StatusCode.UNAVAILABLE, retry_after_s=100)
        (shipment,) = await ship(bench, receiver, tmp_path / "j", patience_s=10)
        assert shipment.left == 5


@in_a_loop
async def test_interrupted_and_repeated_it_sends_the_rest(bench: Bench, tmp_path: Path) -> None:
    writer, records = folder_with(tmp_path / "j", 1500)
    arrived = asyncio.Event()
    with OtlpReceiver() as receiver:
        receiver.delay_s = 0.05
        task = asyncio.create_task(ship(bench, receiver, tmp_path / "j", on_progress=lambda *_: arrived.set()))
        await arrived.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
        cursor = load_cursor(tmp_path / "j")
        assert cursor is not None
        assert 0 < cursor.chains[writer.chain].settled < 1500
        receiver.delay_s = 0.0
        (shipment,) = await ship(bench, receiver, tmp_path / "j")
        assert shipment.left == 0
        assert shipment.shipped == 1500 - cursor.chains[writer.chain].settled
        assert shipment.chains[writer.chain] == Tally(1500, writer.head)
        assert set(receiver.decision_ids()) == set(records)


@in_a_loop
async def test_the_same_folder_is_not_shipped_twice_at_once(bench: Bench, tmp_path: Path) -> None:
    folder_with(tmp_path / "j", 5)
    with OtlpReceiver() as receiver:
        receiver.delay_s = 0.5
        first = asyncio.create_task(ship(bench, receiver, tmp_path / "j"))
        await bench.until(lambda: len(receiver.calls) == 1)
        with pytest.raises(FolderInUseError, match="being shipped already"):
            await ship(bench, receiver, tmp_path / "j")
        (shipment,) = await first
        assert shipment.shipped == 5


@in_a_loop
async def test_a_folder_that_does_not_say_whose_it_is_gets_the_attributes_given(bench: Bench, tmp_path: Path) -> None:
    folder_with(tmp_path / "j", 1)
    (tmp_path / "j" / "resource.json").write_text("{")
    with OtlpReceiver() as receiver:
        (shipment,) = await ship(
            bench, receiver, tmp_path / "j", resource={"service.name": "s", "service.instance.id": "pod-9"}
        )
        assert receiver.resources == [{"service.name": "s", "service.instance.id": "pod-9"}]
        assert shipment.sidecar == "pod-9"


@in_a_loop
async def test_a_folder_with_anything_else_in_it_stays(bench: Bench, tmp_path: Path) -> None:
    folder_with(tmp_path / "j", 5)
    (tmp_path / "j" / "w0-000000000001-00000001.seg").write_bytes(b"garbage")
    with OtlpReceiver() as receiver:
        (shipment,) = await ship(bench, receiver, tmp_path / "j")
        assert (shipment.shipped, shipment.left) == (5, 0)
        assert (shipment.damaged, shipment.problem) == (1, "")
    assert "w0-000000000001-00000001.damaged" in [path.name for path in (tmp_path / "j").iterdir()]


def test_a_folder_without_a_journal_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="there is no journal in it"):
        find_journals(tmp_path)
    with pytest.raises(JournalError, match="No such file"):
        find_journals(tmp_path / "missing")


def test_it_needs_nothing_of_a_running_sidecar() -> None:
    script = "import sys, sidecar.journal.shipment; print(*sorted(sys.modules))"
    modules = subprocess.check_output([sys.executable, "-c", script], text=True).split()
    assert not {"lmdb", "sidecar.config", "sidecar.front", "sidecar.store", "sidecar.sync"} & set(modules)
