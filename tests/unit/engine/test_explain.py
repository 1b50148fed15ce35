from __future__ import annotations

from typing import Any

import pytest

from engine.change import smallest_change
from engine.decide import decide
from engine.decision import Outcome
from engine.explain import explain, lines
from engine.facts import (
    Authentication,
    Binding,
    DeviceBlock,
    Evidence,
    Facts,
    Posture,
    Risk,
    Staleness,
    TokenState,
)
from tests.unit.engine.samples import DAY, HOUR, NO_RISK, NOW, PAYMENTS, facts, grant, login, policy, tenant

RULES = tenant(PAYMENTS)
FRESH = Authentication("nist-aal2", NOW, Evidence.VERIFIED)


def test_nothing_to_change_on_an_allow() -> None:
    assert smallest_change(facts(), RULES) == ""


# What withholds ALLOW, the change named, and that change made here by hand: it really yields ALLOW.
CHANGES: list[tuple[Any, str, Any]] = [
    ({"data": {"staleness": Staleness.SOFT}}, "data confirmed by the control plane in time", {}),
    ({"data": {"behind": True}}, "data confirmed by the control plane in time", {}),
    (
        {"values": {"context.amount.value": 9000.0, "context.amount.currency": "EUR"}},
        "trigger payments/high-value not firing (context.amount.value > 5000.0 || context.amount.currency != 'EUR')",
        {"values": {"context.amount.value": 1.0, "context.amount.currency": "EUR"}},
    ),
    ({"session": {"last_active_at": NOW - 2 * HOUR}}, "a session active within 1h", {}),
    ({"session": {"started_at": NOW - 2 * DAY}}, "a session younger than 1d", {}),
    ({"device": {"validated_at": NOW - 60 * DAY}}, "the device validated within 30d", {}),
    ({"risk": Risk(score=35.0, network=35.0)}, "a risk score of at most 30 (is 35)", {}),
    ({"risk": Risk(score=None, network=0.0)}, "a risk score of at most 30 (is unknown)", {}),
    ({"grants": (grant(active=False),)}, "grant g1 active", {}),
    ({"grants": (grant(start_at=NOW + 5),)}, "grant g1 valid already", {}),
    ({"grants": (grant(expire_at=NOW - 5),)}, "grant g1 not expired", {}),
    ({"grants": (grant(spot_draw=0.0),)}, "grant g1 not drawn for a spot check", {}),
    (
        {"grants": (grant(ceiling_acr="nist-aal1"),)},
        "grant g1 with the policy's ceiling (nist-aal2)",
        {"grants": (grant(),)},
    ),
    ({"grants": ()}, "a grant for this subject up to the policy's ceiling", {"grants": (grant(),)}),
    ({"exemptions_off": True}, "the kill switch off", {}),
    ({"journal_full": True}, "room in the journal", {}),
    ({"posture": Posture.CRITICAL}, "posture LOW instead of CRITICAL", {"posture": Posture.LOW}),
    ({"subject": {"disabled": True}}, "the subject enabled", {}),
    ({"device": {"block": DeviceBlock.QUARANTINED}}, "the device not blocked, or ruled out by evidence", {}),
    ({"session": {"revoked": True}}, "a session that is not revoked", {}),
    (
        {"subject": {"failed_attempts": 9}},
        "a fresh verified authentication with totp (nist-aal2)",
        {"subject": {"failed_attempts": 9}, "authentications": (FRESH,)},
    ),
    (
        {"session": {"token": TokenState.INVALID, "revoked": False}},
        "a fresh verified authentication with totp (nist-aal2)",
        {"authentications": (FRESH,)},
    ),
]


@pytest.mark.parametrize(("changes", "words", "undone"), CHANGES, ids=[words[:40] for _, words, _ in CHANGES])
def test_the_change_it_names_really_yields_allow(changes: dict[str, Any], words: str, undone: dict[str, Any]) -> None:
    assert decide(facts(**changes), RULES).outcome is not Outcome.ALLOW
    assert smallest_change(facts(**changes), RULES) == words
    assert decide(facts(**undone), RULES).outcome is Outcome.ALLOW


def test_two_things_together_where_none_alone_helps() -> None:
    aal2 = tenant(PAYMENTS.replace("acr: phr, maxAge: 5m", "acr: nist-aal2, maxAge: 5m"))
    held: Facts = facts(subject={"disabled": True}, grants=(), authentications=(), device={"binding": Binding.UNKNOWN})
    named = smallest_change(held, aal2)
    assert named.startswith("the subject enabled, and a fresh verified authentication with ")
    assert decide(facts(grants=(), authentications=(FRESH,), device={"binding": Binding.UNKNOWN}), aal2).outcome is (
        Outcome.ALLOW
    )


def test_it_says_nothing_rather_than_something_untrue() -> None:
    impossible = tenant(policy("  require: {acr: unheard-of}", actions="payments.*"))
    blocked = facts(subject={"disabled": True}, device={"block": DeviceBlock.REVOKED}, session={"revoked": True})
    assert smallest_change(blocked, impossible) == ""


def test_every_step_and_factor_is_told() -> None:
    held = facts(risk=Risk(score=35.0, network=35.0), values={})
    decision = decide(held, RULES)
    told = explain(held, RULES, decision)
    assert [step.step for step in told.steps] == [1, 2, 3, 4, 5, 6]
    assert told.steps[0].detail == "payments@1; posture LOW"
    assert "payments/high-value: phr, verified, at most 5m old" in told.steps[2].detail
    assert "ACR_UNMET payments/base" in told.steps[3].detail
    assert "NOT_WAIVABLE payments/high-value" in told.steps[4].detail
    assert [report.factor for report in told.factors] == ["identity", "device", "session", "risk"]
    assert [report.passed for report in told.factors] == [True, True, True, False]
    check = told.factors[3].checks[0]
    assert (check.name, check.measured, check.threshold, check.passed) == ("risk.score", "35", "30", False)
    assert told.reasons == tuple(str(reason) for reason in decision.reasons)
    text = "\n".join(lines(told))
    assert "risk.score: 35 (threshold 30)  <- failed" in text
    assert "session.age_s: 2h (threshold 1d)" in text


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({"subject": {"disabled": True}}, [1, 2]),
        ({"authentications": (login("nist-aal2", 60),)}, [1, 2, 3, 4]),
        ({}, [1, 2, 3, 4, 5]),
    ],
)
def test_steps_end_where_the_decision_was_made(changes: dict[str, Any], steps: list[int]) -> None:
    held = facts(**changes)
    told = explain(held, RULES, decide(held, RULES))
    assert [step.step for step in told.steps] == steps


def test_observed_policies_are_named() -> None:
    rules = tenant(PAYMENTS, policy("  mode: observe\n  require: {acr: phr}", "next", "payments.*"))
    told = explain(facts(risk=NO_RISK), rules, decide(facts(), rules))
    assert "observed: next@1" in told.steps[0].detail
    assert any("observed next@1: STEP_UP CHALLENGE" in line for line in lines(told))
