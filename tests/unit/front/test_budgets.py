"""Budgets in the worker loop: calls that wait for slices, spends that go with their records, and repeats that spend nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sidestep.v1 import decision_pb2, resources_pb2

from engine.decision import Code
from engine.escrow import Account, Room
from sidecar.front.decision_id import id_text
from sidecar.front.parked import MAX_PARKED
from sidecar.front.transport import StatusCode
from sidecar.guard.guards import Guards
from sidecar.lease.reservations import CANCELLED, Reservations, ReservationsError
from sidecar.page import WorkerWord
from tests.fakes.desk import EVALUATE, EVALUATE_BATCH
from tests.fakes.leases import LeaseDesk
from tests.fakes.stock import exempted, request
from tests.processes import until
from tests.unit.front.rig import Rig

ACCOUNT = Account("acme", "g1", "alice")
EXEMPTED = decision_pb2.BASIS_EXEMPTION_GRANT
CHALLENGED = decision_pb2.BASIS_CHALLENGE


@pytest.fixture
def plane() -> Iterator[LeaseDesk]:
    with LeaseDesk() as plane:
        yield plane
    assert plane.violations == []


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may need longer for a call to itself than a caller waits."""
    monkeypatch.setattr("sidecar.front.parked.WAIT_S", 20.0)
    monkeypatch.setattr("sidecar.lease.client._CALL_S", 20.0)


@pytest.fixture
def budgeted(rigged: Callable[..., Rig], plane: LeaseDesk) -> Callable[..., Rig]:
    """A rig in which alice's grant has a budget."""

    def make(*, start: bool = True, budget: Any = None, uses: int = 0, nanos: int = 0, **options: Any) -> Rig:
        plane.budget("g1", uses=uses, nanos=nanos)
        rig = rigged(start=start, control_plane=plane.address, **options)
        rig.stock.put(
            **{
                "grants/g1": {
                    "subject": "alice",
                    "actions": ["payments.*"],
                    "ceiling": {"acr": "nist-aal2", "max_age": "3600s"},
                    "state": "GRANT_STATE_ACTIVE",
                    "expire_time": "2099-01-01T00:00:00Z",
                    "budget": budget or {"max_count": uses},
                }
            }
        )
        return rig

    return make


def euros(units: int, nanos: int = 0) -> decision_pb2.Context:
    amount = resources_pb2.Amount(currency="EUR", units=units, nanos=nanos)
    return decision_pb2.Context(ip="203.0.113.77", amount=amount)


def paying(units: int, nanos: int = 0, **fields: Any) -> decision_pb2.EvaluateRequest:
    question = exempted(**fields)
    question.context.CopyFrom(euros(units, nanos))
    return question


def codes(rig: Rig) -> set[Code]:
    return {reason.code for reason in rig.records()[-1].decision.reasons}


def test_call_waits_for_its_slice_and_the_budget_ends_where_it_ends(
    budgeted: Callable[..., Rig], plane: LeaseDesk
) -> None:
    rig = budgeted(uses=3)
    assert [rig.ask(exempted()).basis for _ in range(5)] == [EXEMPTED] * 3 + [CHALLENGED] * 2
    assert rig.slot.get(WorkerWord.PARKED) >= 1
    assert codes(rig) >= {Code.BUDGET_EXHAUSTED}
    spends = [record.decision.spend for record in rig.records()]
    assert [spend and spend.uses for spend in spends] == [1, 1, 1, None, None]
    until(lambda: plane.spent(ACCOUNT) == Room(3, 0), "the report")


def test_calls_that_cannot_be_exempted_wait_for_nothing(budgeted: Callable[..., Rig], plane: LeaseDesk) -> None:
    rig = budgeted(uses=3)
    assert rig.ask(request("alice")).basis == CHALLENGED
    assert rig.ask(request("bob")).basis == CHALLENGED
    assert rig.slot.get(WorkerWord.PARKED) == 0
    assert plane.calls == []


def test_call_that_waits_is_examined_once(
    budgeted: Callable[..., Rig], plane: LeaseDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = budgeted(uses=3)
    seen: list[object] = []
    examine = Guards.examine

    def count(self: Guards, *args: Any) -> Any:
        seen.append(args)
        return examine(self, *args)

    monkeypatch.setattr(Guards, "examine", count)
    assert rig.ask(exempted(request_id="r")).basis == EXEMPTED
    assert rig.slot.get(WorkerWord.PARKED) == 1
    assert len(seen) == 1


def test_calls_of_one_pass_share_what_there_is(budgeted: Callable[..., Rig]) -> None:
    rig = budgeted(uses=4, start=False)
    for number in range(20):
        rig.desk.put(EVALUATE, exempted(), number)
    rig.start()
    found = [rig.response(number).basis for number in range(20)]
    assert found.count(EXEMPTED) == 4


def test_entries_of_a_batch_wait_and_spend_like_calls(budgeted: Callable[..., Rig]) -> None:
    rig = budgeted(uses=3)
    batch = decision_pb2.EvaluateBatchRequest(requests=[exempted(), request(), exempted(), exempted(), exempted()])
    rig.desk.put(EVALUATE_BATCH, batch, "batch")
    found = [result.response.basis for result in rig.batch("batch")]
    assert found == [EXEMPTED, CHALLENGED, EXEMPTED, EXEMPTED, CHALLENGED]


def test_amounts_are_exact_and_missing_ones_are_refused(budgeted: Callable[..., Rig]) -> None:
    budget = {"max_amount": {"currency": "EUR", "units": 100}}
    rig = budgeted(budget=budget, nanos=100 * 10**9)
    assert rig.ask(paying(99, 999_999_999)).basis == EXEMPTED
    assert rig.ask(paying(0, 2)).basis == CHALLENGED
    response = rig.ask(paying(0, 1))
    assert response.basis == EXEMPTED
    assert (response.remaining.amount.units, response.remaining.amount.nanos) == (0, 0)
    assert rig.ask(exempted()).basis == CHALLENGED
    assert codes(rig) >= {Code.BUDGET_AMOUNT_MISSING}


def test_without_the_control_plane_there_is_no_exemption(budgeted: Callable[..., Rig], plane: LeaseDesk) -> None:
    rig = budgeted(uses=3)
    plane.down = True
    assert rig.ask(exempted()).basis == CHALLENGED
    assert codes(rig) >= {Code.BUDGET_NO_LEASE}
    plane.down = False
    until(lambda: rig.ask(exempted()).basis == EXEMPTED, "the control plane to be asked again")


def test_call_waits_no_longer_than_it_may(
    budgeted: Callable[..., Rig], plane: LeaseDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sidecar.front.parked.WAIT_S", 0.03)
    answer = threading.Event()
    plane._begin = lambda request, context: answer.wait(20)  # type: ignore[assignment, method-assign, return-value]
    rig = budgeted(uses=3)
    try:
        assert rig.ask(exempted()).basis == CHALLENGED
        left: list[float] = []
        rig.desk.before_answer = lambda call: left.append(call.deadline - time.monotonic())
        monkeypatch.setattr("sidecar.front.parked.WAIT_S", 60.0)

        def waited() -> bool:
            # Fail-safe, where the machine is too busy to decide in the time left; but answered.
            assert rig.ask(exempted(), within_s=0.5).outcome == decision_pb2.OUTCOME_STEP_UP
            return left.pop() < 0.4

        until(waited, "a call that waits")
    finally:
        answer.set()


def test_no_more_than_so_many_calls_wait(budgeted: Callable[..., Rig], plane: LeaseDesk) -> None:
    answer = threading.Event()
    plane._begin = lambda request, context: answer.wait(20)  # type: ignore[assignment, method-assign, return-value]
    rig = budgeted(uses=1000)
    try:
        for number in range(MAX_PARKED + 10):
            rig.desk.put(EVALUATE, exempted(), number)
        until(lambda: len(rig.desk.order) >= 10, "those that found no place")
        assert rig.slot.get(WorkerWord.PARKED) == MAX_PARKED
    finally:
        answer.set()
    rig.ended(*range(MAX_PARKED + 10))


def test_spend_without_a_record_is_undone(budgeted: Callable[..., Rig], plane: LeaseDesk) -> None:
    rig = budgeted(uses=2)
    assert rig.ask(exempted()).basis == EXEMPTED
    record = rig.recorder.record
    rig.recorder.record = lambda *_: 0  # type: ignore[method-assign, assignment]
    assert rig.ask(exempted(request_id="r")).basis == CHALLENGED
    rig.recorder.record = record  # type: ignore[method-assign]
    assert rig.ask(exempted(request_id="r")).basis == EXEMPTED
    assert rig.ask(exempted()).basis == CHALLENGED
    until(lambda: plane.spent(ACCOUNT) == Room(2, 0), "the report")


def test_repeat_spends_nothing(budgeted: Callable[..., Rig]) -> None:
    rig = budgeted(uses=2)
    first = rig.ask(exempted(request_id="a"))
    assert first.basis == EXEMPTED
    assert all(rig.ask(exempted(request_id="a")) == first for _ in range(5))
    assert rig.ask(exempted(request_id="b")).basis == EXEMPTED
    # Nothing is left, and a repeat needs nothing.
    assert rig.ask(exempted(request_id="a")) == first
    assert rig.ask(exempted(request_id="c")).basis == CHALLENGED
    assert len(rig.records()) == 3


def test_repeat_in_another_worker_spends_nothing(
    budgeted: Callable[..., Rig], plane: LeaseDesk, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rig = budgeted(uses=2)
    first = rig.ask(exempted(request_id="a"))
    assert first.basis == EXEMPTED
    other = Rig(tmp_path_factory.mktemp("other"), control_plane=plane.address, reservations=rig.reservations)
    other.start()
    try:
        other.stock.put(**{"grants/g1": _budgeted_grant()})
        assert other.ask(exempted(request_id="a")) == first
        other.desk.put(EVALUATE, _elsewhere(exempted(request_id="a")), "elsewhere")
        assert other.failure("elsewhere")[0] is StatusCode.INVALID_ARGUMENT
        assert other.records() == []
    finally:
        assert other.leases is not None
        other.reservations = Reservations(tmp_path / "unused", "boot")  # the first one's is closed by the first
        other.stop()
    until(lambda: plane.spent(ACCOUNT) == Room(1, 0), "the report")


def _budgeted_grant() -> dict[str, Any]:
    return {
        "subject": "alice",
        "actions": ["payments.*"],
        "ceiling": {"acr": "nist-aal2", "max_age": "3600s"},
        "state": "GRANT_STATE_ACTIVE",
        "expire_time": "2099-01-01T00:00:00Z",
        "budget": {"max_count": 2},
    }


def _elsewhere(question: decision_pb2.EvaluateRequest) -> decision_pb2.EvaluateRequest:
    question.resource.id = "elsewhere"
    return question


def test_request_whose_first_worker_died_over_it_spends_nothing(
    budgeted: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sidecar.front.repeats import content_of, repeat_key

    monkeypatch.setattr("sidecar.front.parked.WAIT_S", 0.03)
    rig = budgeted(uses=5)
    until(lambda: rig.ask(exempted()).basis == EXEMPTED, "a slice")
    question = exempted(request_id="a")
    assert rig.reservations is not None
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert rig.reservations.claim(repeat_key("", "acme", "alice", "a"), content_of(question), now)
    spent = len(rig.records())
    rig.desk.put(EVALUATE, question, "repeat")
    assert rig.failure("repeat")[0] is StatusCode.UNAVAILABLE
    assert len(rig.records()) == spent


def test_spend_can_be_settled(budgeted: Callable[..., Rig]) -> None:
    rig = budgeted(uses=2)
    response = rig.ask(exempted())
    assert rig.reservations is not None
    (record,) = rig.records()
    assert id_text(record.decision_id) == response.decision_id
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    settled = rig.reservations.settle(record.decision_id, "", CANCELLED, now)
    spend = record.decision.spend
    assert spend is not None
    assert (settled.grant, settled.subject, settled.holder, settled.count) == ("g1", "alice", spend.holder, 1)
    rig.ask(request("bob"))
    bobs = rig.records()[-1].decision_id
    assert [key for key, _ in rig.reservations.unsent(9)] == [record.decision_id] != [bobs]


def test_repeat_of_what_was_given_back_spends_again(budgeted: Callable[..., Rig]) -> None:
    rig = budgeted(uses=2)
    first = rig.ask(exempted(request_id="a"))
    assert rig.reservations is not None
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    rig.reservations.settle(rig.records()[0].decision_id, "", CANCELLED, now)
    again = rig.ask(exempted(request_id="a"))
    assert again.basis == EXEMPTED
    assert again.decision_id != first.decision_id
    assert rig.ask(exempted(request_id="a")) == again
    assert len(rig.records()) == 2
    # The fake control plane does not hear of settlements: both uses are gone.
    rig.reservations.settle(rig.records()[1].decision_id, "", CANCELLED, now)
    assert rig.ask(exempted(request_id="a")).basis == CHALLENGED


def test_repeat_that_is_decided_otherwise_is_no_dead_end(budgeted: Callable[..., Rig], plane: LeaseDesk) -> None:
    rig = budgeted(uses=3)
    first = rig.ask(exempted(request_id="a"))
    assert first.basis == EXEMPTED
    # Another grant stands in its place.
    plane.budget("g2", uses=3)
    rig.stock.put(
        **{"grants/g1": {**_budgeted_grant(), "state": "GRANT_STATE_SUSPENDED"}, "grants/g2": _budgeted_grant()}
    )
    second = rig.ask(exempted(request_id="a"))
    assert second.basis == EXEMPTED
    assert second.decision_id != first.decision_id
    assert rig.ask(exempted(request_id="a")) == second
    assert len(rig.records()) == 2


def test_slice_in_another_currency_is_worth_nothing(budgeted: Callable[..., Rig], plane: LeaseDesk) -> None:
    rig = budgeted(budget={"max_amount": {"currency": "EUR", "units": 100}}, nanos=100 * 10**9)
    for _ in range(4):  # a slice of some size
        assert rig.ask(paying(1)).basis == EXEMPTED
    # In the budget's currency, something is left of it; in another that the budget is changed to, nothing.
    assert rig.leases is not None
    held = rig.leases.leases.held(ACCOUNT)
    assert held is not None
    assert held.nanos >= 10**9
    plane.down = True
    rig.stock.put(**{"grants/g1": {**_budgeted_grant(), "budget": {"max_amount": {"currency": "USD", "units": 100}}}})
    question = paying(1)
    question.context.amount.currency = "USD"
    assert rig.ask(question).basis == CHALLENGED
    question.context.amount.currency = "EUR"
    rig.stock.put(**{"grants/g1": {**_budgeted_grant(), "budget": {"max_amount": {"currency": "EUR", "units": 100}}}})
    assert rig.ask(question).basis == EXEMPTED


class Breakable(Reservations):
    """Raises while it is `broken`, as from a damaged file."""

    broken: tuple[str, ...] = ()

    def repeat(self, *args: Any) -> Any:
        return self._or_raise("repeat", *args)

    def claim(self, *args: Any, **named: Any) -> Any:
        return self._or_raise("claim", *args, **named)

    def keep(self, *args: Any) -> Any:
        return self._or_raise("keep", *args)

    def _or_raise(self, name: str, *args: Any, **named: Any) -> Any:
        if name in self.broken:
            raise ReservationsError("MDB_CORRUPTED")
        return getattr(Reservations, name)(self, *args, **named)


@pytest.fixture
def breakable(budgeted: Callable[..., Rig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Rig, Breakable]:
    monkeypatch.setattr("sidecar.front.budgets._BROKEN_S", 0.05)
    store = Breakable(tmp_path / "breakable", "boot")
    rig = budgeted(uses=5, reservations=store)
    until(lambda: rig.ask(exempted()).basis == EXEMPTED, "a slice")
    return rig, store


@pytest.mark.parametrize("broken", [("repeat",), ("claim",), ("claim", "keep"), ("repeat", "claim", "keep")])
def test_call_whose_reservation_cannot_be_made_is_decided_without_budgets(
    breakable: tuple[Rig, Breakable], plane: LeaseDesk, broken: tuple[str, ...]
) -> None:
    rig, store = breakable
    store.broken = broken
    response = rig.ask(exempted(request_id="a"))
    assert response.basis == CHALLENGED
    assert codes(rig) >= {Code.BUDGET_NO_LEASE}
    assert rig.slot.get(WorkerWord.LOCAL_UNUSABLE) == 1
    assert rig.slot.get(WorkerWord.LOCAL_FAILURES) >= 1
    # Whoever needs none is served.
    assert rig.ask(request("bob")).basis == CHALLENGED
    assert rig.desk.failures == {}
    store.broken = ()
    until(lambda: rig.ask(exempted(request_id="a")).basis == EXEMPTED, "the reservations to be used again")
    assert rig.slot.get(WorkerWord.LOCAL_UNUSABLE) == 0
    assert plane.taken(ACCOUNT).uses <= 5


def test_spend_that_could_not_be_kept_is_kept_later(breakable: tuple[Rig, Breakable]) -> None:
    rig, store = breakable
    store.broken = ("keep",)
    first = rig.ask(exempted(request_id="a"))
    assert first.basis == EXEMPTED
    assert rig.ask(exempted()).basis == CHALLENGED  # nothing more is spent that could not be settled
    assert rig.slot.get(WorkerWord.LOCAL_UNUSABLE) == 1
    store.broken = ()
    until(lambda: rig.ask(exempted()).basis == EXEMPTED, "the reservations to be used again")
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    spent = next(record for record in rig.records() if id_text(record.decision_id) == first.decision_id)
    assert rig.ask(exempted(request_id="a")) == first
    assert store.settle(spent.decision_id, "", CANCELLED, now).count == 1


def test_call_that_waits_for_another_is_no_danger_to_the_rest_if_that_cannot_be_looked_up(
    breakable: tuple[Rig, Breakable],
) -> None:
    from sidecar.front.repeats import content_of, repeat_key

    rig, store = breakable
    question = exempted(request_id="a")
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert store.claim(repeat_key("", "acme", "alice", "a"), content_of(question), now)
    rig.desk.put(EVALUATE, question, "waits")
    until(lambda: len(rig.loop._parked) == 1, "the repeat to wait")
    rig.desk.put(EVALUATE, exempted(request_id="b"), "other")
    store.broken = ("repeat",)
    assert rig.response("waits").basis == CHALLENGED
    rig.ended("other")
    assert rig.desk.failures == {}


def test_entries_of_a_batch_wait_side_by_side(budgeted: Callable[..., Rig], plane: LeaseDesk) -> None:
    """However many budgets a batch asks for, it does not wait for one after the other."""
    rig = budgeted(uses=3)
    grants = {"grants/g1": _budgeted_grant() | {"actions": ["payments.none"]}}
    for number in range(40):
        plane.budget(f"h{number}", uses=3)
        grants[f"grants/h{number}"] = _budgeted_grant() | {"actions": [f"payments.order{number}"]}
    rig.stock.put(**grants)
    begin, took_s = plane._begin, 0.05

    def slowly(message: Any, context: Any) -> None:
        threading.Event().wait(took_s)
        begin(message, context)

    plane._begin = slowly  # type: ignore[method-assign]
    requests = []
    for number in range(40):
        question = exempted()
        question.action.name = f"payments.order{number}"
        requests.append(question)
    rig.desk.put(EVALUATE_BATCH, decision_pb2.EvaluateBatchRequest(requests=requests), "batch")
    assert [result.response.basis for result in rig.batch("batch")] == [EXEMPTED] * 40
    # One call for the first, one for all that were asked for meanwhile, and perhaps a few between.
    asked = [len(call.asks) for call in plane.calls if hasattr(call, "asks") and call.asks]
    assert len(asked) <= 8
