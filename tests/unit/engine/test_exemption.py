from __future__ import annotations

from typing import Any

import pytest

from engine.decide import decide
from engine.decision import Basis, Code, Decision, Outcome
from engine.facts import Binding, Device, GrantScope, Posture, Risk, Staleness
from tests.unit.engine.samples import DAY, HOUR, NOW, PAYMENTS, facts, grant, login, policy, tenant

RULES = tenant(PAYMENTS)


def codes(decision: Decision) -> list[str]:
    return [str(reason) for reason in decision.reasons]


def test_the_sample_is_exempt() -> None:
    decision = decide(facts(), RULES)
    assert (decision.outcome, decision.basis, decision.grant) == (Outcome.ALLOW, Basis.EXEMPTION_GRANT, "g1")
    assert (decision.achieved_acr, decision.waived_acrs) == ("nist-aal1", ("nist-aal2",))
    assert codes(decision) == ["ACR_UNMET payments/base", "GRANT_APPLIED g1"]
    assert [factor.passed for factor in decision.factors] == [True] * 4
    assert decision.challenge is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"data": {"staleness": Staleness.SOFT}}, "DATA_SOFT_STALE"),
        ({"data": {"staleness": Staleness.HARD}}, "DATA_HARD_STALE"),
        ({"data": {"clock_off": True}}, "CLOCK_OFFSET"),
        ({"data": {"behind": True}}, "BEHIND_MIN_REVISION"),
        ({"journal_full": True}, "JOURNAL_FULL"),
        ({"exemptions_off": True}, "EXEMPTIONS_OFF"),
        ({"posture": Posture.CRITICAL}, "POSTURE_FORBIDS"),
        ({"grants": ()}, "NO_GRANT"),
        ({"values": {}}, "NOT_WAIVABLE payments/high-value"),
        ({"device": Device()}, "NOT_WAIVABLE payments/unknown-device"),
        ({"device": {"trust": 0.5, "binding": Binding.RECOGNISED}}, "DEVICE_NOT_TRUSTED"),
        ({"device": {"binding": Binding.RECOGNISED}}, "RECOGNISED_CEILING_EXCEEDED payments/base"),
        ({"device": {"validated_at": NOW - 31 * DAY}}, "DEVICE_REVALIDATION_DUE"),
        ({"subject": {"failed_attempts": 4}}, "IDENTITY_TOO_WEAK"),
        ({"session": {"last_active_at": NOW - 2 * HOUR}}, "SESSION_NOT_SOUND"),
        ({"risk": Risk(score=31.0, network=31.0)}, "RISK_TOO_HIGH"),
        ({"risk": Risk(score=None, network=0.0)}, "RISK_TOO_HIGH"),
        ({"posture": Posture.ELEVATED, "risk": Risk(score=16.0, network=0.0)}, "RISK_TOO_HIGH"),
    ],
)
def test_each_bound_holds_by_itself(changes: dict[str, Any], reason: str) -> None:
    decision = decide(facts(**changes), RULES)
    assert decision.outcome is Outcome.STEP_UP
    assert reason in codes(decision)
    assert decision.grant == ""
    assert decision.waived_acrs == ()


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"active": False}, Code.GRANT_INACTIVE),
        ({"start_at": NOW + 0.001}, Code.GRANT_NOT_YET_VALID),
        ({"expire_at": NOW}, Code.GRANT_EXPIRED),
        ({"expire_at": None}, Code.GRANT_EXPIRED),
        ({"actions": ("payments", "payments.read.*")}, Code.GRANT_OTHER_ACTION),
        ({"actions": ()}, Code.GRANT_OTHER_ACTION),
        ({"ceiling_acr": "nist-aal1"}, Code.GRANT_CEILING_EXCEEDED),
        ({"ceiling_max_age_s": 13 * HOUR}, Code.GRANT_CEILING_EXCEEDED),
        ({"condition": "context.amount.value < 50.0"}, Code.GRANT_CONDITION),
        ({"condition": "context.country == 'DE'"}, Code.GRANT_CONDITION),
        ({"condition": "not cel at all ("}, Code.GRANT_CONDITION),
        ({"spot_draw": 0.0099}, Code.SPOT_CHECK),
    ],
)
def test_what_a_grant_must_be(changes: dict[str, Any], code: Code) -> None:
    decision = decide(facts(grants=(grant(**changes),)), RULES)
    assert decision.outcome is Outcome.STEP_UP
    assert f"{code.value} g1" in codes(decision)


@pytest.mark.parametrize(
    "changes",
    [
        {"start_at": NOW},
        {"expire_at": NOW + 0.001},
        {"actions": ("payments.transfer",)},
        {"condition": "context.amount.value <= 100.0 && device.bound"},
        {"spot_draw": 0.01},
        {"ceiling_max_age_s": 12 * HOUR},
        {"ceiling_acr": "nist-aal3"},
    ],
)
def test_bounds_include_their_edge(changes: dict[str, Any]) -> None:
    assert decide(facts(grants=(grant(**changes),)), RULES).grant == "g1"


def test_the_narrowest_grant_applies_and_others_do_not_stop_it() -> None:
    role = grant(id="a-role", scope=GrantScope.ROLE)
    device = grant(id="b-device", scope=GrantScope.DEVICE)
    expired = grant(id="c-subject", expire_at=NOW - 1)
    assert decide(facts(grants=(role, expired, device)), RULES).grant == "b-device"
    both = (grant(id="z"), grant(id="y"))
    assert decide(facts(grants=both), RULES).grant == decide(facts(grants=both[::-1]), RULES).grant == "y"


def test_every_reason_against_is_given() -> None:
    decision = decide(
        facts(grants=(grant(active=False), grant(id="g2", expire_at=NOW)), risk=Risk(score=99, network=0.0)), RULES
    )
    assert {"RISK_TOO_HIGH", "GRANT_INACTIVE g1", "GRANT_EXPIRED g2"} <= set(codes(decision))


def test_a_policys_ceiling_counts_even_if_the_grants_is_higher() -> None:
    rules = tenant(PAYMENTS.replace("require: {acr: nist-aal2, maxAge: 12h}", "require: {acr: nist-aal3}"))
    decision = decide(facts(grants=(grant(ceiling_acr="nist-aal3"),)), rules)
    assert "CEILING_EXCEEDED payments/base" in codes(decision)


def test_a_recognised_device_has_its_own_lower_ceiling() -> None:
    rules = tenant(PAYMENTS.replace("require: {acr: nist-aal2, maxAge: 12h}", "require: {acr: nist-aal1, maxAge: 24h}"))
    recognised = facts(device={"binding": Binding.RECOGNISED, "trust": 0.9}, authentications=())
    assert decide(recognised, rules).grant == "g1"


def test_no_exemption_without_a_session() -> None:
    decision = decide(facts(session={"presented": False}), RULES)
    assert {"SESSION_MISSING", "NO_EXEMPTIONS", "NO_AUTHENTICATION payments/base"} <= set(codes(decision))


def test_an_authentication_that_stands_better_does_not_hide_one_the_grant_can_complete() -> None:
    """Were it hidden, leaving the better one out of the request would turn STEP_UP into ALLOW."""
    spec = """
  require: {acr: nist-aal2}
  triggers: [{name: always, when: "true", require: {maxAge: 60s, waivable: true}}]
"""
    rules = tenant(policy(spec + PAYMENTS[PAYMENTS.index("  exemptions:") : PAYMENTS.index("  methods:")]))
    old, weak = login("nist-aal2", 100), login("nist-aal1", 10)
    for held in ((old, weak), (weak, old), (weak,)):
        decision = decide(facts(action="pay.x", authentications=held), rules)
        assert (decision.outcome, decision.waived_acrs) == (Outcome.ALLOW, ("nist-aal2",))
    assert decide(facts(action="pay.x", authentications=(old,)), rules).outcome is Outcome.STEP_UP
