from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.facts import Binding, Device, Facts, Risk, Session, Subject, TokenState
from engine.policy.conditions import VARIABLES, Condition, ConditionError, Language, convert
from tests.unit.engine.samples import HOUR, NOW, facts

LANGUAGE = Language({"channel": "string", "limit": "double", "items": "int", "vip": "bool"})


def told(source: str, changed: Facts, language: Language = LANGUAGE) -> bool | None:
    condition = language.compile(source)
    return condition.evaluate(language.activation(changed, condition.variables))


def problems(source: str) -> list[tuple[int, int, str]]:
    with pytest.raises(ConditionError) as caught:
        LANGUAGE.compile(source)
    return [(problem.line, problem.column, problem.message) for problem in caught.value.problems]


# One true condition for each variable on the sample facts, and what of the facts makes the variable unknown.
_NO_DEVICE: dict[str, Any] = {"device": Device()}
_NO_SESSION: dict[str, Any] = {"session": Session()}
_NO_RISK: dict[str, Any] = {"risk": Risk()}
_ALL = {
    "context.amount.value": 12.5,
    "context.amount.currency": "EUR",
    "context.asn": 64500,
    "context.country": "DE",
    "resource.type": "account",
    "resource.id": "a1",
}
READ: dict[str, tuple[str, dict[str, Any] | None]] = {
    "action.name": ("action.name == 'payments.transfer'", None),
    "subject.known": ("subject.known", None),
    "subject.roles": (
        "subject.roles.exists(r, r == 'clerk')",
        {"subject": Subject(roles=("clerk",), roles_partial=True)},
    ),
    "subject.failed_attempts": ("subject.failed_attempts == 2", {"subject": Subject()}),
    "device.known": ("device.known", _NO_DEVICE),
    "device.bound": ("!device.bound", _NO_DEVICE),
    "device.trust": ("device.trust == 0.9", _NO_DEVICE),
    "device.validated_age_s": ("device.validated_age_s == 3600.0", _NO_DEVICE),
    "session.age_s": ("session.age_s == 7200.0", _NO_SESSION),
    "session.idle_s": ("session.idle_s == 60.0", _NO_SESSION),
    "session.verified": ("session.verified", _NO_SESSION),
    "session.proved": ("!session.proved", _NO_SESSION),
    "risk.score": ("risk.score == 1.0", _NO_RISK),
    "risk.network": ("risk.network == 2.0", _NO_RISK),
    "risk.asn": ("risk.asn == 3.0", _NO_RISK),
    "risk.country": ("risk.country == 4.0", _NO_RISK),
    "risk.subject": ("risk.subject == 5.0", _NO_RISK),
    "risk.device": ("risk.device == 6.0", _NO_RISK),
    "risk.session": ("risk.session == 7.0", _NO_RISK),
    "context.amount.value": ("context.amount.value == 12.5", {"values": {}}),
    "context.amount.currency": ("context.amount.currency == 'EUR'", {"values": {}}),
    "context.asn": ("context.asn == 64500", {"values": {}}),
    "context.country": ("context.country in ['DE', 'AT']", {"values": {}}),
    "resource.type": ("resource.type == 'account'", {"values": {}}),
    "resource.id": ("resource.id.startsWith('a')", {"values": {}}),
    "now": (f"now == timestamp('{datetime.fromtimestamp(NOW, UTC).isoformat()}')", None),
}


def sample(**changes: Any) -> Facts:
    ground: dict[str, Any] = {
        "subject": {"roles": ("clerk",), "failed_attempts": 2},
        "device": {"binding": Binding.RECOGNISED, "trust": 0.9, "validated_at": NOW - HOUR},
        "risk": Risk(1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0),
        "values": _ALL,
    }
    return facts(**(ground | changes))


def test_every_variable_is_tried() -> None:
    assert set(READ) == {variable.name for variable in VARIABLES}


@pytest.mark.parametrize("name", READ)
def test_a_variable_reads_its_fact_and_is_unknown_without_it(name: str) -> None:
    source, removal = READ[name]
    assert told(source, sample()) is True
    assert told(f"!({source})", sample()) is False
    if removal is not None:
        assert told(source, sample(**removal)) is None
        assert told(f"!({source})", sample(**removal)) is None


@pytest.mark.parametrize(
    ("value", "kind", "result"),
    [
        ("x", "string", "x"),
        (1, "string", None),
        (True, "string", None),
        (True, "bool", True),
        (1, "bool", None),
        ("true", "bool", None),
        (1, "double", 1.0),
        (1.5, "double", 1.5),
        (True, "double", None),
        ("1", "double", None),
        (float("inf"), "double", None),
        (float("nan"), "double", None),
        (3.0, "int", 3),
        (3.5, "int", None),
        (2.0**53, "int", None),
        (float("inf"), "int", None),
        (float("nan"), "int", None),
        (None, "int", None),
    ],
)
def test_a_value_of_the_wrong_type_is_a_missing_value(value: Any, kind: str, result: Any) -> None:
    got = convert(value, kind)
    assert got == result
    assert type(got) is type(result)


def test_declared_attributes_are_read_with_their_types() -> None:
    values = {"context.channel": "app", "context.limit": 5, "context.items": 3.0, "context.vip": True}
    source = "context.channel == 'app' && context.limit < 5.5 && context.items == 3 && context.vip"
    assert told(source, facts(values=values)) is True
    assert told(source, facts(values=values | {"context.vip": "yes"})) is None


def test_not_a_number_makes_a_threshold_fire_instead_of_passing_it() -> None:
    assert told("context.limit >= 40.0", facts(values={"context.limit": float("nan")})) is None


@pytest.mark.parametrize(
    ("source", "place", "message"),
    [
        ("devise.known", (1, 7), "undeclared reference to 'devise.known'"),
        ("true &&\n  context.nothing == 1", (2, 10), "undeclared reference"),
        ("context.amount.value > 'x'", (1, 22), "found no matching overload for '_>_' applied to '(double, string)'"),
        ("context.asn == '64500'", (1, 13), "found no matching overload for '_==_' applied to '(int, string)'"),
        ("context.amount.value > 5000", (1, 22), "applied to '(double, int)'"),
        ("risk.score", (1, 1), "must be true or false, but is of type double"),
        ("true &&", (1, 8), "Syntax error"),
        ("true ? 1 : 0", (1, 1), "but is of type int"),
        ("'é😀' == 'x' && nope", (1, 16), "undeclared reference to 'nope'"),
        ("has(context.country)", (0, 0), "has() is not available"),
        ("has // gap\n (context.country) == ''", (0, 0), "has() is not available"),
        ("subject.roles.all(r, subject.roles.exists(s, r == s))", (0, 0), "only once"),
        ("subject.roles.exists(r, r == 'a') || subject.roles. map (r, r).size() > 1", (0, 0), "only once"),
        ("subject.roles.all // gap\n(r, subject.roles.exists // gap\n(s, r == s))", (0, 0), "only once"),
        ("true || " * 300 + "true", (0, 0), "longer than 2000 characters"),
    ],
)
def test_what_does_not_compile_says_where(source: str, place: tuple[int, int], message: str) -> None:
    line, column, text = problems(source)[0]
    assert (line, column) == place
    assert message in text


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("context.channel.matches(context.country)", "written out as a single string"),
        ("context.channel.matches('a' + 'b')", "written out as a single string"),
        ("context.channel.matches // gap\n (context.country)", "written out as a single string"),
        ("subject.roles.exists(r, r.matches('a'))", "may not both iterate and use matches()"),
        (r"context.channel.matches(r'\pL+')", "no Unicode classes"),
        ("context.channel.matches('(ab){9}')", "not groups"),
        ("context.channel.matches('a{199}b')", "longer than 200"),
        ("context.channel.matches('a{100}') || context.channel.matches('b{100}')", "longer than 200"),
    ],
)
def test_patterns_are_the_authors_own_and_small(source: str, message: str) -> None:
    line, column, text = problems(source)[0]
    assert (line, column) == (0, 0)
    assert message in text


@pytest.mark.parametrize(
    ("source", "verdict"),
    [
        ("context.channel.matches('^a[bp]+$')", True),
        (r"context.channel.matches(r'^\w{2,8}$')", True),
        ('context.channel.matches("^\\\\d+$")', False),
    ],
)
def test_patterns_match(source: str, verdict: bool) -> None:
    assert told(source, facts(values={"context.channel": "app"})) is verdict


def test_attributes_are_declared_per_policy() -> None:
    with pytest.raises(ConditionError):
        Language().compile("context.channel == 'app'")


def test_run_time_faults_cannot_be_told() -> None:
    assert told("1 / (context.items - context.items) == 1", facts(values={"context.items": 3})) is None
    assert told("context.channel.matches('(')", facts(values={"context.channel": "x"})) is None


def test_an_endless_iteration_ends_undecided() -> None:
    numbers = ", ".join(["1"] * 600)
    many = facts(subject={"roles": tuple(f"r{i}" for i in range(64))})
    # One iteration, but over everything the budget allows for: decided, or undecided, never unbounded.
    assert told(f"[{numbers}].all(x, subject.roles.size() > 0)", many) in (True, None)


# Conditions over a few values, combined at random: folding must not change what any of them says.
_ATOMS = st.sampled_from(
    [
        "risk.score >= 40.0",
        "!device.known",
        "device.trust < 0.9",
        "session.idle_s > 600.0",
        "context.amount.value > 100.0",
        "context.country != 'DE'",
        "context.vip",
        "context.items / (context.items - 3) > 1",
        "subject.roles.exists(r, r == context.channel)",
        "true",
        "false // a comment",
    ]
)
SOURCES = st.recursive(
    _ATOMS,
    lambda inner: st.one_of(
        inner.map(lambda a: f"!({a}\n)"),
        st.tuples(inner, st.sampled_from(["&&", "||", "=="]), inner).map(lambda t: f"({t[0]}\n) {t[1]} ({t[2]}\n)"),
        st.tuples(inner, inner, inner).map(lambda t: f"({t[0]}\n) ? ({t[1]}\n) : ({t[2]}\n)"),
    ),
    max_leaves=4,
)
SOME_FACTS = st.builds(
    lambda risk, device, session, values, roles: facts(
        risk=risk, device=device, session=session, values=values, subject={"roles": roles}
    ),
    st.builds(Risk, st.none() | st.floats(0, 100)),
    st.builds(Device, st.booleans(), st.sampled_from(Binding), st.just("d"), st.sampled_from([0.0, 0.9, 1.0])),
    st.builds(Session, st.booleans(), token=st.sampled_from(TokenState), last_active_at=st.none() | st.just(NOW - 900)),
    st.fixed_dictionaries(
        {},
        optional={
            "context.amount.value": st.sampled_from([50.0, 500.0, "x"]),
            "context.country": st.sampled_from(["DE", "FR"]),
            "context.vip": st.booleans(),
            "context.items": st.integers(2, 4),
            "context.channel": st.sampled_from(["app", "web"]),
        },
    ),
    st.sampled_from([(), ("app",), ("web", "app")]),
)


def compile_all(sources: list[str]) -> list[Condition]:
    conditions = []
    for source in sources:
        try:
            conditions.append(LANGUAGE.compile(source))
        except ConditionError as error:
            assert "only once" in str(error)  # noqa: PT017
    return conditions


@settings(max_examples=80, deadline=None)
@given(st.lists(SOURCES, max_size=5), SOME_FACTS)
def test_folding_says_what_one_by_one_evaluation_says(sources: list[str], changed: Facts) -> None:
    conditions = compile_all(sources)
    folded = LANGUAGE.fold(conditions)
    apart = []
    for index, condition in enumerate(conditions):
        verdict = condition.evaluate(LANGUAGE.activation(changed, condition.variables))
        if verdict is not False:
            apart.append((index, verdict is True))
    assert folded.evaluate(LANGUAGE.activation(changed, folded.variables)) == apart


@settings(max_examples=80, deadline=None)
@given(SOURCES, SOME_FACTS, st.data())
def test_a_value_left_out_never_stops_a_condition_from_firing(source: str, changed: Facts, data: st.DataObject) -> None:
    for condition in compile_all([source]):
        known = LANGUAGE.activation(changed, condition.variables)
        kept = {name: value for name, value in known.items() if data.draw(st.booleans())}
        with_all, with_less = condition.evaluate(known), condition.evaluate(kept)
        assert with_less in (with_all, None)


def test_more_conditions_than_one_mask_holds() -> None:
    conditions = [LANGUAGE.compile("true" if index % 7 else "risk.score > 50.0") for index in range(130)]
    folded = LANGUAGE.fold(conditions)
    data = {"risk.score": 60.0}
    assert folded.evaluate(data) == [(index, True) for index in range(130)]
    assert folded.evaluate({}) == [(index, bool(index % 7)) for index in range(130)]
    assert LANGUAGE.fold([]).evaluate({}) == []


@pytest.mark.parametrize("depth", range(1, 40))
def test_whatever_compiles_alone_folds(depth: int) -> None:
    source = "(" * depth + "risk.score > 50.0" + ")" * depth
    try:
        conditions = [LANGUAGE.compile(source), LANGUAGE.compile("risk.asn > 1.0")] * 3
    except ConditionError:
        assert depth > 10
        return
    folded = LANGUAGE.fold(conditions)
    assert folded.evaluate({"risk.score": 60.0, "risk.asn": 0.0}) == [(0, True), (2, True), (4, True)]
    assert folded.evaluate({"risk.asn": 0.0}) == [(0, False), (2, False), (4, False)]
