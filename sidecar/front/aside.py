"""Calls that write to a disk, answered beside the loop: an fsync takes milliseconds, and a decision must not wait for it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Final, NamedTuple

from sidecar.callers import Caller
from sidecar.front.errors import OverloadedError
from sidecar.front.transport import Call

MAX_WAITING: Final = 256


class Finished(NamedTuple):
    """A call and its answer's bytes, or what went wrong."""

    call: Call
    outcome: bytes | Exception


class _Job(NamedTuple):
    call: Call
    answer: Callable[[bytes, Caller | None], bytes]
    caller: Caller | None


class Aside:
    """One thread that answers such calls in their order. Begun with the first; used by one loop, which ends the calls."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[_Job] = SimpleQueue()
        self._finished: deque[Finished] = deque()
        self._thread: threading.Thread | None = None
        self.waiting = 0
        """Calls that were taken and not yet given back."""

    def take(self, call: Call, answer: Callable[[bytes, Caller | None], bytes], caller: Caller | None) -> None:
        """Has the call answered. Raises OverloadedError if too many wait."""
        if self.waiting >= MAX_WAITING:
            raise OverloadedError(f"{MAX_WAITING} reports wait to be written")
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="aside", daemon=True)
            self._thread.start()
        self.waiting += 1
        self._jobs.put(_Job(call, answer, caller))

    def finished(self) -> list[Finished]:
        """The calls that can be ended now."""
        found: list[Finished] = []
        while self._finished:
            found.append(self._finished.popleft())
        self.waiting -= len(found)
        return found

    def _run(self) -> None:
        while True:
            call, answer, caller = self._jobs.get()
            outcome: bytes | Exception
            try:
                outcome = answer(call.payload, caller)
            except Exception as error:
                outcome = error
            self._finished.append(Finished(call, outcome))
