"""Step 5: whether a grant lets the unmet clauses be skipped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from engine import budget
from engine.classes import DEFAULT_CLASS, GrantClass
from engine.clauses import Ceiling, Clause
from engine.cooloff import cooling
from engine.decision import Code, Reason
from engine.factors import Measured, Thresholds
from engine.facts import Binding, Facts, Grant, GrantScope, Staleness
from engine.guards import barring
from engine.names import action_matches
from engine.plan import Plan
from engine.rules import TenantRules

_NARROWEST_FIRST = {GrantScope.SUBJECT: 0, GrantScope.DEVICE: 1, GrantScope.ROLE: 2}


class Exemption(NamedTuple):
    """The grant that applies, or every reason why none does."""

    grant: Grant | None
    reasons: tuple[Reason, ...]


def find(
    facts: Facts,
    rules: TenantRules,
    plan: Plan,
    unmet: Sequence[tuple[Clause, Code]],
    measured: Sequence[Measured],
    *,
    allowed: bool = True,
    conditions: dict[str, bool] | None = None,
) -> Exemption:
    """The narrowest grant for which everything holds. `allowed` is False where the requirement itself rules exemptions out.
    `conditions` keeps what grants' conditions say of these facts, from one call about them to the next."""
    conditions = {} if conditions is None else conditions
    refusals = list(_general(facts, rules, plan, allowed))
    refusals += [Reason(Code.NOT_WAIVABLE, clause.name) for clause, _ in unmet if not clause.waivable]
    thresholds = plan.thresholds
    if refusals or thresholds is None:
        return Exemption(None, tuple(refusals))
    refusals += _ceilings(facts, rules, thresholds, unmet)
    refusals += [Reason(code) for factor in measured for code in factor.refusals]
    grants = sorted(facts.grants, key=lambda grant: (_NARROWEST_FIRST[grant.scope], grant.id))
    if not grants:
        refusals.append(Reason(Code.NO_GRANT))
    applying: Grant | None = None
    against: list[Reason] = []
    for grant in grants:
        code = refusal(grant, facts, rules, thresholds, unmet, conditions)
        if code is None:
            applying = grant
            break
        against.append(Reason(code, grant.id))
    if refusals or applying is None:
        return Exemption(None, (*refusals, *against))
    return Exemption(applying, (Reason(Code.GRANT_APPLIED, applying.id),))


def _general(facts: Facts, rules: TenantRules, plan: Plan, allowed: bool) -> Iterable[Reason]:
    if facts.data.staleness is Staleness.SOFT:
        yield Reason(Code.DATA_SOFT_STALE)
    elif facts.data.staleness is Staleness.HARD:
        yield Reason(Code.DATA_HARD_STALE)
    if facts.data.behind:
        yield Reason(Code.BEHIND_MIN_REVISION)
    if facts.data.clock_off:
        yield Reason(Code.CLOCK_OFFSET)
    if facts.journal_full:
        yield Reason(Code.JOURNAL_FULL)
    if facts.exemptions_off:
        yield Reason(Code.EXEMPTIONS_OFF)
    for event in cooling(facts.subject, facts.now, rules.cool_off_s):
        yield Reason(Code.COOL_OFF, event)
    if facts.rate_limited:
        yield Reason(Code.RATE_LIMITED, facts.rate_limited)
    if facts.guards:
        for name in barring(facts.guards, plan.guards):
            yield Reason(Code.GUARD_RAISED, name)
    if plan.no_exemption is not None:
        yield Reason(plan.no_exemption)
    elif not allowed:
        yield Reason(Code.NO_EXEMPTIONS)


def _ceilings(
    facts: Facts, rules: TenantRules, thresholds: Thresholds, unmet: Sequence[tuple[Clause, Code]]
) -> Iterable[Reason]:
    for clause, _ in unmet:
        if not _covered(clause, thresholds.ceilings, rules):
            yield Reason(Code.CEILING_EXCEEDED, clause.name)
        elif facts.device.binding is Binding.RECOGNISED and (
            thresholds.recognised_ceilings is None or not _covered(clause, thresholds.recognised_ceilings, rules)
        ):
            yield Reason(Code.RECOGNISED_CEILING_EXCEEDED, clause.name)


def _covered(clause: Clause, ceilings: Iterable[Ceiling], rules: TenantRules) -> bool:
    return all(ceiling.covers(clause, rules.order) for ceiling in ceilings)


def refusal(
    grant: Grant,
    facts: Facts,
    rules: TenantRules,
    thresholds: Thresholds,
    unmet: Sequence[tuple[Clause, Code]],
    conditions: dict[str, bool],
) -> Code | None:
    """Why this grant does not apply, as far as the grant and its class go; None if it does. Valid from start_at (inclusive) to
    expire_at and review_at (exclusive)."""
    if not any(action_matches(pattern, facts.action) for pattern in grant.actions):
        return Code.GRANT_OTHER_ACTION
    code = dormancy(grant, rules.classes, facts.now)
    if code is not None:
        return code
    ceiling = Ceiling(grant.ceiling_acr, grant.ceiling_max_age_s)
    if not all(ceiling.covers(clause, rules.order) for clause, _ in unmet):
        return Code.GRANT_CEILING_EXCEEDED
    bounds = rules.classes.get(grant.grant_class)
    if bounds is not None and not all(bounds.ceiling.covers(clause, rules.order) for clause, _ in unmet):
        return Code.CLASS_CEILING_EXCEEDED
    if grant.condition:
        holds = conditions.get(grant.condition)
        if holds is None:
            holds = conditions[grant.condition] = _condition_holds(grant, facts, rules)
        if not holds:
            return Code.GRANT_CONDITION
    if grant.class_suspended:
        return Code.CLASS_SUSPENDED
    if grant.spot_draw < spot_check_rate(grant, thresholds):
        return Code.SPOT_CHECK
    # Last, so that a call fails for want of a lease only if nothing else is against it.
    return budget.refusal(grant.budget, facts, rules.clock_skew_s) if grant.budget is not None else None


def spot_check_rate(grant: Grant, thresholds: Thresholds) -> float:
    """The share of exemptions by this grant that is drawn for a spot check: the greater of what policies and class want."""
    return max(thresholds.spot_check_rate, grant.class_spot_check_rate)


def dormancy(grant: Grant, classes: Mapping[str, GrantClass], now: float) -> Code | None:
    """Why this grant waives nothing at `now`, whatever is asked; None: it may. Its class counts as it is now: it may have been
    tightened since the grant was written."""
    if not grant.active:
        return Code.GRANT_INACTIVE
    if grant.start_at is not None and now < grant.start_at:
        return Code.GRANT_NOT_YET_VALID
    if grant.expire_at is None or now >= grant.expire_at:
        return Code.GRANT_EXPIRED
    if grant.review_at is not None and now >= grant.review_at:
        return Code.GRANT_REVIEW_OVERDUE
    bounds = classes.get(grant.grant_class)
    if bounds is None:
        return Code.GRANT_CLASS_UNKNOWN if classes or grant.grant_class != DEFAULT_CLASS else None
    if grant.approvals < bounds.approvals:
        return Code.GRANT_NOT_APPROVED
    # Without a start nobody can tell how long it has been valid.
    if grant.start_at is None or now >= grant.start_at + bounds.max_validity_s:
        return Code.GRANT_EXPIRED
    if bounds.review_every_s is not None and grant.review_at is None:
        return Code.GRANT_REVIEW_OVERDUE
    if bounds.scopes and grant.scope not in bounds.scopes:
        return Code.GRANT_CLASS_SCOPE
    if bounds.condition_required and not grant.condition:
        return Code.GRANT_CLASS_CONDITION
    if bounds.budget_required and grant.budget is None:
        return Code.GRANT_CLASS_BUDGET
    return None


def _condition_holds(grant: Grant, facts: Facts, rules: TenantRules) -> bool:
    condition = rules.grant_condition(grant.condition)
    if condition is None:
        return False
    return condition.evaluate(rules.grant_language.activation(facts, condition.variables)) is True
