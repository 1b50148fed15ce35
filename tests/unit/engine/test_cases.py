from __future__ import annotations

from pathlib import Path

import pytest

from engine.cases import DEFAULT_NOW, CaseResult, run_cases
from engine.decide import decide
from engine.decision import Outcome
from engine.explain import explain
from engine.facts import Evidence, GrantScope, Posture, Staleness, TokenState
from engine.policy import PolicyError, Problem
from tests.unit.engine.samples import PAYMENTS, policy

EXAMPLES = Path(__file__).parents[3] / "examples" / "policies"
LEVEL = policy("  require: {acr: nist-aal2, maxAge: 1h}\n  methods: [totp, push]")


def one(case: str, head: str = "", source: str = LEVEL) -> CaseResult:
    """The result of one case, written as flow YAML without its name and action."""
    results = run_cases(source, f"{head}\ndefaults: {{action: pay.now}}\ncases:\n  - {{name: one, {case}}}\n")
    assert len(results) == 1
    return results[0]


def problems(cases: str, source: str = LEVEL) -> list[Problem]:
    with pytest.raises(PolicyError) as caught:
        run_cases(source, cases)
    return caught.value.problems


@pytest.mark.parametrize("cases", sorted(EXAMPLES.glob("*.cases.yaml")), ids=lambda path: path.name)
def test_the_example_policies_do_what_their_cases_say(cases: Path) -> None:
    source = cases.with_name(cases.name.replace(".cases", "")).read_text()
    alongside = [(EXAMPLES / "payments.yaml").read_text()] if "replaces: payments" in source else []
    results = run_cases(source, cases.read_text(), alongside=alongside)
    assert {result.name: result.differences for result in results if not result.passed} == {}
    assert len(results) >= 4


def test_every_example_policy_has_cases() -> None:
    policies = [path for path in EXAMPLES.glob("*.yaml") if not path.name.endswith(".cases.yaml")]
    assert len(policies) == len(list(EXAMPLES.glob("*.cases.yaml"))) >= 5


def test_neutral_ground() -> None:
    result = one("expect: {outcome: STEP_UP}")
    assert result.passed
    facts = result.facts
    assert (facts.now, facts.tenant, facts.action) == (DEFAULT_NOW, "acme", "pay.now")
    assert (facts.data.staleness, facts.posture, facts.risk.score) == (Staleness.FRESH, Posture.LOW, 0.0)
    assert (facts.subject.known, facts.subject.disabled, facts.session.token) == (True, False, TokenState.VERIFIED)
    assert (facts.device.presented, facts.authentications, facts.grants) == (False, (), ())
    assert decide(result.facts, result.rules) == result.actual
    assert explain(result.facts, result.rules, result.actual).steps


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        ("now", DEFAULT_NOW),
        ("now-5m", DEFAULT_NOW - 300),
        ("now + 1h30m", DEFAULT_NOW + 5400),
        ("1767225000", 1767225000.0),
        ("1767225000.5", 1767225000.5),
        ("2025-12-31T23:00:00Z", DEFAULT_NOW - 3600),
        ("'2026-01-01T01:00:00+01:00'", DEFAULT_NOW),
    ],
)
def test_times(at: str, expected: float) -> None:
    assert (
        one(f"facts: {{authentications: [{{acr: x, at: {at}}}]}}, expect: {{}}").facts.authentications[0].at == expected
    )


def test_now_per_case_and_per_file() -> None:
    assert one("expect: {}", "now: 2026-06-01T00:00:00Z").facts.now == 1780272000.0
    assert one("now: 12345, expect: {}", "now: 2026-06-01T00:00:00Z").facts.now == 12345.0


def test_defaults_are_merged_deeply_and_lists_replaced() -> None:
    result = run_cases(
        LEVEL,
        """
defaults:
  action: pay.now
  subject: {roles: [clerk], recovered_at: now-1d}
  authentications: [{acr: a}, {acr: b}]
cases:
  - {name: as given, expect: {}}
  - {name: changed, facts: {subject: {roles: [boss]}, authentications: [{acr: c}]}, expect: {}}
""",
    )
    assert [len(r.facts.authentications) for r in result] == [2, 1]
    assert [r.facts.subject.roles for r in result] == [("clerk",), ("boss",)]
    assert result[1].facts.subject.recovered_at == DEFAULT_NOW - 86400


def test_list_elements_have_a_ground_too() -> None:
    result = one(
        "facts: {authentications: [{acr: x}, {acr: y, evidence: asserted}], "
        "grants: [{id: g, ceiling_acr: phr, ceiling_max_age_s: 5m, scope: role}]}, expect: {}"
    )
    assert [a.evidence for a in result.facts.authentications] == [Evidence.VERIFIED, Evidence.ASSERTED]
    grant = result.facts.grants[0]
    assert (grant.scope, grant.active, grant.actions, grant.spot_draw) == (GrantScope.ROLE, True, ("*",), 1.0)
    assert (grant.ceiling_max_age_s, grant.expire_at) == (300.0, DEFAULT_NOW + 3600)


@pytest.mark.parametrize(
    ("risk", "score"),
    [
        ("{network: 50, asn: 50}", 75.0),
        ("{signals: [{kind: network, score: 30}, {kind: network, score: 20}]}", 30.0),
        ("{network: null}", None),
        ("{score: 12}", 12.0),
        ("{score: null}", None),
    ],
)
def test_risk_is_combined_as_in_a_sidecar(risk: str, score: float | None) -> None:
    assert one(f"facts: {{risk: {risk}}}, expect: {{}}").facts.risk.score == score


def test_settings() -> None:
    head = """
settings:
  acr_edges: [{higher: gold, lower: nist-aal2}]
  methods: [{id: card, acr: gold, rank: 9}]
  top_requirement: {acr: gold, maxAge: 10m}
  risk_ceiling: 50
  clock_skew: 5s
"""
    result = one("facts: {authentications: [{acr: gold, at: now+5s}]}, expect: {outcome: ALLOW}", head)
    assert result.passed
    assert not one("facts: {authentications: [{acr: gold, at: now+6s}]}, expect: {outcome: ALLOW}", head).passed
    risky = one("facts: {risk: {network: 50}}, expect: {reasons: [RISK_CEILING], challenge: [card]}", head)
    assert risky.passed
    assert risky.actual.requirement.acrs == ("nist-aal2", "gold")


def test_differences_say_what_was_expected_and_what_came() -> None:
    result = one(
        "expect: {outcome: ALLOW, basis: NOT_REQUIRED, reasons: [NO_POLICY, NO_AUTHENTICATION], grant: g1, "
        "achieved_acr: phr, waived_acrs: [phr], challenge: [totp], acr_values: [], "
        "shadows: [{policy: next, outcome: ALLOW}]}"
    )
    assert not result.passed
    assert result.actual.outcome is Outcome.STEP_UP
    assert result.differences == [
        "outcome: expected ALLOW, got STEP_UP",
        "basis: expected NOT_REQUIRED, got CHALLENGE",
        "grant: expected g1, got none",
        "achieved_acr: expected phr, got none",
        "waived_acrs: expected phr, got none",
        "challenge: expected totp, got push, totp",
        "acr_values: expected none, got nist-aal2",
        "reasons: expected NO_POLICY, got NO_AUTHENTICATION p/base, NO_EXEMPTIONS",
        "shadows: no observed policy next applies",
    ]
    assert result.expected["outcome"] == "ALLOW"
    assert "settings" not in result.expected


def test_nothing_expected_is_nothing_compared() -> None:
    assert one("expect: {}").passed
    assert one("expect: {grant: '', challenge: [push, totp]}").passed


def test_an_observed_policy_is_compared_by_name_or_label() -> None:
    observed = policy("  mode: observe\n  require: {acr: nist-aal1}", "next")
    case = "facts: {authentications: [{acr: nist-aal1}]}, expect: {outcome: STEP_UP, shadows: [{policy: %s, %s}]}"
    assert one(case % ("next", "outcome: ALLOW, basis: ASSURANCE_SATISFIED"), source=observed).passed
    assert one(case % ("next@1", "outcome: ALLOW"), source=observed).passed
    other = one(case % ("next", "outcome: DENY, basis: BLOCKED"), source=observed)
    assert other.differences == ["shadows: expected next DENY BLOCKED, got ALLOW ASSURANCE_SATISFIED"]


BAD = {
    "not a mapping": ("- 1", 1, 1, "", "is a mapping with `cases`"),
    "no cases": ("cases: []", 1, 8, "cases", "at least 1"),
    "not YAML": ("cases: [", 1, 9, "", "not YAML"),
    "unknown key": ("cases:\n  - {name: a, expects: {}, expect: {}}", 2, 24, "cases[0].expects", "unknown key"),
    "no expectation": ("cases:\n  - {name: a}", 2, 5, "cases[0].expect", "is required"),
    "a name twice": (
        "cases:\n  - {name: a, expect: {}}\n  - {name: a, expect: {}}", 3, 12, "cases[1].name", "an earlier case",
    ),
    "an outcome that is none": (
        "cases:\n  - name: a\n    expect: {outcome: MAYBE}", 3, 23, "cases[0].expect.outcome", "'ALLOW', 'STEP_UP' or 'DENY'",
    ),
    "a reason that is none": (
        "cases:\n  - name: a\n    facts: {action: a}\n    expect: {reasons: [NO_POLICY, TOO_LATE x/y]}",
        4, 35, "cases[0].expect.reasons[1]", "'TOO_LATE' is not a reason code",
    ),
    "no action": ("cases:\n  - name: a\n    facts: {}\n    expect: {}", 3, 12, "cases[0].facts", "action is required"),
    "an unknown fact": (
        "cases:\n  - name: a\n    facts: {action: a, subject: {role: x}}\n    expect: {}",
        3, 40, "cases[0].facts.subject.role", "unknown key",
    ),
    "an unknown fact in a list": (
        "cases:\n  - name: a\n    facts: {action: a, grants: [{id: g, ceiling: phr}]}\n    expect: {}",
        3, 50, "cases[0].facts.grants[0].ceiling", "unknown key",
    ),
    "a fact of the wrong type": (
        "cases:\n  - name: a\n    facts: {action: a, subject: {known: maybe}}\n    expect: {}",
        3, 41, "cases[0].facts.subject.known", "Expected `bool`, got `str`",
    ),
    "a level that is none": (
        "cases:\n  - name: a\n    facts: {action: a, posture: MEDIUM}\n    expect: {}",
        3, 33, "cases[0].facts.posture", "Invalid enum value 'MEDIUM'",
    ),
    "a fact left out": (
        "cases:\n  - name: a\n    facts: {action: a, grants: [{id: g}]}\n    expect: {}",
        3, 33, "cases[0].facts.grants[0]", "missing required field `ceiling_acr`",
    ),
    "a time that is none": (
        "cases:\n  - name: a\n    facts: {action: a, session: {started_at: yesterday}}\n    expect: {}",
        3, 46, "cases[0].facts.session.started_at", "'yesterday' is not a time",
    ),
    "a time without zone": (
        "cases:\n  - name: a\n    facts: {action: a, session: {started_at: 2026-01-01T00:00:00}}\n    expect: {}",
        3, 46, "cases[0].facts.session.started_at", "RFC 3339 with a zone",
    ),
    "a relative time that is none": (
        "cases:\n  - name: a\n    facts: {action: a, session: {started_at: now-5}}\n    expect: {}",
        3, 46, "cases[0].facts.session.started_at", "'5' is not a duration",
    ),
    "a duration that is none": (
        "cases:\n  - name: a\n    facts: {action: a, data: {age_s: long}}\n    expect: {}",
        3, 38, "cases[0].facts.data.age_s", "'long' is not a duration",
    ),
    "now as a fact": (
        "cases:\n  - name: a\n    facts: {action: a, now: 5}\n    expect: {}", 3, 29, "cases[0].facts.now", "beside `facts`",
    ),
    "now relative to itself": (
        "cases:\n  - name: a\n    now: now-5m\n    facts: {action: a}\n    expect: {}", 3, 10, "cases[0].now", "is not a time",
    ),
    "a kind of risk that is none": (
        "cases:\n  - name: a\n    facts: {action: a, risk: {signals: [{kind: moon, score: 5}]}}\n    expect: {}",
        3, 40, "cases[0].facts.risk.signals", "'moon' is not one of",
    ),
    "in the defaults": (
        "defaults: {action: a, subject: {known: maybe}}\ncases:\n  - {name: a, expect: {}}",
        1, 40, "defaults.subject.known", "Expected `bool`",
    ),
    "a value of no scalar type": (
        "cases:\n  - name: a\n    facts: {action: a, values: {context.x: [1]}}\n    expect: {}",
        3, 32, "cases[0].facts.values", "Expected `bool | int | float | str`",
    ),
    "edges in a circle": (
        "settings: {acr_edges: [{higher: a, lower: b}, {higher: b, lower: a}]}\ncases:\n  - {name: a, expect: {}}",
        1, 23, "settings.acr_edges", "a cycle leads from",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_cases_are_refused_where_they_are_wrong(name: str) -> None:
    cases, line, column, path, message = BAD[name]
    first = problems(cases)[0]
    assert (first.line, first.column, first.path) == (line, column, path)
    assert message in first.message


def test_every_problem_of_every_case_is_named() -> None:
    cases = (
        "defaults: {action: a}\ncases:\n"
        "  - {name: a, facts: {posture: MEDIUM}, expect: {}}\n"
        "  - {name: b, facts: {nothing: 1, session: {started_at: x}}, expect: {reasons: [X]}}\n"
    )
    assert [(problem.line, problem.path) for problem in problems(cases)] == [
        (3, "cases[0].facts.posture"),
        (4, "cases[1].facts.nothing"),
        (4, "cases[1].facts.session.started_at"),
        (4, "cases[1].expect.reasons[0]"),
    ]


def test_a_bad_policy_is_named_first() -> None:
    assert problems("cases: nonsense", PAYMENTS.replace("nist-aal2, maxAge: 12h", "nist-aal2, maxage: 12h"))[
        0
    ].path == ("spec.require.maxage")
