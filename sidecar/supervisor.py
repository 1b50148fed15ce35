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

from engine.errors import SidestepError
from sidecar import metrics
from sidecar.health import HealthServer, Probe
from sidecar.page import AgentWord, Page, Slot, State, Word, boottime_ms
from sidecar.store.generation import DataDir, mark_suspect

EXIT_SETTINGS = 2
EXIT_IN_USE = 3
EXIT_UNUSABLE = 4

_TICK_S = 0.1
# Without a heartbeat for so long a process is hung; while it starts it may take longer.
_HANG_S = 5.0
_START_S = 30.0
_BACKOFF_FIRST_S = 0.1
_BACKOFF_LAST_S = 5.0
# A process that lived so long is restarted at once.
_SETTLED_S = 10.0
# Share of the grace period the workers get; the rest is the agent's.
_WORKERS_SHARE = 0.5
_KILL_MARGIN_S = 0.5

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


def app_command(role: str, index: int) -> list[str]:
    """How an agent or a worker is started."""
    return [sys.executable, "-m", "sidecar.app", role, "--index", str(index), "--parent", str(os.getpid())]


class Child:
    """One process, and its slot of the page."""

    def __init__(self, name: str, command: list[str], slot: Slot) -> None:
        self.name = name
        self.slot = slot
        self.restarts = 0
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._start_at = 0.0
        self._started_at = 0.0
        self._failures = 0
        self._heartbeat = 0
        self._silent_s = 0.0

    @property
    def running(self) -> bool:
        """Whether there is a process that has not been seen to end."""
        return self._process is not None

    @property
    def state(self) -> State:
        """What the process says it is doing; of a process that has not reported yet, STARTING."""
        if self._process is None:
            return State.DEAD if self.restarts else State.EMPTY
        return self.slot.state if self.slot.pid == self._process.pid else State.STARTING

    def start_if_due(self, now: float) -> None:
        """Starts the process if there is none and the pause after its last death is over."""
        if self._process is not None or now < self._start_at:
            return
        # A process group of its own: Ctrl-C reaches the supervisor alone, which then drains in order. SIGTERM is blocked
        # until the process is ready to handle it: one that comes earlier waits, rather than cost it its last work.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            self._process = subprocess.Popen(  # noqa: S603
                self._command, stdin=subprocess.DEVNULL, stdout=2, process_group=0
            )
        except OSError as error:
            _log.error("%s cannot be started: %s", self.name, error.strerror)
            self._start_at = now + _BACKOFF_LAST_S
            return
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        self._started_at = now
        self._heartbeat = self.slot.get(Word.HEARTBEAT_MS)
        self._silent_s = 0.0

    def reap(self, now: float) -> int | None:
        """The exit code (negative: the signal) if the process has ended since the last call."""
        code = None if self._process is None else self._process.poll()
        if code is None:
            return None
        self._process = None
        self.slot.set_state(State.DEAD)
        self.restarts += 1
        if now - self._started_at >= _SETTLED_S:
            self._failures = 0
        pause_s = min(_BACKOFF_LAST_S, _BACKOFF_FIRST_S * 2.0 ** min(self._failures, 10)) if self._failures else 0.0
        self._failures += 1
        self._start_at = now + pause_s
        return code

    def hung(self, elapsed_s: float) -> bool:
        """Whether the process has not beaten for too long. `elapsed_s`: since the last call.

        The time is summed up in small steps, so that a machine that slept, or a supervisor that got no CPU, does not
        make everyone look hung.
        """
        if self._process is None:
            return False
        heartbeat = self.slot.get(Word.HEARTBEAT_MS)
        if heartbeat != self._heartbeat:
            self._heartbeat = heartbeat
            self._silent_s = 0.0
            return False
        self._silent_s += min(elapsed_s, 10 * _TICK_S)
        reported = self.slot.pid == self._process.pid
        if self._silent_s <= (_HANG_S if reported else _START_S):
            return False
        self._silent_s = 0.0  # tell once
        return True

    def send(self, number: signal.Signals) -> None:
        """Sends a signal, if there is a process."""
        if self._process is not None:
            self._process.send_signal(number)


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
            self._health = HealthServer(
                settings.http_host, settings.http_port, probes, self._metrics, metrics.CONTENT_TYPE
            )
        except OSError as error:
            os.close(self._lock)
            where = f"{settings.http_host}:{settings.http_port}" if error.filename is None else error.filename
            raise SupervisorError(EXIT_UNUSABLE, f"{where}: {error.strerror}") from error

    def run(self) -> int:
        """Supervises until SIGTERM or SIGINT, then drains. Must be called from the main thread."""
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
        self._end([self.agent], begun + grace_s - _KILL_MARGIN_S, wakeup)

    def _end(self, children: Iterable[Child], deadline: float, wakeup: _Wakeup) -> None:
        """Ends processes: politely, then by force at the deadline."""
        children = list(children)
        for child in children:
            child.send(signal.SIGTERM)
        while any(child.running for child in children):
            now = self._ticked_at = time.monotonic()
            for child in children:
                child.reap(now)
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
        return Probe(silent_s < _HANG_S, {"supervisor_silent_s": round(silent_s, 1)})

    def _readyz(self) -> Probe:
        answering = [child.state for child in self.workers if child.state.answers]
        ok = bool(answering) and not self._stopping
        if self._settings.ready_requires_sync:
            ok = ok and all(state is State.SERVING for state in answering)
        return Probe(ok, self._components())

    def _components(self) -> dict[str, object]:
        return {
            "processes": {child.name: child.state.name.lower() for child in (self.agent, *self.workers)},
            "sync_connected": bool(self._page.agent.get(AgentWord.SYNC_CONNECTED)),
            "journal_sink": self._settings.journal_sink,
        }

    def _metrics(self) -> str:
        return metrics.render(
            self._page, {child.name: (child.slot, child.restarts) for child in (self.agent, *self.workers)}
        )


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
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s supervisor: %(message)s")
    try:
        return Supervisor(read_settings()).run()
    except SupervisorError as error:
        print(f"sidestep-sidecar: {error}", file=sys.stderr)  # noqa: T201
        return error.code


if __name__ == "__main__":
    sys.exit(main())
