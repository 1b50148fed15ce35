"""What the vectors do not reach of budgets: amounts as integers, calls that wait for a lease, explanations, records."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from engine import money
from engine.decide import awaits_lease, decide
from engine.decision import Code, Decision, Outcome, Reason
from engine.explain import explain
from engine.facts import Amount, Budget, BudgetHeld, Candidate, Facts, Grant
from tests.unit.engine.samples import EXEMPT, NOW, PAYMENTS, grant, tenant

RULES = tenant(PAYMENTS)


def held(**changes: object) -> BudgetHeld:
    return msgspec.structs.replace(BudgetHeld("h", 0, 2, NOW - 60.0, uses=1, nanos=100), **changes)


def facts(*grants: Grant, amount: Amount | None = None) -> Facts:
    return replace(EXEMPT, grants=grants, amount=amount)


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, money.NANOS - 1))
def test_an_amount_survives_its_two_parts(units: int, rest: int) -> None:
    nanos = money.to_nanos(units, rest if units >= 0 else -rest)
    assert money.to_nanos(*money.from_nanos(nanos)) == nanos


def test_an_amount_beyond_64_bits_keeps_its_side_of_every_budget() -> None:
    huge = money.to_nanos(2**63 - 1, 0)
    assert money.MAX_BUDGET_NANOS < money.saturated(huge) < 2**63
    assert money.saturated(-huge) < 0
    msgspec.msgpack.encode((money.saturated(huge), money.saturated(-huge)))


@pytest.mark.parametrize(
    ("nanos", "text"),
    [(0, "0.00 EUR"), (1, "0.000000001 EUR"), (1_500_000_000, "1.50 EUR"), (-20_000_000, "-0.02 EUR")],
)
def test_amounts_are_shown_exactly(nanos: int, text: str) -> None:
    assert money.format_nanos(nanos, "EUR") == text


def wants(asked: Facts) -> object:
    return awaits_lease(asked, RULES, decide(asked, RULES))


def test_a_call_that_lacks_only_a_lease_awaits_it() -> None:
    spend = wants(facts(grant(budget=Budget(max_nanos=500, currency="EUR")), amount=Amount("EUR", 70)))
    assert spend is not None
    assert getattr(spend, "grant", "") == "g1"
    assert getattr(spend, "nanos", 0) == 70


@pytest.mark.parametrize(
    "lacking",
    [
        facts(grant(budget=Budget(max_uses=5, held=held(uses=0, left_uses=0)))),
        facts(grant(budget=Budget(max_uses=5), active=False)),
        facts(grant(budget=Budget(max_uses=5), spot_draw=0.0)),
        facts(grant(budget=Budget(max_nanos=500, currency="EUR")), amount=Amount("EUR", 501)),
        facts(grant(budget=Budget(max_uses=5, max_elapsed_s=10.0, held=held(uses=0)))),
        replace(facts(grant(budget=Budget(max_uses=5))), exemptions_off=True),
        replace(facts(grant(budget=Budget(max_uses=5))), journal_full=True),
        facts(),
    ],
    ids=["exhausted", "inactive", "spot-check", "above-all", "elapsed", "kill-switch", "journal-full", "no-grant"],
)
def test_a_call_that_lacks_more_than_a_lease_awaits_none(lacking: Facts) -> None:
    assert decide(lacking, RULES).outcome is Outcome.STEP_UP
    assert wants(lacking) is None


def test_an_allowed_call_awaits_nothing() -> None:
    asked = facts(grant(budget=Budget(max_uses=5)), grant(id="g2"))
    decision = decide(asked, RULES)
    assert decision.grant == "g2"
    assert decision.spend is None
    assert awaits_lease(asked, RULES, decision) is None


def test_the_lease_of_a_less_likely_device_is_awaited_too() -> None:
    leased = grant(budget=Budget(max_uses=5))
    asked = replace(facts(), candidates=(Candidate(EXEMPT.device, EXEMPT.risk, (leased,)),))
    assert wants(asked) is not None


def test_the_explanation_tells_what_is_spent_and_left() -> None:
    budget = Budget(5, 10_000_000_000, None, "EUR", 3600.0, held(uses=3, nanos=2_000_000_000, left_nanos=500_000_000))
    asked = facts(grant(budget=budget), amount=Amount("EUR", 1_250_000_000))
    steps = explain(asked, RULES, decide(asked, RULES)).steps
    told = next(step.detail for step in steps if step.title == "budget")
    assert told == "spends 1 use of 1.25 EUR in period 2; at most 2 uses and 1.25 EUR and 59m of time left"


@pytest.mark.parametrize(
    ("budget", "amount", "change"),
    [
        (Budget(max_uses=5), None, "enough left of the budget of grant g1"),
        (
            Budget(max_uses=5, max_elapsed_s=10.0, held=held()),
            None,
            "a strong authentication within the time limit of the budget of grant g1",
        ),
        (
            Budget(max_nanos_per_use=2_000_000_000, currency="EUR", held=held()),
            Amount("EUR", 3_000_000_000),
            "an amount of at most 2.00 EUR",
        ),
    ],
    ids=["lease", "time", "amount"],
)
def test_the_smallest_change_names_the_budget(budget: Budget, amount: Amount | None, change: str) -> None:
    asked = facts(grant(budget=budget), amount=amount)
    assert explain(asked, RULES, decide(asked, RULES)).smallest_change == change


def test_facts_and_decision_survive_the_journal() -> None:
    budget = Budget(5, 1000, 500, "EUR", 3600.0, held(left_uses=0))
    asked = facts(grant(budget=budget), amount=Amount("EUR", 70))
    read = msgspec.msgpack.decode(msgspec.msgpack.encode(asked), type=Facts)
    decision = decide(read, RULES)
    assert read == asked
    assert decision.reasons[-1] == Reason(Code.GRANT_APPLIED, "g1")
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(decision), type=Decision) == decision
