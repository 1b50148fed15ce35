"""Requests with a `request_id` that come again: one decision, one record, and never an ALLOW that would not be given now."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from sidestep.v1 import decision_pb2, resources_pb2

from engine.decision import Basis, Decision, Outcome
from engine.errors import InvalidInputError
from sidecar.front.repeats import Repeats, content_of, repeat_key
from sidecar.front.transport import StatusCode
from tests.fakes.desk import EVALUATE, EVALUATE_BATCH
from tests.fakes.stock import exempted, request, satisfied
from tests.unit.front.rig import Rig

ALLOWED = Decision(Outcome.ALLOW, Basis.EXEMPTION_GRANT, (), grant="g1")


def test_repeat_gets_the_first_decision_and_no_second_record(rig: Rig) -> None:
    for question in (exempted(request_id="e"), satisfied(request_id="s"), request(request_id="r")):
        first, second = rig.ask(question), rig.ask(question)
        assert first == second
    assert len(rig.records()) == rig.decisions() == 3


def test_without_an_id_nothing_is_a_repeat(rig: Rig) -> None:
    assert rig.ask(exempted()).decision_id != rig.ask(exempted()).decision_id
    assert len(rig.records()) == 2


def test_repeats_in_one_pass_get_one_decision(rigged: Callable[..., Rig]) -> None:
    rig = rigged(start=False)
    question = exempted(request_id="e")
    rig.desk.put(EVALUATE, question, "one")
    rig.desk.put(EVALUATE, question, "two")
    rig.desk.put(EVALUATE_BATCH, decision_pb2.EvaluateBatchRequest(requests=[question, request(), question]), "batch")
    rig.start()
    one, two, (first, other, second) = rig.response("one"), rig.response("two"), rig.batch("batch")
    assert one == two == first.response == second.response
    assert other.response.decision_id != one.decision_id
    assert len(rig.records()) == 2
    batch = rig.journalled()[-1]
    assert (batch.size, batch.errors) == (3, 0)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "other",
    [
        {"action": decision_pb2.Action(name="payments.refund")},
        {"resource": decision_pb2.ResourceRef(type="account", id="2")},
        {"context": decision_pb2.Context(amount=resources_pb2.Amount(currency="EUR", units=2))},
    ],
    ids=["action", "resource", "amount"],
)
def test_another_question_under_the_same_id_is_refused(rig: Rig, other: dict[str, Any]) -> None:
    amount = resources_pb2.Amount(currency="EUR", units=1)
    rig.ask(request(request_id="r", context=decision_pb2.Context(amount=amount)))
    changed = request(request_id="r", context=decision_pb2.Context(amount=amount))
    for field, value in other.items():
        getattr(changed, field).MergeFrom(value)
    rig.desk.put(EVALUATE, changed, "changed")
    code, message = rig.failure("changed")
    assert code is StatusCode.INVALID_ARGUMENT
    assert message.startswith("request_id: ")
    assert len(rig.records()) == 1


def test_ids_of_two_subjects_are_two_ids(rig: Rig) -> None:
    assert rig.ask(request("bob", request_id="r")).decision_id != rig.ask(request("eve", request_id="r")).decision_id


def test_after_a_revocation_a_repeat_is_decided_anew(rig: Rig) -> None:
    question = exempted(request_id="e")
    first = rig.ask(question)
    assert first.basis == decision_pb2.BASIS_EXEMPTION_GRANT
    grant = {
        "subject": "alice",
        "actions": ["payments.*"],
        "ceiling": {"acr": "nist-aal2", "max_age": "3600s"},
        "state": "GRANT_STATE_REVOKED",
        "expire_time": "2099-01-01T00:00:00Z",
    }
    cursor = rig.stock.put(**{"grants/g1": grant})
    question.min_revision.epoch, question.min_revision.revision = cursor.epoch, cursor.revision
    second = rig.ask(question)
    assert (second.outcome, second.basis) == (decision_pb2.OUTCOME_STEP_UP, decision_pb2.BASIS_CHALLENGE)
    assert second.decision_id != first.decision_id
    assert rig.ask(question) == second
    assert len(rig.records()) == 2


def test_after_a_step_up_the_same_operation_is_decided_anew(rig: Rig) -> None:
    challenged = rig.ask(request("alice", request_id="op"))
    assert challenged.outcome == decision_pb2.OUTCOME_STEP_UP
    allowed = rig.ask(satisfied(request_id="op"))
    assert allowed.basis == decision_pb2.BASIS_ASSURANCE_SATISFIED


def test_what_could_not_be_recorded_is_not_repeated(rig: Rig) -> None:
    question = exempted(request_id="e")
    rig.fill_journal()
    assert rig.ask(question).basis == decision_pb2.BASIS_CHALLENGE
    rig.empty_journal()
    deadline = time.monotonic() + 10
    while (response := rig.ask(question)).basis != decision_pb2.BASIS_EXEMPTION_GRANT:
        assert time.monotonic() < deadline
    assert rig.ask(question) == response


def test_call_whose_first_is_under_way_does_not_wait_for_ever(rig: Rig) -> None:
    question = request(request_id="r")
    key = repeat_key("", "acme", "bob", "r")
    repeats = rig.servicer.repeats
    kept = repeats.begin(key, content_of(question), ALLOWED, time.monotonic())
    assert kept is not None
    rig.desk.put(EVALUATE, question, "early")
    assert rig.failure("early") == (StatusCode.UNAVAILABLE, "another request with this request_id is being decided")
    repeats.drop(kept)
    assert rig.ask(question).outcome == decision_pb2.OUTCOME_STEP_UP


def test_memory_is_bounded_and_forgets_the_oldest() -> None:
    repeats = Repeats(keep_s=60.0, max_kept=100)
    for number in range(1000):
        kept = repeats.begin(str(number).encode(), b"", ALLOWED, float(number) / 1000)
        assert kept is not None
        kept.answer = b"x"
    assert len(repeats) == 100
    assert repeats.find(b"899", b"", 1.0) is None
    assert repeats.find(b"900", b"", 1.0) is not None


def test_what_is_too_old_is_forgotten() -> None:
    repeats = Repeats(keep_s=60.0)
    kept = repeats.begin(b"a", b"", ALLOWED, 0.0)
    assert kept is not None
    kept.answer = b"x"
    assert repeats.find(b"a", b"", 59.9) is kept
    assert repeats.find(b"a", b"", 60.0) is None
    assert repeats.begin(b"b", b"", ALLOWED, 61.0) is not None
    assert len(repeats) == 1


def test_content_does_not_depend_on_the_order_of_maps_nor_on_evidence() -> None:
    one, two = request(), request(session=decision_pb2.SessionEvidence(id="s"))
    for name in "abc":
        one.context.attributes[name] = 1.0
    for name in "cba":
        two.context.attributes[name] = 1.0
    assert content_of(one) == content_of(two)
    two.context.attributes["a"] = 2.0
    assert content_of(one) != content_of(two)


def test_only_one_of_two_loops_is_first() -> None:
    repeats = Repeats()
    first = repeats.begin(b"a", b"x", ALLOWED, 0.0)
    assert first is not None
    assert repeats.begin(b"a", b"x", ALLOWED, 0.0) is None
    with pytest.raises(InvalidInputError, match="request_id"):
        repeats.find(b"a", b"y", 0.0)
