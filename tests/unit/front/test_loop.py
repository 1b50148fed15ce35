"""The worker loop over a real store, journal and page, with a transport in memory so that a test decides what arrives when."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from typing import Any

import lmdb
import pytest
from grpc_health.v1 import health_pb2
from sidestep.v1 import decision_pb2, resources_pb2

from engine.decide import decide
from engine.decision import Basis, Code
from engine.rules import TenantRules
from sidecar.front.decision_id import id_text
from sidecar.front.health import MAX_WATCHERS
from sidecar.front.loop import SLICE
from sidecar.front.parked import MAX_PARKED
from sidecar.front.servicer import SERVICE
from sidecar.front.transport import StatusCode
from sidecar.gather.gatherer import GatherConfig, Gatherer
from sidecar.page import ERRORS, WorkerWord
from sidecar.store.generation import is_suspect
from tests.fakes.desk import CHECK, EVALUATE, EVALUATE_BATCH, LIST, WATCH
from tests.fakes.stock import TENANT, exempted, request, satisfied
from tests.processes import until
from tests.unit.front.rig import MESSAGE_BYTES, TRACEPARENT, Rig


def test_answer_is_in_the_journal_before_it_leaves(rig: Rig) -> None:
    unrecorded: list[str] = []

    def look(call: Any) -> None:
        recorded = {record.request_id for record in rig.records()}
        unrecorded.extend({str(call.handle)} - recorded)

    rig.desk.before_answer = look
    handles = [f"r{number}" for number in range(30)]
    for handle in handles:
        rig.desk.put(EVALUATE, request(request_id=handle), handle)
    rig.ended(*handles)
    assert unrecorded == []
    assert len(rig.records()) == rig.decisions() == 30


def test_record_tells_what_was_asked_and_answered(rig: Rig) -> None:
    response = rig.ask(exempted(request_id="r1"), traceparent=TRACEPARENT)
    (record,) = rig.records()
    assert id_text(record.decision_id) == response.decision_id
    assert (record.request_id, record.traceparent) == ("r1", TRACEPARENT)
    assert record.client_address == "203.0.113.0"
    assert record.facts.tenant == TENANT
    assert record.decision.basis is Basis.EXEMPTION_GRANT
    assert decide(record.facts, rules_of(rig)) == record.decision
    assert abs(record.at - time.time()) < 10


def rules_of(rig: Rig) -> TenantRules:
    with rig.reader.view() as view:
        return Gatherer(GatherConfig(TENANT, 300.0, 3600.0)).outline(request(), view, time.time()).rules


def test_what_is_no_traceparent_is_not_kept(rig: Rig) -> None:
    for text in ("0" * 5000, "alice@example.com"):
        rig.ask(request(), traceparent=text)
    assert [record.traceparent for record in rig.records()] == ["", ""]


def test_calls_are_answered_in_the_order_they_came(rigged: Callable[..., Rig]) -> None:
    rig = rigged(start=False)
    for number in range(200):
        rig.desk.put(EVALUATE, request(), number)
    rig.start()
    rig.ended(*range(200))
    assert rig.desk.order == list(range(200))


def test_garbage_fails_alone(rigged: Callable[..., Rig]) -> None:
    rig = rigged(start=False)
    rig.desk.put(EVALUATE, request(), "before")
    rig.desk.put(EVALUATE, b"\xff\xff\xff", "garbage")
    rig.desk.put(EVALUATE_BATCH, b"\xff\xff\xff", "batch garbage")
    rig.desk.put(CHECK, b"\xff\xff\xff", "check garbage")
    rig.desk.put(WATCH, b"\xff\xff\xff", "watch garbage")
    rig.desk.put(EVALUATE, request(""), "nobody")
    rig.desk.put(EVALUATE, request(), "after")
    rig.start()
    assert rig.response("before").outcome == rig.response("after").outcome == decision_pb2.OUTCOME_STEP_UP
    for handle in ("garbage", "batch garbage", "check garbage", "watch garbage"):
        assert rig.failure(handle)[0] is StatusCode.INVALID_ARGUMENT
    assert rig.failure("nobody") == (StatusCode.INVALID_ARGUMENT, "subject.id: must not be empty")
    assert rig.slot.get(WorkerWord.ERRORS, ERRORS.index("invalid_argument")) == 5
    assert len(rig.records()) == 2


def test_fault_of_ours_fails_one_call_and_tells_nothing(
    rigged: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gather = Gatherer.gather

    def faulty(self: Gatherer, question: decision_pb2.EvaluateRequest, *rest: Any, **options: Any) -> Any:
        if question.subject.id == "alice":
            raise ZeroDivisionError("alice's secret")
        return gather(self, question, *rest, **options)

    monkeypatch.setattr(Gatherer, "gather", faulty)
    rig = rigged(start=False)
    rig.desk.put(EVALUATE, request(), "before")
    rig.desk.put(EVALUATE, exempted(), "faulty")
    rig.desk.put(EVALUATE_BATCH, decision_pb2.EvaluateBatchRequest(requests=[request(), exempted()]), "batch")
    rig.desk.put(EVALUATE, request(), "after")
    rig.start()
    assert rig.response("before").outcome == rig.response("after").outcome == decision_pb2.OUTCOME_STEP_UP
    assert rig.failure("faulty") == (StatusCode.INTERNAL, "internal error")
    answered, failed = rig.batch("batch")
    assert answered.response.outcome == decision_pb2.OUTCOME_STEP_UP
    assert (failed.error.code, failed.error.message) == (StatusCode.INTERNAL, "internal error")
    assert "ZeroDivisionError at " in caplog.text
    assert "alice" not in caplog.text


def test_log_of_a_fault_names_the_call_by_its_trace(
    rigged: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def faulty(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(Gatherer, "gather", faulty)
    monkeypatch.setattr("sidecar.front.faults._LOG_EVERY_S", 0.0)
    rig = rigged()
    for number, traceparent in enumerate((TRACEPARENT, "alice", "")):
        rig.desk.put(EVALUATE, request(), number, traceparent=traceparent)
    rig.ended(0, 1, 2)
    logged = [(getattr(entry, "trace_id", None), getattr(entry, "span_id", None)) for entry in caplog.records]
    assert logged == [("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"), (None, None), (None, None)]


def test_unfollowed_tenant_is_refused(rig: Rig) -> None:
    rig.desk.put(EVALUATE, request(tenant="stranger"), "stranger")
    assert rig.failure("stranger")[0] is StatusCode.PERMISSION_DENIED


def test_nothing_is_decided_before_there_is_data(rigged: Callable[..., Rig]) -> None:
    rig = rigged(loaded=False)
    rig.desk.put(EVALUATE, satisfied(), "one")
    assert rig.failure("one")[0] is StatusCode.UNAVAILABLE
    assert rig.records() == []
    rig.stock.load()
    until(lambda: _try(rig, satisfied()) is not None, "the data")
    assert rig.ask(satisfied()).outcome == decision_pb2.OUTCOME_ALLOW


def _try(rig: Rig, question: decision_pb2.EvaluateRequest) -> bytes | None:
    handle = object()
    rig.desk.put(EVALUATE, question, handle)
    rig.ended(handle)
    return rig.desk.answers.get(handle)


@pytest.mark.parametrize("within_s", [0.0015, 0.0, -1.0])
def test_call_without_time_is_answered_fail_safe_and_recorded(rig: Rig, within_s: float) -> None:
    response = rig.ask(satisfied(explain=True), within_s=within_s)
    assert response.outcome == decision_pb2.OUTCOME_STEP_UP
    assert response.basis == decision_pb2.BASIS_FAIL_SAFE
    assert response.reason == decision_pb2.COARSE_REASON_DATA_UNAVAILABLE
    assert response.challenge.www_authenticate.startswith('Bearer error="insufficient_user_authentication"')
    (record,) = rig.records()
    assert [reason.code for reason in record.decision.reasons] == [Code.DEADLINE]


def test_call_with_time_enough_is_decided(rig: Rig) -> None:
    assert rig.ask(satisfied(), within_s=0.5).outcome == decision_pb2.OUTCOME_ALLOW


def test_cancelled_call_is_not_decided(rigged: Callable[..., Rig]) -> None:
    rig = rigged(start=False)
    rig.desk.put(EVALUATE, request(), "gone").cancelled = True
    rig.desk.put(EVALUATE, request(), "here")
    rig.start()
    rig.ended("here")
    assert rig.desk.order == ["here"]
    assert len(rig.records()) == 1


def newer(rig: Rig, by: int = 1) -> resources_pb2.Revision:
    return resources_pb2.Revision(epoch=rig.stock.urgent.epoch, revision=rig.stock.urgent.revision + by)


def test_reached_min_revision_does_not_wait(rig: Rig) -> None:
    assert rig.ask(satisfied(min_revision=newer(rig, 0))).basis == decision_pb2.BASIS_ASSURANCE_SATISFIED
    assert rig.slot.get(WorkerWord.PARKED) == 0


def test_call_waits_for_its_min_revision_while_others_go_on(rigged: Callable[..., Rig], monkeypatch: Any) -> None:
    monkeypatch.setattr("sidecar.front.parked.PARK_S", 10.0)
    rig = rigged()
    rig.desk.put(EVALUATE, satisfied(min_revision=newer(rig)), "waits")
    until(lambda: rig.slot.get(WorkerWord.PARKED) == 1, "the call to be parked")
    assert rig.ask(satisfied()).outcome == decision_pb2.OUTCOME_ALLOW
    assert "waits" not in rig.desk.order
    cursor = rig.stock.put(**{"subjects/bob": {"state": "SUBJECT_STATE_DISABLED"}})
    response = rig.response("waits")
    assert response.data.urgent.revision == cursor.revision
    assert response.outcome == decision_pb2.OUTCOME_DENY


def test_min_revision_that_does_not_come_is_decided_as_behind(rig: Rig) -> None:
    begun = time.monotonic()
    response = rig.ask(request(min_revision=newer(rig), explain=True))
    assert 0.045 < time.monotonic() - begun < 5
    assert response.basis == decision_pb2.BASIS_FAIL_SAFE
    assert any("BEHIND_MIN_REVISION" in reason for reason in response.explanation.reasons)
    assert rig.records()[0].facts.data.behind


def test_call_waits_no_longer_than_its_deadline_allows(rigged: Callable[..., Rig], monkeypatch: Any) -> None:
    monkeypatch.setattr("sidecar.front.parked.PARK_S", 60.0)
    rig = rigged()
    left: list[float] = []
    rig.desk.before_answer = lambda call: left.append(call.deadline - time.monotonic())
    assert rig.ask(request(min_revision=newer(rig)), within_s=0.3).basis == decision_pb2.BASIS_FAIL_SAFE
    # Before the deadline, but for a machine that is too busy to run this at all.
    assert -0.2 < left[0] < 0.01


def test_no_more_than_so_many_calls_wait(rigged: Callable[..., Rig], monkeypatch: Any) -> None:
    monkeypatch.setattr("sidecar.front.parked.PARK_S", 30.0)
    rig = rigged()
    for number in range(MAX_PARKED + 10):
        rig.desk.put(EVALUATE, request(min_revision=newer(rig)), number)
    until(lambda: len(rig.desk.order) >= 10, "those that found no place")
    assert rig.slot.get(WorkerWord.PARKED) == MAX_PARKED
    assert rig.ask(satisfied()).outcome == decision_pb2.OUTCOME_ALLOW
    rig.stock.put(**{"subjects/eve": {"state": "SUBJECT_STATE_ACTIVE"}})
    rig.ended(*range(MAX_PARKED + 10))
    assert sum(record.facts.data.behind for record in rig.records()) == 10


def test_parked_call_that_is_cancelled_is_dropped(rigged: Callable[..., Rig], monkeypatch: Any) -> None:
    monkeypatch.setattr("sidecar.front.parked.PARK_S", 10.0)
    rig = rigged()
    call = rig.desk.put(EVALUATE, request(min_revision=newer(rig)), "gone")
    until(lambda: rig.slot.get(WorkerWord.PARKED) == 1, "the call to be parked")
    call.cancelled = True
    rig.stock.put(**{"subjects/eve": {"state": "SUBJECT_STATE_ACTIVE"}})
    rig.ask(request())
    assert "gone" not in rig.desk.order
    assert len(rig.records()) == 1


def test_drain_does_not_wait_for_parked_calls(rigged: Callable[..., Rig], monkeypatch: Any) -> None:
    monkeypatch.setattr("sidecar.front.parked.PARK_S", 30.0)
    rig = rigged()
    rig.desk.put(EVALUATE, request(min_revision=newer(rig)), "waits")
    until(lambda: rig.slot.get(WorkerWord.PARKED) == 1, "the call to be parked")
    rig.desk.drain(1.0)
    assert rig.response("waits").basis == decision_pb2.BASIS_FAIL_SAFE


@pytest.mark.parametrize("tenant", ["x" * 1000, "a\0b", "Acme", "é" * 300])
def test_impossible_tenant_with_a_min_revision_is_refused_and_harms_nobody(rig: Rig, tenant: str) -> None:
    rig.desk.put(EVALUATE, request(tenant=tenant, min_revision=newer(rig)), "bad")
    questions = [satisfied(), request(tenant=tenant, min_revision=newer(rig))]
    rig.desk.put(EVALUATE_BATCH, decision_pb2.EvaluateBatchRequest(requests=questions), "batch")
    assert rig.failure("bad")[0] is StatusCode.INVALID_ARGUMENT
    assert [result.WhichOneof("result") for result in rig.batch("batch")] == ["response", "error"]
    assert rig.ask(satisfied()).outcome == decision_pb2.OUTCOME_ALLOW


def test_unreadable_data_fails_what_rests_on_it_and_the_loop_goes_on(
    rigged: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = rigged(start=False)
    rig.desk.put(EVALUATE, satisfied(), "one")
    rig.desk.put(EVALUATE_BATCH, decision_pb2.EvaluateBatchRequest(requests=[request()] * 40), "batch")
    rig.desk.put(EVALUATE, satisfied(), "another")

    def corrupt(*_: Any, **__: Any) -> Any:
        raise lmdb.CorruptedError("a page is damaged")

    with monkeypatch.context() as patched:
        patched.setattr(Gatherer, "gather", corrupt)
        rig.start()
        for handle in ("one", "batch", "another"):
            assert rig.failure(handle)[0] is StatusCode.UNAVAILABLE
    assert rig.decisions() == 0
    assert is_suspect(next(rig.data.glob("gen-*")))
    assert rig.ask(satisfied()).outcome == decision_pb2.OUTCOME_ALLOW


def test_batch_is_answered_in_order_and_an_invalid_entry_harms_no_other(rig: Rig) -> None:
    questions = [satisfied(), request(""), exempted(), request("mallory"), request(tenant="stranger"), request()]
    rig.desk.put(
        EVALUATE_BATCH, decision_pb2.EvaluateBatchRequest(requests=questions), "batch", traceparent=TRACEPARENT
    )
    results = rig.batch("batch")
    assert [result.WhichOneof("result") for result in results] == [
        "response", "error", "response", "response", "error", "response",
    ]  # fmt: skip
    assert results[1].error.code == StatusCode.INVALID_ARGUMENT
    assert results[1].error.message == "subject.id: must not be empty"
    assert results[4].error.code == StatusCode.PERMISSION_DENIED
    bases = [result.response.basis for result in results if result.HasField("response")]
    assert bases == [
        decision_pb2.BASIS_ASSURANCE_SATISFIED,
        decision_pb2.BASIS_EXEMPTION_GRANT,
        decision_pb2.BASIS_BLOCKED,
        decision_pb2.BASIS_CHALLENGE,
    ]
    records = rig.records()
    assert [id_text(record.decision_id) for record in records] == [
        result.response.decision_id for result in results if result.HasField("response")
    ]
    assert {record.traceparent for record in records} == {TRACEPARENT}


@pytest.mark.parametrize("count", [0, 101, 1000])
def test_batch_of_impossible_size_is_refused(rig: Rig, count: int) -> None:
    rig.desk.put(EVALUATE_BATCH, decision_pb2.EvaluateBatchRequest(requests=[request()] * count), "batch")
    code, message = rig.failure("batch")
    assert code is StatusCode.INVALID_ARGUMENT
    assert message.startswith("requests: ")
    assert rig.records() == []


def test_oversized_entry_is_refused_alone(rig: Rig) -> None:
    large = request(resource=decision_pb2.ResourceRef(id="x" * MESSAGE_BYTES))
    rig.desk.put(EVALUATE_BATCH, decision_pb2.EvaluateBatchRequest(requests=[large, satisfied()]), "batch")
    refused, answered = rig.batch("batch")
    assert refused.error.code == StatusCode.RESOURCE_EXHAUSTED
    assert answered.response.outcome == decision_pb2.OUTCOME_ALLOW


def test_large_batch_lets_other_calls_through_and_keeps_one_view(
    rigged: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = rigged(start=False)
    rig.desk.put(EVALUATE_BATCH, decision_pb2.EvaluateBatchRequest(requests=[request()] * 100), "batch")
    for number in range(5):
        rig.desk.put(EVALUATE, request(), number)

    def revise(call: Any) -> None:
        if call.handle == 0:
            rig.stock.put(**{"subjects/bob": {"state": "SUBJECT_STATE_DISABLED"}})
            rig.desk.put(EVALUATE, request(), "later")

    rig.desk.before_answer = revise
    rig.start()
    results = rig.batch("batch")
    assert len(results) == 100
    rig.ended(*range(5), "later")
    assert rig.desk.order.index(0) < rig.desk.order.index("batch")
    assert {result.response.outcome for result in results} == {decision_pb2.OUTCOME_STEP_UP}
    assert len({result.response.data.urgent.revision for result in results}) == 1
    assert rig.response("later").outcome == decision_pb2.OUTCOME_DENY


def test_batch_waits_for_the_newest_of_its_min_revisions(rigged: Callable[..., Rig], monkeypatch: Any) -> None:
    monkeypatch.setattr("sidecar.front.parked.PARK_S", 10.0)
    rig = rigged()
    questions = [request(), request(min_revision=newer(rig))]
    rig.desk.put(EVALUATE_BATCH, decision_pb2.EvaluateBatchRequest(requests=questions), "batch")
    until(lambda: rig.slot.get(WorkerWord.PARKED) == 1, "the batch to be parked")
    cursor = rig.stock.put(**{"subjects/eve": {"state": "SUBJECT_STATE_ACTIVE"}})
    assert [result.response.data.urgent.revision for result in rig.batch("batch")] == [cursor.revision] * 2


def test_only_entries_that_asked_for_it_are_behind(rig: Rig) -> None:
    questions = [satisfied(), request(min_revision=newer(rig))]
    rig.desk.put(EVALUATE_BATCH, decision_pb2.EvaluateBatchRequest(requests=questions), "batch")
    bases = [result.response.basis for result in rig.batch("batch")]
    assert bases == [decision_pb2.BASIS_ASSURANCE_SATISFIED, decision_pb2.BASIS_FAIL_SAFE]


def test_batch_without_time_is_answered_fail_safe(rig: Rig) -> None:
    questions = [satisfied()] * (SLICE + 1)
    rig.desk.put(EVALUATE_BATCH, decision_pb2.EvaluateBatchRequest(requests=questions), "batch", within_s=0.0)
    assert {result.response.basis for result in rig.batch("batch")} == {decision_pb2.BASIS_FAIL_SAFE}
    assert len(rig.records()) == SLICE + 1


def test_full_journal_stops_exemptions_only(full: Callable[..., Rig]) -> None:
    rig = full()
    response = rig.ask(exempted(explain=True))
    assert response.outcome == decision_pb2.OUTCOME_STEP_UP
    assert "JOURNAL_FULL" in response.explanation.reasons
    assert rig.ask(satisfied()).outcome == decision_pb2.OUTCOME_ALLOW
    assert rig.slot.get(WorkerWord.UNRECORDED) == rig.decisions() == 2
    assert rig.slot.get(WorkerWord.JOURNAL_FULL) == 1
    rig.empty_journal()
    until(lambda: rig.ask(exempted()).outcome == decision_pb2.OUTCOME_ALLOW, "room")
    assert rig.slot.get(WorkerWord.JOURNAL_FULL) == 0
    assert rig.records()


def test_full_journal_answers_nothing_in_strict_mode(full: Callable[..., Rig]) -> None:
    rig = full(strict=True)
    rig.desk.put(EVALUATE, satisfied(), "one")
    rig.desk.put(EVALUATE_BATCH, decision_pb2.EvaluateBatchRequest(requests=[satisfied()] * 20), "batch")
    assert rig.failure("one") == (StatusCode.UNAVAILABLE, "the journal is full")
    assert rig.failure("batch")[0] is StatusCode.UNAVAILABLE
    assert rig.decisions() == rig.slot.get(WorkerWord.UNRECORDED) == 0


def test_failed_append_takes_exemptions_back_before_they_leave(rigged: Callable[..., Rig]) -> None:
    rig = rigged(start=False)
    rig.desk.put(EVALUATE, exempted(), "exempted")
    rig.desk.put(EVALUATE, satisfied(), "satisfied")
    rig.desk.put(EVALUATE_BATCH, decision_pb2.EvaluateBatchRequest(requests=[exempted(), satisfied()]), "batch")
    shutil.rmtree(rig.journal_dir)
    rig.start()
    assert rig.response("exempted").outcome == decision_pb2.OUTCOME_STEP_UP
    assert rig.response("satisfied").outcome == decision_pb2.OUTCOME_ALLOW
    assert [result.response.outcome for result in rig.batch("batch")] == [
        decision_pb2.OUTCOME_STEP_UP,
        decision_pb2.OUTCOME_ALLOW,
    ]
    assert rig.slot.get(WorkerWord.UNRECORDED) == rig.decisions() == 4
    rig.journal_dir.mkdir()
    until(lambda: rig.ask(exempted()).outcome == decision_pb2.OUTCOME_ALLOW, "the journal")


def test_failed_append_fails_the_call_in_strict_mode(
    rigged: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sidecar.front.loop.BATCH_WORK_S", 10.0)  # both in one pass
    rig = rigged(start=False, strict=True)
    rig.desk.put(EVALUATE, satisfied(), "one")
    rig.desk.put(EVALUATE_BATCH, decision_pb2.EvaluateBatchRequest(requests=[satisfied()]), "batch")
    shutil.rmtree(rig.journal_dir)
    rig.start()
    assert rig.failure("one")[0] is StatusCode.UNAVAILABLE
    assert rig.batch("batch")[0].error.code == StatusCode.UNAVAILABLE
    assert rig.decisions() == 0


def check(service: str) -> health_pb2.HealthCheckRequest:
    return health_pb2.HealthCheckRequest(service=service)


def watched(rig: Rig, handle: object) -> list[int]:
    return [health_pb2.HealthCheckResponse.FromString(message).status for message in rig.desk.messages.get(handle, [])]


def test_health_is_checked_by_name(rig: Rig) -> None:
    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING

    def status(service: str) -> int:
        handle = object()
        rig.desk.put(CHECK, check(service), handle)
        rig.ended(handle)
        return int(health_pb2.HealthCheckResponse.FromString(rig.desk.answers[handle]).status)

    assert (status(""), status(SERVICE)) == (serving, not_serving)
    rig.health.loaded = True
    assert (status(""), status(SERVICE)) == (serving, serving)
    rig.desk.put(LIST, b"", "list")
    rig.ended("list")
    listed = health_pb2.HealthListResponse.FromString(rig.desk.answers["list"]).statuses
    assert {name: entry.status for name, entry in listed.items()} == {"": serving, SERVICE: serving}
    rig.desk.put(CHECK, check("other"), "other")
    assert rig.failure("other")[0] is StatusCode.NOT_FOUND
    rig.health.draining = True
    assert (status(""), status(SERVICE)) == (not_serving, not_serving)


def test_watch_tells_changes_once_and_ends_with_the_drain(rig: Rig) -> None:
    response = health_pb2.HealthCheckResponse
    rig.desk.put(WATCH, check(SERVICE), "service")
    rig.desk.put(WATCH, check("other"), "other")
    until(lambda: watched(rig, "other"), "the first messages")
    rig.health.loaded = True
    until(lambda: len(watched(rig, "service")) == 2, "the change")
    rig.ask(request())
    rig.health.draining = True
    assert rig.failure("service")[0] is StatusCode.UNAVAILABLE
    assert watched(rig, "service") == [response.NOT_SERVING, response.SERVING, response.NOT_SERVING]
    assert watched(rig, "other") == [response.SERVICE_UNKNOWN]


def test_watch_that_is_not_read_gets_the_last_status_later(rig: Rig) -> None:
    response = health_pb2.HealthCheckResponse
    rig.desk.takes = False
    rig.desk.put(WATCH, check(SERVICE), "slow")
    rig.ask(request())
    rig.health.loaded = True
    rig.ask(request())
    rig.desk.takes = True
    until(lambda: watched(rig, "slow"), "the status")
    assert watched(rig, "slow") == [response.SERVING]


def test_watch_streams_are_bounded_and_gone_ones_forgotten(rig: Rig) -> None:
    calls = [rig.desk.put(WATCH, check(""), number) for number in range(MAX_WATCHERS + 1)]
    assert rig.failure(MAX_WATCHERS)[0] is StatusCode.RESOURCE_EXHAUSTED
    calls[0].cancelled = True
    rig.ask(request())
    rig.desk.put(WATCH, check(""), "next")
    until(lambda: watched(rig, "next"), "a place")


def test_idle_loop_comes_round(rig: Rig) -> None:
    first = rig.loop.ticked_at
    until(lambda: rig.loop.ticked_at > first, "a tick")
