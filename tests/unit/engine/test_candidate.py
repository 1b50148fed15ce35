"""Candidates among the rules, and which clause makes the difference."""

from __future__ import annotations

import pytest

from engine.candidate import Candidate, candidate, responsible
from engine.decide import decide
from engine.decision import Basis, Code, Decision, Outcome, Reason
from engine.facts import DeviceBlock, Facts
from engine.policy import parse_policy
from engine.rules import TenantRules
from tests.unit.engine.samples import PAYMENTS, facts, grant, login, policy, tenant

NEXT = PAYMENTS.replace("name: payments,", "name: payments-next,").replace(
    "spec:\n", "spec:\n  mode: observe\n  replaces: payments\n"
)


def tried(source: str) -> Candidate:
    return candidate(parse_policy(source))


def names(rules: TenantRules) -> list[tuple[str, str]]:
    return [(policy.name, policy.spec.mode) for policy in rules.policies]


def test_candidate_takes_the_place_of_its_own_name() -> None:
    rules = tenant(PAYMENTS, policy("", name="browse"))
    assert names(tried(PAYMENTS).among(rules)) == [("browse", "enforce"), ("payments", "enforce")]


def test_candidate_with_a_new_name_is_added() -> None:
    rules = tenant(PAYMENTS)
    assert names(tried(policy("", name="also")).among(rules)) == [("also", "enforce"), ("payments", "enforce")]


def test_observed_candidate_counts_as_enforced_and_replaces_what_it_says() -> None:
    rules = tenant(PAYMENTS, policy("", name="browse"), NEXT)
    assert names(tried(NEXT).among(rules)) == [("browse", "enforce"), ("payments-next", "enforce")]


def test_everything_but_the_policies_stays() -> None:
    rules = tenant(PAYMENTS, risk_ceiling=50.0, clock_skew_s=7.0)
    after = tried(NEXT).among(rules)
    assert (after.order, after.catalogue, after.top) == (rules.order, rules.catalogue, rules.top)
    assert (after.risk_ceiling, after.clock_skew_s) == (50.0, 7.0)


def because(asked: Facts, before: TenantRules, after: TenantRules) -> tuple[str, ...]:
    """Who is responsible, tightened and loosened alike."""
    stricter = responsible(decide(asked, before), decide(asked, after))
    assert responsible(decide(asked, after), decide(asked, before)) == stricter
    return stricter


def test_an_unmet_clause_is_responsible() -> None:
    lower = PAYMENTS.replace("5000.0", "50.0")
    asked = facts(authentications=(login("nist-aal2"),), grants=())
    assert decide(asked, tenant(PAYMENTS)).outcome is Outcome.ALLOW
    assert because(asked, tenant(PAYMENTS), tenant(lower)) == ("payments/high-value",)


def test_a_clause_that_fires_but_is_met_is_not() -> None:
    base = PAYMENTS.replace("require: {acr: nist-aal2, maxAge: 12h}", "require: {acr: phr, maxAge: 12h}")
    lower = base.replace("5000.0", "50.0").replace("acr: phr, maxAge: 12h", "acr: phrh, maxAge: 12h")
    asked = facts(authentications=(login("phr"),), grants=())
    assert because(asked, tenant(base), tenant(lower)) == ("payments/base",)


def test_a_grant_that_no_longer_applies_is_told_by_what_refuses_it() -> None:
    asked = facts(risk={"score": 20.0})
    stricter = PAYMENTS.replace("risk: {maxScore: 30}\n    spot", "risk: {maxScore: 10}\n    spot")
    assert decide(asked, tenant(PAYMENTS)).basis is Basis.EXEMPTION_GRANT
    assert because(asked, tenant(PAYMENTS), tenant(stricter)) == ("RISK_TOO_HIGH",)


def test_a_trigger_that_no_grant_may_waive_is_responsible_by_name() -> None:
    lower = PAYMENTS.replace("5000.0", "50.0")
    assert because(facts(), tenant(PAYMENTS), tenant(lower)) == ("payments/high-value",)


def test_grants_are_not_named_one_by_one() -> None:
    asked = facts(grants=(grant(spot_draw=0.3), grant(id="g2", spot_draw=0.2)))
    drawn = PAYMENTS.replace("spotCheckRate: 0.01", "spotCheckRate: 0.5")
    assert because(asked, tenant(PAYMENTS), tenant(drawn)) == ("SPOT_CHECK",)


def test_what_no_policy_covers_falls_to_the_top_requirement() -> None:
    asked = facts(authentications=(login("nist-aal2"),), grants=())
    assert because(asked, tenant(PAYMENTS), tenant()) == ("tenant/top",)


def test_equal_outcomes_have_nobody_responsible() -> None:
    asked = facts(device={"block": DeviceBlock.REVOKED})
    assert responsible(decide(asked, tenant(PAYMENTS)), decide(asked, tenant())) == ()


@pytest.mark.parametrize("outcome", [Outcome.ALLOW, Outcome.STEP_UP])
def test_a_denial_is_told_by_its_reason(outcome: Outcome) -> None:
    denied = Decision(Outcome.DENY, Basis.BLOCKED, (Reason(Code.DEVICE_REVOKED, "d1"),))
    other = Decision(outcome, Basis.NOT_REQUIRED, ())
    assert responsible(denied, other) == responsible(other, denied) == ("DEVICE_REVOKED",)


def test_there_is_always_someone() -> None:
    assert responsible(
        Decision(Outcome.ALLOW, Basis.NOT_REQUIRED, ()),
        Decision(Outcome.STEP_UP, Basis.CHALLENGE, (Reason(Code.SESSION_MISSING),)),
    ) == ("CHALLENGE",)
