"""The order of DESIGN section 3: what an earlier step says, no later one changes."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from engine.decide import decide, fail_safe
from engine.decision import Basis, Code, Decision, Outcome
from engine.explain import explain
from engine.facts import Candidate, DeviceBlock, Evidence, Posture, Risk, Staleness, TokenState
from tests.unit.engine.samples import DAY, HOUR, NOW, PAYMENTS, facts, grant, login, policy, tenant

RULES = tenant(PAYMENTS)
STRONG = (login("phr", 60),)
# Meets every clause of PAYMENTS by itself.
BOTH = tenant(PAYMENTS.replace("{acr: nist-aal2, maxAge: 12h}", "{acr: phr, maxAge: 12h}"))


def codes(decision: Decision) -> set[str]:
    return {str(reason) for reason in decision.reasons}


def test_step_1_no_policy_means_the_top_requirement_and_no_exemption() -> None:
    decision = decide(facts(action="elsewhere"), RULES)
    assert (decision.outcome, decision.basis) == (Outcome.STEP_UP, Basis.CHALLENGE)
    assert {"NO_POLICY", "NO_EXEMPTIONS"} <= codes(decision)
    assert decide(facts(action="elsewhere", authentications=STRONG), RULES).outcome is Outcome.ALLOW


@pytest.mark.parametrize(
    ("changes", "reason", "log_in_again"),
    [
        ({"subject": {"disabled": True}}, "SUBJECT_DISABLED", False),
        ({"device": {"block": DeviceBlock.REVOKED}}, "DEVICE_REVOKED d1", False),
        ({"device": {"block": DeviceBlock.QUARANTINED}}, "DEVICE_QUARANTINED d1", False),
        ({"device": {"block": DeviceBlock.NOT_EXCLUDED}}, "DEVICE_NOT_EXCLUDED d1", False),
        ({"session": {"revoked": True}}, "SESSION_REVOKED", True),
        ({"session": {"token": TokenState.INVALID, "token_detail": "expired"}}, "TOKEN_INVALID expired", True),
        ({"session": {"token": TokenState.MISMATCH}}, "TOKEN_MISMATCH", True),
        ({"session": {"revoked": True}, "subject": {"disabled": True}}, "SUBJECT_DISABLED", False),
    ],
)
def test_step_2_nothing_lifts_a_block(changes: dict[str, Any], reason: str, log_in_again: bool) -> None:
    lenient = tenant(policy("  require: {}", actions="payments.*"))
    for rules in (BOTH, lenient):
        decision = decide(facts(authentications=STRONG, **changes), rules)
        assert (decision.outcome, decision.basis) == (Outcome.DENY, Basis.BLOCKED)
        assert reason in codes(decision)
        assert (decision.challenge is not None and decision.challenge.invalid_token) is log_in_again


def test_step_3_nothing_required() -> None:
    rules = tenant(policy("  triggers: [{name: odd, when: 'risk.score > 50.0', require: {acr: phr}}]", actions="*"))
    decision = decide(facts(), rules)
    assert (decision.outcome, decision.basis) == (Outcome.ALLOW, Basis.NOT_REQUIRED)
    assert codes(decision) == {"NOTHING_REQUIRED"}
    without = decide(facts(session={"presented": False}), rules)
    assert without.outcome is Outcome.STEP_UP
    assert "SESSION_MISSING" in codes(without)


def test_step_3_a_trigger_fires_and_one_that_cannot_be_told_fires_too() -> None:
    high = decide(facts(values={"context.amount.value": 5000.01, "context.amount.currency": "EUR"}), RULES)
    assert "TRIGGER_FIRED payments/high-value" in codes(high)
    unknown = decide(facts(values={"context.amount.value": 10.0}), RULES)
    assert "TRIGGER_ERROR payments/high-value" in codes(unknown)
    # Decided by the other side alone.
    told = decide(facts(values={"context.amount.value": 9000.0}), RULES)
    assert "TRIGGER_FIRED payments/high-value" in codes(told)


@pytest.mark.parametrize(("score", "fired"), [(79.9, False), (80.0, True), (None, True)])
def test_step_3_the_tenants_risk_ceiling(score: float | None, fired: bool) -> None:
    rules = tenant(PAYMENTS, risk_ceiling=80.0)
    decision = decide(facts(risk=Risk(score=score, network=0.0)), rules)
    assert ("RISK_CEILING" in codes(decision)) is fired


def test_step_3_posture_adds_its_clause() -> None:
    decision = decide(facts(posture=Posture.CRITICAL, authentications=(login("nist-aal2", 60),)), RULES)
    assert {"POSTURE_REQUIRES payments/posture-critical", "ACR_UNMET payments/posture-critical"} <= codes(decision)


@pytest.mark.parametrize("data", [{"staleness": Staleness.HARD}, {"behind": True}])
def test_step_3_untrusted_data_demands_the_top_and_strong_users_get_through(data: dict[str, Any]) -> None:
    decision = decide(facts(data=data), RULES)
    assert (decision.outcome, decision.basis) == (Outcome.STEP_UP, Basis.FAIL_SAFE)
    assert decide(facts(data=data, authentications=STRONG), BOTH).basis is Basis.ASSURANCE_SATISFIED
    asserted = (login("phr", 60, Evidence.ASSERTED),)
    assert decide(facts(data=data, authentications=asserted), BOTH).basis is Basis.FAIL_SAFE


def test_step_4_one_single_authentication_meets_it_all() -> None:
    decision = decide(facts(authentications=(login("nist-aal2", HOUR),)), RULES)
    assert (decision.outcome, decision.basis) == (Outcome.ALLOW, Basis.ASSURANCE_SATISFIED)
    assert (decision.achieved_acr, decision.grant, decision.waived_acrs) == ("nist-aal2", "", ())
    spliced = (login("nist-aal2", 13 * HOUR), login("nist-aal1", 60))
    assert decide(facts(authentications=spliced, grants=()), RULES).outcome is Outcome.STEP_UP


def test_step_4_soft_stale_data_does_not_hurt_a_proof() -> None:
    stale = {"staleness": Staleness.SOFT}
    assert decide(facts(data=stale, authentications=(login("nist-aal2", 60),)), RULES).outcome is Outcome.ALLOW


def test_step_4_comes_before_step_5() -> None:
    assert decide(facts(authentications=(login("nist-aal2", 60),), grants=(grant(),)), RULES).grant == ""


def test_step_6_challenges_with_the_strongest_first() -> None:
    decision = decide(facts(grants=(), values={}), RULES)
    assert (decision.outcome, decision.basis) == (Outcome.STEP_UP, Basis.CHALLENGE)
    assert decision.challenge is not None
    assert decision.challenge.methods == ("webauthn", "totp")
    assert decision.challenge.max_age_s == 300
    assert decision.achieved_acr == "nist-aal1"


def test_the_answer_is_the_kindest_over_the_devices_the_evidence_fits() -> None:
    unlikely = Candidate(facts().device, facts().risk, facts().grants)
    stale = {"validated_at": NOW - 60 * DAY}
    held = facts(device=stale, grants=(), candidates=(unlikely,))
    decision = decide(held, RULES)
    assert (decision.outcome, decision.grant) == (Outcome.ALLOW, "g1")
    told = explain(held, RULES, decision)
    assert all(report.passed for report in told.factors)
    assert told.smallest_change == ""
    # Where none gives ALLOW, the reasons are those of the likeliest.
    flagged = replace(unlikely, risk=Risk(score=99.0, network=0.0))
    withheld = decide(facts(device=stale, grants=(), candidates=(flagged,)), RULES)
    assert {"DEVICE_REVALIDATION_DUE", "NO_GRANT"} <= codes(withheld)
    assert "RISK_TOO_HIGH" not in codes(withheld)


def test_no_candidate_lifts_a_block() -> None:
    good = Candidate(facts().device, facts().risk, facts().grants)
    assert decide(facts(device={"block": DeviceBlock.REVOKED}, candidates=(good,)), RULES).outcome is Outcome.DENY


def test_observed_policies_never_change_the_answer() -> None:
    observed = policy("  mode: observe\n  require: {acr: phr, maxAge: 1m}", "strict", "payments.*")
    live, with_observed = decide(facts(), RULES), decide(facts(), tenant(PAYMENTS, observed))
    assert [(s.policy, s.outcome, s.basis) for s in with_observed.shadows] == [
        ("strict@1", Outcome.STEP_UP, Basis.CHALLENGE)
    ]
    assert (live.outcome, live.reasons, live.grant, live.policies) == (
        with_observed.outcome,
        with_observed.reasons,
        with_observed.grant,
        with_observed.policies,
    )


def test_an_observed_policy_alone_is_no_policy() -> None:
    rules = tenant(policy("  mode: observe\n  require: {acr: nist-aal1}", actions="payments.*"))
    decision = decide(facts(grants=()), rules)
    assert "NO_POLICY" in codes(decision)
    assert decision.shadows[0].outcome is Outcome.ALLOW


def test_several_policies_hold_together() -> None:
    second = policy("  require: {maxAge: 1h}", "second", "*")
    decision = decide(facts(authentications=(login("nist-aal2", 2 * HOUR),)), tenant(PAYMENTS, second))
    assert "AUTHENTICATION_TOO_OLD second/base" in codes(decision)
    assert decision.requirement.max_age_s == HOUR


def test_fail_safe_asks_for_the_top_requirement() -> None:
    decision = fail_safe("payments.transfer", RULES, Code.DEADLINE)
    assert (decision.outcome, decision.basis) == (Outcome.STEP_UP, Basis.FAIL_SAFE)
    assert (decision.requirement.acrs, decision.requirement.max_age_s) == (("phr",), 300.0)
    assert decision.challenge is not None
    assert decision.challenge.methods == ("webauthn",)
    assert codes(decision) == {"DEADLINE"}


def test_recovery_voids_what_was_proved_before() -> None:
    source = policy("  require: {acr: nist-aal2, authenticatedAfter: recovery}", actions="payments.*")
    held = (login("nist-aal2", DAY),)
    assert decide(facts(authentications=held), tenant(source)).outcome is Outcome.ALLOW
    recovered = facts(authentications=held, subject={"recovered_at": NOW - HOUR})
    assert "AUTHENTICATED_BEFORE_EVENT p/base" in codes(decide(recovered, tenant(source)))
