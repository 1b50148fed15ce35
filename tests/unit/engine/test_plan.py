from __future__ import annotations

from engine.clauses import Ceiling
from engine.decision import Code
from engine.facts import Evidence, Posture
from engine.methods import DEFAULT_CATALOGUE
from engine.plan import NIST_PROFILES
from tests.unit.engine.samples import DAY, EXEMPTIONS, HOUR, PAYMENTS, policy, tenant

SECOND = policy(
    """
  require: {acr: phr, maxAge: 1h, waivable: false}
  exemptions:
    ceiling: {acr: nist-aal3, maxAge: 30m}
    identity: {minAcrWithin: {acr: nist-aal2, within: 1d}, maxFailures: 1}
    device: {minTrust: 0.9, revalidateEvery: 7d}
    session: {maxAge: 48h, maxIdle: 10m, proofOfPossession: true}
    risk: {maxScore: 50}
    spotCheckRate: 0.2
  methods: [totp, sms]
""",
    "second",
    "payments.*",
)


def test_requirements_add_up_and_exemptions_intersect() -> None:
    plan = tenant(PAYMENTS, SECOND).plan("payments.transfer", Posture.LOW)
    assert plan.policies == ("payments@1", "second@1")
    assert [(c.name, c.acr, c.max_age_s, c.waivable) for c in plan.clauses] == [
        ("payments/base", "nist-aal2", 12 * HOUR, True),
        ("second/base", "phr", HOUR, False),
    ]
    thresholds = plan.thresholds
    assert thresholds is not None
    assert thresholds.identity == (("phr", 30 * DAY), ("nist-aal2", DAY))
    assert (thresholds.max_failures, thresholds.min_trust, thresholds.revalidate_every_s) == (1, 0.9, 7 * DAY)
    assert (thresholds.session_max_age_s, thresholds.session_max_idle_s) == (24 * HOUR, 600.0)
    assert (thresholds.session_verified, thresholds.session_proved) == (True, True)
    assert (thresholds.max_score, thresholds.spot_check_rate) == (30.0, 0.2)
    assert thresholds.ceilings == (Ceiling("nist-aal2", HOUR), Ceiling("nist-aal3", 1800.0))
    # The second gives recognised devices no exemption, so neither does the whole.
    assert thresholds.recognised_ceilings is None
    assert [method.id for method in plan.methods] == ["totp"]


def test_one_policy_without_exemptions_ends_them_all() -> None:
    plan = tenant(PAYMENTS, policy("  require: {acr: nist-aal1}", "plain", "*")).plan("payments.x", Posture.LOW)
    assert (plan.thresholds, plan.no_exemption) == (None, Code.NO_EXEMPTIONS)


def test_no_policy_means_the_top_requirement() -> None:
    plan = tenant(PAYMENTS).plan("other.action", Posture.LOW)
    assert plan.policies == ()
    assert [(c.name, c.acr, c.max_age_s, c.cause) for c in plan.clauses] == [
        ("tenant/top", "phr", 300.0, Code.NO_POLICY)
    ]
    assert plan.thresholds is None
    assert {method.id for method in plan.methods} == {method.id for method in DEFAULT_CATALOGUE}


def test_postures_tighten_and_include_the_lower_ones() -> None:
    source = policy(
        f"  require: {{acr: nist-aal2}}\n{EXEMPTIONS}"
        """
  posture:
    ELEVATED:
      require: {acr: phr, maxAge: 1h}
      exemptions:
        risk: {maxScore: 15}
        ceiling: {acr: nist-aal1, maxAge: 2h}
    HIGH:
      exemptions:
        risk: {maxScore: 99}
        identity: {minAcrWithin: {acr: phrh, within: 1d}, maxFailures: 0}
        device: {minTrust: 0.95, revalidateEvery: 1d, bound: true}
        session: {maxAge: 1h, maxIdle: 5m, proofOfPossession: true}
        spotCheckRate: 0.5
    CRITICAL: {exemptions: {enabled: false}}
"""
    )
    rules = tenant(source)
    elevated = rules.plan("pay.x", Posture.ELEVATED)
    assert [(c.name, c.cause, c.waivable) for c in elevated.clauses] == [
        ("p/base", None, True),
        ("p/posture-elevated", Code.POSTURE_REQUIRES, False),
    ]
    low = rules.plan("pay.x", Posture.LOW).thresholds
    assert low is not None
    assert elevated.thresholds is not None
    assert elevated.thresholds.ceilings == (*low.ceilings, Ceiling("nist-aal1", 2 * HOUR))
    assert elevated.thresholds.recognised_ceilings == (Ceiling("nist-aal1", DAY), Ceiling("nist-aal1", 2 * HOUR))
    high = rules.plan("pay.x", Posture.HIGH)
    assert [c.name for c in high.clauses] == ["p/base", "p/posture-elevated"]
    thresholds = high.thresholds
    assert thresholds is not None
    # Looser values of a higher posture change nothing.
    assert thresholds.max_score == 15.0
    assert thresholds.identity == (("phr", 30 * DAY), ("phrh", DAY))
    assert (thresholds.max_failures, thresholds.min_trust, thresholds.revalidate_every_s) == (0, 0.95, DAY)
    assert (thresholds.bound_only, thresholds.session_proved, thresholds.spot_check_rate) == (True, True, 0.5)
    assert (thresholds.session_max_age_s, thresholds.session_max_idle_s) == (HOUR, 300.0)
    critical = rules.plan("pay.x", Posture.CRITICAL)
    assert (critical.thresholds, critical.no_exemption) == (None, Code.POSTURE_FORBIDS)
    assert [c.name for c in critical.clauses] == ["p/base", "p/posture-elevated"]


def test_a_profile_adds_level_and_age_apart_from_inactivity() -> None:
    for profile, (max_age_s, max_idle_s) in NIST_PROFILES.items():
        clauses = tenant(policy(f"  profile: {profile}")).plan("pay.x", Posture.LOW).clauses
        assert (clauses[0].acr, clauses[0].max_age_s, clauses[0].waivable) == (profile, max_age_s, True)
        assert [c.max_idle_s for c in clauses[1:]] == ([] if max_idle_s is None else [max_idle_s])
        assert not any(c.waivable for c in clauses[1:])


def test_base_waivable_and_evidence_as_written() -> None:
    source = policy("  require: {acr: nist-aal1, evidence: asserted, waivable: false}")
    clause = tenant(source).plan("pay.x", Posture.LOW).clauses[0]
    assert (clause.evidence, clause.waivable) == (Evidence.ASSERTED, False)


def test_methods_that_share_nothing_are_all_offered() -> None:
    one = policy("  methods: [totp]", "one")
    two = policy("  methods: [webauthn, unheard-of]", "two")
    plan = tenant(one, two).plan("pay.x", Posture.LOW)
    assert [method.id for method in plan.methods] == ["webauthn", "totp"]


def test_an_observed_policy_shadows_and_stands_in_for_the_one_it_replaces() -> None:
    observed = "  mode: observe\n  require: {acr: phr}"
    beside = policy(observed, "beside", "payments.*")
    instead = policy(observed + "\n  replaces: payments", "instead", "payments.*")
    plan = tenant(PAYMENTS, beside, instead).plan("payments.x", Posture.LOW)
    assert plan.policies == ("payments@1",)
    assert [(shadow.label, shadow.plan.policies) for shadow in plan.shadows] == [
        ("beside@1", ("payments@1", "beside@1")),
        ("instead@1", ("instead@1",)),
    ]


def test_conditions_are_compiled_together_once_for_all_actions() -> None:
    rules = tenant(PAYMENTS)
    plans = [rules.plan(f"payments.x{number}", Posture.LOW) for number in range(2)]
    assert plans[0] is not plans[1]
    assert plans[0].triggers[0].folded is plans[1].triggers[0].folded


def test_plans_are_kept_but_a_flood_of_names_is_not() -> None:
    rules = tenant(PAYMENTS)
    assert rules.plan("payments.x", Posture.LOW) is rules.plan("payments.x", Posture.LOW)
    for number in range(5000):
        rules.plan(f"made.up{number}", Posture.LOW)
    assert len(rules._plans) <= 4096
