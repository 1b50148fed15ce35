from __future__ import annotations

import asyncio
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import sidestep.client
from sidestep.client import (
    AsyncClient,
    Basis,
    ChallengeMethod,
    Client,
    ClosedClientError,
    Decision,
    FailMode,
    InvalidQuestionError,
    Outcome,
    Question,
    Reason,
    Revision,
)
from sidestep.v1 import decision_pb2

from tests.fakes.decision import Refuse, ScriptedSidecar

ROOT = Path(__file__).parents[3]
QUESTION = Question(subject="alice", action="payments.transfer")
ALLOW = decision_pb2.EvaluateResponse(decision_id="d1", outcome=decision_pb2.OUTCOME_ALLOW)
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

Ask = Callable[..., Decision]


def ask_sync(address: str, question: Question = QUESTION, *, client_options: Any = None, **options: Any) -> Decision:
    with Client(address, **(client_options or {})) as client:
        return client.evaluate(question, **options)


def ask_async(address: str, question: Question = QUESTION, *, client_options: Any = None, **options: Any) -> Decision:
    async def run() -> Decision:
        async with AsyncClient(address, **(client_options or {})) as client:
            return await client.evaluate(question, **options)

    return asyncio.run(run())


@pytest.fixture(params=[ask_sync, ask_async], ids=["sync", "async"])
def ask(request: pytest.FixtureRequest) -> Ask:
    answer: Ask = request.param
    return answer


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def refuse(code: grpc.StatusCode, details: str = "") -> Callable[[Any], Any]:
    def answer(request: Any) -> Any:
        raise Refuse(code, details)

    return answer


# Answers


def test_allow_arrives(ask: Ask) -> None:
    with ScriptedSidecar(lambda request: ALLOW) as sidecar:
        decision = ask(sidecar.address, timeout_s=5)
    assert decision.allowed
    assert (decision.outcome, decision.decision_id) == (Outcome.ALLOW, "d1")
    assert (decision.fail_mode_used, decision.error, decision.www_authenticate) == (False, None, None)
    assert sidecar.requests[0].subject.id == "alice"


def test_every_part_of_an_answer_arrives(ask: Ask) -> None:
    answer = decision_pb2.EvaluateResponse(
        decision_id="d1",
        outcome=decision_pb2.OUTCOME_STEP_UP,
        basis=decision_pb2.BASIS_CHALLENGE,
        reason=decision_pb2.COARSE_REASON_AUTHENTICATION_NEEDED,
        achieved_acr="nist-aal1",
        waived_acrs=["nist-aal2"],
        grant="tenants/acme/grants/g1",
    )
    answer.requirement.acrs.append("phr")
    answer.requirement.max_age.seconds = 300
    answer.challenge.acr_values = "phr"
    answer.challenge.max_age_s = 0
    answer.challenge.www_authenticate = 'Bearer error="insufficient_user_authentication", acr_values="phr"'
    answer.challenge.methods.add(id="webauthn", acr="phr", amr=["hwk"])
    answer.challenge.methods.add(id="totp", acr="nist-aal2")
    answer.data.urgent.epoch, answer.data.urgent.revision = 2, 42
    answer.data.age.nanos = 250_000_000
    answer.explanation.smallest_change = "a fresher login"
    with ScriptedSidecar(lambda request: answer) as sidecar:
        decision = ask(sidecar.address, timeout_s=5)
    assert decision == Decision(
        outcome=Outcome.STEP_UP,
        basis=Basis.CHALLENGE,
        reason=Reason.AUTHENTICATION_NEEDED,
        decision_id="d1",
        required_acrs=("phr",),
        required_max_age_s=300.0,
        achieved_acr="nist-aal1",
        waived_acrs=("nist-aal2",),
        methods=(ChallengeMethod("webauthn", "phr", ("hwk",)), ChallengeMethod("totp", "nist-aal2")),
        acr_values="phr",
        max_age_s=0,
        www_authenticate='Bearer error="insufficient_user_authentication", acr_values="phr"',
        grant="tenants/acme/grants/g1",
        revision=Revision(2, 42),
        data_age_s=0.25,
        explanation=answer.explanation,
    )


@pytest.mark.parametrize("number", [0, 17, -1, 2**31 - 1])
def test_unknown_outcome_is_step_up(ask: Ask, number: int) -> None:
    answer = decision_pb2.EvaluateResponse(decision_id="d1")
    answer.outcome = number  # type: ignore[assignment]
    with ScriptedSidecar(lambda request: answer) as sidecar:
        decision = ask(sidecar.address, timeout_s=5, client_options={"fail_mode": FailMode.ALLOW})
    assert decision.outcome is Outcome.STEP_UP
    assert str(number) in (decision.error or "")
    assert "insufficient_user_authentication" in (decision.www_authenticate or "")


def test_newer_message_is_understood_in_its_known_part(ask: Ask) -> None:
    answer = decision_pb2.EvaluateResponse(outcome=decision_pb2.OUTCOME_DENY, decision_id="d1")
    answer.basis = answer.reason = 99  # type: ignore[assignment]
    newer = answer.SerializeToString() + b"\xfa\x7f\x05hello" + b"\xf0\x7f\x01"  # fields 2047 and 2046
    with ScriptedSidecar(lambda request: newer) as sidecar:
        decision = ask(sidecar.address, timeout_s=5)
    assert (decision.outcome, decision.decision_id, decision.fail_mode_used) == (Outcome.DENY, "d1", False)
    assert (decision.basis, decision.reason) == (Basis.UNSPECIFIED, Reason.UNSPECIFIED)


def test_empty_answer_is_step_up(ask: Ask) -> None:
    with ScriptedSidecar(lambda request: b"") as sidecar:
        assert ask(sidecar.address, timeout_s=5).outcome is Outcome.STEP_UP


def test_decision_has_no_truth_value() -> None:
    with pytest.raises(TypeError, match="allowed"):
        bool(Decision(outcome=Outcome.DENY))


# No answer


def assert_failed_safe(decision: Decision, code: str) -> None:
    assert decision.outcome is Outcome.STEP_UP
    assert decision.fail_mode_used
    assert not decision.allowed
    assert (decision.basis, decision.reason) == (Basis.FAIL_SAFE, Reason.DATA_UNAVAILABLE)
    assert (decision.error or "").startswith(code)
    assert decision.www_authenticate is not None
    assert decision.www_authenticate.startswith('Bearer error="insufficient_user_authentication"')


def test_no_sidecar_is_step_up_at_once(ask: Ask) -> None:
    begin = time.monotonic()
    assert_failed_safe(ask(f"127.0.0.1:{free_port()}", timeout_s=30), "UNAVAILABLE")
    assert time.monotonic() - begin < 10


def test_no_unix_socket_is_step_up(ask: Ask, tmp_path: Path) -> None:
    assert_failed_safe(ask(f"unix://{tmp_path}/none.sock", timeout_s=5), "UNAVAILABLE")


def test_hanging_sidecar_is_step_up_at_the_deadline(ask: Ask) -> None:
    with ScriptedSidecar(lambda request: sidecar.release.wait()) as sidecar:
        begin = time.monotonic()
        decision = ask(sidecar.address, timeout_s=0.3)
        elapsed = time.monotonic() - begin
    assert_failed_safe(decision, "DEADLINE_EXCEEDED")
    assert 0.25 < elapsed < 3


def test_listener_that_never_speaks_is_step_up_at_the_deadline(ask: Ask) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        decision = ask(f"127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.3)
    assert_failed_safe(decision, "DEADLINE_EXCEEDED")


def test_default_timeout_is_the_clients(ask: Ask) -> None:
    with ScriptedSidecar(lambda request: sidecar.release.wait()) as sidecar:
        assert_failed_safe(ask(sidecar.address, client_options={"timeout_s": 0.2}), "DEADLINE_EXCEEDED")


def test_sidecar_killed_during_the_call_is_step_up(ask: Ask) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.fakes.decision", "0"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()

            def kill_when_asked() -> None:
                assert process.stdout is not None
                process.stdout.readline()
                process.kill()

            killer = threading.Thread(target=kill_when_asked)
            killer.start()
            decision = ask(address, timeout_s=20)
            killer.join(5)
        finally:
            process.kill()
    assert_failed_safe(decision, "UNAVAILABLE")


@pytest.mark.parametrize(
    "code", [code for code in grpc.StatusCode if code not in {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT}]
)
def test_every_failure_status_is_step_up(code: grpc.StatusCode) -> None:
    with ScriptedSidecar(refuse(code, "because")) as sidecar:
        assert_failed_safe(ask_sync(sidecar.address, timeout_s=5), code.name)


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        (grpc.StatusCode.UNAVAILABLE, Outcome.ALLOW),
        (grpc.StatusCode.DEADLINE_EXCEEDED, Outcome.ALLOW),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Outcome.STEP_UP),
        (grpc.StatusCode.INTERNAL, Outcome.STEP_UP),
        (grpc.StatusCode.PERMISSION_DENIED, Outcome.STEP_UP),
        (grpc.StatusCode.UNIMPLEMENTED, Outcome.STEP_UP),
    ],
)
def test_fail_mode_allow_covers_absence_only(ask: Ask, code: grpc.StatusCode, outcome: Outcome) -> None:
    with ScriptedSidecar(refuse(code)) as sidecar:
        decision = ask(sidecar.address, timeout_s=5, client_options={"fail_mode": FailMode.ALLOW})
    assert (decision.outcome, decision.fail_mode_used) == (outcome, True)


def test_fail_mode_allow_is_announced(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "sidestep.client"):
        Client(fail_mode=FailMode.ALLOW).close()
        assert "ALLOW" in caplog.text
        caplog.clear()
        Client(fail_mode=FailMode.DENY).close()
        assert caplog.text == ""


def test_fail_mode_deny(ask: Ask) -> None:
    decision = ask(f"127.0.0.1:{free_port()}", timeout_s=5, client_options={"fail_mode": FailMode.DENY})
    assert (decision.outcome, decision.fail_mode_used, decision.www_authenticate) == (Outcome.DENY, True, None)


def test_undecodable_answer_is_step_up(ask: Ask) -> None:
    with ScriptedSidecar(lambda request: b"\xff\xff\xff") as sidecar:
        assert_failed_safe(ask(sidecar.address, timeout_s=5), "INTERNAL")


def test_oversized_answer_is_step_up(ask: Ask) -> None:
    with ScriptedSidecar(lambda request: b"\x0a" + b"\xff\xff\x7f" + bytes(5 << 20)) as sidecar:
        assert_failed_safe(ask(sidecar.address, timeout_s=5), "RESOURCE_EXHAUSTED")


def test_restarted_sidecar_is_used_again_soon() -> None:
    address = f"127.0.0.1:{free_port()}"
    with Client(address, timeout_s=1) as client:
        with ScriptedSidecar(lambda request: ALLOW, address):
            assert client.evaluate(QUESTION).allowed
        assert_failed_safe(client.evaluate(QUESTION), "UNAVAILABLE")
        assert_failed_safe(client.evaluate(QUESTION), "UNAVAILABLE")
        with ScriptedSidecar(lambda request: ALLOW, address):
            begin = time.monotonic()
            wait_until(lambda: client.evaluate(QUESTION).allowed, 5)
            assert time.monotonic() - begin < 2.5


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline
        pause.wait(0.02)


def test_proxy_of_the_environment_is_not_used(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "grpc_proxy", "https_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with ScriptedSidecar(lambda request: ALLOW) as sidecar:
        assert ask(sidecar.address, timeout_s=5).allowed


# Programming errors


def test_refused_question_raises(ask: Ask) -> None:
    answer = refuse(grpc.StatusCode.INVALID_ARGUMENT, "context.ip: not an address")
    with ScriptedSidecar(answer) as sidecar, pytest.raises(InvalidQuestionError, match=r"context\.ip") as caught:
        ask(sidecar.address, timeout_s=5, client_options={"fail_mode": FailMode.ALLOW})
    assert caught.value.index is None


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf")])
def test_impossible_timeout_is_refused(ask: Ask, timeout_s: float) -> None:
    with pytest.raises(ValueError, match="timeout_s"):
        ask("127.0.0.1:1", timeout_s=timeout_s)
    with pytest.raises(ValueError, match="timeout_s"):
        Client(timeout_s=timeout_s)


def test_question_is_given_whole_or_as_fields() -> None:
    with ScriptedSidecar(lambda request: ALLOW) as sidecar, Client(sidecar.address, timeout_s=5) as client:
        assert client.evaluate(subject="alice", action="a.b", amount=("EUR", "1")).allowed
        assert sidecar.requests[-1].context.amount.units == 1
        with pytest.raises(TypeError, match="ip"):
            client.evaluate(QUESTION, ip="203.0.113.9")
        with pytest.raises(TypeError, match="action"):
            client.evaluate(subject="alice")
        with pytest.raises(TypeError, match="colour"):
            client.evaluate(subject="alice", action="a.b", colour="red")  # type: ignore[call-arg]
        with pytest.raises(TypeError, match="action"):
            client.evaluate()


def test_closed_client_says_so() -> None:
    client = Client()
    client.close()
    client.close()
    with pytest.raises(ClosedClientError):
        client.evaluate(QUESTION)

    async def run() -> None:
        unused = AsyncClient()
        await unused.close()
        with pytest.raises(ClosedClientError):
            await unused.evaluate(QUESTION)

    asyncio.run(run())


def test_empty_address_is_refused() -> None:
    with pytest.raises(ValueError, match="address"):
        Client("")


# Batches


def batch_sync(address: str, questions: list[Question], **options: Any) -> Any:
    with Client(address, timeout_s=5, **options) as client:
        return client.evaluate_batch(questions)


def batch_async(address: str, questions: list[Question], **options: Any) -> Any:
    async def run() -> Any:
        async with AsyncClient(address, timeout_s=5, **options) as client:
            return await client.evaluate_batch(questions)

    return asyncio.run(run())


@pytest.fixture(params=[batch_sync, batch_async], ids=["sync", "async"])
def ask_batch(request: pytest.FixtureRequest) -> Any:
    return request.param


def batch_of(*results: Any) -> decision_pb2.EvaluateBatchResponse:
    return decision_pb2.EvaluateBatchResponse(results=results)


def result(response: decision_pb2.EvaluateResponse) -> decision_pb2.EvaluateBatchResult:
    return decision_pb2.EvaluateBatchResult(response=response)


def error(code: grpc.StatusCode, message: str = "m") -> decision_pb2.EvaluateBatchResult:
    return decision_pb2.EvaluateBatchResult(error=decision_pb2.BatchError(code=code.value[0], message=message))


def test_batch_is_answered_in_order(ask_batch: Any) -> None:
    deny = decision_pb2.EvaluateResponse(outcome=decision_pb2.OUTCOME_DENY)
    answer = batch_of(
        result(ALLOW), error(grpc.StatusCode.UNAVAILABLE), result(deny), decision_pb2.EvaluateBatchResult()
    )
    with ScriptedSidecar(lambda request: answer) as sidecar:
        decisions = ask_batch(sidecar.address, [QUESTION] * 4)
    assert [decision.outcome for decision in decisions] == ["ALLOW", "STEP_UP", "DENY", "STEP_UP"]
    assert [decision.fail_mode_used for decision in decisions] == [False, True, False, True]
    assert len(sidecar.requests[0].requests) == 4


def test_batch_result_without_content_never_opens_the_door(ask_batch: Any) -> None:
    unknown = decision_pb2.EvaluateBatchResult(error=decision_pb2.BatchError(code=999))
    with ScriptedSidecar(lambda request: batch_of(unknown, decision_pb2.EvaluateBatchResult())) as sidecar:
        decisions = ask_batch(sidecar.address, [QUESTION] * 2, fail_mode=FailMode.ALLOW)
    assert [decision.outcome for decision in decisions] == [Outcome.STEP_UP, Outcome.STEP_UP]


def test_refused_question_of_a_batch_raises_with_its_index(ask_batch: Any) -> None:
    answer = batch_of(result(ALLOW), error(grpc.StatusCode.INVALID_ARGUMENT, "subject.id: too long"))
    with ScriptedSidecar(lambda request: answer) as sidecar, pytest.raises(InvalidQuestionError) as caught:
        ask_batch(sidecar.address, [QUESTION] * 2)
    assert (caught.value.index, caught.value.problem) == (1, "subject.id: too long")


@pytest.mark.parametrize("count", [0, 1, 3])
def test_batch_answer_of_another_length_is_no_answer(ask_batch: Any, count: int) -> None:
    with ScriptedSidecar(lambda request: batch_of(*[result(ALLOW)] * count)) as sidecar:
        decisions = ask_batch(sidecar.address, [QUESTION] * 2, fail_mode=FailMode.ALLOW)
    assert len(decisions) == 2
    for decision in decisions:
        assert_failed_safe(decision, "INTERNAL")


def test_undecodable_batch_answer_is_step_up_for_all(ask_batch: Any) -> None:
    with ScriptedSidecar(lambda request: b"\xff\xff\xff") as sidecar:
        decisions = ask_batch(sidecar.address, [QUESTION] * 2, fail_mode=FailMode.ALLOW)
    assert len(decisions) == 2
    for decision in decisions:
        assert_failed_safe(decision, "INTERNAL")


def test_batch_without_sidecar_is_step_up_for_all(ask_batch: Any) -> None:
    decisions = ask_batch(f"127.0.0.1:{free_port()}", [QUESTION] * 3)
    assert len(decisions) == 3
    for decision in decisions:
        assert_failed_safe(decision, "UNAVAILABLE")


def test_empty_batch_asks_nobody(ask_batch: Any) -> None:
    assert list(ask_batch(f"127.0.0.1:{free_port()}", [])) == []


# Transport


def test_unix_sockets_work(ask: Ask, tmp_path: Path) -> None:
    with ScriptedSidecar(lambda request: ALLOW, f"unix://{tmp_path}/s.sock") as sidecar:
        assert ask(sidecar.address, timeout_s=5).allowed


def test_traceparent_travels(ask: Ask) -> None:
    with ScriptedSidecar(lambda request: ALLOW) as sidecar:
        assert ask(sidecar.address, timeout_s=5, traceparent=TRACEPARENT).allowed
    assert sidecar.metadata[0]["traceparent"] == TRACEPARENT


@pytest.mark.parametrize("traceparent", ["", "x", TRACEPARENT.upper(), TRACEPARENT + "\n", "ff" + TRACEPARENT[2:], "é"])
def test_malformed_traceparent_is_left_out(ask: Ask, traceparent: str) -> None:
    with ScriptedSidecar(lambda request: ALLOW) as sidecar:
        assert ask(sidecar.address, timeout_s=5, traceparent=traceparent).allowed
    assert "traceparent" not in sidecar.metadata[0]


def test_client_serves_many_threads() -> None:
    def answer(request: Any) -> Any:
        return decision_pb2.EvaluateResponse(outcome=decision_pb2.OUTCOME_ALLOW, decision_id=request.subject.id)

    seen: list[tuple[str, str]] = []
    with ScriptedSidecar(answer) as sidecar, Client(sidecar.address, timeout_s=10) as client:

        def work(name: str) -> None:
            seen.extend((name, client.evaluate(subject=name, action="a.b").decision_id) for _ in range(20))

        threads = [threading.Thread(target=work, args=(f"user-{n}",)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert len(seen) == 160
    assert all(name == answered for name, answered in seen)


def test_cancelled_task_cancels_the_call() -> None:
    async def run() -> None:
        async with AsyncClient(sidecar.address, timeout_s=30) as client:
            task = asyncio.create_task(client.evaluate(QUESTION))
            await asyncio.to_thread(sidecar.arrived.wait, 5)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    with ScriptedSidecar(lambda request: sidecar.release.wait()) as sidecar:
        asyncio.run(run())
    assert len(sidecar.requests) == 1


def test_closing_ends_calls_in_flight_safely() -> None:
    decisions: list[Decision] = []
    with ScriptedSidecar(lambda request: sidecar.release.wait()) as sidecar:
        client = Client(sidecar.address, timeout_s=30)
        thread = threading.Thread(target=lambda: decisions.append(client.evaluate(QUESTION)))
        thread.start()
        assert sidecar.arrived.wait(5)
        client.close()
        thread.join(5)
    assert_failed_safe(decisions[0], "CANCELLED")


def test_public_names_are_frozen() -> None:
    assert set(sidestep.client.__all__) == {
        "DEFAULT_ADDRESS",
        "DEFAULT_TIMEOUT_S",
        "AsyncClient",
        "Authentication",
        "Basis",
        "ChallengeMethod",
        "Client",
        "ClosedClientError",
        "Decision",
        "Dpop",
        "FailMode",
        "InvalidQuestionError",
        "Outcome",
        "Question",
        "QuestionFields",
        "Reason",
        "ReportError",
        "ReportFields",
        "ReportedAuthentication",
        "Revision",
        "ChallengeOutcome",
        "OutcomeError",
        "SettleError",
        "SidestepClientError",
    }
    public = {name for name in vars(sidestep.client) if not name.startswith("_")}
    assert public == set(sidestep.client.__all__)
    assert sidestep.client.DEFAULT_ADDRESS == "127.0.0.1:9191"
