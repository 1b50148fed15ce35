"""Why a decision came out as it did: every step, every factor beside its threshold, the smallest change to ALLOW.

Recomputed from facts and rules, so that the decision path itself carries none of it. For the journal and for callers that may
diagnose: it is a manual for an attacker.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from engine.change import smallest_change
from engine.clauses import Clause, standings
from engine.decide import block_reasons, consider, counting, required_clauses
from engine.decision import Basis, Check, Code, Decision, Shadow, Spend
from engine.durations import format_duration
from engine.factors import Compared, measure
from engine.facts import Facts
from engine.money import format_nanos
from engine.rules import TenantRules


class Step(msgspec.Struct, frozen=True):
    """One step, numbered as in DESIGN section 3."""

    step: int
    title: str
    detail: str


class FactorReport(msgspec.Struct, frozen=True):
    """One factor with each measured value beside its threshold."""

    factor: str
    passed: bool
    checks: tuple[Check, ...]


class Explanation(msgspec.Struct, frozen=True):
    """Everything there is to say about a decision."""

    steps: tuple[Step, ...]
    factors: tuple[FactorReport, ...]
    reasons: tuple[str, ...]
    smallest_change: str
    policies: tuple[str, ...]
    shadows: tuple[Shadow, ...]


def explain(facts: Facts, rules: TenantRules, decision: Decision) -> Explanation:
    """Explains `decision`, which must be `decide(facts, rules)`."""
    plan = rules.plan(facts.action, facts.posture)
    facts, _ = consider(facts, rules, plan)
    skew_s = rules.clock_skew_s
    measured = (
        measure(facts, plan.thresholds, rules.order, skew_s, rules.cool_off_s) if plan.thresholds is not None else ()
    )
    reports = tuple(
        FactorReport(factor.name, factor.passed, tuple(_check(check) for check in factor.checks)) for factor in measured
    )
    return Explanation(
        steps=tuple(_steps(facts, rules, decision)),
        factors=reports,
        reasons=tuple(str(reason) for reason in decision.reasons),
        smallest_change=smallest_change(facts, rules),
        policies=decision.policies,
        shadows=decision.shadows,
    )


def _steps(facts: Facts, rules: TenantRules, decision: Decision) -> list[Step]:
    plan = rules.plan(facts.action, facts.posture)
    applied = ", ".join(plan.policies) or "none matches: the top requirement holds"
    observed = "".join(f"; observed: {shadow.label}" for shadow in plan.shadows)
    steps = [Step(1, "policies", f"{applied}{observed}; posture {facts.posture.value}")]
    blocks = block_reasons(facts)
    steps.append(Step(2, "blocks", ", ".join(map(str, blocks)) or "none"))
    if blocks:
        return steps
    clauses, causes = required_clauses(facts, rules, plan)
    stated = "; ".join(_clause(clause) for clause in clauses) or "nothing"
    because = f" because of {', '.join(map(str, causes))}" if causes else ""
    steps.append(Step(3, "requirement", stated + because))
    if decision.basis is Basis.NOT_REQUIRED:
        return steps
    held = counting(facts, rules)
    standing = standings(clauses, held, facts, rules.order, rules.clock_skew_s)[0]
    best = standing.authentication
    shown = "no authentication"
    if best is not None:
        age = "unknown age" if best.at is None else f"{format_duration(max(0.0, facts.now - best.at))} ago"
        shown = f"best authentication: {best.acr or 'no acr'}, {age}, {best.evidence.value}"
    unmet = "; ".join(f"{code.value} {clause.name}" for clause, code in standing.unmet)
    steps.append(Step(4, "met by one authentication", f"{shown}; {'unmet: ' + unmet if unmet else 'meets everything'}"))
    if decision.basis is Basis.ASSURANCE_SATISFIED:
        return steps
    before = {str(code.value) for _, code in standing.unmet} | {cause.code.value for cause in causes}
    about_grants = [reason for reason in decision.reasons if reason.code.value not in before or reason.code in _SHARED]
    steps.append(Step(5, "exemption", ", ".join(map(str, about_grants)) or "none"))
    if decision.spend is not None:
        steps.append(Step(5, "budget", _budget(decision.spend, facts.now)))
    if decision.challenge is not None:
        methods = ", ".join(decision.challenge.methods) or "no method"
        steps.append(Step(6, "challenge", f"{methods}; acr_values {' '.join(decision.challenge.acr_values) or '-'}"))
    return steps


# Codes that stand both for a cause of the requirement and for a refusal of exemptions.
_SHARED = frozenset({Code.DATA_HARD_STALE, Code.BEHIND_MIN_REVISION, Code.GUARD_RAISED})


def _budget(spend: Spend, now: float) -> str:
    """What the decision spends and what is left, as far as this worker knows."""
    spent = f"{spend.uses} use" if spend.uses == 1 else f"{spend.uses} uses"
    if spend.nanos or spend.left_nanos is not None:
        spent += f" of {format_nanos(spend.nanos, spend.currency)}"
    left = []
    if spend.left_uses is not None:
        left.append("1 use" if spend.left_uses == 1 else f"{spend.left_uses} uses")
    if spend.left_nanos is not None:
        left.append(format_nanos(spend.left_nanos, spend.currency))
    if spend.expires_at is not None:
        left.append(f"{format_duration(max(0.0, spend.expires_at - now))} of time")
    return f"spends {spent} in period {spend.period}; at most {' and '.join(left) or 'no limit'} left"


def _clause(clause: Clause) -> str:
    parts = [part for part in (clause.acr, clause.evidence.value) if part]
    if clause.max_age_s is not None:
        parts.append(f"at most {format_duration(clause.max_age_s)} old")
    if clause.max_idle_s is not None:
        parts.append(f"idle at most {format_duration(clause.max_idle_s)}")
    if clause.after is not None:
        parts.append(f"after the last {clause.after}")
    if clause.after_at is not None:
        parts.append("after the finding")
    if clause.waivable:
        parts.append("waivable")
    return f"{clause.name}: {', '.join(parts)}"


def _check(compared: Compared) -> Check:
    name, measured, threshold, passed = compared
    seconds = name.endswith("_s")
    return Check(name, passed, _shown(measured, seconds), _shown(threshold, seconds))


def _shown(value: Any, seconds: bool) -> str:
    if value is None:
        return "unknown"
    if seconds and isinstance(value, int | float):
        return format_duration(float(value))
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def lines(explanation: Explanation) -> Sequence[str]:
    """The explanation as plain text, one line each."""
    out = [f"{step.step}. {step.title}: {step.detail}" for step in explanation.steps]
    for report in explanation.factors:
        out.append(f"   {report.factor}: {'passed' if report.passed else 'FAILED'}")
        out += [
            f"     {check.name}: {check.measured} (threshold {check.threshold}){'' if check.passed else '  <- failed'}"
            for check in report.checks
        ]
    out += [
        f"   observed {shadow.policy}: {shadow.outcome.value} {shadow.basis.value}" for shadow in explanation.shadows
    ]
    if explanation.smallest_change:
        out.append(f"   would be ALLOW with: {explanation.smallest_change}")
    return out
