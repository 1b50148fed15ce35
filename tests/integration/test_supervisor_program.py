"""The whole sidecar as its program runs it: supervisor, agent and workers, between a control plane and a collector."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from sidestep.v1 import decision_pb2, decision_pb2_grpc, resources_pb2

from engine.names import Collection, Lane
from sidecar.journal.segment import list_segments
from tests.fakes.controlplane import ControlPlane
from tests.fakes.history import History
from tests.fakes.otlp import OtlpReceiver, attributes
from tests.fakes.records import TRACEPARENT


class Sidecar:
    """A running `sidestep-sidecar`."""

    def __init__(self, data: Path, plane: ControlPlane, receiver: OtlpReceiver, **settings: str) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("SIDESTEP_", "OTEL_"))}
        environment |= {
            "SIDESTEP_TENANT": "acme",
            "SIDESTEP_DATA_DIR": str(data),
            "SIDESTEP_LISTEN": "127.0.0.1:0",
            "SIDESTEP_HTTP_LISTEN": "127.0.0.1:0",
            "SIDESTEP_CONTROL_PLANE": plane.address,
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{receiver.endpoint}",
            "SIDESTEP_SHUTDOWN_GRACE": "8s",
        } | settings
        began = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sidecar.supervisor"], env=environment, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        match = re.fullmatch(r"ready grpc=(\S+) http=(\S+)\n", self.process.stdout.readline())
        assert match, self.process.poll()
        self.ready_after_s = time.monotonic() - began
        self.grpc, self.http = match[1], match[2]

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://{self.http}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def states(self) -> dict[str, str]:
        states: dict[str, str] = json.loads(self.get("/readyz")[1])["processes"]
        return states

    def evaluate(self, subject: str = "alice") -> decision_pb2.EvaluateResponse:
        request = decision_pb2.EvaluateRequest(
            subject=decision_pb2.SubjectRef(id=subject), action=decision_pb2.Action(name="payments.transfer")
        )
        with grpc.insecure_channel(self.grpc.partition(",")[0]) as channel:
            stub: Any = decision_pb2_grpc.DecisionServiceStub(channel)  # type: ignore[no-untyped-call]
            response: decision_pb2.EvaluateResponse = stub.Evaluate(
                request, timeout=5, metadata=(("traceparent", TRACEPARENT),)
            )
            return response

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=20)


@pytest.fixture
def plane() -> Iterator[ControlPlane]:
    with ControlPlane() as plane:
        yield plane


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    with OtlpReceiver() as receiver:
        yield receiver


@pytest.fixture
def sidecars() -> Iterator[list[Sidecar]]:
    running: list[Sidecar] = []
    yield running
    for sidecar in running:
        if sidecar.process.poll() is None:
            sidecar.process.kill()
            sidecar.process.wait()
        assert sidecar.process.stdout is not None
        sidecar.process.stdout.close()


def wait_for_state(sidecar: Sidecar, state: str) -> None:
    deadline = time.monotonic() + 15
    pause = threading.Event()
    while set(sidecar.states().values()) != {state}:
        assert time.monotonic() < deadline, sidecar.states()
        pause.wait(0.02)


def load(plane: ControlPlane) -> None:
    urgent, bulk = History(lane=Lane.URGENT), History(lane=Lane.BULK)
    subject = resources_pb2.Subject(name="tenants/acme/subjects/alice", state=resources_pb2.SUBJECT_STATE_ACTIVE)
    urgent.commit({(int(Collection.SUBJECTS), "alice"): subject.SerializeToString()})
    stream = plane.accept()
    stream.scope("acme")
    stream.snapshot(urgent)
    stream.snapshot(bulk)
    stream.follow(urgent, bulk)


def test_from_nothing_to_a_traced_decision_and_a_clean_end(
    tmp_path: Path, plane: ControlPlane, receiver: OtlpReceiver, sidecars: list[Sidecar]
) -> None:
    sidecar = Sidecar(tmp_path, plane, receiver, SIDESTEP_WORKERS="2")
    sidecars.append(sidecar)
    assert not sidecar.grpc.endswith(":0")
    wait_for_state(sidecar, "not_loaded")
    with pytest.raises(grpc.RpcError) as unavailable:
        sidecar.evaluate()
    assert unavailable.value.code() is grpc.StatusCode.UNAVAILABLE

    load(plane)
    wait_for_state(sidecar, "serving")
    answers = [sidecar.evaluate() for _ in range(20)]
    assert {answer.outcome for answer in answers} == {decision_pb2.OUTCOME_STEP_UP}, "no policy: the top requirement"
    spans = receiver.wait_for_spans(20)
    assert {attributes(span)["sidestep.decision.id"] for span in spans} == {answer.decision_id for answer in answers}
    assert {span.trace_id.hex() for span in spans} == {TRACEPARENT.split("-")[1]}
    assert {attributes(span)["sidestep.revision"] for span in spans} == {1}

    metrics = sidecar.get("/metrics")[1]
    counted = re.findall(r'^sidestep_decisions_total\{outcome="step_up",[^}]*\} (\d+)$', metrics, re.MULTILINE)
    assert sum(map(int, counted)) == 20
    assert "\nsidestep_journal_lost_total 0\n" in metrics
    assert "\nsidestep_sync_connected 1\n" in metrics
    assert sidecar.end() == 0
    assert not list_segments(tmp_path / "journal")


def test_decisions_made_just_before_the_end_are_still_shipped(
    tmp_path: Path, plane: ControlPlane, receiver: OtlpReceiver, sidecars: list[Sidecar]
) -> None:
    sidecar = Sidecar(tmp_path, plane, receiver)
    sidecars.append(sidecar)
    load(plane)
    wait_for_state(sidecar, "serving")
    receiver.stop()
    answers = [sidecar.evaluate() for _ in range(10)]
    receiver.start()
    assert sidecar.end() == 0
    assert set(receiver.decision_ids()) == {answer.decision_id for answer in answers}


def test_after_a_restart_it_answers_from_disk_without_the_control_plane(
    tmp_path: Path, plane: ControlPlane, receiver: OtlpReceiver, sidecars: list[Sidecar]
) -> None:
    first = Sidecar(tmp_path, plane, receiver)
    sidecars.append(first)
    load(plane)
    wait_for_state(first, "serving")
    first.process.kill()  # not even politely
    first.process.wait()
    plane.stop()
    second = Sidecar(tmp_path, plane, receiver)
    sidecars.append(second)
    wait_for_state(second, "serving")
    assert second.evaluate().outcome == decision_pb2.OUTCOME_STEP_UP
    assert second.end() == 0
