from __future__ import annotations

from typing import Any

import pytest

from engine.acr import AcrOrder
from engine.clauses import Ceiling
from engine.decision import Code
from engine.factors import Measured, Thresholds, measure
from engine.facts import Binding, Evidence, Risk, TokenState
from tests.unit.engine.samples import DAY, HOUR, NOW, facts, login

THRESHOLDS = Thresholds(
    identity=(("phr", 30 * DAY),),
    max_failures=3,
    min_trust=0.85,
    revalidate_every_s=30 * DAY,
    revalidate_jitter=0.0,
    half_life_s=None,
    bound_only=False,
    session_max_age_s=24 * HOUR,
    session_max_idle_s=HOUR,
    session_verified=True,
    session_proved=False,
    max_score=30.0,
    spot_check_rate=0.0,
    ceilings=(Ceiling("nist-aal2", HOUR),),
    recognised_ceilings=None,
)


def factor(index: int, thresholds: Thresholds = THRESHOLDS, **changes: Any) -> Measured:
    return measure(facts(**changes), thresholds, AcrOrder(), 30.0, 86400.0)[index]


def identity(**changes: Any) -> Measured:
    return factor(0, **changes)


def test_all_four_pass_on_the_sample() -> None:
    found = measure(facts(), THRESHOLDS, AcrOrder(), 30.0, DAY)
    assert [(m.name, m.passed, m.score) for m in found] == [
        ("identity", True, 3 * DAY),
        ("device", True, 1.0),
        ("session", True, 2 * HOUR),
        ("risk", True, 0.0),
    ]
    assert all(passed for m in found for _, _, _, passed in m.checks)


@pytest.mark.parametrize("age_s", [30 * DAY, 30 * DAY + 1])
def test_identity_counts_proofs_on_this_device_up_to_the_limit(age_s: float) -> None:
    found = identity(device={"authentications": (login("phrh", age_s),)})
    assert found.passed is (age_s <= 30 * DAY)
    assert found.score == age_s


def test_identity_counts_the_sessions_own_proof() -> None:
    assert identity(device={"authentications": ()}, authentications=(login("phr", 60),)).passed


@pytest.mark.parametrize(
    "changes",
    [
        {"device": {"authentications": (), "binding": Binding.BOUND}},
        {"device": {"binding": Binding.UNKNOWN}},
        {"device": {"authentications": (login("nist-aal3", 60),)}},
        {"device": {"authentications": (login("phr", None),)}},
        {"device": {"authentications": (login("phr", 60, Evidence.ASSERTED),)}},
        {"device": {"authentications": (login("phr", -31),)}},
        {"subject": {"recovered_at": NOW - 3 * DAY}},
        {"subject": {"failed_attempts": 4}},
        {"subject": {"failed_attempts": None}},
    ],
)
def test_identity_too_weak(changes: dict[str, Any]) -> None:
    assert identity(**changes).refusals == (Code.IDENTITY_TOO_WEAK,)


def test_identity_holds_every_threshold_and_reports_the_oldest() -> None:
    both = THRESHOLDS._replace(identity=(("phr", 30 * DAY), ("nist-aal1", HOUR)))
    stale = factor(0, both, authentications=(login("nist-aal1", 2 * HOUR),))
    assert not stale.passed
    fresh = factor(0, both, authentications=(login("nist-aal1", HOUR),))
    assert (fresh.passed, fresh.score) == (True, 3 * DAY)


@pytest.mark.parametrize(
    ("device", "refusals"),
    [
        ({"trust": 0.85, "binding": Binding.RECOGNISED}, ()),
        ({"trust": 0.849, "binding": Binding.RECOGNISED}, (Code.DEVICE_NOT_TRUSTED,)),
        ({"binding": Binding.UNKNOWN}, (Code.DEVICE_NOT_TRUSTED, Code.DEVICE_REVALIDATION_DUE)),
        ({"validated_at": NOW - 30 * DAY}, ()),
        ({"validated_at": NOW - 30 * DAY - 1}, (Code.DEVICE_REVALIDATION_DUE,)),
        ({"validated_at": None}, (Code.DEVICE_REVALIDATION_DUE,)),
        ({"validated_at": NOW + 31}, (Code.DEVICE_REVALIDATION_DUE,)),
    ],
)
def test_device(device: dict[str, Any], refusals: tuple[Code, ...]) -> None:
    assert factor(1, device=device).refusals == refusals


def test_bound_only_refuses_a_recognised_device() -> None:
    bound_only = THRESHOLDS._replace(bound_only=True)
    assert factor(1, bound_only).passed
    assert factor(1, bound_only, device={"binding": Binding.RECOGNISED}).refusals == (Code.DEVICE_NOT_TRUSTED,)


@pytest.mark.parametrize(
    ("session", "passed"),
    [
        ({"started_at": NOW - 24 * HOUR, "last_active_at": NOW - HOUR}, True),
        ({"started_at": NOW - 24 * HOUR - 1}, False),
        ({"last_active_at": NOW - HOUR - 1}, False),
        ({"started_at": None}, False),
        ({"last_active_at": None}, False),
        ({"started_at": NOW + 31}, False),
        ({"started_at": NOW + 30}, True),
        ({"token": TokenState.ABSENT}, False),
    ],
)
def test_session(session: dict[str, Any], passed: bool) -> None:
    found = factor(2, session=session)
    assert found.passed is passed
    assert found.refusals == (() if passed else (Code.SESSION_NOT_SOUND,))


def test_session_evidence_and_possession_as_the_policy_asks() -> None:
    lenient = THRESHOLDS._replace(session_verified=False)
    assert factor(2, lenient, session={"token": TokenState.ABSENT}).passed
    strict = THRESHOLDS._replace(session_proved=True)
    assert not factor(2, strict).passed
    assert factor(2, strict, session={"proved": True}).passed


@pytest.mark.parametrize(("score", "passed"), [(0.0, True), (30.0, True), (30.01, False), (None, False)])
def test_risk(score: float | None, passed: bool) -> None:
    found = factor(3, risk=Risk(score=score))
    assert (found.passed, found.score) == (passed, score)
    assert found.refusals == (() if passed else (Code.RISK_TOO_HIGH,))
