"""The supervisor: starts the agent and the workers, watches them, restarts them. Standard library only.

Program `sidestep-sidecar`. It holds the lock on the data directory and serves health and metrics from the shared page.
When all workers answer for the first time it prints one line on standard output:

    ready grpc=127.0.0.1:9191,unix:///run/sidestep/sidecar.sock http=127.0.0.1:9192

SIGTERM or SIGINT drains: the workers finish what they have, then the agent ships what is left, both within the grace
period.

Exit codes: 0 drained; 1 unexpected error; 2 settings refused; 3 the data directory is in use by another supervisor; 4
it cannot be used, or the health port cannot be bound.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from engine import logs
from engine.errors import SidestepError
from sidecar.child import HANG_S, Child
from sidecar.health import HealthServer, Probe
from sidecar.metrics.collect import collect
from sidecar.metrics.text import negotiate, render
from sidecar.page import (
    EXPORT_STATES,
    LOCAL_STORES,
    OFFSET_ZERO,
    UNVERIFIED,
    AgentWord,
    Page,
    State,
    WorkerWord,
    boottime_ms,
)
from sidecar.store.generation import DataDir, mark_suspect

EXIT_SETTINGS = 2
EXIT_IN_USE = 3
EXIT_UNUSABLE = 4

_TICK_S = 0.1
# Share of the grace period the workers get; the rest is the agent's.
_WORKERS_SHARE = 0.5
_KILL_MARGIN_S = 0.5
# How many agents are tried to ship what is left.
_LAST_AGENTS = 2

Command = Callable[[str, int], list[str]]

_log = logging.getLogger("sidestep.supervisor")


class SupervisorError(SidestepError):
    """The supervisor cannot start. `code` is the program's exit code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Settings(NamedTuple):
    """What the supervisor needs to know; `python -m sidecar.app check` prints it as JSON."""

    data_dir: str
    workers: int
    # As in SIDESTEP_LISTEN; `host:0` is replaced by the port a worker reports.
    listen: list[str]
    http_host: str
    http_port: int
    shutdown_grace_s: float
    ready_requires_sync: bool
    journal_sink: str
    log_level: str
    log_format: logs.Format
    # Whether calls need a caller's token; else it is development mode.
    callers: bool = False
    # Whether the control plane's keys are pinned; else it is development mode.
    trusted_keys: bool = False


def app_command(role: str, index: int) -> list[str]:
    """How an agent or a worker is started."""
    return [sys.executable, "-m", "sidecar.app", role, "--index", str(index), "--parent", str(os.getpid())]


class Supervisor:
    """Runs one agent and some workers until told to stop. `command` says how to start them."""

    def __init__(self, settings: Settings, command: Command = app_command) -> None:
        """Takes the lock, creates the page and binds the health port. Raises SupervisorError."""
        self._settings = settings
        self._data = Path(settings.data_dir)
        self._lock = _lock(self._data)
        try:
            self._page = Page.create(self._data / "page", settings.workers)
            self.agent = Child("agent", command("agent", 0), self._page.agent)
            self.workers = [
                Child(f"worker-{index}", command("worker", index), self._page.worker(index))
                for index in range(settings.workers)
            ]
            self._stopping = False
            self._started = False
            self._ticked_at = time.monotonic()
            probes = {"/startz": self._startz, "/healthz": self._healthz, "/readyz": self._readyz}
            self._health = HealthServer(settings.http_host, settings.http_port, probes, self._metrics)
        except OSError as error:
            os.close(self._lock)
            where = f"{settings.http_host}:{settings.http_port}" if error.filename is None else error.filename
            raise SupervisorError(EXIT_UNUSABLE, f"{where}: {error.strerror}") from error

    def run(self) -> int:
        """Supervises until SIGTERM or SIGINT, then drains. Must be called from the main thread."""
        if not self._settings.trusted_keys:
            _log.warning(
                "SIDESTEP_TRUSTED_KEYS is not set: development mode, whatever the control plane sends is believed"
            )
        if not self._settings.callers:
            _log.warning("SIDESTEP_CALLERS is not set: development mode, whoever reaches the sidecar is served")
        wakeup = _Wakeup()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        try:
            while not self._stopping:
                self._tick()
                wakeup.wait(_TICK_S)
            self._drain(wakeup)
        finally:
            for child in (*self.workers, self.agent):
                child.send(signal.SIGKILL)
            self._health.close()
            wakeup.close()
            os.close(self._lock)
        return 0

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stopping = True

    def _tick(self) -> None:
        now = time.monotonic()
        elapsed_s, self._ticked_at = now - self._ticked_at, now
        for child in (self.agent, *self.workers):
            self._reap(child, now)
            if child.hung(elapsed_s):
                _log.error("%s does not answer: killed", child.name)
                child.send(signal.SIGKILL)
        self.agent.start_if_due(now)
        for child in self.workers:
            # Port 0: the others share the port the first one got.
            if child is self.workers[0] or not any(map(_floating, self._addresses())):
                child.start_if_due(now)
        if not self._started and all(child.state.answers for child in self.workers):
            self._started = True
            self._say_ready()

    def _reap(self, child: Child, now: float) -> None:
        code = child.reap(now)
        if code is None:
            return
        if code or not self._stopping:
            _log.warning("%s ended %s", child.name, f"with exit code {code}" if code >= 0 else f"by signal {-code}")
        if code in (-signal.SIGBUS, -signal.SIGSEGV):
            generation = DataDir(self._data).current()
            if generation is not None:
                _log.error("%s is suspected of having killed %s", generation.name, child.name)
                mark_suspect(generation, f"{child.name} died of signal {-code}")

    def _drain(self, wakeup: _Wakeup) -> None:
        grace_s = self._settings.shutdown_grace_s
        begun = time.monotonic()
        self._page.set_drain_deadline(boottime_ms() + int(1000 * grace_s))
        _log.info("draining, %.0f s at most", grace_s)
        self._end(self.workers, begun + grace_s * _WORKERS_SHARE, wakeup)
        # What the workers left is to be shipped or spooled: also if the agent is dead just now, or dies of it.
        deadline = begun + grace_s - _KILL_MARGIN_S
        for _attempt in range(_LAST_AGENTS):
            self._reap(self.agent, time.monotonic())
            self.agent.start(time.monotonic())
            self._end([self.agent], deadline, wakeup)
            if self.agent.exit_code == 0 or time.monotonic() >= deadline:
                return
            _log.error("the agent ended before it was done with the journal")

    def _end(self, children: Iterable[Child], deadline: float, wakeup: _Wakeup) -> None:
        """Ends processes: politely, then by force at the deadline."""
        children = list(children)
        for child in children:
            child.send(signal.SIGTERM)
        while any(child.running for child in children):
            now = self._ticked_at = time.monotonic()
            for child in children:
                self._reap(child, now)
                if now >= deadline and child.running:
                    _log.warning("%s did not end in time: killed", child.name)
                    child.send(signal.SIGKILL)
            wakeup.wait(_TICK_S)

    def _addresses(self) -> list[str]:
        """Where decisions are served, as far as it is known."""
        first = self._page.worker(0)
        listen = self._settings.listen
        return [
            f"{address.removesuffix(':0')}:{port}" if _floating(address) else address
            for address, port in zip(listen, first.ports(len(listen)), strict=True)
        ]

    def _say_ready(self) -> None:
        host = self._settings.http_host
        http = f"[{host}]:{self._health.port}" if ":" in host else f"{host}:{self._health.port}"
        try:
            print(f"ready grpc={','.join(self._addresses())} http={http}", flush=True)  # noqa: T201
        except OSError:
            _log.warning("nobody reads standard output")

    # Probes and metrics run in threads of the health server; they only read.

    def _startz(self) -> Probe:
        return Probe(self._started, self._components())

    def _healthz(self) -> Probe:
        silent_s = time.monotonic() - self._ticked_at
        return Probe(silent_s < HANG_S, {"supervisor_silent_s": round(silent_s, 1)})

    def _readyz(self) -> Probe:
        answering = [child.state for child in self.workers if child.state.answers]
        ok = bool(answering) and not self._stopping
        if self._settings.ready_requires_sync:
            ok = ok and all(state is State.SERVING for state in answering)
        return Probe(ok, self._components())

    def _components(self) -> dict[str, object]:
        return (
            {
                "processes": {child.name: child.state.name.lower() for child in (self.agent, *self.workers)},
                "sync_connected": bool(self._page.agent.get(AgentWord.SYNC_CONNECTED)),
                "journal": self._journal(),
                "local_unusable": self._local_unusable(),
            }
            | self._callers()
            | self._trust()
        )

    def _trust(self) -> dict[str, object]:
        """What is to be known of what the control plane sends. It takes no readiness away: age does that in its time."""
        if not self._settings.trusted_keys:
            return {"trusted_keys": "development mode: whatever the control plane sends is believed"}
        agent = self._page.agent
        offset = agent.get(AgentWord.CLOCK_OFFSET_MS)
        return {
            "trusted_keys": agent.get(AgentWord.TRUSTED_KEYS),
            "trusted_keys_unusable": bool(agent.get(AgentWord.TRUSTED_KEYS_UNUSABLE)),
            "clock_offset_s": None if not offset else (offset - OFFSET_ZERO) / 1000,
            "sync_unverified": sum(agent.get(AgentWord.SYNC_UNVERIFIED, at) for at in range(len(UNVERIFIED))),
        }

    def _local_unusable(self) -> list[str]:
        """Parts of the pod's own store that some worker cannot use."""
        workers = [self._page.worker(index) for index in range(self._page.workers)]
        return [
            part
            for at, part in enumerate(LOCAL_STORES)
            if any(worker.get(WorkerWord.LOCAL_UNUSABLE, at) for worker in workers)
        ]

    def _callers(self) -> dict[str, object]:
        if not self._settings.callers:
            return {"callers": "development mode: anyone is served"}
        workers = [self._page.worker(index) for index in range(self._page.workers)]
        return {
            "callers": min(worker.get(WorkerWord.CALLERS) for worker in workers),
            "callers_unusable": any(worker.get(WorkerWord.CALLERS_UNUSABLE) for worker in workers),
        }

    def _journal(self) -> dict[str, object]:
        agent = self._page.agent
        workers = [self._page.worker(index) for index in range(self._page.workers)]
        unrecorded = sum(worker.get(WorkerWord.UNRECORDED) for worker in workers)
        return {
            "sink": self._settings.journal_sink,
            "state": EXPORT_STATES[agent.get(AgentWord.EXPORT_STATE)],
            "full": any(worker.get(WorkerWord.JOURNAL_FULL) for worker in workers),
            "lost": agent.get(AgentWord.JOURNAL_LOST) + unrecorded,
            "unrecorded": unrecorded,
            "quarantined": agent.get(AgentWord.JOURNAL_QUARANTINED),
            "backlog": agent.get(AgentWord.JOURNAL_BACKLOG),
            "spool_unusable": bool(agent.get(AgentWord.SPOOL_UNUSABLE)),
        }

    def _metrics(self, accept: str) -> tuple[str, str]:
        form = negotiate(accept)
        return form.value, render(collect(self._page), form)


class _Wakeup:
    """Waits for a signal or a time, whichever comes first."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)

    def wait(self, timeout_s: float) -> None:
        if select.select([self._read], [], [], timeout_s)[0]:
            os.read(self._read, 4096)

    def close(self) -> None:
        signal.set_wakeup_fd(-1)
        os.close(self._read)
        os.close(self._write)


def _floating(address: str) -> bool:
    """Whether the address leaves the choice of its TCP port to the kernel."""
    return address.endswith(":0") and not address.startswith("unix:")


def _lock(data_dir: Path) -> int:
    """The lock on the data directory, as a descriptor; it goes with the process. Raises SupervisorError."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SupervisorError(EXIT_UNUSABLE, f"SIDESTEP_DATA_DIR: {data_dir}: {error.strerror}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise SupervisorError(EXIT_IN_USE, f"SIDESTEP_DATA_DIR: {data_dir} is in use by another sidecar") from None
    return fd


def read_settings() -> Settings:
    """Has the settings checked in a process of its own, where they may be parsed with more than the standard library.

    Raises SupervisorError with the checker's own words.
    """
    checked = subprocess.run(
        [sys.executable, "-m", "sidecar.app", "check"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if checked.returncode != 0:
        raise SupervisorError(EXIT_SETTINGS, checked.stderr.strip())
    return Settings(**json.loads(checked.stdout))


def main() -> int:
    """The program `sidestep-sidecar`."""
    try:
        settings = read_settings()
        logs.configure(settings.log_level, settings.log_format, "supervisor")
        return Supervisor(settings).run()
    except SupervisorError as error:
        print(f"sidestep-sidecar: {error}", file=sys.stderr)  # noqa: T201
        return error.code


if __name__ == "__main__":
    sys.exit(main())
