"""What holds of every decision, whatever the facts and policies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from engine.challenge import www_authenticate
from engine.change import smallest_change
from engine.classes import GrantClass
from engine.clauses import total
from engine.decide import decide, required_clauses
from engine.decision import Basis, Decision, Outcome
from engine.explain import explain, lines
from engine.facts import (
    Authentication,
    Binding,
    Device,
    DeviceBlock,
    Facts,
    GrantScope,
    Posture,
    Signal,
    Staleness,
    TokenState,
)
from engine.risk import KINDS, combine
from engine.rules import TenantRules
from tests.property.oracle import may_allow
from tests.property.strategies import NOW, Ruled, many_facts, policies, ruled

EXAMPLES = settings(max_examples=50, deadline=None)
MORE_EXAMPLES = settings(max_examples=100, deadline=None)


def allows(facts: Facts, tenant: Ruled) -> bool:
    return decide(facts, tenant.rules).outcome is Outcome.ALLOW


def degraded(facts: Facts) -> Iterator[tuple[str, Facts]]:
    """The facts with one circumstance made worse, in each way there is."""
    yield from _data_and_switches(facts)
    yield from _grants(facts)
    yield from _subject(facts)
    yield from _device(facts)
    yield from _session(facts)
    yield from _risk(facts)
    for name in facts.values:
        yield f"no {name}", replace(facts, values={k: v for k, v in facts.values.items() if k != name})
    for index, login in enumerate(facts.authentications):
        others = facts.authentications[:index], facts.authentications[index + 1 :]
        yield f"no authentication {index}", replace(facts, authentications=others[0] + others[1])
        if login.at is not None and login.at <= NOW:  # an impossible time may become possible by moving back
            older = replace(login, at=login.at - 7000)
            yield f"older authentication {index}", replace(facts, authentications=(*others[0], older, *others[1]))
        weaker = replace(login, acr="")
        yield f"weaker authentication {index}", replace(facts, authentications=(*others[0], weaker, *others[1]))


def _data_and_switches(facts: Facts) -> Iterator[tuple[str, Facts]]:
    if facts.data.staleness is Staleness.FRESH:
        yield "soft-stale", replace(facts, data=replace(facts.data, staleness=Staleness.SOFT))
    yield "hard-stale", replace(facts, data=replace(facts.data, staleness=Staleness.HARD))
    yield "behind", replace(facts, data=replace(facts.data, behind=True))
    yield "clock off", replace(facts, data=replace(facts.data, clock_off=True))
    yield "kill switch", replace(facts, exemptions_off=True)
    yield "journal full", replace(facts, journal_full=True)
    levels = list(Posture)
    for higher in levels[levels.index(facts.posture) + 1 :]:
        yield f"posture {higher.value}", replace(facts, posture=higher)
    yield "posture changed just now", replace(facts, posture_changed_at=NOW)


def _grants(facts: Facts) -> Iterator[tuple[str, Facts]]:
    for index, grant in enumerate(facts.grants):
        rest = facts.grants[:index] + facts.grants[index + 1 :]
        yield f"no grant {index}", replace(facts, grants=rest)
        for what, worse in (
            ("revoked", replace(grant, active=False)),
            ("expired", replace(grant, expire_at=NOW)),
            ("without end", replace(grant, expire_at=None)),
            ("later", replace(grant, start_at=NOW + 1)),
            ("elsewhere", replace(grant, actions=("elsewhere",))),
            ("lower", replace(grant, ceiling_acr="")),
            ("shorter", replace(grant, ceiling_max_age_s=1e12)),
            ("drawn", replace(grant, spot_draw=0.0)),
            ("unreviewed", replace(grant, review_at=NOW)),
            ("unapproved", replace(grant, approvals=0)),
            ("of no class", replace(grant, grant_class="unknown")),
        ):
            yield f"grant {index} {what}", replace(facts, grants=(*rest, worse))


def _subject(facts: Facts) -> Iterator[tuple[str, Facts]]:
    subject = facts.subject
    yield "disabled", replace(facts, subject=replace(subject, disabled=True))
    yield "unknown subject", replace(facts, subject=replace(subject, known=False, failed_attempts=None))
    yield "just recovered", replace(facts, subject=replace(subject, recovered_at=NOW))
    yield "another SIM", replace(facts, subject=replace(subject, sim_changed_at=NOW))
    yield "new authenticator", replace(facts, subject=replace(subject, authenticator_changed_at=NOW))
    if subject.failed_attempts is not None:  # unknown is worse than any number
        yield "more failures", replace(facts, subject=replace(subject, failed_attempts=subject.failed_attempts + 3))


def _device(facts: Facts) -> Iterator[tuple[str, Facts]]:
    device = facts.device
    # Taking evidence away does not take a block away: gathering sees to that.
    yield "no device", replace(facts, device=Device(block=device.block))
    unknown = Device(presented=device.presented, block=device.block)
    yield "unknown device", replace(facts, device=unknown)
    if device.binding is Binding.BOUND:
        yield "recognised only", replace(facts, device=replace(device, binding=Binding.RECOGNISED, trust=0.5))
    yield "less trust", replace(facts, device=replace(device, trust=device.trust / 2))
    yield "never validated", replace(facts, device=replace(device, validated_at=None))
    yield "nothing proved on it", replace(facts, device=replace(device, authentications=()))
    yield "due earlier", replace(facts, device=replace(device, revalidate_draw=1.0))
    for block in (DeviceBlock.NOT_EXCLUDED, DeviceBlock.QUARANTINED, DeviceBlock.REVOKED):
        yield f"device {block.value}", replace(facts, device=replace(device, block=block))


def _session(facts: Facts) -> Iterator[tuple[str, Facts]]:
    session = facts.session
    changes: dict[str, dict[str, Any]] = {
        "revoked": {"revoked": True},
        "bad token": {"token": TokenState.INVALID},
        "another's token": {"token": TokenState.MISMATCH},
        "no proof": {"proved": False},
        "no start": {"started_at": None},
        "no activity": {"last_active_at": None},
        "no session": {"presented": False},
    }
    for what, change in changes.items():
        yield what, replace(facts, session=replace(session, **change))
    if session.token is TokenState.VERIFIED:
        bare = replace(session, token=TokenState.ABSENT, proved=False)
        yield "no token", replace(facts, session=bare, authentications=())


def _risk(facts: Facts) -> Iterator[tuple[str, Facts]]:
    unchecked = [kind for kind in KINDS if getattr(facts.risk, kind) is None]
    for kind in KINDS:
        for score in (25.0, 45.0, 65.0, 100.0):
            signals = [*facts.risk.signals, Signal(kind, score)]
            yield f"{kind} risk {score}", replace(facts, risk=combine(signals, unchecked))
        yield f"{kind} unchecked", replace(facts, risk=combine(facts.risk.signals, [*unchecked, kind]))


@MORE_EXAMPLES
@given(ruled(), many_facts())
def test_nothing_made_worse_turns_a_withheld_allow_into_allow(tenant: Ruled, facts: Facts) -> None:
    if not allows(facts, tenant):
        for what, worse in degraded(facts):
            assert not allows(worse, tenant), what


@MORE_EXAMPLES
@given(ruled(), many_facts())
def test_allow_exactly_where_every_bound_holds(tenant: Ruled, facts: Facts) -> None:
    decision = decide(facts, tenant.rules)
    assert may_allow(facts, tenant) == ({decision.basis.value} if decision.outcome is Outcome.ALLOW else set())


@pytest.mark.parametrize("basis", Basis)
def test_the_strategies_reach_every_basis(basis: Basis) -> None:
    """One that never reaches an exemption would prove nothing about them."""
    search = settings(max_examples=3000, deadline=None, phases=[Phase.generate], database=None)
    tenant, facts = find(
        st.tuples(ruled(), many_facts()), lambda pair: decide(pair[1], pair[0].rules).basis is basis, settings=search
    )
    assert decide(facts, tenant.rules).basis is basis


@EXAMPLES
@given(ruled(), many_facts())
def test_a_grant_never_raises_what_was_achieved(tenant: Ruled, facts: Facts) -> None:
    with_grants, without = (decide(f, tenant.rules) for f in (facts, replace(facts, grants=())))
    assert with_grants.achieved_acr == without.achieved_acr
    assert with_grants.requirement == without.requirement
    held = {login.acr for login in facts.authentications} if facts.session.presented else set()
    assert with_grants.achieved_acr in held | {""}
    if with_grants.basis is not Basis.EXEMPTION_GRANT:
        assert (with_grants.waived_acrs, with_grants.grant) == ((), "")


def _settings(rules: TenantRules) -> dict[str, Any]:
    """What rules are made of besides policies."""
    return {
        "order": rules.order,
        "risk_ceiling": rules.risk_ceiling,
        "classes": rules.classes.values(),
        "cool_off_s": rules.cool_off_s,
    }


def shown(decision: Decision) -> tuple[Any, ...]:
    return tuple(getattr(decision, name) for name in Decision.__struct_fields__ if name != "shadows")


@EXAMPLES
@given(ruled(least=1), st.data(), many_facts())
def test_observed_policies_never_change_the_live_decision(tenant: Ruled, data: st.DataObject, facts: Facts) -> None:
    observed, _ = data.draw(policies("watched", mode="observe"))
    beside = TenantRules((*tenant.policies, observed), **_settings(tenant.rules))
    assert shown(decide(facts, beside)) == shown(decide(facts, tenant.rules))


@EXAMPLES
@given(ruled(), many_facts())
def test_decisions_are_pure_and_survive_a_recording(tenant: Ruled, facts: Facts) -> None:
    before = msgspec.msgpack.encode(facts)
    decision = decide(facts, tenant.rules)
    fresh = TenantRules(reversed(tenant.policies), **_settings(tenant.rules))
    replayed = msgspec.msgpack.decode(before, type=Facts)
    assert replayed == facts
    assert decide(replayed, fresh) == decide(facts, fresh) == decide(facts, tenant.rules) == decision
    assert msgspec.msgpack.encode(facts) == before
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(decision), type=Decision) == decision


@EXAMPLES
@given(ruled(least=1), st.data(), many_facts())
def test_a_further_policy_never_weakens_the_requirement(tenant: Ruled, data: st.DataObject, facts: Facts) -> None:
    further, _ = data.draw(policies("further"))
    more = TenantRules((*tenant.policies, further), **_settings(tenant.rules))
    if not tenant.rules.plan(facts.action, facts.posture).policies:
        return  # the first policy that matches takes the place of the top requirement
    fewer_clauses, _ = required_clauses(facts, tenant.rules, tenant.rules.plan(facts.action, facts.posture))
    more_clauses, _ = required_clauses(facts, more, more.plan(facts.action, facts.posture))
    assert set(fewer_clauses) <= set(more_clauses)
    one, both = total(fewer_clauses, facts), total(more_clauses, facts)
    assert set(one.acrs) <= set(both.acrs)
    assert one.max_age_s is None or (both.max_age_s is not None and both.max_age_s <= one.max_age_s)
    if decide(facts, tenant.rules).outcome is not Outcome.ALLOW:
        assert decide(facts, more).outcome is not Outcome.ALLOW


@settings(max_examples=40, deadline=None)
@given(ruled(), many_facts())
def test_every_decision_can_be_explained_and_challenged(tenant: Ruled, facts: Facts) -> None:
    decision = decide(facts, tenant.rules)
    told = explain(facts, tenant.rules, decision)
    assert [step.step for step in told.steps] == list(range(1, len(told.steps) + 1))
    assert lines(told)
    assert decision.reasons
    if decision.outcome is Outcome.ALLOW:
        assert smallest_change(facts, tenant.rules) == ""
        assert decision.challenge is None
    elif decision.challenge is not None:
        assert www_authenticate(decision.challenge).startswith("Bearer error=")
    if decision.outcome is Outcome.STEP_UP:
        assert decision.challenge is not None
        assert decision.challenge.methods


@EXAMPLES
@given(
    many_facts(), st.lists(st.builds(Authentication, st.sampled_from(["phr", "nist-aal3"]), st.just(NOW)), max_size=1)
)
def test_an_action_nobody_wrote_a_policy_for_is_never_exempt(facts: Facts, more: list[Authentication]) -> None:
    held = replace(facts, authentications=(*facts.authentications, *more))
    decision = decide(held, TenantRules())
    assert decision.basis not in (Basis.EXEMPTION_GRANT, Basis.NOT_REQUIRED)


def _tightened(bounds: GrantClass) -> Iterator[GrantClass]:
    yield bounds._replace(approvals=bounds.approvals + 1)
    yield bounds._replace(max_validity_s=bounds.max_validity_s / 100)
    yield bounds._replace(review_every_s=60.0)
    yield bounds._replace(condition_required=True)
    yield bounds._replace(budget_required=True)
    yield bounds._replace(scopes=frozenset({GrantScope.SUBJECT}))
    yield bounds._replace(ceiling=bounds.ceiling._replace(acr="nist-aal1"))
    yield bounds._replace(ceiling=bounds.ceiling._replace(max_age_s=43200.0))


@EXAMPLES
@given(ruled(least=1), many_facts())
def test_a_tighter_class_or_none_in_its_place_never_turns_a_refusal_into_allow(tenant: Ruled, facts: Facts) -> None:
    if allows(facts, tenant):
        return
    classes = tenant.rules.classes
    settings_ = _settings(tenant.rules)
    for name, bounds in classes.items():
        others = [other for other in classes.values() if other.id != name]
        # Without any class left, grants of the class `default` are bounded by themselves alone: that is a tenant without classes.
        for replaced in [*([tighter] for tighter in _tightened(bounds)), *([[]] if others else [])]:
            rules = TenantRules(tenant.policies, **settings_ | {"classes": [*others, *replaced]})
            assert decide(facts, rules).outcome is not Outcome.ALLOW
