"""The vectors as the runners use them: read, checked against the schema, merged with the fixture, times resolved."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import yaml

from engine.durations import parse_duration

HERE = Path(__file__).parent
RUNNERS = ("engine", "worker")
_RELATIVE = re.compile(r"now(?:([+-])(.+))?")
_TEXT = re.compile(r"text\((\d+)\)")


@dataclass(frozen=True, slots=True)
class Report:
    """A ReportAuthentication call and what it comes to; `request` as in Vector."""

    now: datetime
    request: dict[str, Any]
    expect: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Vector:
    """One case. `records` and `request` are merged with the fixture; times in them are still as written.

    `only`: the one runner it is for; empty: every runner.
    """

    id: str
    now: datetime
    records: dict[str, Any]
    request: dict[str, Any]
    expect: dict[str, Any]
    data: dict[str, str]
    min_revision: dict[str, int] | None
    journal_full: bool
    deadline_passed: bool
    only: str
    # What is held of budgets, by grant.
    leases: dict[str, dict[str, Any]] = field(default_factory=dict)
    # Requests that came before, oldest first.
    before: tuple[Vector, ...] = ()
    # What services report before the request, in this order.
    reports: tuple[Report, ...] = ()

    @property
    def now_s(self) -> float:
        """`now` in seconds since the Unix epoch."""
        return self.now.timestamp()


@cache
def fixture() -> dict[str, Any]:
    """What every vector starts from."""
    loaded: dict[str, Any] = yaml.safe_load((HERE / "fixture.yaml").read_text(encoding="utf-8"))
    return loaded


def fixture_now() -> datetime:
    """The time that a vector without its own is decided at."""
    return datetime.fromisoformat(fixture()["now"])


def files() -> list[Path]:
    """The files with vectors."""
    return sorted((HERE / "vectors").glob("*.yaml"))


def schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a file."""
    loaded: dict[str, Any] = json.loads((HERE / "vector.schema.json").read_text(encoding="utf-8"))
    return loaded


@cache
def vectors() -> tuple[Vector, ...]:
    """All of them. Raises jsonschema.ValidationError for a file that is not as the schema says."""
    validator = jsonschema.Draft202012Validator(schema())
    found: list[Vector] = []
    for path in files():
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        validator.validate(document)
        given = document.get("given", {})
        found += [_vector(path.stem, given, case, at) for at, case in enumerate(document["cases"])]
    return tuple(found)


def for_runner(runner: str) -> list[Vector]:
    """The vectors one runner has to meet."""
    return [vector for vector in vectors() if vector.only in ("", runner)]


def merge(target: Any, patch: Any) -> Any:
    """JSON Merge Patch (RFC 7396)."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge(merged.get(key), value)
    return merged


def instant(text: str, now: datetime) -> datetime:
    """`now`, `now-5m`, `now+1h30m` or an RFC 3339 time."""
    relative = _RELATIVE.fullmatch(text)
    if relative is None:
        return datetime.fromisoformat(text).astimezone(UTC)
    sign, span = relative.groups()
    if sign is None:
        return now
    offset = timedelta(seconds=parse_duration(span))
    return now - offset if sign == "-" else now + offset


def resolve(value: Any, now: datetime) -> Any:
    """Relative times as RFC 3339 and `text(n)` as n letters, wherever they stand."""
    if isinstance(value, dict):
        return {key: resolve(item, now) for key, item in value.items()}
    if isinstance(value, list):
        return [resolve(item, now) for item in value]
    if isinstance(value, str):
        if _RELATIVE.fullmatch(value):
            return instant(value, now).isoformat().replace("+00:00", "Z")
        if sized := _TEXT.fullmatch(value):
            return "a" * int(sized[1])
    return value


def _vector(topic: str, given: dict[str, Any], case: dict[str, Any], at: int) -> Vector:
    def layered(part: str, base: Any) -> Any:
        return merge(merge(base, given.get(part, {})), case.get(part, {}))

    base = fixture()
    leases = layered("leases", {})
    # Reported authentications count for half a day. On a day of its own, before all others, a case has none but its own.
    day = f"now-{300 - at}d" if "reports" in case else base["now"]
    vector = Vector(
        id=f"{topic}::{case['name']}",
        now=instant(case.get("now", given.get("now", day)), fixture_now()),
        records=layered("records", base["tenants"][base["default_tenant"]]),
        request=layered("request", base["request"]),
        expect=case["expect"],
        data=layered("data", {}),
        min_revision=case.get("min_revision"),
        journal_full=case.get("journal_full", False),
        deadline_passed=case.get("deadline_passed", False),
        # Only this process can be told what a worker holds of budgets.
        # And only a process keeps what was reported to it.
        only="engine" if leases else "worker" if "reports" in case else case.get("runner", {}).get("only", ""),
        leases=leases,
    )
    earlier = [
        replace(vector, now=instant(past["at"], vector.now), request=merge(vector.request, past.get("request", {})))
        for past in case.get("before", ())
        for _ in range(past.get("times", 1))
    ]
    reports = [
        Report(
            instant(stated.get("at", "now"), vector.now),
            _patched(
                base["report"],
                {"token": {"claims": {"jti": f"{case['name']}-{number}"}}},
                given.get("report", {}),
                stated.get("report", {}),
            ),
            stated["expect"],
        )
        for number, stated in enumerate(case.get("reports", ()))
    ]
    return replace(vector, before=tuple(earlier), reports=tuple(reports))


def _patched(target: Any, *patches: Any) -> Any:
    """One patch after the other: merged with each other first, they would lose what they remove."""
    for patch in patches:
        target = merge(target, patch)
    return target
