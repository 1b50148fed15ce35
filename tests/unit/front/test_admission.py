"""Who is let in, and about what: through the real loop, over real files."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2
from sidestep.v1 import decision_pb2

from sidecar.front.transport import StatusCode
from sidecar.journal.record import BatchRecord, Record
from sidecar.page import ERRORS, WorkerWord
from tests.fakes.callers import CALLERS, TOKENS, Mount, bearer
from tests.fakes.desk import CHECK, EVALUATE, EVALUATE_BATCH, LIST, WATCH
from tests.fakes.stock import exempted, request, satisfied
from tests.unit.front.rig import Rig

PAYMENTS, BROWSING = bearer(TOKENS["payments"]), bearer(TOKENS["browsing"])
NO_TOKEN = (StatusCode.UNAUTHENTICATED, "a caller's token is needed: authorization: Bearer TOKEN")


@pytest.fixture
def mount(tmp_path: Path) -> Mount:
    return Mount(tmp_path / "callers")


@pytest.fixture
def guarded(rigged: Callable[..., Rig], mount: Mount) -> Rig:
    return rigged(callers=mount.callers)


def errors(rig: Rig, name: str) -> int:
    return rig.slot.get(WorkerWord.ERRORS, ERRORS.index(name))


def follow(rig: Rig) -> None:
    """As the worker's main thread does from time to time, after the pause between two looks."""
    assert rig.admission is not None
    rig.admission._look_at = 0.0
    rig.admission.follow()


def knows(rig: Rig, token: str) -> bool:
    handle = object()
    rig.desk.put(EVALUATE, request(), handle, authorization=bearer(token))
    rig.ended(handle)
    return handle in rig.desk.answers


def test_caller_is_served_and_its_name_recorded(guarded: Rig) -> None:
    guarded.ask(exempted(request_id="r1"), authorization=PAYMENTS)
    guarded.desk.put(
        EVALUATE_BATCH,
        decision_pb2.EvaluateBatchRequest(requests=[request(), exempted()]),
        "batch",
        authorization=PAYMENTS,
    )
    assert all(result.HasField("response") for result in guarded.batch("batch"))
    guarded.ask(request(), authorization=BROWSING)
    callers = [record.caller for record in guarded.journalled() if isinstance(record, Record | BatchRecord)]
    assert callers == ["payments"] * 4 + ["browsing"]


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "bEaReR"])
def test_case_of_the_scheme_does_not_matter(guarded: Rig, scheme: str) -> None:
    assert guarded.ask(request(), authorization=f"{scheme} {TOKENS['payments']}")


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Bearer ",
        TOKENS["payments"],
        f"Basic {TOKENS['payments']}",
        f"Bearer{TOKENS['payments']}",
        f"Bearer  {TOKENS['payments']}",
        f"Bearer {TOKENS['payments'].upper()}",
        f"Bearer {TOKENS['payments'][:-1]}",
        f"Bearer {TOKENS['payments']}0",
        f"Bearer {TOKENS['payments']},{TOKENS['browsing']}",
        "Bearer " + "x" * 100_000,
        "Bearer ü\ud800",
    ],
)
def test_without_a_callers_token_everyone_is_told_the_same(guarded: Rig, authorization: str) -> None:
    guarded.desk.put(EVALUATE, request(), "one", authorization=authorization)
    guarded.desk.put(EVALUATE_BATCH, b"\xff\xff", "many", authorization=authorization)
    assert guarded.failure("one") == guarded.failure("many") == NO_TOKEN
    assert errors(guarded, "unauthenticated") == 2
    assert guarded.journalled() == []


def test_other_action_is_forbidden_and_named(guarded: Rig) -> None:
    guarded.desk.put(EVALUATE, request(action="browse.items"), "one", authorization=PAYMENTS)
    assert guarded.failure("one") == (StatusCode.PERMISSION_DENIED, "payments may not ask about browse.items")
    assert errors(guarded, "permission_denied") == 1
    assert guarded.journalled() == []


def test_each_entry_of_a_batch_is_permitted_by_itself(guarded: Rig) -> None:
    questions = [request(), request(action="browse.items"), request(""), exempted()]
    batch = decision_pb2.EvaluateBatchRequest(requests=questions)
    guarded.desk.put(EVALUATE_BATCH, batch, "batch", authorization=PAYMENTS)
    results = guarded.batch("batch")
    assert [result.error.code for result in results] == [
        0,
        StatusCode.PERMISSION_DENIED,
        StatusCode.INVALID_ARGUMENT,
        0,
    ]
    assert results[1].error.message == "payments may not ask about browse.items"
    assert errors(guarded, "permission_denied") == 1
    assert len(guarded.records()) == 2


def test_other_rpc_is_forbidden(guarded: Rig) -> None:
    batch = decision_pb2.EvaluateBatchRequest(requests=[request()])
    guarded.desk.put(EVALUATE_BATCH, batch, "batch", authorization=BROWSING)
    assert guarded.failure("batch") == (StatusCode.PERMISSION_DENIED, "browsing may not call EvaluateBatch")


@pytest.mark.parametrize("action", ["", "not an action", "payments.transfer\n", "x" * 500])
def test_what_is_no_action_is_said_to_be_none(guarded: Rig, action: str) -> None:
    guarded.desk.put(EVALUATE, request(action=action), "one", authorization=BROWSING)
    code, message = guarded.failure("one")
    assert code is StatusCode.INVALID_ARGUMENT
    assert message.startswith("action.name: ")
    assert len(message) < 200


def test_explanation_is_for_callers_that_may_diagnose(guarded: Rig) -> None:
    """The rig's servicer would explain to anyone who is not identified."""
    assert guarded.ask(request(explain=True), authorization=PAYMENTS).HasField("explanation")
    assert not guarded.ask(request(explain=True), authorization=BROWSING).HasField("explanation")


def test_health_is_for_everyone(guarded: Rig) -> None:
    question = health_pb2.HealthCheckRequest()
    for method, handle in ((CHECK, "check"), (LIST, "list"), (WATCH, "watch")):
        guarded.desk.put(method, question, handle)
    guarded.ended("check", "list")
    assert guarded.desk.answers.keys() == {"check", "list"}
    assert guarded.desk.messages["watch"]


def test_without_the_setting_everyone_is_served_and_nobody_named(rig: Rig) -> None:
    assert rig.ask(satisfied(), authorization="Bearer whatever")
    assert rig.records()[0].caller == ""


def test_refusals_are_logged_once_a_second_without_tokens(
    guarded: Rig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    guess = "guess-0123456789-guess"
    for number in range(50):
        guarded.desk.put(EVALUATE, request("alice"), number, authorization=bearer(guess))
    guarded.ended(*range(50))
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "refused 1 calls, the last one without the token of a caller"
    ]
    monkeypatch.setattr("sidecar.front.admission._LOG_EVERY_S", 0.0)
    assert guarded.admission is not None
    guarded.admission._log_at = 0.0
    guarded.desk.put(EVALUATE, request("alice", "browse.items"), "last", authorization=PAYMENTS)
    guarded.ended("last")
    assert caplog.records[-1].getMessage() == "refused 50 calls, the last one of payments: not its action"
    for secret in (guess, *TOKENS.values(), "alice"):
        assert secret not in caplog.text


# Following the files


def test_token_is_replaced_without_a_gap(guarded: Rig, mount: Mount) -> None:
    old, new = TOKENS["payments"], "another-token-0123456789"
    mount.put(payments=f"{old}\n{new}\n")
    follow(guarded)
    assert knows(guarded, old)
    assert knows(guarded, new)
    mount.put(payments=new)
    follow(guarded)
    assert not knows(guarded, old)
    assert knows(guarded, new)


def test_token_file_that_appears_and_vanishes_is_followed(guarded: Rig, mount: Mount) -> None:
    mount.put(payments=None)
    follow(guarded)
    assert not knows(guarded, TOKENS["payments"])
    assert guarded.slot.get(WorkerWord.CALLERS) == 2
    mount.put(payments=TOKENS["payments"])
    follow(guarded)
    assert knows(guarded, TOKENS["payments"])


def test_permissions_that_change_hold_at_once(guarded: Rig, mount: Mount) -> None:
    assert guarded.ask(request(explain=True), authorization=PAYMENTS).HasField("explanation")
    mount.put(**{"callers.yaml": mount.document([CALLERS[0] | {"diagnose": False}])})
    follow(guarded)
    assert not guarded.ask(request(explain=True), authorization=PAYMENTS).HasField("explanation")
    assert not knows(guarded, TOKENS["browsing"])
    assert guarded.slot.get(WorkerWord.CALLERS) == 1


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"callers.yaml": "callers: ["}, "not YAML"),
        ({"callers.yaml": None}, "no such file"),
        ({"payments": ""}, "holds no token"),
        ({"payments": TOKENS["browsing"]}, "holds a token that"),
    ],
)
def test_bad_file_changes_nothing_and_is_said_once(
    guarded: Rig, mount: Mount, caplog: pytest.LogCaptureFixture, files: dict[str, str | None], problem: str
) -> None:
    good = dict(mount._files)
    mount.put(**files)
    for _ in range(3):
        follow(guarded)
    assert knows(guarded, TOKENS["payments"])
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert line.startswith(f"SIDESTEP_CALLERS: {mount.callers}: ")
    assert problem in line
    assert line.endswith("; those who might call before still may")
    assert not any(token in line for token in TOKENS.values())
    slot = guarded.slot
    assert [slot.get(word) for word in (WorkerWord.CALLERS_UNUSABLE, WorkerWord.CALLERS_FAILURES)] == [1, 1]
    assert slot.get(WorkerWord.CALLERS) == 2
    mount.put(**good)
    follow(guarded)
    assert [slot.get(word) for word in (WorkerWord.CALLERS_UNUSABLE, WorkerWord.CALLERS_FAILURES)] == [0, 1]
    mount.put(**files)
    follow(guarded)
    assert [slot.get(word) for word in (WorkerWord.CALLERS_UNUSABLE, WorkerWord.CALLERS_FAILURES)] == [1, 2]


def test_nobody_is_let_in_while_nobody_was_ever_known(
    rigged: Callable[..., Rig], mount: Mount, caplog: pytest.LogCaptureFixture
) -> None:
    mount.put(**{"callers.yaml": "callers: ["})
    rig = rigged(callers=mount.callers)
    rig.desk.put(EVALUATE, request(), "one", authorization=PAYMENTS)
    assert rig.failure("one") == (StatusCode.UNAVAILABLE, "the sidecar's callers cannot be read")
    assert caplog.text.rstrip().endswith("; nobody may call")
    mount.put(**{"callers.yaml": mount.document(CALLERS)})
    follow(rig)
    assert knows(rig, TOKENS["payments"])


def test_files_are_looked_at_about_once_a_second(guarded: Rig, mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    assert guarded.admission is not None
    looked = guarded.admission._look_at
    monkeypatch.setattr("sidecar.front.admission.time.monotonic", lambda: looked - 0.01)
    mount.put(payments="another-token-0123456789")
    guarded.admission.follow()
    assert guarded.admission._look_at == looked
    monkeypatch.setattr("sidecar.front.admission.time.monotonic", lambda: looked)
    guarded.admission.follow()
    assert guarded.admission._look_at == looked + 1.0
    monkeypatch.undo()
    assert knows(guarded, "another-token-0123456789")


def test_unchanged_files_are_not_read_again(guarded: Rig, mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    now_ns = time.time_ns
    monkeypatch.setattr("engine.watched.time.time_ns", lambda: now_ns() + 3600 * 10**9)
    follow(guarded)

    def never(*_: object) -> None:
        raise AssertionError

    with monkeypatch.context() as patched:
        patched.setattr("sidecar.front.admission.read_callers", never)
        follow(guarded)
        mount.put(payments="another-token-0123456789")
        with pytest.raises(AssertionError):
            follow(guarded)


def test_warning_about_a_file_is_not_repeated(
    rigged: Callable[..., Rig], mount: Mount, caplog: pytest.LogCaptureFixture
) -> None:
    mount.put(browsing=None)
    rig = rigged(callers=mount.callers)
    for token in ("first-token-0123456789", "second-token-0123456789"):
        mount.put(payments=token)
        follow(rig)
        assert knows(rig, token)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len([line for line in warnings if "no such file" in line]) == 1
