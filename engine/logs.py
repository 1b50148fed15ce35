"""Logging of all processes, by the standard library: one line per record on standard error, as JSON or as text.

    {"time":"2026-11-24T08:15:30.123Z","level":"warning","logger":"sidestep.supervisor","process":"supervisor","message":"..."}

and, where they are known, `trace_id`, `span_id` and `decision_id` (passed as `extra`), and for exceptions `error`: types and
places, outermost first, but neither messages nor values, which may hold what a request said. Nothing in a record can break
its line or make logging raise.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
import traceback
from types import TracebackType
from typing import Any, Literal

Format = Literal["json", "text"]

FIELDS = ("trace_id", "span_id", "decision_id")
"""Fields a log call may add by `extra`: lower-case hexadecimal, as W3C Trace Context writes ids."""

_DELETE = 0x7F
# Of Unicode: separators of lines and paragraphs, and what turns the direction of text.
_UNPRINTABLE = (*range(0x20), *range(_DELETE, 0xA0), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_ESCAPES = {code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" for code in _UNPRINTABLE}
_MAX_CAUSES = 8
_MAX_FRAMES = 40

# The roots of our loggers' names.
_OURS = ("engine", "sidecar", "controlplane", "sidestep")

_log = logging.getLogger(__name__)


def configure(level: str, form: Format, process: str) -> None:
    """Sets up logging of this process, warnings and uncaught exceptions included; what was set up before is replaced.

    `level`: debug, info, warning or error, in any case, of our own lines. Of libraries only warnings and errors are shown: below
    that they tell what they send, SQL with its values and headers with credentials among it. `process`: named in every
    line. To be called before gRPC is used.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(process) if form == "json" else TextFormatter(process))
    logging.basicConfig(level=max(logging.WARNING, logging.getLevelName(level.upper())), handlers=[handler], force=True)
    for name in _OURS:
        logging.getLogger(name).setLevel(level.upper())
    # gRPC's C core writes lines of its own past Python's logging, and nothing that Python is not told as well.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # A line that cannot be written is nothing to write about.
    logging.raiseExceptions = False
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    threading.excepthook = lambda failed: _uncaught(failed.exc_type, failed.exc_value, failed.exc_traceback)


class JsonFormatter(logging.Formatter):
    """A record as one line of ASCII JSON."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """Never raises: what cannot be formatted is shown as it was passed."""
        line: dict[str, Any] = {
            "time": _time(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": self._process,
            "message": _message(record),
        }
        for name in FIELDS:
            value = getattr(record, name, None)
            if value:
                line[name] = str(value)
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = [_error(error) for error in _chain(record.exc_info[1])]
        return json.dumps(line, separators=(",", ":")).replace(chr(_DELETE), f"\\u{_DELETE:04x}")


class TextFormatter(logging.Formatter):
    """A record as a line for people; exceptions follow on lines of their own, as types and places only."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """Never raises."""
        text = f"{_time(record.created)} {record.levelname} {self._process}: {_message(record)}".translate(_ESCAPES)
        for name in FIELDS:
            value = getattr(record, name, None)
            if value:
                text += f" {name}={value}".translate(_ESCAPES)
        if record.exc_info and record.exc_info[1] is not None:
            for error in map(_error, _chain(record.exc_info[1])):
                text += "".join(f"\n    {line}" for line in (error["type"], *error["stack"]))
        return text


def _message(record: logging.LogRecord) -> str:
    try:
        message = record.getMessage()
    except Exception:  # arguments that do not fit, or whose str() fails
        message = (
            f"{record.msg!s:.200} (cannot be formatted)" if isinstance(record.msg, str) else "(cannot be formatted)"
        )
    # asyncio adds the repr of the task or future that failed on further lines, and it holds the exception's message.
    return message.partition("\n")[0] if record.name == "asyncio" and record.exc_info else message


def _time(at: float) -> str:
    """RFC 3339 in UTC with milliseconds."""
    seconds, milliseconds = divmod(int(at * 1000), 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{milliseconds:03d}Z"


def _chain(error: BaseException) -> list[BaseException]:
    """The exception and what led to it."""
    errors = [error]
    while len(errors) < _MAX_CAUSES:
        last = errors[-1]
        cause = last.__cause__ or (None if last.__suppress_context__ else last.__context__)
        if cause is None or cause in errors:
            break
        errors.append(cause)
    return errors


def _error(error: BaseException) -> dict[str, Any]:
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(error, OSError) and error.strerror:
        name += f" ({error.strerror})"  # one of the system's own phrases
    frames = [
        f"{frame.f_code.co_filename}:{line} {frame.f_code.co_name}"
        for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    return {"type": name, "stack": frames[-_MAX_FRAMES:]}


def _uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    if error is None or issubclass(kind, KeyboardInterrupt | SystemExit):
        return
    _log.critical("uncaught exception in %s", threading.current_thread().name, exc_info=(kind, error, trace))
