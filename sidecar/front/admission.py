"""Who is let in: calls by their tokens, and callers by what they may ask. As the loops of a worker share it."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import Final

from engine.names import check_action
from engine.tokenfiles import bearer_hash
from engine.watched import WatchedFiles
from sidecar.callers import Caller, Callers, CallersError, read_callers
from sidecar.front.errors import CallersUnreadError, ForbiddenError, UnauthenticatedError
from sidecar.front.transport import Call
from sidecar.page import WorkerSlot, WorkerWord

_log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 1.0
"""How often it is looked whether a file has changed."""
_LOG_EVERY_S: Final = 1.0


class Admission:
    """Knows the callers that SIDESTEP_CALLERS names. `follow` is for one thread, all else for any.

    Files that cannot be used change nothing: whom it knew before it goes on knowing. If it never knew anyone, nobody is let in.
    """

    def __init__(self, path: Path, slot: WorkerSlot) -> None:
        """Reads the files. If they cannot be used, that is logged, counted and published like any later time."""
        self._path = str(path)
        self._slot = slot
        self._files: WatchedFiles | None = None
        # None: could not be read yet.
        self._callers: Callers | None = None
        self._problem = ""
        self._warnings: tuple[str, ...] = ()
        self._look_at = 0.0
        self._refusals_lock = threading.Lock()
        self._refusals = 0
        self._log_at = 0.0
        for word in (WorkerWord.CALLERS, WorkerWord.CALLERS_UNUSABLE):
            slot.set(word, 0)  # what an earlier process left
        self.follow()

    def admit(self, call: Call, rpc: str) -> Caller:
        """Whose call it is. Raises UnauthenticatedError, ForbiddenError for another's RPC, CallersUnreadError."""
        callers = self._callers
        if callers is None:
            raise CallersUnreadError("the sidecar's callers cannot be read")
        token = bearer_hash(call.metadata_value("authorization"))
        caller = None if token is None else callers.by_hash.get(token)
        if caller is None:
            self._note("without the token of a caller")
            raise UnauthenticatedError
        if rpc not in caller.rpcs:
            self._note(f"of {caller.name}: not its RPC")
            raise ForbiddenError(f"{caller.name} may not call {rpc}")
        return caller

    def check(self, caller: Caller, action: str) -> None:
        """Raises ForbiddenError if the caller may not ask about the action, InvalidInputError if it is no action's name."""
        if not caller.may_ask_about(action):
            check_action(action, "action.name")
            self._note(f"of {caller.name}: not its action")
            raise ForbiddenError(f"{caller.name} may not ask about {action}")

    def follow(self) -> None:
        """Reads the files again if they have changed. To be called often: looks about once a second."""
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + LOOK_EVERY_S
        if self._files is not None and not self._files.changed():
            return
        self._files = files = WatchedFiles()
        try:
            callers = read_callers(self._path, files)
        except CallersError as error:
            self._complain(str(error))
        else:
            self._adopt(callers)

    def _adopt(self, callers: Callers) -> None:
        if callers.warnings != self._warnings:
            for warning in callers.warnings:
                _log.warning("SIDESTEP_CALLERS: %s", warning)
            self._warnings = callers.warnings
        if self._problem or self._callers is None or callers.by_hash != self._callers.by_hash:
            _log.info("callers: %d, their tokens: %d", callers.size, len(callers.by_hash))
        self._callers = callers
        self._problem = ""
        self._slot.set(WorkerWord.CALLERS, callers.size)
        self._slot.set(WorkerWord.CALLERS_UNUSABLE, 0)

    def _complain(self, problem: str) -> None:
        """Once, until it is another."""
        if problem == self._problem:
            return
        self._problem = problem
        held = "nobody may call" if self._callers is None else "those who might call before still may"
        _log.error("SIDESTEP_CALLERS: %s; %s", problem, held)
        self._slot.set(WorkerWord.CALLERS_UNUSABLE, 1)
        self._slot.add(WorkerWord.CALLERS_FAILURES)

    def _note(self, whose: str) -> None:
        """Logs a refused call, at most once a second, and how many were since the last line."""
        now = time.monotonic()
        with self._refusals_lock:
            self._refusals += 1
            if now < self._log_at:
                return
            count, self._refusals = self._refusals, 0
            self._log_at = now + _LOG_EVERY_S
        _log.warning("refused %d calls, the last one %s", count, whose)
