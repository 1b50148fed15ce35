"""What a service gets that installs the client: two wheels of ours, gRPC, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from sidestep.v1 import decision_pb2

from tests.fakes.decision import ScriptedSidecar

ROOT = Path(__file__).parents[2]
ALLOWED = {"grpcio", "protobuf", "typing_extensions", "sidestep_api", "sidestep_client"}

ASK = """
import sys
from sidestep.client import Client, Outcome
with Client(sys.argv[1], timeout_s=10) as client:
    decision = client.evaluate(subject="alice", action="payments.transfer", amount=("EUR", "120.50"))
print(decision.outcome, decision.decision_id, decision.error)
"""

ASK_IN_TRACE = """
import sys
from opentelemetry import context, trace
from sidestep.client import Client
parent = trace.SpanContext(0x1234, 0x5678, False, trace.TraceFlags(1), trace.TraceState([("vendor", "x")]))
context.attach(trace.set_span_in_context(trace.NonRecordingSpan(parent)))
with Client(sys.argv[1], timeout_s=10) as client:
    client.evaluate(subject="alice", action="payments.transfer")
"""


def run(*command: str | Path) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def pip(*arguments: str | Path) -> str:
    return run(sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("wheels")
    pip("wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT / "proto", ROOT / "clients" / "python")
    return sorted(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def python(wheels: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds the two wheels and what they ask for."""
    home = tmp_path_factory.mktemp("venv")
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    pip("--python", python, "install", "--quiet", *wheels)
    return python


def test_wheels_share_the_namespace_and_carry_their_types(wheels: list[Path]) -> None:
    assert [wheel.name.split("-")[0] for wheel in wheels] == ["sidestep_api", "sidestep_client"]
    files = {name for wheel in wheels for name in zipfile.ZipFile(wheel).namelist()}
    assert {"sidestep/client/py.typed", "sidestep/v1/py.typed", "sidestep/v1/decision_pb2.pyi"} <= files
    assert "sidestep/__init__.py" not in files
    assert all(name.startswith(("sidestep/", "sidestep_api-", "sidestep_client-")) for name in files)


def test_client_needs_nothing_else_and_answers(python: Path) -> None:
    listed = json.loads(pip("--python", python, "list", "--format", "json"))
    names = {package["name"].replace("-", "_").lower() for package in listed}
    assert {"sidestep_api", "sidestep_client", "grpcio", "protobuf"} <= names <= ALLOWED
    answer = decision_pb2.EvaluateResponse(outcome=decision_pb2.OUTCOME_ALLOW, decision_id="d1")
    with ScriptedSidecar(lambda request: answer) as sidecar:
        # -I: nothing of this checkout is on the path.
        assert run(python, "-I", "-c", ASK, sidecar.address) == "ALLOW d1 None\n"
    assert sidecar.requests[0].context.amount.units == 120
    assert "traceparent" not in sidecar.metadata[0]


def test_trace_of_the_caller_is_joined_where_opentelemetry_is_installed(python: Path) -> None:
    pip("--python", python, "install", "--quiet", "opentelemetry-api")
    answer = decision_pb2.EvaluateResponse(outcome=decision_pb2.OUTCOME_ALLOW)
    with ScriptedSidecar(lambda request: answer) as sidecar:
        run(python, "-I", "-c", ASK_IN_TRACE, sidecar.address)
    assert sidecar.metadata[0]["traceparent"] == f"00-{0x1234:032x}-{0x5678:016x}-01"
    assert sidecar.metadata[0]["tracestate"] == "vendor=x"
