"""The agent stopped with SIGSTOP under load: the worker takes no notice, and nothing is lost.

An agent that nobody supervises goes on where it stopped; a supervised one no longer beats, and is killed and replaced.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sidecar.page import AgentWord, Page, WorkerWord
from tests.chaos.pod import Pod
from tests.fakes.exported import altered, broken, decision_ids
from tests.fakes.load import Load
from tests.fakes.otlp import OtlpReceiver
from tests.fakes.stock import Stock
from tests.processes import PATIENCE_S, environment, until, worker

NOBODY = "127.0.0.1:1"
ANSWERS = 200
# Answers in the largest call.
CALL = 5


@pytest.fixture
def data(tmp_path: Path) -> Path:
    stock = Stock(tmp_path / "data")
    stock.load()
    stock.close()
    return tmp_path / "data"


def settings(receiver: OtlpReceiver) -> dict[str, str]:
    return {
        "SIDESTEP_JOURNAL_SINK": "otlp",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{receiver.endpoint}",
        "OTEL_METRICS_EXPORTER": "none",
    }


@contextmanager
def agent(data: Path, receiver: OtlpReceiver) -> Iterator[int]:
    """An agent over this folder that nobody supervises; its process id."""
    own = {"SIDESTEP_TENANT": "acme", "SIDESTEP_DATA_DIR": str(data), "SIDESTEP_CONTROL_PLANE": NOBODY}
    command = [sys.executable, "-m", "sidecar.app", "agent", "--parent", str(os.getpid())]
    with (data / "agent.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment(**own, **settings(receiver)), stderr=log)
    try:
        yield process.pid
    finally:
        process.kill()  # also ends a stopped one
        process.wait(PATIENCE_S)


def stop(pid: int) -> None:
    """SIGSTOP, and waits until the process stands still."""
    os.kill(pid, signal.SIGSTOP)
    until(
        lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T", "the agent to stand still"
    )


def journal_bytes(data: Path) -> int:
    return sum(path.stat().st_size for path in (data / "journal").glob("w*.seg"))


@pytest.mark.parametrize("for_s", [0.0, pytest.param(10.0, marks=pytest.mark.e2e)])
def test_the_worker_takes_no_notice_of_a_stopped_agent(data: Path, for_s: float) -> None:
    with (
        OtlpReceiver() as receiver,
        worker(data, **settings(receiver)) as started,
        agent(data, receiver) as pid,
        Load(started.grpc) as load,
    ):
        until(lambda: decision_ids(receiver.spans), "the first spans")
        stop(pid)
        # One call may have been decided before, and not be answered yet.
        load.wait_for_answers(CALL)
        first, size = len(load.ids), journal_bytes(data)
        load.wait_for_answers(ANSWERS)
        load.go_on_for(for_s)
        assert decision_ids(receiver.spans).isdisjoint(load.ids[first:])
        assert journal_bytes(data) > size
        os.kill(pid, signal.SIGCONT)
        load.wait_for_answers(ANSWERS)
        load.end()
        until(lambda: set(load.ids) <= decision_ids(receiver.spans), "every decision to arrive")
        assert started.process.poll() is None
        unrecorded = started.slot.get(WorkerWord.UNRECORDED)
        spans = receiver.spans
    assert load.failures == []
    assert unrecorded == 0
    assert (altered(spans), broken(spans)) == ([], [])


@pytest.mark.e2e
def test_a_supervised_agent_that_stands_still_is_replaced_and_nothing_is_lost(data: Path) -> None:
    with OtlpReceiver() as receiver, Pod(data, NOBODY, **settings(receiver)) as pod, Load(pod.address) as load:
        until(lambda: decision_ids(receiver.spans), "the first spans")
        asked, stopped = pod.child("worker"), pod.child("agent")
        assert stopped is not None
        stop(stopped)
        before = len(load.ids)
        until(lambda: pod.child("agent") not in (None, stopped), "another agent")
        assert len(load.ids) - before > ANSWERS
        load.go_on_for(5.0)
        load.end()
        until(lambda: set(load.ids) <= decision_ids(receiver.spans), "every decision to arrive")
        assert pod.child("worker") == asked
        page = Page(data / "page")
        lost = page.agent.get(AgentWord.JOURNAL_LOST), page.worker(0).get(WorkerWord.UNRECORDED)
        page.close()
        spans = receiver.spans
    assert load.failures == []
    assert lost == (0, 0)
    assert (altered(spans), broken(spans)) == ([], [])
