"""What the agent tells of spends: those of workers that have died, and settlements."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest
from sidestep.v1 import lease_pb2

from engine.decision import Decision, Spend
from engine.escrow import Account, Room
from sidecar.journal.record import encode_record
from sidecar.journal.segment import SegmentWriter
from sidecar.lease.client import LeaseClient, LeaseSettings
from sidecar.lease.holders import HolderFiles
from sidecar.lease.reservations import CANCELLED, EXECUTED, Reservation, Reservations, Spending
from sidecar.outbox.closed_holders import HolderCloser
from sidecar.outbox.settlements import SettlementSender
from sidecar.outbox.upward import Upward
from tests.fakes.leases import LeaseDesk
from tests.fakes.records import make_record
from tests.fakes.shipping import Bench, in_a_loop
from tests.unit.lease.test_leases import spend, take

ACCOUNT = Account("acme", "g1", "alice")
BOOT = "boot-1"


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


class Worker:
    """Takes slices, writes records of its spends, and dies."""

    def __init__(self, bench: Bench, desk: LeaseDesk) -> None:
        self.writer: SegmentWriter = bench.writer(8_000)
        directory = bench.journal.parent / "leases"
        settings = LeaseSettings(directory, self.writer.chain, BOOT, desk.address, "pod-1", report_s=60.0)
        self.client = LeaseClient(settings)
        self.client.start()

    def use(self, count: int, *, recorded: bool = True) -> None:
        for _ in range(count):
            taken = take(self.client.leases, ACCOUNT, 10**9)
            assert taken is not None
            if recorded:
                held = self.client.leases.held(ACCOUNT)
                self.writer.append([encode_record(_record(spend(held, 10**9)))])
                self.client.leases.commit([taken])

    def die(self) -> None:
        """As by SIGKILL: the thread says nothing more, and the locks are gone."""
        self.client._stopped = True
        self.client._wake.set()
        self.client._thread.join(10)
        assert self.client.leases.book is not None
        self.client.leases.book.file.close()
        self.writer.close()


def _record(spend: Spend) -> Any:
    record = make_record()
    return msgspec.structs.replace(record, decision=msgspec.structs.replace(record.decision, spend=spend))


@in_a_loop
async def test_what_a_dead_worker_spent_is_told_exactly_and_the_rest_comes_back(bench: Bench) -> None:
    with LeaseDesk() as desk:
        desk.budget("g1", uses=1000, nanos=1000 * 10**9)
        worker = Worker(bench, desk)
        worker.use(40)
        worker.use(1, recorded=False)
        upward = Upward(desk.address, "pod-1", "leases")
        shipper = bench.shipper(None)
        closer = HolderCloser(shipper, bench.journal.parent / "leases", BOOT, upward)
        await closer.step()
        assert desk.open_holders() == 1  # its worker is alive
        worker.die()
        assert desk.taken(ACCOUNT).uses > 41
        desk.down = True
        assert await closer.step() >= 0.0
        assert len(HolderFiles(bench.journal.parent / "leases").read()) == 1
        desk.down = False
        await shipper.step()
        desk.lose_answers = 1
        await closer.step()
        await closer.step()
        assert desk.taken(ACCOUNT) == desk.spent(ACCOUNT) == Room(40, 40 * 10**9)
        assert HolderFiles(bench.journal.parent / "leases").read() == []
        await upward.close()


@in_a_loop
async def test_after_another_boot_all_of_the_slices_stay_spent(bench: Bench) -> None:
    with LeaseDesk() as desk:
        desk.budget("g1", uses=1000, nanos=1000 * 10**9)
        worker = Worker(bench, desk)
        worker.use(3)
        worker.die()
        before = desk.taken(ACCOUNT)
        upward = Upward(desk.address, "pod-1", "leases")
        closer = HolderCloser(bench.shipper(None), bench.journal.parent / "leases", "boot-2", upward)
        await closer.step()
        assert desk.taken(ACCOUNT) == before
        assert desk.open_holders() == 1
        assert HolderFiles(bench.journal.parent / "leases").read() == []
        await upward.close()


@in_a_loop
async def test_settlements_are_sent_until_they_are_known(tmp_path: Path) -> None:
    with LeaseDesk() as desk:
        reservations = Reservations(tmp_path, BOOT)
        ids = [bytes([number]) * 16 for number in range(1, 4)]
        for decision_id in ids:
            spent = Reservation("acme", "g1", "alice", 2, "ab" * 16, 1, 5 * 10**9, 0.0, "payments", "EUR")
            reservations.keep([Spending(decision_id, spent)], 0.0)
        for decision_id, state in zip(ids, (CANCELLED, EXECUTED, CANCELLED), strict=True):
            reservations.settle(decision_id, "payments", state, 1.0)
        upward = Upward(desk.address, "pod-1", "leases")
        sender = SettlementSender(reservations, upward)
        desk.lose_answers = 1
        await sender.step()
        assert len(reservations.unsent(10)) == 3
        await sender.step()
        assert reservations.unsent(10) == []
        assert len(desk.settled) == 3
        found = desk.settled["01010101-0101-0101-0101-010101010101"]
        assert found.settlement == lease_pb2.SETTLEMENT_CANCELLED
        assert (found.holder, found.grant, found.subject, found.period) == ("ab" * 16, "g1", "alice", 2)
        assert (found.spent.count, found.spent.amount.units, found.spent.amount.currency) == (1, 5, "EUR")
        await upward.close()
        reservations.close()


@in_a_loop
async def test_settlements_of_a_refused_tenant_hold_up_no_others(tmp_path: Path) -> None:
    with LeaseDesk() as desk:
        begin = desk._begin

        def refuse(request: Any, context: Any) -> None:
            if request.tenant == "gone":
                context.abort(grpc.StatusCode.PERMISSION_DENIED, "tenant gone is out of scope")
            begin(request, context)

        desk._begin = refuse  # type: ignore[method-assign]
        reservations = Reservations(tmp_path, BOOT)
        for number, tenant in ((1, "gone"), (2, "acme")):
            spent = Reservation(tenant, "g1", "alice", 2, "ab" * 16, 1, 0, 0.0, "payments")
            reservations.keep([Spending(bytes([number]) * 16, spent)], 0.0)
            reservations.settle(bytes([number]) * 16, "payments", CANCELLED, 1.0)
        upward = Upward(desk.address, "pod-1", "leases")
        assert await SettlementSender(reservations, upward).step() > 0.0
        assert [spent.tenant for _, spent in reservations.unsent(10)] == ["gone"]
        assert len(desk.settled) == 1
        await upward.close()
        reservations.close()


KEYS = [bytes([number]) * 16 for number in range(1, 4)]


def _claimed_and_dead(bench: Bench, desk: LeaseDesk) -> tuple[Reservations, list[bytes]]:
    """A worker that died over three requests: of the first two there are records, of the third there is none."""
    reservations = Reservations(bench.journal.parent / "leases", BOOT)
    worker = Worker(bench, desk)
    decision_ids = []
    for number, key in enumerate(KEYS):
        taken = take(worker.client.leases, ACCOUNT)
        assert taken is not None
        # Later than everything the agent may have missed.
        ms = int(time.time() * 1000) + 60_000 + number
        decision_ids.append(ms.to_bytes(6, "big") + bytes([number]) * 10)
        holder = taken.book.holder.id
        assert reservations.claim(key, b"content", 1.0, decision_id=decision_ids[-1], holder=holder)
        if number < 2:
            found = spend(worker.client.leases.held(ACCOUNT))
            record = msgspec.structs.replace(_record(found), decision_id=decision_ids[-1], request_id=f"r{number}")
            worker.writer.append([encode_record(record)])
            worker.client.leases.commit([taken])
        else:
            worker.client.leases.undo(taken)
    worker.die()
    return reservations, decision_ids


@pytest.mark.parametrize("shipped", [False, True])
@in_a_loop
async def test_what_became_of_requests_that_a_worker_died_over_is_told_at_once(bench: Bench, shipped: bool) -> None:
    with LeaseDesk() as desk:
        desk.budget("g1", uses=1000)
        shipper = bench.shipper(None)
        reservations, decision_ids = _claimed_and_dead(bench, desk)
        if shipped:  # the segment is gone when the dead worker is noticed
            for _ in range(3):
                await shipper.step()
            assert not [name for name in bench.files() if name.endswith(".seg")]
        upward = Upward(desk.address, "pod-1", "leases")
        desk.down = True  # it does not take the control plane
        await HolderCloser(shipper, bench.journal.parent / "leases", BOOT, upward, reservations).step()
        for key, decision_id in zip(KEYS[:2], decision_ids, strict=False):
            found = reservations.repeat(key, 2.0)
            assert found is not None
            assert found.decision_id == decision_id
            assert msgspec.msgpack.decode(found.decision, type=Decision).spend is not None
            assert not reservations.claim(key, b"content", 2.0)
        assert reservations.repeat(KEYS[2], 2.0) is None
        assert reservations.settle(decision_ids[0], "payments", CANCELLED, 2.0).grant == "g1"
        await upward.close()
        reservations.close()


@in_a_loop
async def test_requests_of_which_the_journal_cannot_tell_stay_as_they_are(bench: Bench) -> None:
    with LeaseDesk() as desk:
        desk.budget("g1", uses=1000)
        first = bench.shipper(None)
        reservations, _ = _claimed_and_dead(bench, desk)
        for _ in range(3):
            await first.step()
        first.close()
        # An agent that has not seen the records, and whose clock is ahead of the requests.
        later = bench.shipper(None)
        for chain in later._backlog.recent._chains.values():
            chain.since_ms += 120_000
        upward = Upward(desk.address, "pod-1", "leases")
        await HolderCloser(later, bench.journal.parent / "leases", BOOT, upward, reservations).step()
        for key in KEYS:
            assert (found := reservations.repeat(key, 2.0)) is not None
            assert not found.decision
            assert not reservations.claim(key, b"content", 2.0)
        await upward.close()
        reservations.close()
