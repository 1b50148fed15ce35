"""What a caller is told of an error, and what the log is."""

from __future__ import annotations

import logging
import time
import traceback
from typing import Final

from sidecar.front.errors import status_of
from sidecar.front.traceparent import trace_fields
from sidecar.front.transport import Call, StatusCode
from sidecar.page import WorkerSlot

_log = logging.getLogger(__name__)

_LOG_EVERY_S: Final = 1.0


class Faults:
    """Turns errors into statuses and counts them on the page. One per worker loop; not thread-safe."""

    def __init__(self, slot: WorkerSlot) -> None:
        self._slot = slot
        self._log_at = 0.0

    def status(self, error: BaseException, call: Call | None = None) -> tuple[StatusCode, str]:
        """What to tell the caller. Faults of ours are logged."""
        code, message = status_of(error)
        if code is StatusCode.INTERNAL:
            self._complain(error, call)
        self._slot.count_error(code.name.lower())
        return code, message

    def _complain(self, error: BaseException, call: Call | None) -> None:
        """Logs a fault of ours, at most once a second, by its kind and place: messages may hold personal data."""
        now = time.monotonic()
        if now < self._log_at:
            return
        self._log_at = now + _LOG_EVERY_S
        frames = traceback.extract_tb(error.__traceback__)
        place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "?"
        # Which call it was, the caller's trace tells.
        trace = {} if call is None else trace_fields(call.metadata_value("traceparent"))
        _log.error("a call failed: %s at %s", type(error).__name__, place, extra=trace)
