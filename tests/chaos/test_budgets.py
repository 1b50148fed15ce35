"""A budget is never exceeded, whatever is killed, and once all is calm next to all of it could be used."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import grpc
import pytest
from sidestep.v1 import decision_pb2, decision_pb2_grpc, resources_pb2

from engine.decision import Spend
from engine.escrow import Account
from engine.money import NANOS
from sidecar.journal.record import Record, decode_record
from sidecar.lease.client import LeaseClient, LeaseSettings
from sidecar.upstream import Upstream
from tests.chaos import world
from tests.chaos.pod import CHANNEL_OPTIONS, Plane, Pod, pass_time
from tests.fakes.journal import read_journal
from tests.fakes.leases import LeaseDesk
from tests.fakes.otlp import OtlpReceiver
from tests.fakes.stock import RECORDS, Stock, exempted
from tests.processes import until
from tests.unit.lease.test_leases import take, use

USES, AMOUNT = "uses", "amount"
ACTIONS = {USES: "payments.transfer", AMOUNT: "payments.refund"}
# Nobody was let through for so long: it is over. More than twice as long as anything that was killed again and again stays away.
_CALM_S = 12.0
_LEAST = 0.95


def budgets(uses: int, euros: int) -> dict[str, Any]:
    """Two grants of Alice's, one of so many uses and one of so many euros, and no other."""
    limits: dict[str, Any] = {USES: {"max_count": uses}, AMOUNT: {"max_amount": {"currency": "EUR", "units": euros}}}
    revoked = {"grants/g1": RECORDS["grants/g1"] | {"state": "GRANT_STATE_REVOKED"}}
    return revoked | {
        f"grants/{grant}": RECORDS["grants/g1"] | {"actions": [ACTIONS[grant]], "budget": budget}
        for grant, budget in limits.items()
    }


class ControlPlane(Protocol):
    """What leases the budgets, and can be killed."""

    address: Any

    def prepare(self, data: Path, uses: int, euros: int) -> None:
        """Sees to it that a pod with this data directory gets to know both grants."""

    def restart(self) -> None:
        """Kills it, and starts it where it was."""


class Desk(LeaseDesk):
    """The books in this process; a restart loses the calls under way. Pods begin with what they would have synced."""

    def prepare(self, data: Path, uses: int, euros: int) -> None:
        stock = Stock(data)
        stock.load()
        stock.put(**budgets(uses, euros))
        stock.close()

    def restart(self) -> None:
        self.stop()
        self.start()


class Real:
    """A control plane's process, with all it knows."""

    def __init__(self, plane: Plane, uses: int, euros: int) -> None:
        self.address = plane.address
        self._plane = plane
        for resource in world.resources():
            plane.put(resource)
        for name, body in budgets(uses, euros).items():
            if name != "grants/g1":
                plane.put(world.resource(name, body))

    def prepare(self, data: Path, uses: int, euros: int) -> None:
        data.parent.mkdir(parents=True)

    def restart(self) -> None:
        self._plane.kill()
        self._plane.start()


@dataclass
class Asker:
    """A service that asks a pod without a break, and asks again with the same id where no answer came."""

    address: str
    seed: int
    pause_s: float
    most_cents: int
    # Decision ids of those who were let through, by request.
    allowed: dict[str, set[str]] = field(default_factory=dict)
    allowed_at: float = field(default_factory=time.monotonic)
    asked: int = 0
    problems: list[str] = field(default_factory=list)

    def run(self, stop: threading.Event) -> None:
        rng = random.Random(self.seed)
        with ExitStack() as stack:
            # More than one connection: mostly to more than one worker.
            stubs: list[Any] = []
            for _ in range(3):
                channel = stack.enter_context(grpc.insecure_channel(self.address, options=CHANNEL_OPTIONS))
                stubs.append(decision_pb2_grpc.DecisionServiceStub(channel))  # type: ignore[no-untyped-call]
            while not stop.is_set():
                grant = rng.choice((USES, AMOUNT))
                request_id = f"{self.seed}-{self.asked}"
                self.asked += 1
                question = exempted(request_id=request_id)
                question.action.name = ACTIONS[grant]
                if grant == AMOUNT:
                    cents = rng.randrange(1, self.most_cents)
                    units, nanos = divmod(cents * (NANOS // 100), NANOS)
                    question.context.amount.CopyFrom(resources_pb2.Amount(currency="EUR", units=units, nanos=nanos))
                self._ask(stubs, question, rng)
                stop.wait(self.pause_s)

    def _ask(self, stubs: list[Any], question: decision_pb2.EvaluateRequest, rng: random.Random) -> None:
        for _ in range(4):
            try:
                response = rng.choice(stubs).Evaluate(question, timeout=1.0)
            except grpc.RpcError as error:
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    self.problems.append(f"{error.code()} {error.details()}")
                threading.Event().wait(0.02)
                continue
            if response.outcome == decision_pb2.OUTCOME_ALLOW:
                self.allowed.setdefault(question.request_id, set()).add(response.decision_id)
                self.allowed_at = time.monotonic()
            # Now and then the answer seems to have got lost.
            if rng.random() < 0.9:
                return


@contextmanager
def asking(pods: list[Pod], each: int, pause_s: float, most_cents: int) -> Iterator[list[Asker]]:
    askers = [
        Asker(pod.address, 1000 * number + at, pause_s, most_cents)
        for number, pod in enumerate(pods)
        for at in range(each)
    ]
    stop = threading.Event()
    threads = [threading.Thread(target=asker.run, args=(stop,)) for asker in askers]
    for thread in threads:
        thread.start()
    try:
        yield askers
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def exported(receiver: OtlpReceiver) -> Iterator[Record]:
    """The decisions a receiver has."""
    for span in receiver.spans:
        for pair in span.attributes:
            if pair.key == "sidestep.record":
                record = decode_record(pair.value.bytes_value)
                if isinstance(record, Record):
                    yield record


def spends(receiver: OtlpReceiver, pods: list[Pod]) -> dict[bytes, tuple[Record, Spend]]:
    """By decision id, wherever its record is by now."""
    found = {}
    for record in (*exported(receiver), *(each for pod in pods for each in read_journal(pod.data_dir / "journal"))):
        if record.decision.spend is not None:
            found[record.decision_id] = record, record.decision.spend
    return found


def judge(found: dict[bytes, tuple[Record, Spend]], askers: list[Asker], uses: int, euros: int) -> tuple[int, float]:
    """Raises AssertionError unless both budgets held, were used, and nothing was spent twice."""
    assert [problem for asker in askers for problem in asker.problems] == []
    recorded = {record.decision_id.hex() for record, _ in found.values()}
    answers = {request: ids for asker in askers for request, ids in asker.allowed.items()}
    answered = {decision.replace("-", "") for ids in answers.values() for decision in ids}
    assert answered <= recorded, "somebody was let through by a budget off the record"
    twice = [
        request for request, count in Counter(record.request_id for record, _ in found.values()).items() if count > 1
    ]
    assert twice == [], "a repeated request was spent for again"
    assert all(len(ids) == 1 for ids in answers.values())
    spent_uses = sum(spend.uses for _, spend in found.values() if spend.grant == USES)
    spent_nanos = sum(spend.nanos for _, spend in found.values() if spend.grant == AMOUNT)
    assert spent_uses <= uses, f"{spent_uses} of {uses} uses"
    assert spent_nanos <= euros * NANOS, f"{spent_nanos / NANOS} of {euros} EUR"
    return spent_uses, spent_nanos / NANOS


def hammer(
    tmp_path: Path, plane: ControlPlane, *, pods: int, uses: int, euros: int, blows: int, seed: int, pause_s: float
) -> None:
    """Asks for both budgets everywhere while things are killed, then until nothing is left."""
    rng = random.Random(seed)
    with ExitStack() as stack:
        receiver = stack.enter_context(OtlpReceiver())
        started = []
        for number in range(pods):
            data = tmp_path / f"pod-{number}" / "data"
            plane.prepare(data, uses, euros)
            pod = Pod(
                data,
                plane.address,
                SIDESTEP_WORKERS="2",
                SIDESTEP_SIDECAR_NAME=f"pod-{number}",
                SIDESTEP_JOURNAL_SINK="otlp",
                SIDESTEP_SOFT_STALE="30m",
                OTEL_EXPORTER_OTLP_ENDPOINT=f"http://{receiver.endpoint}",
                OTEL_METRICS_EXPORTER="none",
            )
            started.append(stack.enter_context(pod))
        with asking(started, 2, pause_s, 200 * euros // uses) as askers:
            for blow in range(blows):
                pass_time(rng, 0.6)
                pod = rng.choice(started)
                if blow % 5 == 3:
                    plane.restart()
                elif blow % 7 == 6:
                    pod.kill_supervisor()
                    pod.start()
                else:
                    children = [*pod.children("worker"), *pod.children("agent")]
                    if children:
                        with suppress(ProcessLookupError):
                            os.kill(rng.choice(children), signal.SIGKILL)
            calm = time.monotonic()
            until(
                lambda: time.monotonic() - max(calm, *(each.allowed_at for each in askers)) > _CALM_S,
                "the budgets to be used up",
                100,
            )
        for pod in started:
            assert pod.stop() == 0, pod.log()
        used = judge(spends(receiver, started), askers, uses, euros)
        late = max(each.allowed_at for each in askers) - calm
        print(f"last allowed {late:.1f} s after the last blow")  # noqa: T201
        print(f"{sum(each.asked for each in askers)} asked, {used[0]} of {uses} uses, {used[1]:.2f} of {euros} EUR")  # noqa: T201
        assert used[0] >= _LEAST * uses
        assert used[1] >= _LEAST * euros


@pytest.fixture
def desk() -> Iterator[Desk]:
    with Desk() as desk:
        yield desk
    assert desk.violations == []


def test_budgets_hold_while_processes_are_killed(tmp_path: Path, desk: Desk) -> None:
    desk.budget(USES, uses=150)
    desk.budget(AMOUNT, nanos=150 * NANOS)
    hammer(tmp_path, desk, pods=2, uses=150, euros=150, blows=8, seed=4, pause_s=0.03)


@pytest.mark.parametrize(
    ("pods", "uses", "euros", "blows", "pause_s"),
    [
        (2, 100, 100, 8, 0.03),
        pytest.param(8, 1000, 10_000, 60, 0.12, marks=[pytest.mark.e2e, pytest.mark.timeout(400)]),
    ],
)
def test_budgets_hold_with_a_real_control_plane(
    tmp_path: Path, pods: int, uses: int, euros: int, blows: int, pause_s: float
) -> None:
    with Plane(tmp_path / "plane") as plane:
        real = Real(plane, uses, euros)
        hammer(tmp_path, real, pods=pods, uses=uses, euros=euros, blows=blows, seed=6, pause_s=pause_s)


def test_five_uses_over_fifty_pods_of_a_real_control_plane(tmp_path: Path) -> None:
    account = Account("acme", "five", "alice")
    rng = random.Random(7)
    with Plane(tmp_path / "plane") as plane:
        for resource in world.resources():
            plane.put(resource)
        plane.put(world.resource("grants/five", RECORDS["grants/g1"] | {"budget": {"max_count": 5}}))
        clients = [
            LeaseClient(
                LeaseSettings(
                    tmp_path / str(number) / "leases",
                    "w0-0000000000aa",
                    "boot-1",
                    Upstream(plane.address),
                    f"pod-{number}",
                    report_s=0.05,
                    idle_s=0.1,
                    heard_s=0.1,
                )
            )
            for number in range(50)
        ]
        used = 0
        try:
            for each in clients:
                each.start()

            def use_somewhere() -> int:
                nonlocal used
                used += use(rng.choice(clients).leases, account)
                return used >= 5

            until(use_somewhere, "all five", 60)
            for number in range(100):
                if number == 50:
                    plane.kill()
                    plane.start()
                taken = take(rng.choice(clients).leases, account, within_s=0.2)
                assert taken is None, "a sixth"
        finally:
            for each in clients:
                each.close(5.0)
        assert used == 5
