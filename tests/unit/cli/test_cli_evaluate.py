"""`sidestep evaluate` against a real gRPC server with chosen answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner, Result
from sidestep.v1 import decision_pb2 as pb

from controlplane.cli.main import cli
from tests.fakes.decision import Refuse, ScriptedSidecar

REQUEST = """subject: {id: alice}
action: {name: payments.transfer}
context: {ip: 203.0.113.7, amount: {currency: EUR, units: 20}}
session: {startTime: 2026-01-01T10:00:00Z}
"""


def step_up(explain: bool = False) -> pb.EvaluateResponse:
    response = pb.EvaluateResponse(
        decision_id="0190-id",
        outcome="OUTCOME_STEP_UP",
        basis="BASIS_CHALLENGE",
        reason="COARSE_REASON_AUTHENTICATION_NEEDED",
        achieved_acr="nist-aal1",
    )
    response.requirement.acrs.append("phr")
    response.requirement.max_age.FromSeconds(300)
    response.requirement.evidence = 2
    for method, acr in (("webauthn", "phr"), ("totp", "nist-aal2")):
        response.challenge.methods.add(id=method, acr=acr)
    response.challenge.www_authenticate = 'Bearer error="insufficient_user_authentication", acr_values="phr"'
    response.data.urgent.epoch = 1
    response.data.urgent.revision = 42
    response.data.age.FromMilliseconds(1500)
    if explain:
        explanation = response.explanation
        explanation.steps.add(step=1, title="policies", detail="payments@3")
        explanation.steps.add(step=4, title="met by one authentication", detail="unmet: ACR_UNMET payments/[base]")
        factor = explanation.factors.add(factor="device", passed=False)
        factor.checks.add(name="device.trust", measured="0.4", threshold="0.85", passed=False)
        explanation.reasons.append("ACR_UNMET payments/base")
        explanation.shadows.add(policy="candidate@1", outcome="OUTCOME_ALLOW", basis="BASIS_NOT_REQUIRED")
        explanation.smallest_change = "authenticate with webauthn"
    return response


def ask(address: str, *options: str, request: str = REQUEST) -> Result:
    return CliRunner(env={"SIDESTEP_TENANT": "acme"}).invoke(
        cli, ["evaluate", "-f", "-", "--address", address, *options], input=request
    )


@pytest.mark.parametrize(("outcome", "code"), [("ALLOW", 0), ("STEP_UP", 10), ("DENY", 11), ("UNSPECIFIED", 10)])
def test_the_exit_code_is_the_outcome(outcome: str, code: int) -> None:
    with ScriptedSidecar(lambda request: pb.EvaluateResponse(outcome=f"OUTCOME_{outcome}")) as sidecar:
        assert ask(sidecar.address).exit_code == code


def test_the_question_is_sent_as_written() -> None:
    with ScriptedSidecar(lambda request: step_up()) as sidecar:
        ask(sidecar.address)
        ask(sidecar.address, "--tenant", "other")
        ask(sidecar.address, request="tenant: third\n" + REQUEST)
        asked: list[Any] = sidecar.requests
        assert [request.tenant for request in asked] == ["acme", "other", "third"]
        assert (asked[0].subject.id, asked[0].context.amount.units, asked[0].explain) == ("alice", 20, False)
        assert asked[0].session.start_time.ToJsonString() == "2026-01-01T10:00:00Z"


def test_a_decision_is_shown_for_a_person() -> None:
    with ScriptedSidecar(lambda request: step_up()) as sidecar:
        shown = ask(sidecar.address).stdout
    assert shown.splitlines()[0] == "STEP_UP  CHALLENGE: authentication needed"
    for text in (
        "phr, at most 5m old, verified",
        "nist-aal1",
        "webauthn (phr), then totp (nist-aal2)",
        'Bearer error="insufficient_user_authentication", acr_values="phr"',
        "1s500ms old, urgent 1:42",
    ):
        assert text in shown


def test_an_explanation_shows_steps_factors_and_the_smallest_change() -> None:
    with ScriptedSidecar(lambda request: step_up(request.explain)) as sidecar:
        shown = ask(sidecar.address, "--explain").stdout
    lines = shown.splitlines()
    assert "1. policies  payments@3" in lines
    assert "4. met by one authentication  unmet: ACR_UNMET payments/[base]" in lines
    assert any(line.split() == ["device.trust", "0.4", "0.85", "failed"] for line in lines)
    assert "observed: candidate@1 would have said ALLOW, NOT_REQUIRED" in lines
    assert lines[-1] == "to get ALLOW: authenticate with webauthn"


def test_a_withheld_explanation_is_noted() -> None:
    with ScriptedSidecar(lambda request: step_up()) as sidecar:
        assert "diagnose permission" in ask(sidecar.address, "--explain").stderr


def test_json_has_every_field() -> None:
    with ScriptedSidecar(lambda request: pb.EvaluateResponse(outcome="OUTCOME_ALLOW")) as sidecar:
        answer = json.loads(ask(sidecar.address, "-o", "json").stdout)
    assert answer["outcome"] == "OUTCOME_ALLOW"
    assert answer["waivedAcrs"] == []
    assert answer["grant"] == ""


def test_a_sidecar_on_a_unix_socket_is_asked(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/sidecar.sock"
    with ScriptedSidecar(lambda request: pb.EvaluateResponse(outcome="OUTCOME_DENY"), address):
        assert ask(address).exit_code == 11


def test_an_unsynced_sidecar_and_none_at_all_are_unreachable(tmp_path: Path) -> None:
    def unsynced(request: Any) -> Any:
        raise Refuse(grpc.StatusCode.UNAVAILABLE, "never synced")

    with ScriptedSidecar(unsynced) as sidecar:
        result = ask(sidecar.address)
        assert (result.exit_code, result.stderr) == (3, f"error: {sidecar.address}: unavailable: never synced\n")
    result = ask(f"unix:{tmp_path}/none.sock")
    assert result.exit_code == 3
    assert len(result.stderr.splitlines()) == 1


def test_a_refused_question_says_why() -> None:
    def invalid(request: Any) -> Any:
        raise Refuse(grpc.StatusCode.INVALID_ARGUMENT, "request.subject.id: must not be empty")

    with ScriptedSidecar(invalid) as sidecar:
        result = ask(sidecar.address)
    assert (result.exit_code, result.stderr) == (1, "error: request.subject.id: must not be empty\n")


@pytest.mark.parametrize(
    ("request_text", "problem"),
    [
        ("subject: {id: alice}\nactoin: {name: x}\n", 'has no field named "actoin"'),
        ("subject: {id: [1]}\n", "stdin:1:15: subject.id:"),
        ("- 1\n", "stdin:1:1: must be a mapping"),
        ("", "has 0 documents, not one question"),
        ("a: 1\n---\nb: 1\n", "has 2 documents, not one question"),
    ],
)
def test_a_bad_question_is_refused_with_its_place(request_text: str, problem: str) -> None:
    result = ask("127.0.0.1:1", request=request_text)
    assert result.exit_code == 2
    assert problem in result.stderr


def allow(request: Any) -> Any:
    return pb.EvaluateResponse(outcome="OUTCOME_ALLOW")


def test_a_callers_token_is_sent(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("payments-token-0123456789\nanother-token-0123456789\n")
    with ScriptedSidecar(allow) as sidecar:
        assert ask(sidecar.address, "--token-file", str(path)).exit_code == 0
        assert ask(sidecar.address).exit_code == 0
        assert ask(sidecar.address.replace("127.0.0.1", "localhost"), "--token-file", str(path)).exit_code == 0
    sent = [metadata.get("authorization") for metadata in sidecar.metadata]
    assert sent == ["Bearer payments-token-0123456789", None, "Bearer payments-token-0123456789"]


@pytest.mark.parametrize("content", [b"", b"\npayments-token", b"two words", b"payments-\xff-token"])
def test_a_file_without_a_token_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    with ScriptedSidecar(allow) as sidecar:
        result = ask(sidecar.address, "--token-file", str(path))
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: --token-file: {path}: the first line is no token")
    assert "words" not in result.stderr
    assert sidecar.requests == []


@pytest.mark.parametrize("address", ["sidecar.acme.example:9191", "10.0.0.1:9191", "dns:///127.0.0.1:9191"])
def test_a_token_does_not_leave_this_machine(tmp_path: Path, address: str) -> None:
    path = tmp_path / "token"
    path.write_text("payments-token-0123456789")
    result = ask(address, "--token-file", str(path))
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: --address: {address} is not on this machine")


def test_a_refused_caller_is_told_so() -> None:
    def refuse(request: Any) -> Any:
        raise Refuse(grpc.StatusCode.PERMISSION_DENIED, "payments may not ask about browse.items")

    with ScriptedSidecar(refuse) as sidecar:
        result = ask(sidecar.address)
    assert (result.exit_code, result.stderr) == (1, "error: payments may not ask about browse.items\n")
