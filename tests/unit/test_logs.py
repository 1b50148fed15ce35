"""Log lines: one per record whatever is in it, with trace ids, and never with what a request said."""

from __future__ import annotations

import ast
import json
import logging
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import InvalidInputError
from engine.logs import FIELDS, JsonFormatter, TextFormatter

SECRET = "alice@example.org"


def record(message: str = "hello", *args: object, error: BaseException | None = None, **extra: object) -> Any:
    exc_info = None if error is None else (type(error), error, error.__traceback__)
    made = logging.LogRecord("sidecar.agent", logging.WARNING, __file__, 1, message, args, exc_info)
    made.created = 1_795_000_000.0629
    vars(made).update(extra)
    return made


def as_json(made: logging.LogRecord) -> dict[str, Any]:
    line = JsonFormatter("agent").format(made)
    assert line.isascii()
    assert line.isprintable()
    parsed: dict[str, Any] = json.loads(line)
    return parsed


def caught(fail: Any) -> BaseException:
    try:
        fail()
    except Exception as error:
        return error
    raise AssertionError("did not fail")


def test_a_json_line_says_when_what_and_who() -> None:
    assert as_json(record("%d of %s", 3, "ü")) == {
        "time": "2026-11-18T11:06:40.062Z",
        "level": "warning",
        "logger": "sidecar.agent",
        "process": "agent",
        "message": "3 of ü",
    }
    assert datetime(2026, 11, 18, 11, 6, 40, tzinfo=UTC).timestamp() == 1_795_000_000


def test_ids_of_the_call_are_fields_and_nothing_else_is_added() -> None:
    ids = {"trace_id": "0af7651916cd43dd8448eb211c80319c", "span_id": "b7ad6b7169203331", "decision_id": "01"}
    line = as_json(record(**ids, subject=SECRET))
    assert {name: line[name] for name in FIELDS} == ids
    assert SECRET not in json.dumps(line)
    assert "trace_id" not in as_json(record(trace_id=""))
    text = TextFormatter("agent").format(record(**ids))
    assert text == (
        "2026-11-18T11:06:40.062Z WARNING agent: hello trace_id=0af7651916cd43dd8448eb211c80319c "
        "span_id=b7ad6b7169203331 decision_id=01"
    )


def test_an_exception_is_told_by_types_and_places_without_values() -> None:
    def inner() -> None:
        raise ValueError(SECRET)

    def outer() -> None:
        try:
            inner()
        except ValueError as error:
            raise InvalidInputError("subject", SECRET) from error

    made = record(error=caught(outer))
    line = as_json(made)
    assert [error["type"] for error in line["error"]] == ["engine.errors.InvalidInputError", "ValueError"]
    assert [error["stack"][-1].split()[-1] for error in line["error"]] == ["outer", "inner"]
    assert line["error"][0]["stack"][-1].startswith(f"{__file__}:")
    text = TextFormatter("agent").format(made)
    assert len(text.splitlines()) > 4
    for shown in (json.dumps(line), text):
        assert SECRET not in shown
        assert "ValueError" in shown


def test_the_systems_own_words_are_kept() -> None:
    error = caught(lambda: Path(f"/nowhere/{SECRET}").read_bytes())
    shown = json.dumps(as_json(record(error=error)))
    assert "FileNotFoundError (No such file or directory)" in shown
    assert SECRET not in shown


def test_a_circle_of_causes_and_a_deep_stack_end() -> None:
    first, second = ValueError(), KeyError()
    first.__cause__, second.__cause__ = second, first
    assert [error["type"] for error in as_json(record(error=first))["error"]] == ["ValueError", "KeyError"]

    def deep() -> None:
        deep()

    assert len(as_json(record(error=caught(deep)))["error"][0]["stack"]) == 40


class Hostile:
    def __str__(self) -> str:
        raise RuntimeError(SECRET)


@pytest.mark.parametrize("args", [(1, 2), (Hostile(),), ("no number",)])
def test_arguments_that_do_not_fit_are_no_error(args: tuple[object, ...]) -> None:
    template = "%d" if args == ("no number",) else "%s"
    assert as_json(record(template, *args))["message"] == f"{template} (cannot be formatted)"


def test_asyncio_does_not_show_the_exceptions_message() -> None:
    made = record("Task exception was never retrieved\nfuture: <Task exception=ValueError('%s')>", error=ValueError())
    made.name = "asyncio"
    assert as_json(made)["message"] == "Task exception was never retrieved"


@given(st.text(st.characters(exclude_categories=())))
def test_no_text_breaks_out_of_its_line(text: str) -> None:
    made = record("%s", text, trace_id=text)
    line = as_json(made)
    assert line["message"] == text
    plain = TextFormatter("agent").format(made)
    assert "\n" not in plain
    assert len(plain.splitlines()) == 1
    assert "\x1b" not in plain


def log_calls() -> list[tuple[str, ast.Call]]:
    root = Path(__file__).parents[2]
    calls = []
    for package in ("engine", "sidecar", "controlplane"):
        for path in sorted((root / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                    owner = node.func.value
                    if isinstance(owner, ast.Name) and owner.id.lower() in ("_log", "log", "logger"):
                        calls.append((f"{path.relative_to(root)}:{node.lineno}", node))
    return calls


def test_log_calls_name_nobody_and_leave_formatting_to_logging() -> None:
    personal = {"subject", "subject_id", "session", "session_id", "user", "user_id", "ip", "client_address", "token"}
    personal |= {"request", "facts", "record", "payload", "response", "fingerprint", "device", "device_id"}
    calls = log_calls()
    assert len(calls) > 30
    for where, call in calls:
        template, *arguments = call.args
        assert isinstance(template, ast.Constant), f"{where}: not a constant text"
        for argument in arguments:
            name = argument.attr if isinstance(argument, ast.Attribute) else getattr(argument, "id", "")
            assert name not in personal, f"{where}: {name} may be personal data"


def run(form: str, level: str, script: str) -> list[str]:
    """The lines a process writes to standard error."""
    code = f"import logging\nfrom engine.logs import configure\nconfigure({level!r}, {form!r}, 'worker-0')\n{script}"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert ended.stdout == ""
    return ended.stderr.splitlines()


def test_a_process_writes_nothing_but_json_lines() -> None:
    script = f"""
import threading, warnings
logging.getLogger("grpc._channel").error("third\\nparty")
logging.getLogger("sidecar").debug("not shown")
warnings.warn("careful")
def fail():
    raise ValueError({SECRET!r})
thread = threading.Thread(target=fail, name="loop"); thread.start(); thread.join()
logging.getLogger("sidecar").info("%d", "no number")
fail()
"""
    lines = [json.loads(line) for line in run("json", "INFO", script)]
    assert [(line["logger"], line["level"]) for line in lines] == [
        ("grpc._channel", "error"),
        ("py.warnings", "warning"),
        ("engine.logs", "critical"),
        ("sidecar", "info"),
        ("engine.logs", "critical"),
    ]
    assert lines[0]["message"] == "third\nparty"
    assert lines[2]["message"] == "uncaught exception in loop"
    assert [error["type"] for error in lines[4]["error"]] == ["ValueError"]
    assert SECRET not in json.dumps(lines)
    assert {line["process"] for line in lines} == {"worker-0"}


def test_text_is_for_people_and_levels_are_heeded() -> None:
    script = "logging.getLogger('sidecar').info('hidden'); logging.getLogger('x').warning('shown\\nhere')"
    (line,) = run("text", "warning", script)
    assert line.endswith(" WARNING worker-0: shown\\x0ahere")


def test_of_libraries_only_warnings_and_errors_are_shown() -> None:
    script = """
for name in ("aiosqlite", "httpcore.http11", "sidecar.x", "controlplane.y", "engine.z", "sidestep.supervisor"):
    logging.getLogger(name).debug("what was sent")
logging.getLogger("httpx").info("HTTP Request")
logging.getLogger("httpx").warning("careful")
"""
    lines = [json.loads(line) for line in run("json", "debug", script)]
    assert [line["logger"] for line in lines] == [
        "sidecar.x",
        "controlplane.y",
        "engine.z",
        "sidestep.supervisor",
        "httpx",
    ]
    assert [json.loads(line)["logger"] for line in run("json", "error", script)] == []


def test_logging_without_standard_error_is_no_error() -> None:
    script = "import os; os.close(2); logging.getLogger('x').error('into the void'); print('', end='')"
    assert run("json", "info", script) == []
