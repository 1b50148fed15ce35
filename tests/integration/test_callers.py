"""Callers and their tokens, seen from outside: a real sidecar, real files as Kubernetes mounts them, the real client."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from sidestep.client import Client, Decision, Question
from sidestep.v1 import decision_pb2, decision_pb2_grpc

from sidecar.page import ERRORS, WorkerWord
from tests.fakes.callers import TOKENS, Mount, bearer
from tests.fakes.journal import read_journal
from tests.fakes.stock import Stock, request
from tests.processes import PATIENCE_S, Program, environment, sidecar, until, worker

QUESTION = Question(subject="bob", action="payments.transfer")
NEW = "another-token-0123456789"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    stock = Stock(tmp_path / "data")
    stock.load()
    stock.close()
    return tmp_path / "data"


@pytest.fixture
def mount(tmp_path: Path) -> Mount:
    return Mount(tmp_path / "callers")


def status_of(call: Any, message: Any, token: str | None) -> grpc.StatusCode:
    metadata = () if token is None else (("authorization", bearer(token)),)
    try:
        call(message, timeout=PATIENCE_S, metadata=metadata)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


@pytest.mark.parametrize("transport", ["native", "grpcio"])
def test_calls_need_a_token_and_health_and_reflection_do_not(data: Path, mount: Mount, transport: str) -> None:
    settings = {
        "SIDESTEP_CALLERS": str(mount.callers),
        "SIDESTEP_TRANSPORT": transport,
        "SIDESTEP_REFLECTION": "true",
    }
    with worker(data, **settings) as started, grpc.insecure_channel(started.grpc) as channel:
        stub = decision_pb2_grpc.DecisionServiceStub(channel)  # type: ignore[no-untyped-call]
        batch = decision_pb2.EvaluateBatchRequest(requests=[request()])
        browse = request(action="browse.items")
        ok, unknown, forbidden = (
            grpc.StatusCode.OK,
            grpc.StatusCode.UNAUTHENTICATED,
            grpc.StatusCode.PERMISSION_DENIED,
        )
        assert status_of(stub.Evaluate, request(), TOKENS["payments"]) is ok
        assert status_of(stub.EvaluateBatch, batch, TOKENS["payments"]) is ok
        assert status_of(stub.Evaluate, browse, TOKENS["browsing"]) is ok
        assert status_of(stub.Evaluate, request(), None) is unknown
        assert status_of(stub.EvaluateBatch, batch, None) is unknown
        assert status_of(stub.Evaluate, request(), "a-guess-0123456789") is unknown
        assert status_of(stub.Evaluate, browse, TOKENS["payments"]) is forbidden
        assert status_of(stub.EvaluateBatch, batch, TOKENS["browsing"]) is forbidden
        slot = started.slot
        counted = {name: slot.get(WorkerWord.ERRORS, at) for at, name in enumerate(ERRORS)}
        assert {name: count for name, count in counted.items() if count} == {
            "unauthenticated": 3,
            "permission_denied": 2,
        }
        assert slot.get(WorkerWord.CALLERS) == 2
        health = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S).status
        services = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="*")]), timeout=PATIENCE_S
        )
        assert next(services).list_services_response.service
        assert not any(token in started.errors() for token in (*TOKENS.values(), "a-guess"))
    assert sorted(record.caller for record in read_journal(data / "journal")) == ["browsing", "payments", "payments"]


class Service:
    """A service with its token in a file of its own, which asks without a break from some threads."""

    def __init__(self, target: str, token_file: str, threads: int = 2) -> None:
        self.decisions: list[Decision] = []
        self._client = Client(target, timeout_s=PATIENCE_S, token_file=token_file)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]

    def __enter__(self) -> Service:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._client.close()

    def wait_for_answers(self, count: int = 50) -> None:
        wanted = len(self.decisions) + count
        until(lambda: len(self.decisions) >= wanted, f"{count} answers")

    def failures(self) -> list[str]:
        return [decision.error for decision in self.decisions if decision.error]

    def _run(self) -> None:
        while not self._stop.wait(0.001):
            if len(self.decisions) % 5:
                self.decisions.append(self._client.evaluate(QUESTION))
            else:
                self.decisions += self._client.evaluate_batch([QUESTION, QUESTION])


def taken_up(pod: Program, tokens: int, workers: int = 2) -> None:
    """Waits until the last that every worker said is that it knows so many tokens."""

    def told() -> bool:
        last: dict[str, str] = {}
        for line in pod.errors().splitlines():
            if "their tokens: " in line:
                entry = json.loads(line)
                last[entry["process"]] = entry["message"]
        return len(last) == workers and all(message.endswith(f"their tokens: {tokens}") for message in last.values())

    until(told, f"{workers} workers to know {tokens} tokens")


@pytest.fixture
def pod(data: Path, mount: Mount) -> Iterator[Program]:
    with sidecar(data, SIDESTEP_CALLERS=str(mount.callers), SIDESTEP_WORKERS="2") as running:
        yield running


def health(pod: Program) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://{pod.http}/readyz", timeout=PATIENCE_S) as answer:
        found: dict[str, Any] = json.loads(answer.read())
    return found


def metric(pod: Program, name: str) -> float:
    with urllib.request.urlopen(f"http://{pod.http}/metrics", timeout=PATIENCE_S) as answer:
        lines = answer.read().decode().splitlines()
    return float(next(line for line in lines if line.startswith(f"{name} ")).split()[1])


def test_token_is_rotated_under_load_without_a_failed_call(pod: Program, mount: Mount, tmp_path: Path) -> None:
    own = Mount(tmp_path / "own", tokens={"token": TOKENS["payments"]})
    with Service(pod.grpc, own.path("token")) as service:
        service.wait_for_answers()
        mount.put(payments=f"{TOKENS['payments']}\n{NEW}\n")
        taken_up(pod, 3)
        service.wait_for_answers()
        own.put(token=NEW)
        service.wait_for_answers()
        mount.put(payments=NEW)
        taken_up(pod, 2)
        service.wait_for_answers()
    assert service.failures() == []
    with Client(pod.grpc, timeout_s=PATIENCE_S, token=TOKENS["payments"]) as late:
        assert str(late.evaluate(QUESTION).error).startswith("UNAUTHENTICATED")
    log = pod.errors()
    assert not any(token in log for token in (*TOKENS.values(), NEW))


def test_bad_file_is_told_in_health_and_changes_nothing(pod: Program, mount: Mount) -> None:
    assert (health(pod)["callers"], health(pod)["callers_unusable"]) == (2, False)
    assert metric(pod, "sidestep_callers") == 2
    mount.put(**{"callers.yaml": "callers: [", "payments": NEW})
    until(lambda: metric(pod, "sidestep_callers_failures_total") == 2, "both workers to notice")
    assert (health(pod)["callers"], health(pod)["callers_unusable"]) == (2, True)
    assert metric(pod, "sidestep_callers_unusable") == 2
    with Client(pod.grpc, timeout_s=PATIENCE_S, token=TOKENS["payments"]) as client:
        assert client.evaluate(QUESTION).error is None
    lines = [json.loads(line) for line in pod.errors().splitlines() if str(mount.callers) in line]
    assert sorted((line["process"], line["level"]) for line in lines) == [("worker-0", "error"), ("worker-1", "error")]


def test_without_callers_health_and_the_log_say_development_mode(data: Path) -> None:
    with sidecar(data) as pod:
        assert health(pod)["callers"] == "development mode: anyone is served"
        warnings = [
            line for line in pod.errors().splitlines() if "SIDESTEP_CALLERS is not set: development mode" in line
        ]
        assert len(warnings) == 1
        assert json.loads(warnings[0])["level"] == "warning"
        with Client(pod.grpc, timeout_s=PATIENCE_S) as client:
            assert client.evaluate(QUESTION).error is None


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"SIDESTEP_CALLERS": "/nowhere.yaml"}, "SIDESTEP_CALLERS: /nowhere.yaml: no such file"),
        ({"SIDESTEP_CALLERS": ""}, "SIDESTEP_CALLERS: .: not a regular file"),
        ({"SIDESTEP_CALLERS": "{bad}"}, "SIDESTEP_CALLERS: {bad}: 1:10: callers: "),
        (
            {"SIDESTEP_CALLERS": "{good}", "SIDESTEP_DIAGNOSE": "true"},
            "SIDESTEP_DIAGNOSE: is for development, without SIDESTEP_CALLERS",
        ),
        (
            {"SIDESTEP_CALLERS": "{good}", "SIDESTEP_LISTEN": "0.0.0.0:0"},
            "SIDESTEP_LISTEN: 0.0.0.0:0 can be reached from other hosts",
        ),
    ],
)
def test_bad_callers_are_refused_at_the_start(
    tmp_path: Path, mount: Mount, settings: dict[str, str], problem: str
) -> None:
    (tmp_path / "bad.yaml").write_text("callers: []\n")
    paths = {"{bad}": str(tmp_path / "bad.yaml"), "{good}": str(mount.callers)}
    for mark, path in paths.items():
        settings = {name: value.replace(mark, path) for name, value in settings.items()}
        problem = problem.replace(mark, path)
    own = {
        "SIDESTEP_TENANT": "acme",
        "SIDESTEP_DATA_DIR": str(tmp_path / "data"),
        "SIDESTEP_HTTP_LISTEN": "127.0.0.1:0",
    }
    ended = subprocess.run(
        [sys.executable, "-m", "sidecar.supervisor"],
        env=environment(**own, **settings),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert ended.returncode == 2
    assert problem in ended.stderr
