"""Policy tests: facts in, decision out, in YAML next to the policy (`sidestep policy test POLICY.yaml CASES.yaml`).

Facts have the structure of `engine.facts.Facts`. What a case leaves out comes from the file's `defaults`, then from a neutral
ground: fresh data, posture LOW, a known active subject, a session with a valid token that proved nothing yet, no device, no
risk, no grant. Times are seconds since the epoch, RFC 3339 (`2026-01-31T09:00:00Z`) or relative (`now`, `now-5m`); durations
are seconds or `5m`. docs/policies.md shows it all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, NamedTuple, get_args, get_type_hints

import msgspec
from pydantic import Field, Strict, ValidationError

from engine import facts as model
from engine.acr import AcrOrder
from engine.classes import MAX_APPROVALS, MAX_CLASSES, GrantClass
from engine.clauses import Ceiling, Clause
from engine.cooloff import DEFAULT_COOL_OFF_S
from engine.decide import decide
from engine.decision import Basis, Code, Decision, Outcome
from engine.durations import parse_duration
from engine.errors import InvalidInputError
from engine.facts import Evidence, Facts, GrantScope, Signal
from engine.methods import DEFAULT_CATALOGUE, Method
from engine.policy import parse_policy, problem_of
from engine.policy.parts import Acr, Duration, Model, Require, Score
from engine.policy.source import Path, PolicyError, Problem, Tree, format_path, load
from engine.risk import KINDS, combine
from engine.rules import DEFAULT_CLOCK_SKEW_S, DEFAULT_TOP, TenantRules, compile_policy

DEFAULT_NOW = 1_767_225_600.0  # 2026-01-01T00:00:00Z: a test must not depend on the day it runs
MAX_CASES = 1000
_RELATIVE = re.compile(r"now(?:\s*([+-])\s*(\S+))?")
_NEUTRAL: dict[str, Any] = {
    "data": {"epoch": 1, "revision": 1, "bulk_epoch": 1, "bulk_revision": 1, "age_s": 1.0, "staleness": "fresh"},
    "posture": "LOW",
    "subject": {"known": True, "failed_attempts": 0},
    "session": {"presented": True, "token": "verified"},
}
# What elements of lists get where they do not say.
_ELEMENTS: dict[str, dict[str, Any]] = {
    "authentications": {"evidence": "verified"},
    "grants": {"scope": "subject", "actions": ["*"], "active": True, "expire_at": "now+1h", "spot_draw": 1.0},
}


class CaseResult(NamedTuple):
    """How one case came out. `differences` has one sentence for each expectation not met; none: it passed.

    `facts` and `rules` are what it was decided on, for `engine.explain`.
    """

    name: str
    passed: bool
    expected: dict[str, Any]
    actual: Decision
    differences: list[str]
    facts: Facts
    rules: TenantRules


class _Edge(Model):
    higher: Acr
    lower: Acr


class _Method(Model):
    id: str
    acr: Acr
    amr: list[str] = Field(default_factory=list)
    rank: int


class _Ceiling(Model):
    acr: Acr
    max_age: Duration


class _GrantClass(Model):
    id: str
    ceiling: _Ceiling
    max_validity: Duration
    review_every: Duration | None = None
    approvals: int = Field(0, ge=0, le=MAX_APPROVALS)
    condition_required: bool = False
    scopes: list[Annotated[GrantScope, Strict(False)]] = Field(default_factory=list)

    def bounds(self) -> GrantClass:
        ceiling = Ceiling(self.ceiling.acr, self.ceiling.max_age)
        return GrantClass(
            self.id,
            ceiling,
            self.max_validity,
            self.review_every,
            self.approvals,
            condition_required=self.condition_required,
            scopes=frozenset(self.scopes),
        )


class _Settings(Model):
    """As `sidestep.v1.Settings`, as far as decisions read it."""

    acr_edges: list[_Edge] = Field(default_factory=list)
    methods: list[_Method] = Field(default_factory=list)
    top_requirement: Require | None = None
    risk_ceiling: Score | None = None
    clock_skew: Duration = DEFAULT_CLOCK_SKEW_S
    cool_off: Duration = DEFAULT_COOL_OFF_S
    grant_classes: list[_GrantClass] = Field(default_factory=list, max_length=MAX_CLASSES)


class _ExpectedShadow(Model):
    policy: str
    outcome: Annotated[Outcome, Strict(False)]
    basis: Annotated[Basis, Strict(False)] | None = None


class _Expect(Model):
    """What is left out is not compared."""

    outcome: Annotated[Outcome, Strict(False)] | None = None
    basis: Annotated[Basis, Strict(False)] | None = None
    reasons: list[str] = Field(default_factory=list)
    grant: str | None = None
    achieved_acr: str | None = None
    waived_acrs: list[str] | None = None
    challenge: list[str] | None = None
    acr_values: list[str] | None = None
    shadows: list[_ExpectedShadow] = Field(default_factory=list)


class _Case(Model):
    name: Annotated[str, Field(min_length=1, max_length=200)]
    now: Any = None
    facts: dict[str, Any] = Field(default_factory=dict)
    expect: _Expect


class _Document(Model):
    settings: _Settings = Field(default_factory=lambda: _Settings.model_validate({}))
    now: Any = None
    defaults: dict[str, Any] = Field(default_factory=dict)
    cases: list[_Case] = Field(min_length=1, max_length=MAX_CASES)


def run_cases(policy_source: str, cases_source: str, *, alongside: Sequence[str] = ()) -> list[CaseResult]:
    """Decides every case by the policy (YAML) and compares. `alongside`: further policies (YAML) that hold with it, such as
    the live one that an observed candidate replaces.

    Raises PolicyError with line, column and path of every problem in a policy or in the cases.
    """
    parsed = [parse_policy(source) for source in (policy_source, *alongside)]
    policies = [compile_policy(policy.document, version=1) for policy in parsed]
    tree = load(cases_source)
    document = _read(tree)
    try:
        order = AcrOrder((edge.higher, edge.lower) for edge in document.settings.acr_edges)
    except InvalidInputError as error:
        raise PolicyError([_problem(tree, ("settings", "acr_edges"), error.problem)]) from None
    settings = document.settings
    rules = TenantRules(
        policies,
        order=order,
        methods=[Method(m.id, m.acr, tuple(m.amr), m.rank) for m in settings.methods] or DEFAULT_CATALOGUE,
        top=_top(settings.top_requirement),
        risk_ceiling=settings.risk_ceiling,
        clock_skew_s=settings.clock_skew,
        cool_off_s=settings.cool_off,
        classes=[stated.bounds() for stated in settings.grant_classes],
    )
    problems: list[Problem] = []
    made: list[Facts] = []
    for index, case in enumerate(document.cases):
        reader = _FactsReader(tree, index, _now(tree, document, index, problems), problems)
        problems += _unknown_reasons(tree, index, case)
        facts = reader.read(document.defaults, case.facts, parsed[0].tenant)
        if facts is not None:
            made.append(facts)
    if problems:
        raise PolicyError(sorted(problems))
    return [_result(case, facts, rules) for case, facts in zip(document.cases, made, strict=True)]


def _read(tree: Tree) -> _Document:
    if not isinstance(tree.value, dict):
        raise PolicyError([_problem(tree, (), "a file of cases is a mapping with `cases`")])
    try:
        document = _Document.model_validate(tree.value)
    except ValidationError as error:
        raise PolicyError([problem_of(tree, detail) for detail in error.errors(include_url=False)]) from None
    names: set[str] = set()
    problems = []
    for index, case in enumerate(document.cases):
        if case.name in names:
            problems.append(_problem(tree, ("cases", index, "name"), "an earlier case has this name"))
        names.add(case.name)
    if problems:
        raise PolicyError(problems)
    return document


def _top(stated: Require | None) -> Clause:
    if stated is None:
        return DEFAULT_TOP
    return Clause(DEFAULT_TOP.name, stated.acr, stated.max_age, evidence=Evidence(stated.evidence))


def _now(tree: Tree, document: _Document, index: int, problems: list[Problem]) -> float:
    for value, path in ((document.cases[index].now, ("cases", index, "now")), (document.now, ("now",))):
        if value is not None:
            try:
                return _instant(value, None)
            except ValueError as error:
                problems.append(_problem(tree, path, str(error)))
                break
    return DEFAULT_NOW


def _unknown_reasons(tree: Tree, index: int, case: _Case) -> list[Problem]:
    known = {code.value for code in Code}
    return [
        _problem(tree, ("cases", index, "expect", "reasons", place), f"{reason.split(' ')[0]!r} is not a reason code")
        for place, reason in enumerate(case.expect.reasons)
        if reason.split(" ")[0] not in known
    ]


def _problem(tree: Tree, path: Path, message: str) -> Problem:
    return Problem(*tree.position(path), format_path(path), message)


class _FactsReader:
    """Reads one case's facts, and notes every problem where its author wrote it: in the case, or in the defaults."""

    def __init__(self, tree: Tree, index: int, now: float, problems: list[Problem]) -> None:
        self._tree = tree
        self._case: Path = ("cases", index, "facts")
        self._now = now
        self._problems = problems

    def read(self, defaults: Mapping[str, Any], stated: Mapping[str, Any], tenant: str) -> Facts | None:
        """The facts; None if there was a problem."""
        before = len(self._problems)
        merged = _merged(_merged({**_NEUTRAL, "tenant": tenant}, defaults), stated)
        if "now" in merged:
            self._note(("now",), "is not a fact of its own here: give `now` beside `facts`")
        if "action" not in merged:
            self._note((), "action is required, here or in the defaults")
        merged["now"] = self._now
        read = self._value(merged, Facts, ())
        if len(self._problems) > before:
            return None
        read["risk"] = self._risk(read.get("risk", {}))
        if isinstance(read.get("values"), dict):
            # null takes back what the defaults give.
            read["values"] = {name: value for name, value in read["values"].items() if value is not None}
        try:
            return msgspec.convert(read, Facts)
        except msgspec.ValidationError as error:
            message, _, where = str(error).partition(" - at `$")
            self._note(_parse_path(where.rstrip("`")), message)
            return None

    def _note(self, path: Path, message: str) -> None:
        written = self._case + path
        if path and written not in self._tree.nodes and ("defaults", *path) in self._tree.nodes:
            written = ("defaults", *path)
        self._problems.append(_problem(self._tree, written, message))

    def _value(self, value: Any, kind: Any, path: Path) -> Any:
        """The value with times and durations as seconds; keys are checked against the struct `kind`."""
        if isinstance(value, dict) and isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            hints = get_type_hints(kind, vars(model))
            read = {}
            for key, item in value.items():
                if key not in hints:
                    self._note((*path, str(key)), "unknown key")
                else:
                    read[key] = self._field(key, item, hints[key], (*path, key))
            return read
        if isinstance(value, list):
            element = next(iter(get_args(kind)), None)
            ground = _ELEMENTS.get(str(path[-1]), {}) if path else {}
            return [
                self._value({**ground, **item} if isinstance(item, dict) else item, element, (*path, index))
                for index, item in enumerate(value)
            ]
        return value

    def _field(self, key: str, item: Any, kind: Any, path: Path) -> Any:
        try:
            if item is not None and (key in ("at", "since") or key.endswith("_at")):
                return _instant(item, self._now)
            if isinstance(item, str) and key.endswith("_s"):
                return parse_duration(item)
        except InvalidInputError as error:
            self._note(path, error.problem)
        except ValueError as error:
            self._note(path, str(error))
        return self._value(item, kind, path)

    def _risk(self, stated: Any) -> Any:
        """Kinds and signals that are given make the score, unless the case gives that too. None: could not be checked."""
        if not isinstance(stated, dict):
            return stated
        try:
            signals = msgspec.convert(stated.get("signals", []), list[Signal])
        except msgspec.ValidationError:
            return stated
        given = {kind: stated[kind] for kind in KINDS if kind in stated}
        if any(not isinstance(score, int | float | None) for score in given.values()):
            return stated
        signals += [Signal(kind, float(score)) for kind, score in given.items() if score is not None]
        unknown = [signal.kind for signal in signals if signal.kind not in KINDS]
        if unknown:
            self._note(("risk", "signals"), f"{unknown[0]!r} is not one of {', '.join(KINDS)}")
            return {}
        combined = combine(signals, [kind for kind, score in given.items() if score is None])
        return {**msgspec.to_builtins(combined), **stated}


def _merged(ground: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings are merged key by key; anything else, lists included, is replaced."""
    out = dict(ground)
    for key, value in over.items():
        held = out.get(key)
        out[key] = _merged(held, value) if isinstance(held, dict) and isinstance(value, dict) else value
    return out


def _instant(value: Any, now: float | None) -> float:
    """Seconds since the epoch. Raises ValueError. `now` is None where nothing can be relative to it."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str):
        relative = _RELATIVE.fullmatch(value)
        if relative and now is not None:
            try:
                offset_s = parse_duration(relative[2]) if relative[2] else 0.0
            except InvalidInputError as error:
                raise ValueError(error.problem) from None
            return now - offset_s if relative[1] == "-" else now + offset_s
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            moment = None
        if moment is not None and moment.tzinfo is not None:
            return moment.timestamp()
    relative_form = "" if now is None else ", or relative such as now-5m"
    raise ValueError(f"{value!r} is not a time: seconds, RFC 3339 with a zone{relative_form}")


def _parse_path(text: str) -> Path:
    """`.subject.roles[0]`, as msgspec names a place."""
    return tuple(int(index) if index else name for name, index in re.findall(r"\.([^.\[\]]+)|\[(\d+)\]", text))


def _result(case: _Case, facts: Facts, rules: TenantRules) -> CaseResult:
    decision = decide(facts, rules)
    differences = _differences(case.expect, decision)
    expected = case.expect.model_dump(mode="json", exclude_unset=True)
    return CaseResult(case.name, not differences, expected, decision, differences, facts, rules)


def _differences(expect: _Expect, decision: Decision) -> list[str]:
    asked = decision.challenge
    compared = (
        ("outcome", expect.outcome and expect.outcome.value, decision.outcome.value),
        ("basis", expect.basis and expect.basis.value, decision.basis.value),
        ("grant", expect.grant, decision.grant),
        ("achieved_acr", expect.achieved_acr, decision.achieved_acr),
        ("waived_acrs", expect.waived_acrs, list(decision.waived_acrs)),
        ("challenge", expect.challenge, list(asked.methods) if asked else []),
        ("acr_values", expect.acr_values, list(asked.acr_values) if asked else []),
    )
    found = [
        f"{what}: expected {_shown(wanted)}, got {_shown(got)}"
        for what, wanted, got in compared
        if wanted is not None and wanted != got
    ]
    stated = {str(reason) for reason in decision.reasons} | {reason.code.value for reason in decision.reasons}
    missing = [reason for reason in expect.reasons if reason not in stated]
    if missing:
        found.append(f"reasons: expected {', '.join(missing)}, got {', '.join(map(str, decision.reasons)) or 'none'}")
    return found + [line for shadow in expect.shadows for line in _shadow_differences(shadow, decision)]


def _shadow_differences(expect: _ExpectedShadow, decision: Decision) -> list[str]:
    got = next((s for s in decision.shadows if expect.policy in (s.policy, s.policy.rpartition("@")[0])), None)
    if got is None:
        return [f"shadows: no observed policy {expect.policy} applies"]
    wanted = [value.value for value in (expect.outcome, expect.basis) if value is not None]
    actual = [got.outcome.value, got.basis.value][: len(wanted)]
    if wanted == actual:
        return []
    return [f"shadows: expected {expect.policy} {' '.join(wanted)}, got {' '.join(actual)}"]


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value) or "none"
    return str(value) if value != "" else "none"
