"""Starting the project's programs in tests: on ephemeral ports, waited for until they are ready, ended with the test.

with worker(tmp_path, SIDESTEP_TRANSPORT="grpcio") as started:
    channel = grpc.insecure_channel(started.grpc)
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sidecar.page import Page, State, WorkerSlot

PATIENCE_S = 20.0
_READY = re.compile(r"ready grpc=(\S+) http=(\S+)\n")


def until(condition: Callable[[], Any], what: str, within_s: float = PATIENCE_S) -> Any:
    """Waits for a condition and returns what it gave; fails saying what was waited for."""
    deadline = time.monotonic() + within_s
    pause = threading.Event()
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {within_s} s in vain for {what}"
        pause.wait(0.005)
    return found


def environment(**settings: str) -> dict[str, str]:
    """This process's environment with these settings and none besides."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SIDESTEP_", "OTEL_"))}
    return inherited | settings


class Program:
    """A running program. `grpc` is what a gRPC client connects to, `http` an address; empty if it serves none."""

    def __init__(self, command: list[str], settings: dict[str, str], log: Path) -> None:
        self.grpc = self.http = ""
        self._log = log
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                command, env=environment(**settings), stdout=subprocess.PIPE, stderr=errors, text=True
            )

    def wait_until_ready(self) -> None:
        """Reads the line `ready grpc=... http=...`."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        match = _READY.fullmatch(line)
        assert match, f"{line!r} instead of the ready line\n{self.errors()}"
        self.grpc, self.http = match[1].split(",")[0], match[2]

    def errors(self) -> str:
        """What it wrote to standard error."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait(PATIENCE_S)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)

    def end(self) -> None:
        """Leaves nothing behind."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(PATIENCE_S)
        if self.process.stdout is not None:
            self.process.stdout.close()


class Worker(Program):
    """One worker of a sidecar, without supervisor and agent."""

    def __init__(self, data_dir: Path, index: int, settings: dict[str, str], command: list[str]) -> None:
        self._settings = {
            "SIDESTEP_TENANT": "acme",
            "SIDESTEP_DATA_DIR": str(data_dir),
            "SIDESTEP_LISTEN": "127.0.0.1:0",
        } | settings
        self._data_dir = data_dir
        self._index = index
        path = data_dir / "page"
        if not path.exists():
            Page.create(path, int(self._settings.get("SIDESTEP_WORKERS", "1"))).close()
        self._page = Page(path)
        super().__init__(
            [*command, "worker", "--index", str(index), "--parent", str(os.getpid())],
            self._settings,
            data_dir / f"worker-{index}.log",
        )

    @property
    def slot(self) -> WorkerSlot:
        """Its slot of the page."""
        return self._page.worker(self._index)

    def wait_until_ready(self, state: State | None = State.SERVING) -> None:
        """Waits until it answers; with `state`, in that state."""
        until(self._answers, f"the worker to answer; {self.errors()}")
        if state is not None:
            until(lambda: self.slot.state is state, f"state {state.name}")
        self.grpc = self.targets()[0]

    def targets(self) -> list[str]:
        """What a client connects to, for each of SIDESTEP_LISTEN."""
        listen = self._settings["SIDESTEP_LISTEN"].split(",")
        ports = self.slot.ports(len(listen))
        return [
            f"unix:{text.removeprefix('unix://')}" if text.startswith("unix:") else f"127.0.0.1:{port}"
            for text, port in zip(listen, ports, strict=True)
        ]

    def end(self) -> None:
        """Leaves nothing behind."""
        super().end()
        self._page.close()

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.errors()
        return self.slot.pid == self.process.pid and self.slot.state.answers


@contextlib.contextmanager
def worker(
    data_dir: Path,
    index: int = 0,
    *,
    state: State | None = State.SERVING,
    command: tuple[str, ...] = (sys.executable, "-m", "sidecar.app"),
    **settings: str,
) -> Iterator[Worker]:
    """A worker over the store in `data_dir`, ready and in `state` (None: either of those that answer).

    `command`: another program that takes the arguments of `python -m sidecar.app`.
    """
    started = Worker(data_dir, index, settings, list(command))
    try:
        started.wait_until_ready(state)
        yield started
    finally:
        started.end()


@contextlib.contextmanager
def sidecar(data_dir: Path, **settings: str) -> Iterator[Program]:
    """A whole sidecar: supervisor, agent and workers."""
    data_dir.mkdir(parents=True, exist_ok=True)
    wanted = {
        "SIDESTEP_TENANT": "acme",
        "SIDESTEP_DATA_DIR": str(data_dir),
        "SIDESTEP_LISTEN": "127.0.0.1:0",
        "SIDESTEP_HTTP_LISTEN": "127.0.0.1:0",
        "SIDESTEP_JOURNAL_SINK": "none",
        # Nobody, rather than whoever listens at the usual address on this machine.
        "SIDESTEP_CONTROL_PLANE": "127.0.0.1:1",
    } | settings
    with _running([sys.executable, "-m", "sidecar.supervisor"], wanted, data_dir / "sidecar.log") as started:
        yield started


@contextlib.contextmanager
def controlplane(directory: Path, **settings: str) -> Iterator[Program]:
    """A control plane over a SQLite file in `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    wanted = {
        "SIDESTEP_CP_LISTEN": "127.0.0.1:0",
        "SIDESTEP_CP_HTTP_LISTEN": "127.0.0.1:0",
        "SIDESTEP_CP_DATABASE_URL": f"sqlite+aiosqlite:///{directory}/sidestep.db",
    } | settings
    program = str(Path(sys.executable).with_name("sidestep-controlplane"))
    with _running([program], wanted, directory / "controlplane.log") as started:
        yield started


@contextlib.contextmanager
def _running(command: list[str], settings: dict[str, str], log: Path) -> Iterator[Program]:
    started = Program(command, settings, log)
    try:
        started.wait_until_ready()
        yield started
    finally:
        if started.process.poll() is None:
            started.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                started.process.wait(PATIENCE_S)
        started.end()
