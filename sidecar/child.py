"""One process of the pod, as the supervisor sees it: started, watched, restarted after a pause. Standard library only."""

from __future__ import annotations

import logging
import signal
import subprocess

from sidecar.page import Slot, State, Word

HANG_S = 5.0
"""Without a heartbeat for so long a process is hung."""

# While it starts it may take longer.
_START_S = 30.0
_BACKOFF_FIRST_S = 0.1
_BACKOFF_LAST_S = 5.0
# A process that lived so long is restarted at once.
_SETTLED_S = 10.0
# The supervisor looks at its processes many times a second. If it did not for longer, it was kept from it.
_LOOK_S = 1.0

_log = logging.getLogger("sidestep.supervisor")


class Child:
    """One process, and its slot of the page."""

    def __init__(self, name: str, command: list[str], slot: Slot) -> None:
        self.name = name
        self.slot = slot
        self.restarts = 0
        # Of its process; None: it has not ended yet, or could not be started.
        self.exit_code: int | None = None
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
        if now >= self._start_at:
            self.start(now)

    def start(self, now: float) -> None:
        """Starts the process if there is none."""
        if self._process is not None:
            return
        self.exit_code = None
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
        self.exit_code = code
        self.slot.set_state(State.DEAD)
        self.restarts += 1
        self.slot.set(Word.RESTARTS, self.restarts)
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
        self._silent_s += min(elapsed_s, _LOOK_S)
        reported = self.slot.pid == self._process.pid
        if self._silent_s <= (HANG_S if reported else _START_S):
            return False
        self._silent_s = 0.0  # tell once
        return True

    def send(self, number: signal.Signals) -> None:
        """Sends a signal, if there is a process."""
        if self._process is not None:
            self._process.send_signal(number)
