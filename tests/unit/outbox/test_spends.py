"""What the agent tells of spends: those of workers that have died, and settlements."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest
from sidestep.v1 import lease_pb2

from engine.decision import Spend
from engine.escrow import Account, Room
from sidecar.journal.record import encode_record
from sidecar.journal.segment import SegmentWriter
from sidecar.lease.client import LeaseClient, LeaseSettings
from sidecar.lease.holders import HolderFiles
from sidecar.lease.reservations import CANCELLED, EXECUTED, Reservation, Reservations, Spending
from sidecar.outbox.closed_holders import HolderCloser
from sidecar.outbox.settlements import SettlementSender
from sidecar.outbox.upward import Upward
from sidecar.upstream import Upstream
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
        settings = LeaseSettings(directory, self.writer.chain, BOOT, Upstream(desk.address), "pod-1", report_s=60.0)
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
        upward = Upward(Upstream(desk.address), "pod-1", "leases")
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
        upward = Upward(Upstream(desk.address), "pod-1", "leases")
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
        upward = Upward(Upstream(desk.address), "pod-1", "leases")
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
        upward = Upward(Upstream(desk.address), "pod-1", "leases")
        assert await SettlementSender(reservations, upward).step() > 0.0
        assert [spent.tenant for _, spent in reservations.unsent(10)] == ["gone"]
        assert len(desk.settled) == 1
        await upward.close()
        reservations.close()
