from __future__ import annotations

import pytest

from engine.acr import AcrOrder
from engine.clauses import POSTURE_CHANGE, RECOVERY, Ceiling, Clause, standings, total, unmet_code
from engine.decision import Code, Requirement
from engine.facts import Evidence
from tests.unit.engine.samples import NOW, facts, login

ORDER = AcrOrder()
SKEW = 30.0


def code(clause: Clause, age_s: float | None = 60.0, acr: str = "nist-aal2", **changes: object) -> Code | None:
    evidence = changes.pop("evidence", Evidence.VERIFIED)
    assert isinstance(evidence, Evidence)
    return unmet_code(clause, login(acr, age_s, evidence), facts(**changes), ORDER, SKEW)


@pytest.mark.parametrize(
    ("clause", "age_s", "expected"),
    [
        (Clause("c", "nist-aal2"), 1e9, None),
        (Clause("c", "nist-aal1"), 60, None),
        (Clause("c", "phr"), 60, Code.ACR_UNMET),
        (Clause("c", max_age_s=60), 60, None),
        (Clause("c", max_age_s=60), 60.001, Code.AUTHENTICATION_TOO_OLD),
        (Clause("c", max_age_s=60), None, Code.AUTHENTICATION_TOO_OLD),
        (Clause("c", "nist-aal2"), None, None),
        (Clause("c", "nist-aal2"), -SKEW, None),
        (Clause("c", "nist-aal2"), -SKEW - 0.001, Code.AUTHENTICATION_IN_FUTURE),
    ],
)
def test_level_and_age(clause: Clause, age_s: float | None, expected: Code | None) -> None:
    assert code(clause, age_s) is expected


def test_evidence() -> None:
    verified, asserted = Clause("c", "nist-aal2"), Clause("c", "nist-aal2", evidence=Evidence.ASSERTED)
    assert code(verified, evidence=Evidence.ASSERTED) is Code.EVIDENCE_NOT_VERIFIED
    assert code(asserted, evidence=Evidence.ASSERTED) is None
    assert code(asserted, evidence=Evidence.VERIFIED) is None


def test_an_assertion_without_a_time_meets_nothing() -> None:
    clause = Clause("c", "nist-aal2", evidence=Evidence.ASSERTED)
    assert code(clause, None, evidence=Evidence.ASSERTED) is Code.AUTHENTICATION_TOO_OLD


@pytest.mark.parametrize(
    ("recovered_ago_s", "age_s", "expected"),
    [
        (None, 60, None),
        (61, 60, None),
        (60, 60, Code.AUTHENTICATED_BEFORE_EVENT),
        (10, 60, Code.AUTHENTICATED_BEFORE_EVENT),
        (10, None, Code.AUTHENTICATED_BEFORE_EVENT),
    ],
)
def test_after_a_recovery(recovered_ago_s: float | None, age_s: float | None, expected: Code | None) -> None:
    at = None if recovered_ago_s is None else NOW - recovered_ago_s
    assert code(Clause("c", after=RECOVERY), age_s, subject={"recovered_at": at}) is expected
    assert code(Clause("c", after=POSTURE_CHANGE), age_s, posture_changed_at=at) is expected


@pytest.mark.parametrize(
    ("active_ago_s", "age_s", "expected"),
    [
        (None, 900, None),
        (900, 5000, None),
        (900.1, 5000, Code.SESSION_IDLE),
        (None, 5000, Code.SESSION_IDLE),
        (-SKEW, 5000, None),
        (-SKEW - 1, 5000, Code.SESSION_IDLE),
        (None, None, Code.SESSION_IDLE),
    ],
)
def test_inactivity(active_ago_s: float | None, age_s: float | None, expected: Code | None) -> None:
    at = None if active_ago_s is None else NOW - active_ago_s
    assert code(Clause("c", max_idle_s=900.0), age_s, session={"last_active_at": at}) is expected


def test_no_level_of_one_event_with_the_time_of_another() -> None:
    clauses = [Clause("base", "nist-aal2", 300.0)]
    strong_but_old, fresh_but_weak = login("nist-aal2", 4000), login("nist-aal1", 10)
    found = standings(clauses, [strong_but_old, fresh_but_weak], facts(), ORDER, SKEW)
    assert [standing.unmet[0][1] for standing in found] == [Code.AUTHENTICATION_TOO_OLD, Code.ACR_UNMET]


def test_standings_put_the_waivable_before_the_few() -> None:
    waivable = [Clause(f"w{i}", "nist-aal2", waivable=True) for i in range(3)]
    clauses = [*waivable, Clause("never", max_age_s=60.0)]
    old, weak = login("nist-aal2", 100), login("nist-aal1", 10)
    assert [s.authentication for s in standings(clauses, [old, weak], facts(), ORDER, SKEW)] == [weak, old]
    # Equally bad: in the order given.
    assert [s.authentication for s in standings(clauses, [weak, weak], facts(), ORDER, SKEW)] == [weak, weak]


def test_one_that_meets_everything_stands_alone() -> None:
    good = login("nist-aal3", 5)
    found = standings([Clause("c", "nist-aal2", 60.0)], [login("", 5), good], facts(), ORDER, SKEW)
    assert found == [(good, ())]


def test_without_authentication_everything_is_unmet() -> None:
    clause = Clause("c", "nist-aal2")
    assert standings([clause], [], facts(), ORDER, SKEW) == [(None, ((clause, Code.NO_AUTHENTICATION),))]


def test_total_is_the_strictest_of_each() -> None:
    clauses = [
        Clause("a", "nist-aal2", 600.0, evidence=Evidence.ASSERTED),
        Clause("b", "phr", 300.0, after=RECOVERY, evidence=Evidence.ASSERTED),
        Clause("c", "nist-aal2", max_idle_s=900.0, after=POSTURE_CHANGE, evidence=Evidence.ASSERTED),
    ]
    changed = facts(subject={"recovered_at": NOW - 50}, posture_changed_at=NOW - 70)
    expected = Requirement(("nist-aal2", "phr"), 300.0, 900.0, NOW - 50, Evidence.ASSERTED)
    assert total(clauses, changed) == expected
    assert total([*clauses, Clause("d")], changed).evidence is Evidence.VERIFIED
    assert total([], changed) == Requirement()


@pytest.mark.parametrize(
    ("clause", "covered"),
    [
        (Clause("c", "nist-aal2"), True),
        (Clause("c", "nist-aal1", 7200.0), True),
        (Clause("c", "nist-aal2", 3600.0), True),
        (Clause("c", "nist-aal2", 3599.0), False),
        (Clause("c", "nist-aal3"), False),
        (Clause("c", "phr"), False),
        (Clause("c", max_idle_s=900.0), False),
        (Clause("c", "nist-aal1", after=RECOVERY), False),
        (Clause("c"), True),
    ],
)
def test_ceilings(clause: Clause, covered: bool) -> None:
    assert Ceiling("nist-aal2", 3600.0).covers(clause, ORDER) is covered
