"""The vectors themselves: well formed, complete, used by both runners, and compared by something that can tell."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml

from engine.decision import Basis, Code, Outcome
from tests.conformance.vectors import RUNNERS, Vector, files, for_runner, merge, schema, vectors
from tests.conformance.verdict import Verdict, differences, matches

LEAST = 150


def test_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())


def test_there_are_enough_and_no_two_share_a_name() -> None:
    names = Counter(vector.id.split("::")[1] for vector in vectors())
    assert len(vectors()) >= LEAST
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize("code", Code, ids=lambda code: code.value)
def test_every_reason_is_expected_somewhere(code: Code) -> None:
    said = {reason.split()[0] for vector in vectors() for reason in vector.expect.get("reasons", ())}
    assert code.value in said


def test_every_reason_expected_exists() -> None:
    said = {reason.split()[0] for vector in vectors() for reason in vector.expect.get("reasons", ())}
    assert said <= {code.value for code in Code}


def test_every_outcome_basis_and_error_is_expected_somewhere() -> None:
    assert {v.expect["outcome"] for v in vectors() if "outcome" in v.expect} == {outcome.value for outcome in Outcome}
    assert {v.expect["basis"] for v in vectors() if "basis" in v.expect} == {basis.value for basis in Basis}
    codes = {v.expect["error"]["code"] for v in vectors() if "error" in v.expect}
    assert codes == {"INVALID_ARGUMENT", "UNAVAILABLE", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED"}


def test_both_runners_meet_every_vector_but_the_excused() -> None:
    everything = {vector.id for vector in vectors()}
    excused = {runner: everything - {vector.id for vector in for_runner(runner)} for runner in RUNNERS}
    assert excused == {
        "engine": {
            "6-challenge::bound-token-is-challenged-in-its-own-scheme",
            *(vector.id for vector in vectors() if vector.reports),
        },
        "worker": {"3-data::deadline-passed", *(vector.id for vector in vectors() if vector.leases)},
    }


@pytest.mark.parametrize("path", files(), ids=lambda path: path.stem)
def test_file_says_what_every_case_shows(path: Any) -> None:
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    shown = Counter(case["shows"] for case in document["cases"])
    assert [text for text, count in shown.items() if count > 1] == []
    assert all(text.endswith(".") for text in shown)


_CASE: dict[str, Any] = {
    "name": "a-case",
    "shows": "That a case is a case.",
    "expect": {"outcome": "ALLOW", "basis": "NOT_REQUIRED", "reasons": ["NOTHING_REQUIRED"]},
}


@pytest.mark.parametrize(
    "change",
    [
        {"name": "A Case"},
        {"shows": None},
        {"expect": None},
        {"expect": {"reasons": []}},
        {"expect": {"outcome": "PERHAPS"}},
        {"expect": {"outcome": "STEP_UP", "basis": "CHALLENGE"}},
        {"expect": {"basis": "EXEMPTION_GRANT"}},
        {"expect": {"outcome": "DENY", "basis": "BLOCKED"}},
        {"expect": {"challenge": {"methods": [], "acr_values": []}}},
        {"expect": {"coarse": "BLOCKED"}},
        {"expect": {"unheard": 1}},
        {"runner": {"only": "engine"}},
        {"records": {"gadgets/one": {}}},
        {"records": {"settings/other": {}}},
        {"now": "yesterday"},
        {"data": {"age": "5"}},
        {"request": {"session": {"token": {"sub": "alice"}}}},
        {"reports": [{}]},
        {"reports": [{"expect": {"acr": "phr", "code": "ALREADY_EXISTS"}}]},
        {"reports": [{"expect": {"code": "ALREADY_EXISTS"}}]},
        {"reports": [{"expect": {"acr": "phr"}, "report": {"token": {"sub": "alice"}}}]},
    ],
    ids=str,
)
def test_schema_refuses(change: dict[str, Any]) -> None:
    validator = jsonschema.Draft202012Validator(schema())
    validator.validate({"topic": "t", "cases": [_CASE]})
    with pytest.raises(jsonschema.ValidationError):
        validator.validate({"topic": "t", "cases": [merge(_CASE, change)]})


def test_schema_refuses_a_fault_without_its_field() -> None:
    case = _CASE | {"expect": {"error": {"code": "INVALID_ARGUMENT"}}}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"topic": "t", "cases": [case]}, schema())


_STEP_UP = Verdict(
    outcome="STEP_UP",
    basis="CHALLENGE",
    reasons=frozenset({"ACR_UNMET p/base", "NO_GRANT"}),
    achieved="nist-aal1",
    waived=(),
    grant="",
    challenge={"methods": ["webauthn", "totp"], "acr_values": ["phr"], "max_age_s": 300},
    www_authenticate='Bearer error="insufficient_user_authentication", error_description="d", acr_values="phr", max_age="300"',
    requirement={"acrs": ["phr"], "max_age_s": 300, "evidence": "verified"},
    shadows=[],
    coarse="AUTHENTICATION_NEEDED",
)
_EXPECTS_STEP_UP: dict[str, Any] = {
    "outcome": "STEP_UP",
    "basis": "CHALLENGE",
    "reasons": ["NO_GRANT", "ACR_UNMET p/base"],
    "achieved": "nist-aal1",
    "challenge": {"methods": ["webauthn", "totp"], "acr_values": ["phr"], "max_age_s": 300},
    "requirement": {"acrs": ["phr"], "max_age_s": 300, "evidence": "verified"},
}


def _expecting(expect: dict[str, Any]) -> Vector:
    return replace(vectors()[0], expect=copy.deepcopy(expect))


@pytest.mark.parametrize(
    ("expect", "came_to", "same"),
    [
        ({"acr": "phr", "session": "s1"}, {"acr": "phr", "session": "s1"}, True),
        ({"acr": "phr", "session": "s1"}, {"acr": "phr", "session": "s1", "device": "laptop"}, False),
        ({"acr": "phr", "session": "s1"}, {"acr": "phr"}, False),
        ({"acr": "phr"}, {"code": "ALREADY_EXISTS", "says": "its jti was used before"}, False),
        (
            {"code": "ALREADY_EXISTS", "says": "its jti"},
            {"code": "ALREADY_EXISTS", "says": "its jti was used before"},
            True,
        ),
        (
            {"code": "ALREADY_EXISTS", "says": "its jti"},
            {"code": "UNAVAILABLE", "says": "its jti was used before"},
            False,
        ),
        ({"code": "ALREADY_EXISTS", "says": "another"}, {"code": "ALREADY_EXISTS", "says": "its jti"}, False),
        ({"code": "ALREADY_EXISTS", "says": "its jti"}, {"acr": "phr"}, False),
    ],
)
def test_comparison_of_reports_notices(expect: dict[str, Any], came_to: dict[str, Any], same: bool) -> None:
    assert matches(expect, came_to) is same


def test_comparison_accepts_what_is_expected() -> None:
    assert differences(_expecting(_EXPECTS_STEP_UP), _STEP_UP) == []


def _spelt(change: dict[str, Any]) -> str:
    """The same in every process, which the order of a set is not."""
    return str({name: sorted(value) if isinstance(value, frozenset) else value for name, value in change.items()})


@pytest.mark.parametrize(
    "change",
    [
        {"outcome": "DENY"},
        {"basis": "FAIL_SAFE"},
        {"reasons": frozenset({"NO_GRANT"})},
        {"reasons": frozenset({"ACR_UNMET p/base", "NO_GRANT", "RISK_TOO_HIGH"})},
        {"reasons": frozenset({"ACR_UNMET q/base", "NO_GRANT"})},
        {"achieved": "phr"},
        {"waived": ("phr",)},
        {"grant": "alice"},
        {"challenge": {"methods": ["totp", "webauthn"], "acr_values": ["phr"], "max_age_s": 300}},
        {"challenge": {"methods": ["webauthn", "totp"], "acr_values": ["phr"]}},
        {"challenge": "invalid_token"},
        {"challenge": None},
        {"www_authenticate": ""},
        {"www_authenticate": _STEP_UP.www_authenticate.replace("300", "301")},
        {"www_authenticate": _STEP_UP.www_authenticate.replace(', acr_values="phr"', "")},
        {"requirement": {"acrs": ["phr"], "evidence": "verified"}},
        {"shadows": [{"policy": "p@1", "outcome": "ALLOW", "basis": "NOT_REQUIRED"}]},
        {"coarse": "DATA_UNAVAILABLE"},
    ],
    ids=_spelt,
)
def test_comparison_notices(change: dict[str, Any]) -> None:
    assert differences(_expecting(_EXPECTS_STEP_UP), replace(_STEP_UP, **change))


def test_comparison_notices_an_answer_in_place_of_an_error() -> None:
    assert differences(_expecting({"error": {"code": "UNAVAILABLE"}}), _STEP_UP)
