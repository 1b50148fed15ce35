"""The supervisor over real processes: what dies is restarted, what hangs is killed, nothing is left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sidecar.page import EXPORT_STATES, AgentWord, Page, State, WorkerWord
from sidecar.store.generation import DataDir, is_suspect


class Supervised:
    """A supervisor process and what can be seen of it."""

    def __init__(self, directory: Path, traits: dict[str, list[str]] | None = None, **settings: Any) -> None:
        self.data = directory / "data"
        self.diary_path = directory / "diary"
        self.settings = {
            "data_dir": str(self.data),
            "workers": 1,
            "listen": ["127.0.0.1:0"],
            "http_host": "127.0.0.1",
            "http_port": 0,
            "shutdown_grace_s": 10.0,
            "ready_requires_sync": False,
            "journal_sink": "otlp",
            "log_level": "info",
            "log_format": "text",
        } | settings
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.fakes.supervised",
                json.dumps(self.settings),
                str(self.diary_path),
                json.dumps(traits or {}),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.http = ""

    def ready(self) -> str:
        """Waits for the ready line."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        match = re.fullmatch(r"ready grpc=(\S+) http=(\S+)", line)
        assert match, (line, self.process.poll())
        self.http = match[2]
        return match[1]

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://{self.http}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metric(self, sample: str) -> float:
        text = self.get("/metrics")[1]
        match = re.search(rf"^{re.escape(sample)} (\S+)$", text, re.MULTILINE)
        assert match, f"{sample} in\n{text}"
        return float(match[1])

    def diary(self) -> list[str]:
        return self.diary_path.read_text().splitlines() if self.diary_path.exists() else []

    def pids(self, name: str) -> list[int]:
        """Every process that was started under a name, oldest first."""
        return [int(line.split()[2]) for line in self.diary() if line.startswith(f"{name} start")]

    def wait_until_alone(self) -> None:
        """Waits until none of the processes that were ever started is left."""
        pids = [int(line.split()[2]) for line in self.diary() if " start " in line]
        until(lambda: not any(alive(pid) for pid in pids))

    def wait_for_starts(self, name: str, count: int) -> None:
        until(lambda: len(self.pids(name)) >= count)

    def end(self) -> tuple[int, str]:
        """SIGTERM; the exit code and what was said on standard error."""
        self.process.send_signal(signal.SIGTERM)
        _, errors = self.process.communicate(timeout=20)
        return self.process.returncode, errors


Start = Callable[..., Supervised]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    running: list[Supervised] = []

    def begin(traits: dict[str, list[str]] | None = None, **settings: Any) -> Supervised:
        directory = tmp_path / str(len(running))
        directory.mkdir()
        running.append(Supervised(directory, traits, **settings))
        return running[-1]

    yield begin
    for supervised in running:
        if supervised.process.poll() is None:
            supervised.process.kill()
        supervised.process.communicate()
        supervised.wait_until_alone()


def alive(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def until(condition: Callable[[], bool], timeout_s: float = 15.0) -> None:
    deadline = time.monotonic() + timeout_s
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "condition not met in time"
        pause.wait(0.02)


def test_it_starts_serves_and_drains_workers_before_the_agent(start: Start) -> None:
    supervised = start(workers=2)
    grpc = supervised.ready()
    assert re.fullmatch(r"127\.0\.0\.1:\d+", grpc)
    assert not grpc.endswith(":0")
    # Both workers share the port the first one got.
    until(lambda: sum(f"port {grpc.rpartition(':')[2]}" in line for line in supervised.diary()) == 2)
    assert supervised.get("/startz")[0] == 200
    assert supervised.get("/healthz")[0] == 200
    status, body = supervised.get("/readyz")
    assert status == 200
    assert json.loads(body)["processes"] == {"agent": "serving", "worker-0": "serving", "worker-1": "serving"}
    assert json.loads(body)["journal"] == {
        "sink": "otlp",
        "state": "idle",
        "full": False,
        "lost": 0,
        "unrecorded": 0,
        "quarantined": 0,
        "backlog": 0,
        "spool_unusable": False,
    }
    assert supervised.get("/nothing")[0] == 404
    code, _ = supervised.end()
    assert code == 0
    ends = [line for line in supervised.diary() if " end " in line]
    assert {line.split()[0] for line in ends[:2]} == {"worker-0", "worker-1"}
    assert ends[2] == "agent-0 end deadline=True"


@pytest.mark.parametrize("name", ["agent", "worker-0"])
def test_a_killed_process_is_restarted_and_counted(start: Start, name: str) -> None:
    supervised = start()
    grpc = supervised.ready()
    diary_name = "agent-0" if name == "agent" else name
    supervised.wait_for_starts(diary_name, 1)
    for restarts in range(1, 4):
        os.kill(supervised.pids(diary_name)[-1], signal.SIGKILL)
        supervised.wait_for_starts(diary_name, restarts + 1)
    until(lambda: json.loads(supervised.get("/readyz")[1])["processes"][name] == "serving")
    assert supervised.metric(f'sidestep_process_restarts_total{{process="{name}"}}') == 3
    assert supervised.get("/healthz")[0] == 200
    ports = {line.split()[2] for line in supervised.diary() if " port " in line}
    assert ports == {grpc.rpartition(":")[2]}, "a restarted worker serves the same port again"


def test_a_hung_process_is_killed_and_restarted(start: Start) -> None:
    supervised = start()
    supervised.ready()
    (stopped,) = supervised.pids("worker-0")
    os.kill(stopped, signal.SIGSTOP)
    until(lambda: len(supervised.pids("worker-0")) == 2)
    assert not alive(stopped)
    until(lambda: supervised.get("/readyz")[0] == 200)
    assert len(supervised.pids("agent-0")) == 1


def test_a_process_that_runs_but_does_not_beat_is_killed(start: Start) -> None:
    supervised = start({"agent": ["silent"]})
    supervised.ready()
    until(lambda: len(supervised.pids("agent-0")) >= 2)
    assert len(supervised.pids("worker-0")) == 1


def test_a_process_that_cannot_start_is_retried_with_growing_pauses_without_limit(start: Start) -> None:
    supervised = start({"agent": ["broken"]})
    supervised.ready()
    until(lambda: len(supervised.pids("agent-0")) >= 5)
    code, errors = supervised.end()
    assert code == 0
    assert "agent ended with exit code 7" in errors


def test_a_killed_supervisor_leaves_no_orphan(start: Start) -> None:
    supervised = start(workers=2)
    supervised.ready()
    pids = [supervised.pids(name)[0] for name in ("agent-0", "worker-0", "worker-1")]
    assert all(alive(pid) for pid in pids)
    supervised.process.kill()
    supervised.process.wait()
    until(lambda: not any(alive(pid) for pid in pids))


def test_a_second_supervisor_on_the_same_directory_is_refused(start: Start, tmp_path: Path) -> None:
    first = start()
    first.ready()
    second = start(data_dir=str(first.data))
    _, errors = second.process.communicate(timeout=10)
    assert second.process.returncode == 3
    assert f"SIDESTEP_DATA_DIR: {first.data} is in use by another sidecar" in errors
    assert not second.diary()
    assert first.get("/healthz")[0] == 200
    # The lock dies with its holder, however it dies.
    first.process.kill()
    first.process.wait()
    third = start(data_dir=str(first.data))
    third.ready()


def test_a_taken_health_port_is_a_clear_error(start: Start) -> None:
    first = start()
    first.ready()
    second = start(http_port=int(first.http.rpartition(":")[2]))
    _, errors = second.process.communicate(timeout=10)
    assert second.process.returncode == 4
    assert f"127.0.0.1:{second.settings['http_port']}: Address already in use" in errors


def test_an_unusable_data_directory_is_a_clear_error(start: Start, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    supervised = start(data_dir=str(tmp_path / "file" / "data"))
    _, errors = supervised.process.communicate(timeout=10)
    assert supervised.process.returncode == 4
    assert "SIDESTEP_DATA_DIR" in errors


def test_what_ignores_sigterm_is_killed_within_the_grace_period(start: Start) -> None:
    supervised = start({"worker-0": ["stubborn"]}, shutdown_grace_s=2.0)
    supervised.ready()
    # Ready says that the workers are; an agent that has yet to start would need more than its share of the grace.
    until(lambda: json.loads(supervised.get("/readyz")[1])["processes"]["agent"] == "serving")
    began = time.monotonic()
    code, errors = supervised.end()
    assert code == 0
    assert "worker-0 did not end in time: killed" in errors
    assert time.monotonic() - began < 3
    assert "agent-0 end deadline=True" in supervised.diary(), "the agent still had its time"


def test_draining_means_not_ready_and_nothing_is_restarted(start: Start) -> None:
    supervised = start({"worker-0": ["stubborn"]}, shutdown_grace_s=6.0)
    supervised.ready()
    supervised.process.send_signal(signal.SIGTERM)
    until(lambda: supervised.get("/readyz")[0] == 503)
    os.kill(supervised.pids("worker-0")[0], signal.SIGKILL)
    supervised.process.communicate(timeout=10)
    assert supervised.process.returncode == 0
    assert len(supervised.pids("worker-0")) == 1


def test_an_agent_that_has_just_died_is_there_again_to_ship_what_is_left(start: Start) -> None:
    supervised = start()
    supervised.ready()
    for deaths in range(1, 4):  # so that it is in a pause now
        supervised.wait_for_starts("agent-0", deaths)
        os.kill(supervised.pids("agent-0")[-1], signal.SIGKILL)
    code, _ = supervised.end()
    assert code == 0
    assert supervised.diary()[-1] == "agent-0 end deadline=True"


def test_an_agent_that_dies_of_draining_is_started_once_more(start: Start) -> None:
    supervised = start({"agent": ["fragile"]})
    supervised.ready()
    supervised.wait_for_starts("agent-0", 1)
    until(lambda: json.loads(supervised.get("/readyz")[1])["processes"]["agent"] == "serving")
    code, errors = supervised.end()
    assert code == 0
    assert "agent ended by signal 9" in errors
    assert "before it was done with the journal" in errors
    assert supervised.diary()[-1] == "agent-0 end deadline=True"
    assert len(supervised.pids("agent-0")) == 2


def test_an_agent_that_cannot_start_does_not_keep_the_pod_from_ending(start: Start) -> None:
    supervised = start({"agent": ["broken"]}, shutdown_grace_s=60.0)
    supervised.ready()
    supervised.wait_for_starts("agent-0", 3)
    code, _ = supervised.end()  # would take longer than a test waits
    assert code == 0


def test_the_probes_name_the_journal(start: Start) -> None:
    supervised = start()
    supervised.ready()
    page = Page(supervised.data / "page")
    page.agent.set(AgentWord.JOURNAL_LOST, 2)
    page.agent.set(AgentWord.JOURNAL_QUARANTINED, 4)
    page.agent.set(AgentWord.JOURNAL_BACKLOG, 7)
    page.agent.set(AgentWord.EXPORT_STATE, EXPORT_STATES.index("refusing"))
    page.agent.set(AgentWord.SPOOL_UNUSABLE, 1)
    page.worker(0).set(WorkerWord.UNRECORDED, 3)
    page.worker(0).set(WorkerWord.JOURNAL_FULL, 1)
    for path in ("/startz", "/readyz"):
        status, body = supervised.get(path)
        assert status == 200, "a journal in trouble is no reason to stop answering"
        assert json.loads(body)["journal"] == {
            "sink": "otlp",
            "state": "refusing",
            "full": True,
            "lost": 5,
            "unrecorded": 3,
            "quarantined": 4,
            "backlog": 7,
            "spool_unusable": True,
        }
    assert "journal" not in json.loads(supervised.get("/healthz")[1])
    page.close()


@pytest.mark.parametrize(("required", "status"), [(False, 200), (True, 503)])
def test_whether_an_unsynced_sidecar_is_ready_is_a_setting(start: Start, required: bool, status: int) -> None:
    supervised = start({"worker-0": ["unloaded"]}, ready_requires_sync=required)
    supervised.ready()
    assert supervised.get("/readyz")[0] == status
    assert supervised.get("/startz")[0] == 200, "started means answering"


@pytest.mark.parametrize("number", [signal.SIGBUS, signal.SIGSEGV])
def test_a_generation_whose_reader_died_of_it_is_marked_suspect(start: Start, number: signal.Signals) -> None:
    supervised = start()
    supervised.ready()
    directory = DataDir(supervised.data)
    generation = directory.new_generation()
    directory.make_current(generation)
    os.kill(supervised.pids("worker-0")[0], signal.SIGKILL)
    until(lambda: len(supervised.pids("worker-0")) == 2)
    assert not is_suspect(generation), "SIGKILL says nothing about the data"
    os.kill(supervised.pids("worker-0")[1], number)
    until(lambda: len(supervised.pids("worker-0")) == 3)
    assert is_suspect(generation)


def test_ctrl_c_in_a_terminal_drains_too(start: Start) -> None:
    supervised = start()
    supervised.ready()
    supervised.process.send_signal(signal.SIGINT)
    supervised.process.communicate(timeout=10)
    assert supervised.process.returncode == 0
    assert "worker-0 end deadline=True" in supervised.diary()


def test_the_page_tells_what_the_processes_are_doing(start: Start) -> None:
    supervised = start()
    supervised.ready()
    page = Page(supervised.data / "page")
    assert page.worker(0).pid == supervised.pids("worker-0")[0]
    until(lambda: page.agent.state is State.SERVING)
    before = page.agent.get(2)
    until(lambda: page.agent.get(2) > before)
    page.close()


def test_slow_and_rude_clients_do_not_stop_the_probes(start: Start) -> None:
    supervised = start()
    supervised.ready()
    host, _, port = supervised.http.rpartition(":")
    idle = [socket.create_connection((host, int(port))) for _ in range(20)]
    idle[0].sendall(b"\xff\x00garbage\r\n\r\n")
    idle[1].sendall(b"GET /metr")
    assert supervised.get("/healthz")[0] == 200
    for connection in idle:
        connection.close()
    assert supervised.get("/metrics")[0] == 200


def run_program(**settings: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SIDESTEP_", "OTEL_"))}
    command = [sys.executable, "-m", "sidecar.supervisor"]
    return subprocess.run(command, env=environment | settings, capture_output=True, text=True, timeout=30)


def test_the_program_names_every_bad_setting_and_exits_with_2() -> None:
    done = run_program(SIDESTEP_WORKRES="2", SIDESTEP_SOFT_STALE="soon")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "SIDESTEP_TENANT: required" in done.stderr
    assert "SIDESTEP_WORKRES: unknown setting; did you mean SIDESTEP_WORKERS?" in done.stderr
    assert "SIDESTEP_SOFT_STALE: 'soon' is not a duration" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_program_says_when_the_data_directory_is_in_use(start: Start) -> None:
    first = start()
    first.ready()
    done = run_program(SIDESTEP_TENANT="acme", SIDESTEP_DATA_DIR=str(first.data), SIDESTEP_HTTP_LISTEN="127.0.0.1:0")
    assert done.returncode == 3
    assert f"sidestep-sidecar: SIDESTEP_DATA_DIR: {first.data} is in use by another sidecar" in done.stderr


def test_the_supervisor_needs_the_standard_library_only() -> None:
    script = (
        "import sys; before = set(sys.modules); import sidecar.supervisor; "
        "print(sorted(m.split('.')[0] for m in set(sys.modules) - before if m.split('.')[0] not in sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    names = set(re.findall(r"'(\w+)'", done.stdout))
    assert names == {"engine", "sidecar"}
