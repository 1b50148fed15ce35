"""A finished step-up with real programs: reported to one worker, counted by the other at once, and by all in the end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from sidestep.v1 import admin_pb2, admin_pb2_grpc, decision_pb2, decision_pb2_grpc
from sidestep.v1 import resources_pb2 as pb

from sidecar.page import Page
from tests.conformance.tokens import signing_key
from tests.fakes.proofs import report, token, vault
from tests.processes import Program, controlplane, sidecar, until

POLICY = """apiVersion: sidestep.dev/v1
kind: Policy
metadata: {name: vault, tenant: acme}
spec:
  match: {actions: ["vault.*"]}
  require: {acr: phr, maxAge: 5m}
"""
SEEN = {"os": "macOS", "browser": "Firefox", "canvas": "c1"}


def records() -> Iterator[pb.Resource]:
    settings = pb.Settings(name="tenants/acme/settings/default")
    settings.issuers.add(
        issuer="https://idp.acme.example", audiences=["https://api.acme.example"], max_acrs=["phrh", "nist-aal3"]
    )
    yield pb.Resource(settings=settings)
    jwk = json.dumps(signing_key("idp-1").jwk)
    key = pb.Key(name="tenants/acme/keys/idp-1", kind="KEY_KIND_ISSUER", issuer="https://idp.acme.example", jwk=jwk)
    yield pb.Resource(key=key)
    yield pb.Resource(key=pb.Key(name="tenants/acme/keys/fp-1", kind="KEY_KIND_FINGERPRINT"))
    yield pb.Resource(policy=pb.Policy(name="tenants/acme/policies/vault", source=POLICY))
    yield pb.Resource(subject=pb.Subject(name="tenants/acme/subjects/alice", state="SUBJECT_STATE_ACTIVE"))


@contextlib.contextmanager
def administering(plane: Program) -> Iterator[Any]:
    with grpc.insecure_channel(plane.grpc, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield admin_pb2_grpc.AdminServiceStub(channel)


def read(plane: Program, name: str) -> pb.Resource | None:
    with administering(plane) as stub:
        try:
            found: pb.Resource = stub.GetResource(admin_pb2.GetResourceRequest(name=name), timeout=10).resource
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.NOT_FOUND  # noqa: PT017
            return None
        return found


@contextlib.contextmanager
def asking(socket: Path) -> Iterator[Any]:
    with grpc.insecure_channel(f"unix:{socket}", options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield decision_pb2_grpc.DecisionServiceStub(channel)


def outcome(stub: Any) -> decision_pb2.Outcome | None:
    try:
        found: decision_pb2.Outcome = stub.Evaluate(vault(), timeout=5).outcome
    except grpc.RpcError:
        return None
    return found


@pytest.mark.parametrize("transport", ["native", "grpcio"])
def test_reported_in_one_worker_counted_in_all_and_never_lost(tmp_path: Path, transport: str) -> None:
    sockets = tmp_path / "s.sock", tmp_path / "s-1.sock"
    times = [token(jti=f"j-{number}", auth_time=f"now-{60 - 10 * number}s") for number in range(4)]

    def step_up(number: int) -> decision_pb2.ReportAuthenticationRequest:
        device = decision_pb2.DeviceEvidence(id="laptop", fingerprint=SEEN)
        return report(times[number], tenant="acme", device=device, register=True)

    os.chmod(tmp_path, 0o750)
    with contextlib.ExitStack() as running:
        first = running.enter_context(controlplane(tmp_path / "plane"))
        with administering(first) as admin:
            for resource in records():
                admin.PutResource(admin_pb2.PutResourceRequest(resource=resource), timeout=10)
        running.enter_context(
            sidecar(
                tmp_path / "pod",
                SIDESTEP_WORKERS="2",
                SIDESTEP_TRANSPORT=transport,
                SIDESTEP_CONTROL_PLANE=first.grpc,
                SIDESTEP_LISTEN=f"unix://{sockets[0]}",
                SIDESTEP_SIDECAR_NAME="pod-1",
            )
        )
        page = Page(tmp_path / "pod" / "page")
        running.callback(page.close)
        one, other = (running.enter_context(asking(socket)) for socket in sockets)
        for stub in (one, other):
            until(lambda stub=stub: outcome(stub) == decision_pb2.OUTCOME_STEP_UP, "the data to be loaded")

        first.kill()
        answer = one.ReportAuthentication(step_up(0), timeout=10)
        assert (answer.session, answer.device, answer.registering) == ("s1", "laptop", True)
        assert outcome(other) == decision_pb2.OUTCOME_ALLOW
        one.ReportAuthentication(step_up(1), timeout=10)

        agent = page.agent.pid
        os.kill(agent, signal.SIGKILL)
        other.ReportAuthentication(step_up(2), timeout=10)
        for stub in (one, other):
            with pytest.raises(grpc.RpcError) as error:
                stub.ReportAuthentication(step_up(0), timeout=10)
            assert error.value.code() is grpc.StatusCode.ALREADY_EXISTS
        until(lambda: page.agent.pid not in (0, agent), "another agent")
        one.ReportAuthentication(step_up(3), timeout=10)

        again = running.enter_context(controlplane(tmp_path / "plane", SIDESTEP_CP_LISTEN=first.grpc))

        def arrived() -> pb.Device | None:
            found = read(again, "tenants/acme/devices/laptop")
            return found.device if found is not None and len(found.device.authentications) >= 4 else None

        device = until(arrived, "all reports to arrive")
        proved = [event.auth_time.seconds for event in device.authentications]
        assert len(set(proved)) == 4
        assert proved == sorted(proved, reverse=True)
        assert device.validate_time.seconds == proved[0]
        subject = read(again, "tenants/acme/subjects/alice")
        assert subject is not None
        assert subject.subject.strong_authentication_time.seconds == proved[0]
