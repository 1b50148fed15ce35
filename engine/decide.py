"""The decision: pure, in the numbered order of DESIGN section 3. No clock, no I/O, no randomness."""

from __future__ import annotations

import math

import msgspec
from msgspec.structs import replace

from engine import budget, exemption
from engine.challenge import INVALID_TOKEN, challenge
from engine.clauses import Clause, Standing, standings, total
from engine.cooloff import credible
from engine.decision import Basis, Code, Decision, Factor, Outcome, Reason, Requirement, Shadow, Spend, SpotCheck
from engine.factors import Measured, measure
from engine.facts import Authentication, DeviceBlock, Facts, Grant, Posture, Staleness, Subject, TokenState
from engine.guards import raised_clauses
from engine.plan import Plan
from engine.rules import TenantRules

_DEVICE_BLOCKS = {
    DeviceBlock.REVOKED: Code.DEVICE_REVOKED,
    DeviceBlock.QUARANTINED: Code.DEVICE_QUARANTINED,
    DeviceBlock.NOT_EXCLUDED: Code.DEVICE_NOT_EXCLUDED,
}
_TOKEN_FAULTS = {TokenState.INVALID: Code.TOKEN_INVALID, TokenState.MISMATCH: Code.TOKEN_MISMATCH}


def decide(facts: Facts, rules: TenantRules) -> Decision:
    """May this subject do this now without step-up? Equal facts and rules always give the equal decision."""
    # 1. Policies: all that match the action, added up; observed ones are decided beside them.
    plan = rules.plan(facts.action, facts.posture)
    decision = decide_by(facts, rules, plan)
    if decision.outcome is Outcome.STEP_UP and (facts.grants or facts.candidates):
        withheld = spot_check(facts, rules, plan)
        if withheld is not None:
            decision = replace(decision, spot_check=withheld)
    if not plan.shadows:
        return decision
    shadows = []
    for shadow in plan.shadows:
        would_be = decide_by(facts, rules, shadow.plan)
        shadows.append(Shadow(shadow.label, would_be.outcome, would_be.basis))
    return _with_shadows(decision, tuple(shadows))


def fail_safe(action: str, rules: TenantRules, code: Code) -> Decision:
    """The answer where nothing could be looked up in time: step up to the tenant's top requirement."""
    top = rules.top
    requirement = Requirement((top.acr,) if top.acr else (), top.max_age_s, evidence=top.evidence)
    plan = rules.plan(action, Posture.CRITICAL)
    asked = challenge(requirement, plan, rules, Subject(), 0.0)
    return Decision(
        Outcome.STEP_UP, Basis.FAIL_SAFE, (Reason(code),), requirement, challenge=asked, policies=plan.policies
    )


def decide_by(facts: Facts, rules: TenantRules, plan: Plan) -> Decision:
    """Steps 2 to 6 by a given plan; observed policies are not looked at."""
    return consider(facts, rules, plan)[1]


def awaits_lease(facts: Facts, rules: TenantRules, decision: Decision) -> Spend | None:
    """What a decision would spend that fails for nothing but the want of a slice of a budget; None if more is wanting.

    `decision` must be `decide(facts, rules)`. Costs another decision where a slice is wanting, and nothing otherwise.
    """
    if decision.outcome is not Outcome.STEP_UP:
        return None
    leased = budget.with_leases(facts, rules.clock_skew_s)
    if leased is None:
        return None
    return decide_by(leased, rules, rules.plan(facts.action, facts.posture)).spend


def consider(facts: Facts, rules: TenantRules, plan: Plan) -> tuple[Facts, Decision]:
    """The decision by a given plan, and the facts it rests on: of the devices the evidence fits, the first that gives ALLOW."""
    decision = _decide(facts, rules, plan)
    if decision.outcome is Outcome.STEP_UP:
        for candidate in facts.candidates:
            other = replace(
                facts,
                device=candidate.device,
                risk=candidate.risk,
                grants=candidate.grants,
                guards=candidate.guards,
                candidates=(),
            )
            found = _decide(other, rules, plan)
            if found.outcome is Outcome.ALLOW:
                return other, found
    return facts, decision


def _decide(facts: Facts, rules: TenantRules, plan: Plan) -> Decision:
    # 2. Blocks: nothing lifts them.
    blocks = block_reasons(facts)
    if blocks:
        invalid = any(
            reason.code in (Code.SESSION_REVOKED, Code.TOKEN_INVALID, Code.TOKEN_MISMATCH) for reason in blocks
        )
        only_session = invalid and not any(reason.code is Code.SUBJECT_DISABLED for reason in blocks)
        asked = INVALID_TOKEN if only_session else None
        return Decision(Outcome.DENY, Basis.BLOCKED, blocks, challenge=asked, policies=plan.policies)

    # 3. The requirement: base, triggers, posture, risk, guards, staleness.
    clauses, causes = required_clauses(facts, rules, plan)
    requirement = total(clauses, facts)
    if not clauses and facts.session.presented:
        reasons = (*causes, Reason(Code.NOTHING_REQUIRED))
        return Decision(Outcome.ALLOW, Basis.NOT_REQUIRED, reasons, policies=plan.policies)

    # 4. Met by one single authentication. Without a session there is none.
    held = counting(facts, rules)
    ranked = standings(clauses, held, facts, rules.order, rules.clock_skew_s)
    standing = ranked[0]
    achieved = standing.authentication.acr if standing.authentication else ""
    measured = (
        measure(facts, plan.thresholds, rules.order, rules.clock_skew_s, rules.cool_off_s) if plan.thresholds else ()
    )
    factors = tuple(Factor(factor.name, factor.passed, factor.score) for factor in measured)
    if clauses and not standing.unmet:
        met = (*causes, Reason(Code.REQUIREMENT_MET))
        return Decision(
            Outcome.ALLOW,
            Basis.ASSURANCE_SATISFIED,
            met,
            requirement,
            achieved,
            policies=plan.policies,
            factors=factors,
        )

    # 5. A grant that holds under every bound.
    found, reasons, waived = _exempt(facts, rules, plan, ranked, measured, causes)
    if found is not None:
        return Decision(
            Outcome.ALLOW,
            Basis.EXEMPTION_GRANT,
            reasons,
            requirement,
            achieved,
            waived_acrs=waived,
            grant=found.id,
            policies=plan.policies,
            factors=factors,
            spend=budget.spend(found, facts),
        )

    # 6. Otherwise the strongest available method.
    untrusted_data = facts.data.staleness is Staleness.HARD or facts.data.behind
    return Decision(
        Outcome.STEP_UP,
        Basis.FAIL_SAFE if untrusted_data else Basis.CHALLENGE,
        reasons,
        requirement,
        achieved,
        challenge=challenge(_login_needed(requirement, standing, facts), plan, rules, facts.subject, facts.now),
        policies=plan.policies,
        factors=factors,
    )


def counting(facts: Facts, rules: TenantRules) -> tuple[Authentication, ...]:
    """The session's authentications that can meet anything."""
    if not facts.session.presented:
        return ()
    return credible(facts.authentications, facts.subject, facts.now, rules.cool_off_s, rules.order)


def _login_needed(requirement: Requirement, standing: Standing, facts: Facts) -> Requirement:
    """The requirement with a max_age by which the issuer can tell that the login it already has will not do.

    Without it the user would be sent back at once with the authentication that came before the event, or with a session as
    idle as before.
    """
    ages_s = [requirement.max_age_s]
    if requirement.authenticated_after is not None:
        ages_s.append(max(0.0, math.ceil(facts.now - requirement.authenticated_after) - 1.0))
    if any(code is Code.SESSION_IDLE for _, code in standing.unmet):
        ages_s.append(requirement.max_idle_s)
    return msgspec.structs.replace(requirement, max_age_s=min((age for age in ages_s if age is not None), default=None))


def block_reasons(facts: Facts) -> tuple[Reason, ...]:
    """Step 2: what denies, whatever else holds."""
    reasons = []
    if facts.subject.disabled:
        reasons.append(Reason(Code.SUBJECT_DISABLED))
    if facts.device.block is not DeviceBlock.NONE:
        reasons.append(Reason(_DEVICE_BLOCKS[facts.device.block], facts.device.id))
    if facts.session.revoked:
        reasons.append(Reason(Code.SESSION_REVOKED))
    if facts.session.token in _TOKEN_FAULTS:
        reasons.append(Reason(_TOKEN_FAULTS[facts.session.token], facts.session.token_detail))
    return tuple(reasons)


def required_clauses(facts: Facts, rules: TenantRules, plan: Plan) -> tuple[tuple[Clause, ...], tuple[Reason, ...]]:
    """Step 3: every clause that applies, and why those beyond the base do."""
    clauses = list(plan.clauses)
    causes = [_cause(clause) for clause in plan.clauses if clause.cause is not None]
    for triggers in plan.triggers:
        data = triggers.language.activation(facts, triggers.folded.variables)
        for index, truly in triggers.folded.evaluate(data):
            clause = triggers.clauses[index]
            clauses.append(clause)
            causes.append(Reason(Code.TRIGGER_FIRED if truly else Code.TRIGGER_ERROR, clause.name))
    if facts.guards:
        raised = raised_clauses(facts.guards, plan.guards)
        clauses += raised
        causes += map(_cause, raised)
    for code in _top_causes(facts, rules):
        clauses.append(rules.top_clause(code))
        causes.append(Reason(code))
    if not facts.session.presented:
        causes.append(Reason(Code.SESSION_MISSING))
    return tuple(clauses), tuple(causes)


def _cause(clause: Clause) -> Reason:
    assert clause.cause is not None
    return Reason(clause.cause) if clause.cause is Code.NO_POLICY else Reason(clause.cause, clause.name)


def _top_causes(facts: Facts, rules: TenantRules) -> list[Code]:
    causes = []
    ceiling = rules.risk_ceiling
    if ceiling is not None and (facts.risk.score is None or facts.risk.score >= ceiling):
        causes.append(Code.RISK_CEILING)
    if facts.data.staleness is Staleness.HARD:
        causes.append(Code.DATA_HARD_STALE)
    if facts.data.behind:
        causes.append(Code.BEHIND_MIN_REVISION)
    return causes


def _exempt(
    facts: Facts,
    rules: TenantRules,
    plan: Plan,
    ranked: list[Standing],
    measured: tuple[Measured, ...],
    causes: tuple[Reason, ...],
) -> tuple[Grant | None, tuple[Reason, ...], tuple[str, ...]]:
    """The grant, or None, with the reasons for either, and the acrs it waives.

    Any one authentication may be what the grant completes: were it only the best, leaving that one out of the request
    could turn the answer into ALLOW. The reasons against are those of the best.
    """
    against: tuple[Reason, ...] | None = None
    conditions: dict[str, bool] = {}
    for standing in ranked:
        found = exemption.find(
            facts, rules, plan, standing.unmet, measured, allowed=facts.session.presented, conditions=conditions
        )
        unmet = tuple(Reason(code, clause.name) for clause, code in standing.unmet)
        reasons = tuple(dict.fromkeys((*causes, *unmet, *found.reasons)))
        if found.grant is not None:
            waived = tuple(dict.fromkeys(clause.acr for clause, _ in standing.unmet if clause.acr))
            return found.grant, reasons, waived
        against = against or reasons
        if not facts.grants or plan.thresholds is None:
            break
    return None, against or (), ()


def spot_check(facts: Facts, rules: TenantRules, plan: Plan) -> SpotCheck | None:
    """Of a decision that is STEP_UP: whether it is for a spot check alone. A draw of 0 is none: there was no key to draw with.

    Where several grants would have applied, all of them had to be drawn, which is as likely as their rates multiplied.
    """
    thresholds = plan.thresholds
    if thresholds is None:
        return None
    every = (*facts.grants, *(grant for candidate in facts.candidates for grant in candidate.grants))
    drawn = [grant for grant in every if 0.0 < grant.spot_draw < exemption.spot_check_rate(grant, thresholds)]
    if not drawn:
        return None
    first: Grant | None = None
    rate = 1.0
    without: frozenset[str] = frozenset()
    while True:
        found = consider(_undrawn(facts, without), rules, plan)[1]
        if found.basis is not Basis.EXEMPTION_GRANT:
            break
        # As it was drawn: for the device in use, else for one that the evidence fits too. None: there was no key to draw with.
        grant = next((grant for grant in drawn if grant.id == found.grant), None)
        if grant is None:
            return None
        first = first or grant
        rate *= min(1.0, exemption.spot_check_rate(grant, thresholds))
        without |= {grant.id}
    return None if first is None else SpotCheck(first.id, first.grant_class, rate, first.spot_draw)


def _undrawn(facts: Facts, without: frozenset[str]) -> Facts:
    def kept(grants: tuple[Grant, ...]) -> tuple[Grant, ...]:
        return tuple(replace(grant, spot_draw=1.0) for grant in grants if grant.id not in without)

    candidates = tuple(replace(candidate, grants=kept(candidate.grants)) for candidate in facts.candidates)
    return replace(facts, grants=kept(facts.grants), candidates=candidates)


def _with_shadows(decision: Decision, shadows: tuple[Shadow, ...]) -> Decision:
    return Decision(
        decision.outcome,
        decision.basis,
        decision.reasons,
        decision.requirement,
        decision.achieved_acr,
        decision.waived_acrs,
        decision.challenge,
        decision.grant,
        decision.policies,
        decision.factors,
        shadows,
        decision.spend,
        decision.spot_check,
    )
