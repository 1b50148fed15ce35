"""Types of command-line values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TextIO

import click
from google.protobuf.timestamp_pb2 import Timestamp

from controlplane.cli.failures import Failure
from engine.durations import parse_duration
from engine.errors import InvalidInputError


class DurationType(click.ParamType[float]):
    """`90s`, `5m`, `1h30m`, `30d`; the value is seconds. Must be positive."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds."""
        if isinstance(value, float):
            return value
        try:
            seconds = parse_duration(value)
        except InvalidInputError as error:
            self.fail(error.problem, param, ctx)
        if seconds <= 0:
            self.fail("must be longer than 0", param, ctx)
        return seconds


class InstantType(click.ParamType[float]):
    """An ISO 8601 time (UTC unless it names a zone), `now`, or from now (`+30d`, `-7d`); the value is Unix seconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Unix seconds."""
        if isinstance(value, float):
            return value
        # Whole seconds: nobody means the fraction in "in 90 days".
        now = float(int(datetime.now(UTC).timestamp()))
        if value == "now":
            return now
        if value.startswith(("+", "-")):
            try:
                span_s = parse_duration(value[1:])
                return now + span_s if value[0] == "+" else now - span_s
            except InvalidInputError as error:
                self.fail(error.problem, param, ctx)
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is not an ISO 8601 time, 'now', '+30d' or '-7d'", param, ctx)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


DURATION = DurationType()
INSTANT = InstantType()


def assignments(pairs: Sequence[str], option: str) -> dict[str, str]:
    """`name=value` options as a mapping. Raises Failure."""
    values: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise Failure(f"{option}: {pair!r} is not NAME=VALUE")
        if name in values:
            raise Failure(f"{option}: {name!r} is given twice")
        values[name] = value
    return values


def label(file: TextIO) -> str:
    """What errors call an opened file; standard input has several names of its own, or none."""
    name = getattr(file, "name", None)
    return name if isinstance(name, str) and name not in ("-", "<stdin>") else "stdin"


def exactly_one(choices: Mapping[str, object]) -> None:
    """Raises Failure unless exactly one of the named values was given."""
    given = [name for name, value in choices.items() if value is not None]
    if len(given) != 1:
        names = f"{', '.join(list(choices)[:-1])} or {list(choices)[-1]}"
        raise Failure(f"{' and '.join(given) + ': ' if given else ''}give exactly one of {names}")


def set_time(field: Timestamp, at: float | None) -> None:
    """Sets a time to Unix seconds; None leaves it alone."""
    if at is not None:
        field.FromNanoseconds(int(at) * 10**9 + int(at % 1 * 10**9))
