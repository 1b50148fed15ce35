"""What `policy put` refuses, and that it says where."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.policy import PolicyError, Problem, check_condition, json_schema, parse_policy, read_document
from engine.policy.source import MAX_SOURCE_BYTES, load
from engine.rules import compile_policy
from tests.unit.engine.samples import EXEMPTIONS, PAYMENTS, policy

HEAD = "apiVersion: sidestep.dev/v1\nkind: Policy\nmetadata: {name: p, tenant: acme}\nspec:\n"
MATCH = HEAD + '  match: {actions: ["pay.*"]}\n'


def problems(source: str) -> list[Problem]:
    with pytest.raises(PolicyError) as caught:
        parse_policy(source)
    return caught.value.problems


# (document, line, column, path, part of the message) of the first problem.
BAD: dict[str, tuple[str, int, int, str, str]] = {
    "empty": ("", 0, 0, "", "empty document"),
    "only a comment": ("# nothing\n", 0, 0, "", "empty document"),
    "a list": ("- 1\n", 1, 1, "", "a policy is a mapping"),
    "a scalar": ("hello", 1, 1, "", "a policy is a mapping"),
    "two documents": ("a: 1\n---\nb: 2\n", 2, 1, "", "another document"),
    "a tab": ("a:\n\tb: 1\n", 2, 1, "", "cannot start any token"),
    "an open bracket": ("a: [1, 2\n", 2, 1, "", "not YAML"),
    "a control character": ("a: 1\nb: \x07", 2, 4, "", "special characters are not allowed"),
    "half a character": (MATCH + '  require: {acr: "\\ud800"}\n', 6, 18, "spec.require.acr", "not Unicode text"),
    "a raw surrogate": ("a: \ud800", 1, 4, "", "not YAML"),
    "a foreign tag": ("a: !!python/object:os.system x\n", 1, 4, "", "could not determine a constructor"),
    "a key that is a list": ("? [a]\n: b\n", 1, 3, "", "unhashable key"),
    "a number of 5000 digits": ("a: " + "9" * 5000, 0, 0, "", "not YAML"),
    "a document of itself": ("&a [*a]", 0, 0, "", "not YAML"),
    "too deep": ("- " * 3000, 0, 0, "", "not YAML"),
    "too long": ("# " + "x" * MAX_SOURCE_BYTES, 0, 0, "", "larger than 256 KiB"),
    "a key twice": (
        MATCH + "  require: {acr: phr}\n  require: {acr: nist-aal1}\n",
        7,
        3,
        "spec.require",
        "given twice",
    ),
    "a key twice, inside": (MATCH + "  require: {acr: phr, acr: x}\n", 6, 23, "spec.require.acr", "given twice"),
    "unknown key": (MATCH + "  requires: {acr: phr}\n", 6, 13, "spec.requires", "unknown key"),
    "unknown key at the top": ("extra: 1\n" + MATCH, 1, 8, "extra", "unknown key"),
    "unknown key in a trigger": (
        MATCH + "  triggers:\n    - {name: a, when: 'true', require: {acr: phr}, iff: x}\n",
        7,
        57,
        "spec.triggers[0].iff",
        "unknown key",
    ),
    "missing match": (HEAD + "  require: {acr: phr}\n", 5, 3, "spec.match", "is required"),
    "missing name": (
        "apiVersion: sidestep.dev/v1\nkind: Policy\nmetadata: {tenant: acme}\nspec: {match: {actions: ['*']}}",
        3,
        11,
        "metadata.name",
        "is required",
    ),
    "another kind": (
        "apiVersion: sidestep.dev/v1\nkind: Grant\nmetadata: {name: p, tenant: a}\nspec: {match: {actions: ['*']}}",
        2,
        7,
        "kind",
        "'Policy'",
    ),
    "a tenant that is none": (MATCH.replace("acme", "ACME"), 3, 29, "metadata.tenant", "is not a tenant id"),
    "a name that is none": (MATCH.replace("name: p", "name: P_1"), 3, 18, "metadata.name", "should match pattern"),
    "no actions": (HEAD + "  match: {actions: []}\n", 5, 20, "spec.match.actions", "at least 1"),
    "a pattern that is none": (
        HEAD + "  match: {actions: [a.b, 'pay*']}\n",
        5,
        26,
        "spec.match.actions[1]",
        "stands alone or after a dot",
    ),
    "an acr with a space": (MATCH + "  require: {acr: 'a b'}\n", 6, 18, "spec.require.acr", "should match pattern"),
    "an acr that would break out of a header": (
        MATCH + "  require: {acr: 'a\"b'}\n",
        6,
        18,
        "spec.require.acr",
        "should match pattern",
    ),
    "an acr no header can carry": (MATCH + "  require: {acr: é}\n", 6, 18, "spec.require.acr", "should match pattern"),
    "an acr that is a number": (MATCH + "  require: {acr: 2}\n", 6, 18, "spec.require.acr", "valid string"),
    "a number without unit": (MATCH + "  require: {maxAge: 300}\n", 6, 21, "spec.require.maxAge", "300 needs a unit"),
    "a boolean as duration": (MATCH + "  require: {maxAge: true}\n", 6, 21, "spec.require.maxAge", "needs a unit"),
    "words as duration": (
        MATCH + "  require: {maxAge: five minutes}\n",
        6,
        21,
        "spec.require.maxAge",
        "is not a duration",
    ),
    "too short an age": (
        MATCH + "  require: {maxAge: 29s}\n",
        6,
        21,
        "spec.require.maxAge",
        "greater than or equal to 30",
    ),
    "too long an age": (
        MATCH + "  require: {maxAge: " + "9" * 400 + "d}\n",
        6,
        21,
        "spec.require.maxAge",
        "10,000 years",
    ),
    "waivable nothing": (MATCH + "  require: {waivable: true}\n", 6, 12, "spec.require", "demands nothing"),
    "an event that is none": (
        MATCH + "  require: {authenticatedAfter: lunch}\n",
        6,
        33,
        "spec.require.authenticatedAfter",
        "'recovery' or 'posture-change'",
    ),
    "a YAML 1.1 boolean": (
        MATCH + "  require: {acr: phr, waivable: yes}\n",
        6,
        33,
        "spec.require.waivable",
        "valid boolean",
    ),
    "a trigger that demands nothing": (
        MATCH + "  triggers: [{name: a, when: 'true', require: {}}]\n",
        6,
        14,
        "spec.triggers[0]",
        "must require something",
    ),
    "triggers of one name": (
        MATCH
        + "  triggers:\n    - {name: a, when: 'true', require: {acr: phr}}\n    - {name: a, when: 'true', require: {acr: phr}}\n",
        5,
        3,
        "spec",
        "trigger names must differ: a",
    ),
    "replaces in a live policy": (MATCH + "  replaces: other\n", 5, 3, "spec", "replaces goes with mode: observe"),
    "a profile that is none": (
        MATCH + "  profile: nist-aal4\n",
        6,
        12,
        "spec.profile",
        "'nist-aal1', 'nist-aal2' or 'nist-aal3'",
    ),
    "an attribute of a reserved name": (
        MATCH + "  context: {amount: double}\n",
        5,
        3,
        "spec",
        "context.amount: not a free lower-case name",
    ),
    "an attribute of no type": (
        MATCH + "  context: {channel: text}\n",
        6,
        22,
        "spec.context.channel",
        "'string', 'double', 'int' or 'bool'",
    ),
    "a posture that is none": (MATCH + "  posture: {LOW: {}}\n", 6, 18, "spec.posture.LOW", "unknown key"),
    "a posture that demands nothing": (
        MATCH + "  posture: {HIGH: {require: {}}}\n",
        6,
        19,
        "spec.posture.HIGH",
        "demands nothing",
    ),
    "a factor left out": (
        MATCH + EXEMPTIONS.replace("    risk: {maxScore: 30}\n", ""),
        8,
        5,
        "spec.exemptions.risk",
        "is required",
    ),
    "trust of nothing": (
        MATCH + EXEMPTIONS.replace("minTrust: 0.85", "minTrust: 0"),
        11,
        24,
        "spec.exemptions.device.minTrust",
        "greater than 0",
    ),
    "not a number": (
        MATCH + EXEMPTIONS.replace("maxScore: 30", "maxScore: .nan"),
        13,
        22,
        "spec.exemptions.risk.maxScore",
        "less than or equal to 100",
    ),
    "a score in quotes": (
        MATCH + EXEMPTIONS.replace("maxScore: 30", "maxScore: '30'"),
        13,
        22,
        "spec.exemptions.risk.maxScore",
        "valid number",
    ),
    "a rate above one": (
        MATCH + EXEMPTIONS.replace("0.01", "1.5"),
        14,
        20,
        "spec.exemptions.spotCheckRate",
        "less than or equal to 1",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_documents_are_refused_where_they_are_wrong(name: str) -> None:
    source, line, column, path, message = BAD[name]
    first = problems(source)[0]
    assert (first.line, first.column, first.path) == (line, column, path)
    assert message in first.message
    assert str(first).startswith(f"{line}:{column}: " if line else "")


# (the trigger's `when` as written from line 8 on, line, column, part of the message).
WHEN: dict[str, tuple[str, int, int, str]] = {
    "plain": ("when: devise.known", 8, 19, "undeclared reference to 'devise.known'"),
    "plain, further in": ("when: risk.score > 4.0 && nope", 8, 33, "undeclared reference to 'nope'"),
    "double quotes": ('when: "!devise.known"', 8, 21, "undeclared reference to 'devise.known'"),
    "single quotes": ("when: 'risk.score > \"40\"'", 8, 25, "no matching overload for '_>_'"),
    "literal": ("when: |\n        risk.score > 4.0 &&\n        nope", 10, 9, "undeclared reference to 'nope'"),
    "literal, indented on": ("when: |\n        true &&\n            nope", 10, 13, "undeclared reference to 'nope'"),
    "string against int": ("when: context.asn == 'x'", 8, 25, "'(int, string)'"),
    "not a condition": ("when: risk.score", 8, 13, "must be true or false"),
    "syntax": ("when: risk.score >", 8, 25, "Syntax error"),
    "presence": ("when: has(context.country)", 8, 13, "has() is not available"),
    "two iterations": ("when: subject.roles.all(a, subject.roles.all(b, a == b))", 8, 13, "only once"),
    "too long": (f"when: {'true || ' * 260}true", 8, 13, "at most 2000 characters"),
    "an attribute not declared": ("when: context.channel == 'app'", 8, 20, "undeclared reference"),
}


@pytest.mark.parametrize("name", WHEN)
def test_bad_conditions_are_refused_where_they_are_wrong(name: str) -> None:
    written, line, column, message = WHEN[name]
    source = MATCH + f"  triggers:\n    - name: t\n      {written}\n      require: {{acr: phr}}\n"
    first = problems(source)[0]
    assert (first.line, first.column, first.path) == (line, column, "spec.triggers[0].when")
    assert message in first.message


def test_every_problem_is_named_at_once() -> None:
    source = (
        "apiVersion: v0\nkind: Policy\nmetadata: {name: p, tenant: acme, owner: me}\n"
        "spec:\n  match: {actions: ['pay*']}\n  require: {acr: 1, maxAge: 5}\n"
    )
    assert {problem.path for problem in problems(source)} == {
        "apiVersion",
        "metadata.owner",
        "spec.match.actions[0]",
        "spec.require.acr",
        "spec.require.maxAge",
    }
    two = (
        MATCH
        + "  triggers:\n"
        + "".join(f"    - {{name: t{i}, when: nope{i}, require: {{acr: phr}}}}\n" for i in range(2))
    )
    assert [problem.line for problem in problems(two)] == [7, 8]


def test_aliases_are_fine_and_bombs_are_not() -> None:
    source = MATCH.rstrip("\n") + (
        "\n  require: &strong {acr: phr, maxAge: 5m}\n"
        "  triggers: [{name: t, when: 'risk.score > 40.0', require: *strong}]\n"
    )
    assert parse_policy(source).model.spec.triggers[0].require.acr == "phr"
    rows = ["a: &a [x,x,x,x,x,x,x,x,x,x]"]
    rows += [f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
    with pytest.raises(PolicyError, match="too many values"):
        load("\n".join(rows))


def test_only_true_and_false_are_booleans_and_dates_stay_text() -> None:
    assert load("[yes, on, NO, True, true, false, 2026-01-01]").value == [
        "yes",
        "on",
        "NO",
        "True",
        True,
        False,
        "2026-01-01",
    ]


def test_the_canonical_document_is_the_same_for_the_same_policy() -> None:
    flow = policy("  require: {acr: phr, maxAge: 5m}\n  methods: [totp]")
    block = (
        "# the same, written otherwise\n"
        'spec:\n  methods:\n    - "totp"\n  require:\n    maxAge: "5m"\n    acr: phr\n  match:\n    actions: [\'pay.*\']\n'
        "metadata:\n  tenant: acme\n  name: p\nkind: Policy\napiVersion: sidestep.dev/v1\n"
    )
    assert parse_policy(flow).document == parse_policy(block).document
    assert parse_policy(flow).document != parse_policy(flow.replace("5m", "6m")).document


@pytest.mark.parametrize("source", [PAYMENTS, policy("  require: {acr: phr}", "é".encode().hex())])
def test_what_is_stored_reads_back_and_compiles(source: str) -> None:
    parsed = parse_policy(source)
    # JSON is YAML: the canonical document put again is itself.
    assert parse_policy(parsed.document).document == parsed.document
    assert read_document(parsed.document) == parsed.model
    compiled = compile_policy(parsed.document, 7)
    assert compiled.label == f"{parsed.name}@7"
    assert compiled.spec == parsed.model.spec


@pytest.mark.parametrize(
    ("document", "path"),
    [("not json", ""), ("[]", ""), ('{"spec": 1}', "spec"), ('{"apiVersion":"sidestep.dev/v9"}', "apiVersion")],
)
def test_a_stored_document_this_version_cannot_read(document: str, path: str) -> None:
    with pytest.raises(PolicyError) as caught:
        read_document(document)
    assert path in {problem.path for problem in caught.value.problems}


def test_a_stored_condition_this_version_cannot_compile() -> None:
    document = json.loads(parse_policy(PAYMENTS).document)
    document["spec"]["triggers"][0]["when"] = "a.newer.variable == 1"
    with pytest.raises(PolicyError, match=r"spec\.triggers: undeclared reference"):
        compile_policy(json.dumps(document), 1)


def test_conditions_of_grants() -> None:
    check_condition("context.amount.value < 100.0")
    with pytest.raises(PolicyError, match="condition: undeclared reference"):
        check_condition("context.channel == 'app'")


@pytest.mark.parametrize(
    ("spec", "warning"),
    [
        ("  require: {}", "requires nothing"),
        ("  require: {acr: phr, evidence: asserted}", "believes the caller's word"),
        ("  require: {acr: phr, waivable: false}\n" + EXEMPTIONS, "nothing is waivable"),
        ("  triggers: [{name: t, when: 'true', require: {acr: phr, waivable: true}}]", "may waive this trigger"),
    ],
)
def test_what_is_allowed_but_worth_a_warning(spec: str, warning: str) -> None:
    assert any(warning in text for text in parse_policy(policy(spec)).warnings)


def test_a_sound_policy_has_no_warning() -> None:
    assert parse_policy(PAYMENTS).warnings == []


def test_the_schema_is_one_editors_understand() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(load(PAYMENTS).value)
    assert not validator.is_valid(load(MATCH + "  requires: {acr: phr}\n").value)
    assert not validator.is_valid(load(MATCH + "  require: {maxAge: 300}\n").value)
    assert not validator.is_valid(load(MATCH + "  require: {acr: 'a b'}\n").value)


@settings(max_examples=80, deadline=None)
@given(st.text(max_size=200) | st.text(st.sampled_from("&*!|>-:{}[]'\" \n\tab1,#?"), max_size=60))
@example("? ? ? ?")
@example("<<: {a: 1}\n")
@example("!!set {a, b}")
@example("!!omap [a: 1]")
@example("a: !!timestamp 2001-12-14")
@example("%YAML 9.9\n---\na")
def test_any_text_is_a_policy_or_a_policy_error(source: str) -> None:
    with pytest.raises(PolicyError):
        parse_policy(source)


# Any JSON-like value in any place of a good policy: accepted or refused, with a place; never another exception.
_VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path]
    if isinstance(value, dict):
        for key, item in value.items():
            found += _places(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            found += _places(item, (*path, index))
    return found


_GOOD = load(PAYMENTS).value


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(_places(_GOOD)[1:]), _VALUES)
def test_any_value_anywhere_is_accepted_or_refused_with_its_place(path: tuple[Any, ...], value: Any) -> None:
    document = json.loads(json.dumps(_GOOD))
    holder = document
    for part in path[:-1]:
        holder = holder[part]
    holder[path[-1]] = value
    source = json.dumps(document)
    try:
        parsed = parse_policy(source)
    except PolicyError as error:
        places = [problem.line for problem in error.problems]
    else:
        compile_policy(parsed.document, 1)
        places = [1]
    assert places
    assert all(places)
