"""CEL conditions: which values they may read, compiling, and evaluating.

Every value is a declared variable of a fixed type, so a misspelt name or a wrong comparison is refused when the policy is put.
A value the request lacks is absent from the activation; CEL then answers ERROR unless the rest decides the condition alone.
There is deliberately no way to ask whether a value is present: three-valued logic without that test is monotone, so leaving
something out of a request can make a condition fire but never stop it from firing (docs/adr/0002-missing-values-fire.md).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from cel_expr_python import cel

from engine.facts import Binding, Facts, Scalar, TokenState
from engine.policy.source import Problem

MAX_CONDITION_CHARS = 2000
# A condition may iterate once, over roles or a literal list; nesting would let one policy eat the decision's time budget.
_GAP = r"(?:\s|//[^\n]*\n)*"
_MACRO = re.compile(rf"\.{_GAP}(?:all|exists|exists_one|map|filter){_GAP}\(")
_PRESENCE = re.compile(rf"\bhas{_GAP}\(")
# A regular expression is compiled anew whenever it is evaluated, and some take seconds: it must be the author's own, and small.
_MATCHES = re.compile(rf"\bmatches{_GAP}\(")
_MATCHES_LITERAL = re.compile(
    rf"""\.{_GAP}matches{_GAP}\({_GAP}(?:[rR](?P<rq>['"])(?P<raw>[^'"\n]*)(?P=rq)"""
    rf"""|(?P<q>['"])(?P<text>(?:[^'"\\\n]|\\\\)*)(?P=q)){_GAP}\)"""
)
_REPEATED = re.compile(r"(?P<group>[)}])?\{(?P<least>[0-9]+)(?:,(?P<most>[0-9]*))?\}")
MAX_PATTERN_SIZE = 200
_DIAGNOSTIC = re.compile(r"ERROR: <input>:(\d+):(\d+): ([^\n]+)")
_FOLD_BITS = 60

BOOL, DOUBLE, INT, STRING = "bool", "double", "int", "string"
_TYPES = {BOOL: cel.Type.BOOL, DOUBLE: cel.Type.DOUBLE, INT: cel.Type.INT, STRING: cel.Type.STRING}


class Variable(NamedTuple):
    """A value conditions can read. `read` returns None where it is not known."""

    name: str
    type: Any
    read: Callable[[Facts], Any]
    meaning: str


def _from_request(name: str, kind: str) -> Callable[[Facts], Any]:
    def read(facts: Facts) -> Any:
        return convert(facts.values.get(name), kind)

    return read


def _device(read: Callable[[Facts], Any]) -> Callable[[Facts], Any]:
    """A request without any device evidence knows nothing of a device, not even that it is unknown."""

    def read_presented(facts: Facts) -> Any:
        return read(facts) if facts.device.presented else None

    return read_presented


def _session(read: Callable[[Facts], Any]) -> Callable[[Facts], Any]:
    def read_presented(facts: Facts) -> Any:
        return read(facts) if facts.session.presented else None

    return read_presented


def _since(facts: Facts, at: float | None) -> float | None:
    return None if at is None else facts.now - at


VARIABLES: tuple[Variable, ...] = (
    Variable("action.name", cel.Type.STRING, lambda f: f.action, "the action asked about"),
    Variable("subject.known", cel.Type.BOOL, lambda f: f.subject.known, "the control plane knows the subject"),
    Variable(
        "subject.roles",
        cel.Type.List(cel.Type.STRING),
        lambda f: None if f.subject.roles_partial else list(f.subject.roles),
        "roles from the synced subject and a verified token",
    ),
    Variable(
        "subject.failed_attempts", cel.Type.INT, lambda f: f.subject.failed_attempts, "failures since the last success"
    ),
    Variable(
        "device.known", cel.Type.BOOL, _device(lambda f: f.device.binding is not Binding.UNKNOWN), "bound or recognised"
    ),
    Variable(
        "device.bound", cel.Type.BOOL, _device(lambda f: f.device.binding is Binding.BOUND), "a key proof came with it"
    ),
    Variable("device.trust", cel.Type.DOUBLE, _device(lambda f: f.device.trust), "0-1"),
    Variable(
        "device.validated_age_s",
        cel.Type.DOUBLE,
        _device(lambda f: _since(f, f.device.validated_at)),
        "since a strong authentication confirmed the device",
    ),
    Variable(
        "session.age_s", cel.Type.DOUBLE, _session(lambda f: _since(f, f.session.started_at)), "since the session began"
    ),
    Variable("session.idle_s", cel.Type.DOUBLE, _session(lambda f: _since(f, f.session.last_active_at)), "inactivity"),
    Variable(
        "session.verified", cel.Type.BOOL, _session(lambda f: f.session.token is TokenState.VERIFIED), "a valid token"
    ),
    Variable("session.proved", cel.Type.BOOL, _session(lambda f: f.session.proved), "with a DPoP proof"),
    Variable("risk.score", cel.Type.DOUBLE, lambda f: f.risk.score, "0-100, all kinds combined"),
    Variable("risk.network", cel.Type.DOUBLE, lambda f: f.risk.network, "0-100, of the address"),
    Variable("risk.asn", cel.Type.DOUBLE, lambda f: f.risk.asn, "0-100"),
    Variable("risk.country", cel.Type.DOUBLE, lambda f: f.risk.country, "0-100"),
    Variable("risk.subject", cel.Type.DOUBLE, lambda f: f.risk.subject, "0-100"),
    Variable("risk.device", cel.Type.DOUBLE, lambda f: f.risk.device, "0-100"),
    Variable("risk.session", cel.Type.DOUBLE, lambda f: f.risk.session, "0-100"),
    Variable(
        "context.amount.value", cel.Type.DOUBLE, _from_request("context.amount.value", DOUBLE), "amount in whole units"
    ),
    Variable("context.amount.currency", cel.Type.STRING, _from_request("context.amount.currency", STRING), "ISO 4217"),
    Variable("context.asn", cel.Type.INT, _from_request("context.asn", INT), "AS number of the client"),
    Variable("context.country", cel.Type.STRING, _from_request("context.country", STRING), "ISO 3166-1 of the client"),
    Variable("resource.type", cel.Type.STRING, _from_request("resource.type", STRING), "AuthZEN resource type"),
    Variable("resource.id", cel.Type.STRING, _from_request("resource.id", STRING), "AuthZEN resource id"),
    Variable("now", cel.Type.TIMESTAMP, lambda f: datetime.fromtimestamp(f.now, UTC), "time of the decision"),
)
_BUILT_IN = {variable.name: variable for variable in VARIABLES}
REQUEST_VARIABLES = frozenset(v.name for v in VARIABLES if v.name.startswith(("context.", "resource.")))


def convert(value: Scalar | None, kind: str) -> Scalar | None:
    """A request value as the declared type, or None where it does not fit: a wrong type is a missing value, and so is what
    is no number (NaN makes every comparison false, and infinity soon becomes NaN)."""
    if kind == STRING:
        return value if isinstance(value, str) else None
    if kind == BOOL:
        return value if isinstance(value, bool) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    if kind == DOUBLE:
        return float(value)
    return int(value) if float(value).is_integer() and abs(value) < 2**53 else None


class Condition:
    """A compiled boolean condition. `variables`: the names it may read (a superset)."""

    __slots__ = ("_expression", "source", "variables")

    def __init__(self, source: str, expression: Any, variables: frozenset[str]) -> None:
        self.source = source
        self.variables = variables
        self._expression = expression

    def evaluate(self, data: Mapping[str, Any]) -> bool | None:
        """True, False, or None if it cannot be told (a missing value, a run-time fault, a spent budget)."""
        try:
            value = self._expression.eval(data=data).value()
        except RuntimeError:
            return None
        return value if isinstance(value, bool) else None


class Folded:
    """Several conditions as one expression: bit i of the answer is condition i. One evaluation costs little more than one alone.

    Where a value is missing the whole expression is an ERROR, and the conditions are evaluated one by one; so is one that is
    too deep to stand inside another expression.
    """

    __slots__ = ("_masks", "conditions", "variables")

    def __init__(self, conditions: tuple[Condition, ...], environment: Any) -> None:
        self.conditions = conditions
        self.variables = (
            frozenset().union(*(condition.variables for condition in conditions)) if conditions else frozenset()
        )
        self._masks = [
            mask
            for start in range(0, len(conditions), _FOLD_BITS)
            for mask in _masks(range(start, min(start + _FOLD_BITS, len(conditions))), conditions, environment)
        ]

    def evaluate(self, data: Mapping[str, Any]) -> list[tuple[int, bool]]:
        """The conditions that count as fired: (index, it really was true). Errors count as fired, with False."""
        fired: list[tuple[int, bool]] = []
        for run, expression in self._masks:
            mask = _mask(expression, data)
            if mask is None:
                self._one_by_one(run, data, fired)
                continue
            index = run.start
            while mask:
                if mask & 1:
                    fired.append((index, True))
                mask >>= 1
                index += 1
        return fired

    def _one_by_one(self, run: range, data: Mapping[str, Any], fired: list[tuple[int, bool]]) -> None:
        for index in run:
            verdict = self.conditions[index].evaluate(data)
            if verdict is not False:
                fired.append((index, verdict is True))


def _masks(run: range, conditions: tuple[Condition, ...], environment: Any) -> list[tuple[range, Any]]:
    """Folded expressions for the conditions of a run: one, or several where one would be too deep for CEL's parser."""
    bits = [f"(({conditions[index].source}\n) ? {1 << bit} : 0)" for bit, index in enumerate(run)]
    try:
        return [(run, environment.compile(_sum(bits)))]
    except RuntimeError:
        if len(run) == 1:
            return [(run, None)]
    half = len(run) // 2
    return [mask for part in (run[:half], run[half:]) for mask in _masks(part, conditions, environment)]


def _sum(terms: list[str]) -> str:
    """The terms added up in a balanced tree: a plain chain of additions is as deep as it is long."""
    if len(terms) == 1:
        return terms[0]
    half = len(terms) // 2
    return f"({_sum(terms[:half])} + {_sum(terms[half:])})"


def _mask(expression: Any, data: Mapping[str, Any]) -> int | None:
    """What a folded expression says; None if it cannot be told as a whole."""
    if expression is None:
        return None
    try:
        value = expression.eval(data=data).value()
    except RuntimeError:
        return None
    return value if type(value) is int else None


class Language:
    """The variables one policy's conditions can read: the built-in ones and the request attributes it declares."""

    __slots__ = ("_environment", "_folded", "_readers", "attributes")

    def __init__(self, attributes: Mapping[str, str] | None = None) -> None:
        self.attributes = dict(attributes or {})
        self._readers: dict[str, Callable[[Facts], Any]] = {name: variable.read for name, variable in _BUILT_IN.items()}
        types = {name: variable.type for name, variable in _BUILT_IN.items()}
        for name, kind in self.attributes.items():
            types[f"context.{name}"] = _TYPES[kind]
            self._readers[f"context.{name}"] = _from_request(f"context.{name}", kind)
        self._environment = cel.NewEnv(variables=types)
        self._folded: dict[tuple[Condition, ...], Folded] = {}

    def compile(self, source: str) -> Condition:
        """Type-checks one condition. Raises ConditionError with positions inside `source`."""
        if len(source) > MAX_CONDITION_CHARS:
            raise ConditionError([Problem(0, 0, "", f"longer than {MAX_CONDITION_CHARS} characters")])
        if len(_MACRO.findall(source)) > 1:
            raise ConditionError([Problem(0, 0, "", "may iterate (all, exists, exists_one, map, filter) only once")])
        if _PRESENCE.search(source):
            raise ConditionError(
                [Problem(0, 0, "", "has() is not available: a missing value makes the condition fire")]
            )
        if problem := _pattern_problem(source):
            raise ConditionError([Problem(0, 0, "", problem)])
        try:
            expression = self._environment.compile(source)
        except RuntimeError as error:
            raise ConditionError(_diagnostics(str(error))) from None
        kind = expression.return_type()
        if kind != cel.Type.BOOL:
            raise ConditionError([Problem(1, 1, "", f"must be true or false, but is of type {kind.name().lower()}")])
        return Condition(source, expression, self._named_in(source))

    def _named_in(self, source: str) -> frozenset[str]:
        """The variables a condition may read. Text inside string literals counts too, which does no harm."""
        return frozenset(name for name in self._readers if re.search(rf"(?<![\w.]){re.escape(name)}(?!\w)", source))

    def fold(self, conditions: Iterable[Condition]) -> Folded:
        """Several of this language's conditions in one expression. Kept: compiling takes milliseconds, and every action that
        a policy matches has a plan of its own."""
        wanted = tuple(conditions)
        folded = self._folded.get(wanted)
        if folded is None:
            folded = self._folded[wanted] = Folded(wanted, self._environment)
        return folded

    def activation(self, facts: Facts, variables: Iterable[str]) -> dict[str, Any]:
        """The values of `variables` that are known."""
        data = {}
        for name in variables:
            value = self._readers[name](facts)
            if value is not None:
                data[name] = value
        return data


def _pattern_problem(source: str) -> str:
    """What is wrong with the regular expressions of a condition; empty if nothing. Text in string literals counts too."""
    calls = len(_MATCHES.findall(source))
    if not calls:
        return ""
    literals = list(_MATCHES_LITERAL.finditer(source))
    if len(literals) != calls:
        return "matches() takes one pattern, written out as a single string without quotes or escapes but \\\\ in it"
    if _MACRO.search(source):
        return "may not both iterate and use matches()"
    size = 0
    for literal in literals:
        pattern = literal["raw"] if literal["raw"] is not None else literal["text"].replace("\\\\", "\\")
        if re.search(r"\\[pP]", pattern):
            return "matches() takes no Unicode classes (\\p, \\P)"
        size += len(pattern)
        for repeated in _REPEATED.finditer(pattern):
            if repeated["group"]:
                return "matches() repeats single characters or classes a number of times, not groups"
            size += int(repeated["most"] or repeated["least"])
    if size > MAX_PATTERN_SIZE:
        return f"the patterns of matches(), with their repetitions, are longer than {MAX_PATTERN_SIZE} characters"
    return ""


class ConditionError(Exception):
    """A condition that does not compile; positions count from 1 within the condition."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(problem.message for problem in problems))
        self.problems = problems


def _diagnostics(text: str) -> list[Problem]:
    text = text.replace(" (in container '')", "").replace(" [INVALID_ARGUMENT]", "")
    found = [
        Problem(int(line), int(column), "", message.strip()) for line, column, message in _DIAGNOSTIC.findall(text)
    ]
    # The checker repeats itself with *error* types once something is wrong.
    telling = [problem for problem in found if "*error*" not in problem.message]
    return telling or found or [Problem(1, 1, "", text.splitlines()[0] if text else "does not compile")]
