"""What a holder spent is found in the journal, exactly, however much of it was shipped and whatever was killed."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import msgspec
import pytest

from engine.decision import Spend
from sidecar.journal import backlog, sender
from sidecar.journal.cursor import CURSOR_FILE, Spent
from sidecar.journal.record import Record, encode_record, spend_of
from sidecar.journal.segment import SegmentWriter, list_segments
from sidecar.journal.ship import Shipper
from sidecar.lease.holders import AccountPeriod, HolderFile, HolderFiles
from sidecar.lease.replay import spent_in_all
from tests.fakes.otlp import OtlpReceiver
from tests.fakes.records import make_record, make_unrecorded
from tests.fakes.shipping import Bench, in_a_loop

COUNT = 60


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "_BACKOFF_LAST_S", 0.12)
    monkeypatch.setattr(backlog, "_MAX_BATCH_BYTES", 8_000)


def spending(spend: Spend | None) -> Record:
    record = make_record()
    return msgspec.structs.replace(record, decision=msgspec.structs.replace(record.decision, spend=spend))


class Spender:
    """A worker that spends: one use and a different amount with every other record."""

    def __init__(self, bench: Bench) -> None:
        self.writer: SegmentWriter = bench.writer(8_000)
        self.file = HolderFile(bench.journal.parent / "leases", self.writer.chain, 0, "boot-1")
        self.total = Spent(self.writer.chain, {})

    def spend(self, count: int) -> None:
        for number in range(count):
            spend = None
            if number % 2:
                account = self.file.number(AccountPeriod("acme", "g1", "alice", number % 3))
                spend = Spend("g1", self.file.holder, account, 1, 1, number * 10**9, "EUR")
                self.total.add(spend)
            self.writer.append([encode_record(spending(spend))])

    def die(self) -> None:
        self.writer.close()
        self.file.close()


def spender(bench: Bench, count: int = COUNT) -> Spender:
    made = Spender(bench)
    made.spend(count)
    made.die()
    return made


def test_only_a_spend_is_a_spend() -> None:
    spend = Spend("g1", "h" * 32, 7, 1, 1, 25 * 10**9, "EUR")
    assert spend_of(encode_record(spending(spend))) == spend
    assert spend_of(encode_record(make_record())) is None
    assert spend_of(encode_record(make_record(request_id="spend"))) is None
    assert spend_of(encode_record(make_unrecorded())) is None
    assert spend_of(b"\xffspend") is None


@in_a_loop
async def test_sum_is_exact_at_every_step_of_shipping(bench: Bench) -> None:
    with OtlpReceiver() as receiver:
        dead = spender(bench)
        async with bench.exporting(receiver.endpoint) as exporter:
            shipper = bench.shipper(exporter)
            steps = 0
            while shipper.backlog_bytes():
                await shipper.step()
                steps += 1
                assert await shipper.spent_by(dead.writer.chain, dead.file.holder) == dead.total
                # A new agent finds the same, whenever the old one dies.
                assert await bench.shipper(None).spent_by(dead.writer.chain, dead.file.holder) == dead.total
            assert steps > 3
            assert list_segments(bench.journal) == []


@in_a_loop
async def test_death_between_cursor_and_removal_counts_nothing_twice(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = spender(bench)
    remove = backlog.Backlog._remove

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(backlog.Backlog, "_remove", killed)
    with pytest.raises(KeyboardInterrupt):
        await bench.shipper(None).drain(time.monotonic() + 20)
    monkeypatch.setattr(backlog.Backlog, "_remove", remove)
    shipper = bench.shipper(None)
    assert await shipper.spent_by(dead.writer.chain, dead.file.holder) == dead.total
    assert await shipper.drain(time.monotonic() + 20)
    assert await shipper.spent_by(dead.writer.chain, dead.file.holder) == dead.total


@in_a_loop
async def test_removal_on_a_full_disk_makes_the_slices_spent(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = spender(bench)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(backlog, "save_cursor", full)
    shipper = bench.shipper(None)
    while list_segments(bench.journal):
        await shipper.step()
    assert HolderFiles(bench.journal.parent / "leases").read() == []
    assert not dead.file.path.exists()


@in_a_loop
async def test_damage_and_gaps_are_never_taken_for_nothing_spent(bench: Bench) -> None:
    dead = spender(bench)
    names = list_segments(bench.journal)
    path = bench.journal / str(names[1])
    whole = path.read_bytes()
    chain, holder = dead.writer.chain, dead.file.holder
    path.write_bytes(whole[:400] + bytes([whole[400] ^ 1]) + whole[401:])
    assert await bench.shipper(None).spent_by(chain, holder) is None
    path.unlink()
    assert await bench.shipper(None).spent_by(chain, holder) is None
    path.write_bytes(whole)
    assert await bench.shipper(None).spent_by(chain, holder) == dead.total
    last = bench.journal / str(names[-1])
    os.truncate(last, last.stat().st_size - 3)
    assert await bench.shipper(None).spent_by(chain, holder) is None


@in_a_loop
async def test_without_a_cursor_what_is_gone_may_have_been_spent(bench: Bench) -> None:
    dead = spender(bench)
    shipper = bench.shipper(None)
    await shipper.step()
    await shipper.drain(time.monotonic() + 20)
    shipper.close()
    (bench.journal / CURSOR_FILE).write_bytes(b"{")
    bench.shipper(None)
    assert not dead.file.path.exists()


@in_a_loop
async def test_without_a_cursor_a_whole_chain_is_whole(bench: Bench) -> None:
    dead = spender(bench)
    assert not (bench.journal / CURSOR_FILE).exists()
    assert await bench.shipper(None).spent_by(dead.writer.chain, dead.file.holder) == dead.total
    assert dead.file.path.exists()


@in_a_loop
async def test_what_went_to_the_spool_counts_as_spent(bench: Bench, tmp_path: Path) -> None:
    dead = spender(bench)
    shipper = bench.shipper(None)
    (tmp_path / "spool").mkdir()
    await shipper.spool(tmp_path / "spool", "pod-1")
    assert not dead.file.path.exists()


@in_a_loop
async def test_tally_stays_while_somebody_may_ask(bench: Bench) -> None:
    dead = spender(bench)
    shipper: Shipper = bench.shipper(None)
    await shipper.drain(time.monotonic() + 20)
    shipper.drop_spent()
    shipper.forget([dead.writer.chain])
    assert await shipper.spent_by(dead.writer.chain, dead.file.holder) == dead.total
    dead.file.remove()
    shipper.drop_spent()
    shipper.forget([dead.writer.chain])
    assert shipper.tallies() == {}
    assert await shipper.spent_by(dead.writer.chain, dead.file.holder) == Spent(dead.writer.chain, {})


def test_replay_skips_what_is_settled(bench: Bench) -> None:
    dead = spender(bench, 20)
    settled = Spent(dead.writer.chain, {0: (5, 5, "EUR")})
    found = spent_in_all(bench.journal, dead.writer.chain, 20, settled, dead.file.holder)
    assert found == settled
