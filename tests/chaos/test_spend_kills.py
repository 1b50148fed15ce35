"""A worker that dies at any point of a spend loses nothing of the budget, and spends nothing twice."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from sidestep.v1 import decision_pb2, decision_pb2_grpc

from engine.escrow import Room
from sidecar.clock import Clock
from sidecar.journal.cursor import CursorFile, save_cursor
from sidecar.lease.holders import HolderFiles
from sidecar.lease.reservations import Reservations
from sidecar.outbox.closed_holders import HolderCloser
from sidecar.outbox.upward import Upward
from tests.fakes.journal import read_journal
from tests.fakes.leases import LeaseDesk
from tests.fakes.shipping import Bench
from tests.fakes.stock import RECORDS, Stock, exempted
from tests.processes import until, worker

USES = 12
ACCOUNT = ("acme", "g1", "alice")


@pytest.fixture
def desk() -> Iterator[LeaseDesk]:
    with LeaseDesk() as desk:
        desk.budget("g1", uses=USES)
        yield desk
    assert desk.violations == []


@pytest.fixture
def data(tmp_path: Path) -> Path:
    stock = Stock(tmp_path / "data")
    stock.load()
    stock.put(**{"grants/g1": RECORDS["grants/g1"] | {"budget": {"max_count": USES}}})
    stock.close()
    # Its agent has run before; without a cursor, nobody would know whether records are gone.
    (tmp_path / "data" / "journal").mkdir()
    save_cursor(tmp_path / "data" / "journal", CursorFile().encode())
    return tmp_path / "data"


class Caller:
    """Asks with an id of its own each time, and again where no answer came."""

    def __init__(self) -> None:
        self.number = 0
        self.allowed = 0

    def ask(self, target: str, request_id: str) -> bool | None:
        """Whether it was let through; None: no answer."""
        with grpc.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub: Any = decision_pb2_grpc.DecisionServiceStub(channel)  # type: ignore[no-untyped-call]
            try:
                response = stub.Evaluate(exempted(request_id=request_id), timeout=5)
            except grpc.RpcError:
                return None
        return bool(response.outcome == decision_pb2.OUTCOME_ALLOW)

    def ask_until_it_dies(self, target: str) -> str:
        """The id of the request it died over, or before."""

        def died() -> bool:
            self.number += 1
            answer = self.ask(target, f"r{self.number}")
            self.allowed += bool(answer)
            return answer is None

        until(died, "the worker to die")
        return f"r{self.number}"

    def use_up(self, target: str) -> None:
        """Asks until nobody is let through for a while."""
        refused = 0
        while refused < 12:
            self.number += 1
            answer = self.ask(target, f"r{self.number}")
            self.allowed += bool(answer)
            refused = 0 if answer else refused + 1


def close_dead_holders(data: Path, desk: LeaseDesk) -> None:
    """What the agent does."""

    async def close() -> None:
        bench = Bench.of(data)
        upward = Upward(desk.address, "pod-1", "leases")
        boot = Clock().boot_id()
        reservations = Reservations(data / "leases", boot)
        closer = HolderCloser(bench.shipper(None), data / "leases", boot, upward, reservations)
        await closer.step()
        reservations.close()
        await upward.close()

    asyncio.run(close())


@pytest.mark.parametrize(
    ("point", "number"),
    [
        ("after:holder", 1),
        ("after:message", 1),
        ("before:number", 1),
        ("before:absorb", 1),
        ("after:absorb", 1),
        ("after:claim", 3),
        ("before:record", 3),
        ("after:record", 3),
        ("after:commit", 3),
        ("before:keep", 3),
        ("after:keep", 3),
    ],
)
def test_death_at_any_point_of_a_spend(data: Path, desk: LeaseDesk, point: str, number: int) -> None:
    caller = Caller()
    deadly = (sys.executable, "-m", "tests.fakes.killed_spending", point, str(number))
    with worker(data, command=deadly, SIDESTEP_CONTROL_PLANE=desk.address) as doomed:
        last = caller.ask_until_it_dies(doomed.grpc)
        assert doomed.process.wait(20) == -9
    close_dead_holders(data, desk)
    assert HolderFiles(data / "leases").read() == []
    recorded = sum(record.decision.spend is not None for record in read_journal(data / "journal"))
    assert desk.taken(ACCOUNT) == desk.spent(ACCOUNT) == Room(recorded, 0)
    with worker(data, SIDESTEP_CONTROL_PLANE=desk.address) as started:
        answer = caller.ask(started.grpc, last)
        caller.allowed += bool(answer)
        caller.use_up(started.grpc)
        assert started.stop() == 0
    spends = [record for record in read_journal(data / "journal") if record.decision.spend is not None]
    assert len(spends) == USES
    assert max(Counter(record.request_id for record in spends).values()) == 1
    # Who got no answer asked again, and got one that cost nothing more.
    assert caller.allowed == USES
    assert desk.spent(ACCOUNT) == Room(USES, 0)
