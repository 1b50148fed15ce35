"""The spool: what could not be shipped goes there whole, or stays where it is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sidecar.journal.cursor import Tally, load_cursor
from sidecar.journal.quarantine import Quarantine, Quarantined
from sidecar.journal.resource import load_resource, save_resource
from sidecar.journal.segment import SegmentWriter, list_segments
from sidecar.journal.shipment import ship_folder
from sidecar.journal.spool import SpoolError, check_spool
from sidecar.page import AgentWord
from tests.fakes.otlp import OtlpReceiver
from tests.fakes.records import encoded_records
from tests.fakes.shipping import Bench, ids, in_a_loop

ATTRIBUTES = {"service.name": "sidestep", "service.instance.id": "pod/1"}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    (tmp_path / "spool").mkdir()
    return Bench(tmp_path)


def spool_of(bench: Bench) -> Path:
    return bench.journal.parent / "spool"


async def begin(bench: Bench, receiver: OtlpReceiver) -> tuple[SegmentWriter, list[str], list[str]]:
    """A chain of 60 records of which 25 are shipped, and one of 5 with a quarantined record. Ids: shipped, the others."""
    save_resource(bench.journal, ATTRIBUTES)
    writer, other = bench.writer(10_000), bench.writer(10_000, "w1")
    records = encoded_records(60)
    for record in records[:25]:
        writer.append([record])
    async with bench.exporting(receiver.endpoint) as exporter:
        shipper = bench.shipper(exporter)
        assert await shipper.drain(time.monotonic() + 10)
        shipper.close()
    for record in records[25:]:
        writer.append([record])
    writer.close()
    more = encoded_records(6)
    for record in more[:5]:
        other.append([record])
    other.close()
    quarantine = Quarantine(bench.journal, 1 << 20)
    assert quarantine.put([Quarantined("w9-000000000009", 9, b"h" * 32, more[5])])
    quarantine.close()
    return writer, ids(records[:25]), ids(records[25:]) + ids(more)


@in_a_loop
async def test_what_is_left_moves_to_the_spool_and_can_be_shipped_from_there(bench: Bench) -> None:
    with OtlpReceiver() as receiver:
        writer, before, left = await begin(bench, receiver)
        shipper = bench.shipper(None)
        assert await shipper.spool(spool_of(bench), "pod/1") == 40
        tally = shipper.tallies()[writer.chain]
        assert (tally.settled, tally.spooled, tally.head) == (25, 35, writer.head)
        shipper.close()
        assert not list_segments(bench.journal)
        assert bench.count(AgentWord.JOURNAL_SPOOLED) == 40
        assert bench.count(AgentWord.JOURNAL_BACKLOG) == 0
        (folder,) = (spool_of(bench) / "pod_1").iterdir()
        assert load_resource(folder) == ATTRIBUTES
        cursor = load_cursor(folder)
        assert cursor is not None
        assert cursor.chains[writer.chain].settled == 25
        async with bench.exporting(receiver.endpoint) as exporter:
            (shipment,) = await ship_folder(spool_of(bench), exporter, quarantined=True)
        assert (shipment.sidecar, shipment.shipped, shipment.left) == ("pod/1", 41, 0)
        assert shipment.chains[writer.chain] == Tally(60, writer.head)
        arrived = receiver.decision_ids()
    assert sorted(arrived) == sorted(before + left)
    assert not folder.exists()


@in_a_loop
async def test_a_sidecar_that_starts_again_on_the_spooled_journal_counts_on(bench: Bench) -> None:
    with OtlpReceiver() as receiver:
        writer, _, _ = await begin(bench, receiver)
        shipper = bench.shipper(None)
        await shipper.spool(spool_of(bench), "pod-1")
        shipper.close()
        fresh = bench.writer()
        fresh.append(encoded_records(2))
        fresh.close()
        async with bench.exporting(receiver.endpoint) as exporter:
            again = bench.shipper(exporter)
            assert await again.drain(time.monotonic() + 10)
            assert again.tallies()[writer.chain].spooled == 35
            assert again.tallies()[fresh.chain] == Tally(2, fresh.head)
            again.close()
    assert bench.count(AgentWord.JOURNAL_LOST) == 0


@in_a_loop
async def test_nothing_left_makes_no_folder(bench: Bench) -> None:
    shipper = bench.shipper(None)
    assert await shipper.spool(spool_of(bench), "pod-1") == 0
    shipper.close()
    assert list(spool_of(bench).iterdir()) == []


@in_a_loop
async def test_a_chain_that_is_still_being_written_stays(bench: Bench) -> None:
    running = bench.writer(10_000)
    for record in encoded_records(40):
        running.append([record])
    assert len(list_segments(bench.journal)) > 1
    shipper = bench.shipper(None)
    assert await shipper.spool(spool_of(bench), "pod-1") == 0
    shipper.close()
    running.close()


@pytest.mark.parametrize("trouble", ["missing", "a file", "full"])
@in_a_loop
async def test_a_spool_that_cannot_be_used_leaves_the_journal_as_it_is(
    bench: Bench, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = spool_of(bench)
    if trouble != "full":
        spool.rmdir()
    if trouble == "a file":
        spool.write_text("")
    if trouble == "full":

        def full(source: Path, target: Path) -> None:
            Path(target).write_bytes(b"half")
            raise OSError(28, "No space left on device", str(target))

        monkeypatch.setattr(shutil, "copyfile", full)
    with OtlpReceiver() as receiver:
        writer, _, left = await begin(bench, receiver)
        before = bench.files()
        shipper = bench.shipper(None)
        with pytest.raises(SpoolError):
            await shipper.spool(spool, "pod-1")
        assert bench.files() == before
        assert shipper.tallies()[writer.chain] == Tally(25, shipper.tallies()[writer.chain].head)
        shipper.close()
        async with bench.exporting(receiver.endpoint) as exporter:
            again = bench.shipper(exporter)
            assert await again.drain(time.monotonic() + 10)
            again.close()
        assert set(left[:-1]) <= set(receiver.decision_ids())
    if trouble == "full":
        assert list((spool / "pod-1").iterdir()) == [], "what was begun is removed"


def test_what_was_begun_long_ago_and_never_finished_is_removed(bench: Bench) -> None:
    own = spool_of(bench) / "pod-1"
    old, young = own / ".1-1.part", own / ".2-2.part"
    for part in (old, young):
        part.mkdir(parents=True)
        (part / "w0-000000000001-00000001.seg").write_bytes(b"half")
    os.utime(old, (time.time() - 90_000,) * 2)
    writer = bench.writer()
    writer.append(encoded_records(1))
    writer.close()

    @in_a_loop
    async def spool() -> None:
        shipper = bench.shipper(None)
        assert await shipper.spool(spool_of(bench), "pod-1") == 1
        shipper.close()

    spool()
    assert not old.exists()
    assert young.exists(), "another sidecar of the same name may be at it"


@pytest.mark.parametrize(
    ("name", "folder"), [("..", "_."), ("a/../b", "a_.._b"), (".x", "_x"), ("pod-1.acme", "pod-1.acme")]
)
@in_a_loop
async def test_a_sidecar_s_name_is_no_path(bench: Bench, name: str, folder: str) -> None:
    writer = bench.writer()
    writer.append(encoded_records(1))
    writer.close()
    shipper = bench.shipper(None)
    await shipper.spool(spool_of(bench), name)
    shipper.close()
    assert [path.name for path in spool_of(bench).iterdir()] == [folder]


def test_the_check_names_what_is_wrong(tmp_path: Path) -> None:
    check_spool(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SpoolError, match="No such file"):
        check_spool(tmp_path / "missing")
    (tmp_path / "file").write_text("")
    with pytest.raises(SpoolError, match="Not a directory"):
        check_spool(tmp_path / "file")


@in_a_loop
async def test_records_behind_a_torn_tail_do_not_exist_and_do_not_count(bench: Bench) -> None:
    writer = bench.writer()
    writer.append(encoded_records(10))
    writer.close()
    (name,) = list_segments(bench.journal)
    path = bench.journal / str(name)
    path.write_bytes(path.read_bytes()[:-7])
    shipper = bench.shipper(None)
    assert await shipper.spool(spool_of(bench), "pod-1") == 9
    shipper.close()


@in_a_loop
async def test_killed_at_any_step_every_record_is_whole_in_one_of_the_two_places(bench: Bench, tmp_path: Path) -> None:
    with OtlpReceiver() as receiver:
        writer, before, left = await begin(bench, receiver)
        out = tmp_path / "out"
        command = [sys.executable, "-m", "tests.fakes.killed_spooling", str(bench.journal), str(out)]
        steps = int(subprocess.check_output(command, text=True, timeout=60))  # noqa: ASYNC221
        assert steps > 15
        moved_at = []
        for step in range(steps):
            place = Bench(out / str(step))
            with OtlpReceiver() as taker:
                async with place.exporting(taker.endpoint) as exporter:
                    folders = [path for path in spool_of(place).glob("*/*") if not path.name.startswith(".")]
                    if folders:
                        moved_at.append(step)
                        (shipment,) = await ship_folder(spool_of(place), exporter, quarantined=True)
                        assert shipment.left == 0
                        assert set(left) == set(taker.decision_ids()), "the copy is whole"
                    shipper = place.shipper(exporter)
                    assert await shipper.drain(time.monotonic() + 10)
                    tally = shipper.tallies()[writer.chain]
                    assert tally.settled == 60 if not tally.spooled else (tally.settled, tally.spooled) == (25, 35)
                    assert tally.head == writer.head
                    shipper.close()
                    if list_segments(place.journal):
                        await ship_folder(place.journal, exporter, quarantined=True)
                arrived = taker.decision_ids()
            assert set(arrived) == set(left)
            if step == steps - 1:
                assert len(arrived) == len(left), "moved, not copied"
            assert place.count(AgentWord.JOURNAL_LOST) == 0
        assert moved_at == list(range(moved_at[0], steps))
        assert before
