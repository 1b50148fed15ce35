"""The smallest change that would have turned a decision into ALLOW, found by trying changes on the pure decision.

First every single change of circumstances, the mildest first; then a fresh authentication; then both together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from msgspec.structs import replace

from engine.budget import ample
from engine.cooloff import cooling
from engine.decide import decide_by
from engine.decision import Outcome
from engine.durations import format_duration
from engine.exemption import spot_check_rate
from engine.facts import (
    Amount,
    Authentication,
    Data,
    DeviceBlock,
    Evidence,
    Facts,
    Grant,
    GrantScope,
    Posture,
    Staleness,
    TokenState,
)
from engine.guards import PREFIX, raised_clauses
from engine.money import format_nanos
from engine.plan import Plan
from engine.risk import combine
from engine.rules import TenantRules


class Change(NamedTuple):
    """A changed circumstance, in words, and how it changes the facts or the plan."""

    words: str
    facts: Callable[[Facts], Facts] = lambda facts: facts
    plan: Callable[[Plan], Plan] = lambda plan: plan


def smallest_change(facts: Facts, rules: TenantRules) -> str:
    """A sentence naming it; empty if the decision is ALLOW already or nothing tried would help."""
    plan = rules.plan(facts.action, facts.posture)
    decision = decide_by(facts, rules, plan)
    if decision.outcome is Outcome.ALLOW:
        return ""
    singles = list(_circumstances(facts, rules, plan))
    methods = decision.challenge.methods if decision.challenge else ()
    log_in = _authentication(facts, rules, methods or tuple(method.id for method in plan.methods))
    for change in (*singles, *log_in):
        if _allows(facts, rules, plan, change):
            return change.words
    for single in singles:
        for fresh in log_in:
            if _allows(facts, rules, plan, single, fresh):
                return f"{single.words}, and {fresh.words}"
    return ""


def _allows(facts: Facts, rules: TenantRules, plan: Plan, *changes: Change) -> bool:
    for change in changes:
        facts, plan = change.facts(facts), change.plan(plan)
    return decide_by(facts, rules, plan).outcome is Outcome.ALLOW


def _authentication(facts: Facts, rules: TenantRules, methods: tuple[str, ...]) -> list[Change]:
    """A verified login now, with each method that could be asked for, the least demanding first."""
    changes = []
    for method_id in reversed(methods):
        method = rules.methods.get(method_id)
        if method is None:
            continue
        event = Authentication(method.acr, facts.now, Evidence.VERIFIED, method.amr)

        def authenticated(before: Facts, event: Authentication = event) -> Facts:
            session = replace(before.session, presented=True, revoked=False, token=TokenState.VERIFIED, token_detail="")
            return replace(before, session=session, authentications=(event, *before.authentications))

        changes.append(Change(f"a fresh verified authentication with {method.id} ({method.acr})", authenticated))
    return changes


def _circumstances(facts: Facts, rules: TenantRules, plan: Plan) -> Iterator[Change]:
    yield from _data(facts)
    yield from _triggers(plan)
    yield from _session(facts, plan)
    yield from _cool_off(facts, rules)
    yield from _device(facts, plan)
    yield from _risk(facts, plan)
    yield from _grants(facts, rules, plan)
    yield from _guards(facts, plan)
    yield from _switches(facts, rules)
    yield from _blocks(facts)


def _set(part: str, **values: Any) -> Callable[[Facts], Facts]:
    def changed(facts: Facts) -> Facts:
        return replace(facts, **{part: replace(getattr(facts, part), **values)})

    return changed


def _data(facts: Facts) -> Iterator[Change]:
    if facts.data.staleness is not Staleness.FRESH or facts.data.behind:

        def fresh(before: Facts) -> Facts:
            data: Data = replace(before.data, staleness=Staleness.FRESH, behind=False)
            return replace(before, data=data)

        yield Change("data confirmed by the control plane in time", fresh)
    if facts.data.clock_off:
        yield Change("a clock within 30 s of the control plane's", _set("data", clock_off=False))


def _triggers(plan: Plan) -> Iterator[Change]:
    for triggers in plan.triggers:
        for index, clause in enumerate(triggers.clauses):
            condition = triggers.folded.conditions[index].source

            def without(before: Plan, name: str = clause.name) -> Plan:
                return _without_trigger(before, name)

            yield Change(f"trigger {clause.name} not firing ({condition})", plan=without)


def _without_trigger(plan: Plan, name: str) -> Plan:
    kept = []
    for triggers in plan.triggers:
        left = [i for i, clause in enumerate(triggers.clauses) if clause.name != name]
        folded = triggers.language.fold(triggers.folded.conditions[i] for i in left)
        kept.append(triggers._replace(folded=folded, clauses=tuple(triggers.clauses[i] for i in left)))
    return plan._replace(triggers=tuple(kept))


def _session(facts: Facts, plan: Plan) -> Iterator[Change]:
    thresholds = plan.thresholds
    if thresholds is None:
        return
    limit = format_duration(thresholds.session_max_idle_s)
    yield Change(f"a session active within {limit}", _set("session", last_active_at=facts.now))
    limit = format_duration(thresholds.session_max_age_s)
    yield Change(f"a session younger than {limit}", _set("session", started_at=facts.now, last_active_at=facts.now))
    yield Change("a DPoP proof of possession", _set("session", proved=True))


def _cool_off(facts: Facts, rules: TenantRules) -> Iterator[Change]:
    events = cooling(facts.subject, facts.now, rules.cool_off_s)
    if events:
        cleared = dict.fromkeys(("recovered_at", "sim_changed_at", "authenticator_changed_at"))
        limit = format_duration(rules.cool_off_s)
        yield Change(f"no {' or '.join(events)} within {limit}", _set("subject", **cleared))


def _device(facts: Facts, plan: Plan) -> Iterator[Change]:
    if plan.thresholds is not None and facts.device.presented:
        limit = format_duration(plan.thresholds.revalidate_every_s)
        yield Change(f"the device validated within {limit}", _set("device", validated_at=facts.now))


def _risk(facts: Facts, plan: Plan) -> Iterator[Change]:
    measured = "unknown" if facts.risk.score is None else f"{facts.risk.score:.0f}"
    if facts.risk.score != 0.0:
        limit = "" if plan.thresholds is None else f" of at most {plan.thresholds.max_score:.0f}"
        yield Change(f"a risk score{limit} (is {measured})", lambda before: replace(before, risk=combine(())))


def _grants(facts: Facts, rules: TenantRules, plan: Plan) -> Iterator[Change]:
    for grant in facts.grants:
        if not grant.active:
            yield Change(f"grant {grant.id} active", _with_grant(replace(grant, active=True)))
        if grant.start_at is not None and facts.now < grant.start_at:
            yield Change(f"grant {grant.id} valid already", _with_grant(replace(grant, start_at=None)))
        if grant.expire_at is None or facts.now >= grant.expire_at:
            yield Change(f"grant {grant.id} not expired", _with_grant(replace(grant, expire_at=facts.now + 1)))
        yield from _budget(grant, facts)
        yield from _class(grant, facts, rules)
        if plan.thresholds is not None and grant.spot_draw < spot_check_rate(grant, plan.thresholds):
            yield Change(f"grant {grant.id} not drawn for a spot check", _with_grant(replace(grant, spot_draw=1.0)))
        if plan.thresholds is not None:
            for ceiling in plan.thresholds.ceilings:
                raised = replace(grant, ceiling_acr=ceiling.acr, ceiling_max_age_s=ceiling.max_age_s)
                yield Change(f"grant {grant.id} with the policy's ceiling ({ceiling.acr})", _with_grant(raised))
    if plan.thresholds is not None:
        for ceiling in plan.thresholds.ceilings:
            fitting = Grant(
                "new", GrantScope.SUBJECT, ("*",), ceiling.acr, ceiling.max_age_s, True, None, facts.now + 1, "", 1.0
            )
            if not rules.classes:
                yield Change("a grant for this subject up to the policy's ceiling", _with_grant(fitting))
            for name, bounds in sorted(rules.classes.items()):
                of_class = replace(
                    fitting,
                    grant_class=name,
                    start_at=facts.now,
                    review_at=facts.now + 1,
                    approvals=bounds.approvals,
                    condition="true" if bounds.condition_required else "",
                )
                yield Change(f"a grant of class {name} for this subject", _with_grant(of_class))


def _budget(grant: Grant, facts: Facts) -> Iterator[Change]:
    budget = grant.budget
    if budget is None:
        return
    rich = ample(grant, facts.now)
    yield Change(f"enough left of the budget of grant {grant.id}", _with_grant(rich))
    if rich.budget is not None and rich.budget.held is not None:
        begun = replace(rich.budget, held=replace(rich.budget.held, started_at=facts.now))
        words = f"a strong authentication within the time limit of the budget of grant {grant.id}"
        yield Change(words, _with_grant(replace(rich, budget=begun)))
    if budget.counts_amounts:
        most = min(limit for limit in (budget.max_nanos, budget.max_nanos_per_use) if limit is not None)
        amount = Amount(budget.currency, min(most, max(0, facts.amount.nanos if facts.amount else 0)))
        words = f"an amount of at most {format_nanos(most, budget.currency)}"
        yield Change(words, lambda before: replace(before, amount=amount))


def _class(grant: Grant, facts: Facts, rules: TenantRules) -> Iterator[Change]:
    """What the grant's class wants of it."""
    if grant.class_suspended:
        yield Change(f"class {grant.grant_class} not suspended", _with_grant(replace(grant, class_suspended=False)))
    if grant.review_at is not None and facts.now >= grant.review_at:
        yield Change(f"grant {grant.id} reviewed", _with_grant(replace(grant, review_at=facts.now + 1)))
    bounds = rules.classes.get(grant.grant_class)
    if bounds is not None and grant.approvals < bounds.approvals:
        yield Change(f"grant {grant.id} approved", _with_grant(replace(grant, approvals=bounds.approvals)))


def _with_grant(grant: Grant) -> Callable[[Facts], Facts]:
    def changed(facts: Facts) -> Facts:
        others = tuple(other for other in facts.grants if other.id != grant.id)
        return replace(facts, grants=(*others, grant))

    return changed


def _guards(facts: Facts, plan: Plan) -> Iterator[Change]:
    for clause in raised_clauses(facts.guards, plan.guards):

        def calm(before: Facts, name: str = clause.name.removeprefix(PREFIX)) -> Facts:
            return replace(before, guards=tuple(finding for finding in before.guards if finding.name != name))

        yield Change(f"{clause.name} not raised", calm)


def _switches(facts: Facts, rules: TenantRules) -> Iterator[Change]:
    if facts.exemptions_off:
        yield Change("the kill switch off", lambda before: replace(before, exemptions_off=False))
    if facts.rate_limited:
        yield Change(f"fewer requests per {facts.rate_limited}", lambda before: replace(before, rate_limited=""))
    if facts.journal_full:
        yield Change("room in the journal", lambda before: replace(before, journal_full=False))
    for lower in Posture:
        if lower is facts.posture:
            return

        def relaxed(_: Plan, posture: Posture = lower) -> Plan:
            return rules.plan(facts.action, posture)

        yield Change(f"posture {lower.value} instead of {facts.posture.value}", plan=relaxed)


def _blocks(facts: Facts) -> Iterator[Change]:
    if facts.subject.disabled:
        yield Change("the subject enabled", _set("subject", disabled=False))
    if facts.device.block is not DeviceBlock.NONE:
        yield Change("the device not blocked, or ruled out by evidence", _set("device", block=DeviceBlock.NONE))
    if facts.session.revoked:
        yield Change("a session that is not revoked", _set("session", revoked=False))
