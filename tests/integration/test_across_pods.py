"""Several sidecars and a control plane, as processes: what each sees a little of is found by all together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
from sidestep.client import ChallengeOutcome, Client
from sidestep.v1 import admin_pb2, admin_pb2_grpc, decision_pb2, decision_pb2_grpc, usage_pb2, usage_pb2_grpc
from sidestep.v1 import resources_pb2 as pb

from controlplane.kinds import KINDS
from tests.conformance import tokens
from tests.conformance.records import build
from tests.fakes.stock import RECORDS, TENANT, exempted, request
from tests.processes import Program, controlplane, sidecar, until

LAPTOP = {"os": "macOS", "browser": "Firefox", "canvas": "c1"}
FAST = {"SIDESTEP_USAGE_INTERVAL": "200ms"}


class Fleet:
    """A control plane and sidecars that follow it."""

    def __init__(self, control: Program, pods: list[Program]) -> None:
        self.pods = pods
        self._channels = [grpc.insecure_channel(program.grpc) for program in (control, *pods)]
        self.admin = admin_pb2_grpc.AdminServiceStub(self._channels[0])  # type: ignore[no-untyped-call]
        self.usage = usage_pb2_grpc.UsageServiceStub(self._channels[0])  # type: ignore[no-untyped-call]
        self._stubs = [decision_pb2_grpc.DecisionServiceStub(channel) for channel in self._channels[1:]]  # type: ignore[no-untyped-call]

    def ask(self, pod: int, question: decision_pb2.EvaluateRequest) -> Any:
        return self._stubs[pod].Evaluate(question, timeout=5.0)

    def subject(self, name: str) -> pb.Subject:
        wanted = admin_pb2.GetResourceRequest(name=f"tenants/{TENANT}/subjects/{name}")
        return self.admin.GetResource(wanted, timeout=5.0).resource.subject  # type: ignore[no-any-return]

    def findings(self) -> list[usage_pb2.FleetFinding]:
        wanted = usage_pb2.ListFindingsRequest(parent=f"tenants/{TENANT}")
        return list(self.usage.ListFindings(wanted, timeout=5.0).findings)

    def abuse(self) -> usage_pb2.ClassAbuse:
        wanted = usage_pb2.ListClassAbuseRequest(parent=f"tenants/{TENANT}")
        (only,) = self.usage.ListClassAbuse(wanted, timeout=5.0).classes
        return only  # type: ignore[no-any-return]

    def close(self) -> None:
        for channel in self._channels:
            channel.close()


def answers(fleet: Fleet, pod: int, question: decision_pb2.EvaluateRequest, outcome: int) -> bool:
    try:
        return bool(fleet.ask(pod, question).outcome == outcome)
    except grpc.RpcError:
        return False  # nothing loaded yet


def load(control: Program, **changed: Any) -> None:
    """The stock's records, into a control plane."""
    payments = RECORDS["policies/payments"]
    records = RECORDS | {"policies/payments": payments | changed}
    with grpc.insecure_channel(control.grpc) as channel:
        stub = admin_pb2_grpc.AdminServiceStub(channel)  # type: ignore[no-untyped-call]
        for (collection, _), value in build(TENANT, records, datetime.now(UTC)).items():
            kind = KINDS[collection]
            resource = pb.Resource(**{kind.field: kind.message.FromString(value)})
            stub.PutResource(admin_pb2.PutResourceRequest(resource=resource), timeout=5.0)


@contextmanager
def fleet(tmp_path: Path, pods: int, transport: str = "native", **changed: Any) -> Iterator[Fleet]:
    with controlplane(tmp_path / "cp", SIDESTEP_CP_REVIEW_INTERVAL="200ms") as control:
        load(control, **changed)
        started: list[Program] = []
        stack: list[Any] = []
        try:
            for number in range(pods):
                settings = FAST | {
                    "SIDESTEP_CONTROL_PLANE": control.grpc,
                    "SIDESTEP_SIDECAR_NAME": f"pod-{number}",
                    "SIDESTEP_TRANSPORT": transport,
                }
                running = sidecar(tmp_path / f"pod-{number}", **settings)
                started.append(running.__enter__())
                stack.append(running)
            whole = Fleet(control, started)
            try:
                browse = request("bob", "browse.list", session=decision_pb2.SessionEvidence(id="s"))
                for pod in range(pods):
                    until(lambda pod=pod: answers(whole, pod, browse, decision_pb2.OUTCOME_ALLOW), f"pod {pod} to load")
                yield whole
            finally:
                whole.close()
        finally:
            for running in reversed(stack):
                running.__exit__(None, None, None)


def impersonated(subject: str) -> decision_pb2.EvaluateRequest:
    return request(subject, device=decision_pb2.DeviceEvidence(fingerprint=LAPTOP))


def fresh_login() -> decision_pb2.EvaluateRequest:
    """Alice on her laptop, who has just authenticated as strongly as is asked."""
    claims = {
        "iss": "https://idp.acme.example",
        "aud": "https://api.acme.example",
        "sub": "alice",
        "sid": "s9",
        "iat": "now",
        "exp": "now+1h",
        "acr": "phr",
        "auth_time": "now",
    }
    token = tokens.token({"key": "idp-1", "claims": claims}, datetime.now(UTC))
    question = exempted()
    question.session.CopyFrom(decision_pb2.SessionEvidence(id="s9", token=token))
    return question


def test_a_fingerprint_in_few_hands_in_each_pod_is_found_over_all_and_locks_nobody_out(tmp_path: Path) -> None:
    # Each pod's own guard would take more subjects.
    guards = {"sharedFingerprint": {"maxSubjects": 20, "window": "24h", "require": {"acr": "phr", "maxAge": "1h"}}}
    with fleet(tmp_path, 2, guards=guards) as running:
        assert running.ask(0, exempted()).outcome == decision_pb2.OUTCOME_ALLOW
        for pod in range(2):
            for number in range(12):
                running.ask(pod, impersonated(f"dummy-{pod}-{number}"))
        (finding,) = until(running.findings, "the finding")
        assert list(finding.sidecars) == ["pod-0", "pod-1"]
        assert round(finding.subjects) in range(24, 27)
        (suspect,) = until(lambda: running.subject("alice").suspects, "the mark")
        assert suspect.device == "laptop"
        # In every pod the victim is asked for an authentication after the finding, and not locked out.
        for pod in range(2):
            until(
                lambda pod=pod: answers(running, pod, exempted(), decision_pb2.OUTCOME_STEP_UP),
                f"pod {pod} to ask for an authentication",
            )
            until(
                lambda pod=pod: answers(running, pod, fresh_login(), decision_pb2.OUTCOME_ALLOW),
                f"pod {pod} to be content with one",
            )
        # A person finds it was a mistake.
        settle = usage_pb2.SettleFindingRequest(name=finding.name, state="FINDING_STATE_DISMISSED", reason="a kiosk")
        assert running.usage.SettleFinding(settle, timeout=5.0).changed == 1
        until(lambda: answers(running, 0, exempted(), decision_pb2.OUTCOME_ALLOW), "the exemption to be back")


@pytest.mark.parametrize("transport", ["native", "grpcio"])
def test_outcomes_of_spot_checks_arrive_once(tmp_path: Path, transport: str) -> None:
    exemptions = RECORDS["policies/payments"]["exemptions"] | {"spotCheckRate": 1.0}
    with (
        fleet(tmp_path, 1, transport, exemptions=exemptions) as running,
        Client(running.pods[0].grpc, timeout_s=5.0) as client,
    ):
        checked = running.ask(0, exempted())
        assert checked.outcome == decision_pb2.OUTCOME_STEP_UP
        other = running.ask(0, request())
        assert client.report_outcome(other.decision_id, ChallengeOutcome.PASSED) is False
        assert client.report_outcome(checked.decision_id, ChallengeOutcome.FAILED) is True
        assert client.report_outcome(checked.decision_id, ChallengeOutcome.FAILED) is True
        # The same sample again: a subject that retries is not two subjects.
        again = running.ask(0, exempted())
        assert client.report_outcome(again.decision_id, ChallengeOutcome.PASSED) is True
        found = until(lambda: (told := running.abuse()).failed and told, "the outcome")
        assert (found.draws, found.passed, found.failed, found.abandoned) == (1, 0, 1, 0)
        assert found.rate == pytest.approx(1.0)


def test_an_outcome_survives_whatever_dies(tmp_path: Path) -> None:
    exemptions = RECORDS["policies/payments"]["exemptions"] | {"spotCheckRate": 1.0}
    folder = tmp_path / "cp"
    with controlplane(folder) as control:
        load(control, exemptions=exemptions)
        settings = FAST | {"SIDESTEP_CONTROL_PLANE": control.grpc}
        with sidecar(tmp_path / "pod", **settings) as pod, Client(pod.grpc, timeout_s=5.0) as client:
            first = Fleet(control, [pod])
            until(lambda: answers(first, 0, exempted(), decision_pb2.OUTCOME_STEP_UP), "the pod to load")
            checked = first.ask(0, exempted())
            first.close()
            control.kill()
            assert client.report_outcome(checked.decision_id, ChallengeOutcome.ABANDONED) is True
            pod.kill()
    with controlplane(folder, SIDESTEP_CP_LISTEN=control.grpc) as again, sidecar(tmp_path / "pod", **settings) as pod:
        second = Fleet(again, [pod])
        assert until(lambda: (told := second.abuse()).abandoned and told, "the outcome").draws == 1
        second.close()
