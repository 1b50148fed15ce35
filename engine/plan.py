"""The plan for one action under one posture: every matching policy added up, once, so that deciding only evaluates.

Requirements add up, exemptions intersect: each clause of every policy holds, and a grant must pass the strictest of each
threshold, lie below every ceiling, and be allowed by every policy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

from engine.clauses import Ceiling, Clause
from engine.decision import Code
from engine.factors import Thresholds
from engine.facts import Evidence, Posture
from engine.guards import GuardRule, amount_limits, guard_rules
from engine.methods import Method
from engine.policy import model
from engine.policy.conditions import Condition, Folded, Language
from engine.policy.parts import Require

# NIST SP 800-63B-4 reauthentication: overall and inactivity limits in seconds.
NIST_PROFILES: dict[str, tuple[float, float | None]] = {
    "nist-aal1": (30 * 86400.0, None),
    "nist-aal2": (24 * 3600.0, 3600.0),
    "nist-aal3": (12 * 3600.0, 900.0),
}
_T = TypeVar("_T", int, float)
_RANK = {posture: rank for rank, posture in enumerate(Posture)}


class Policy(NamedTuple):
    """A policy ready to be planned: its document, compiled conditions and version."""

    name: str
    version: int
    spec: model.Spec
    language: Language
    conditions: tuple[Condition, ...]
    # Those of the canary guard.
    canaries: tuple[Condition, ...] = ()

    @property
    def label(self) -> str:
        """`name@version`, as decisions cite it."""
        return f"{self.name}@{self.version}"


class Triggers(NamedTuple):
    """One policy's triggers: bit i of the folded condition adds clause i."""

    language: Language
    folded: Folded
    clauses: tuple[Clause, ...]


class Shadow(NamedTuple):
    """An observed policy and the plan that would hold if it were enforced."""

    label: str
    plan: Plan


class Canary(NamedTuple):
    """One policy's traps that are conditions: true is caught, an error is not."""

    language: Language
    folded: Folded


class Plan(NamedTuple):
    """What deciding one action under one posture takes."""

    # Labels of the policies that apply; empty: NO_POLICY.
    policies: tuple[str, ...]
    # The base and posture clauses.
    clauses: tuple[Clause, ...]
    triggers: tuple[Triggers, ...]
    # None: no exemption, for the reason given.
    thresholds: Thresholds | None
    no_exemption: Code | None
    # Acceptable for the challenge, strongest first.
    methods: tuple[Method, ...]
    shadows: tuple[Shadow, ...] = ()
    guards: tuple[GuardRule, ...] = ()
    canaries: tuple[Canary, ...] = ()
    # Amounts, in whole units, that conditions on this action compare with.
    amount_limits: tuple[float, ...] = ()


def build(policies: Sequence[Policy], posture: Posture, catalogue: Iterable[Method], top: Clause) -> Plan:
    """The plan of the given policies (all matching; none: the top requirement and no exemption)."""
    methods = _methods(policies, tuple(catalogue))
    if not policies:
        return Plan((), (top._replace(cause=Code.NO_POLICY),), (), None, Code.NO_EXEMPTIONS, methods)
    clauses: list[Clause] = []
    triggers: list[Triggers] = []
    for policy in policies:
        clauses += _base(policy)
        clauses += _posture_clauses(policy, posture)
        if policy.conditions:
            added = tuple(_clause(policy, trigger.name, trigger.require) for trigger in policy.spec.triggers)
            triggers.append(Triggers(policy.language, policy.language.fold(policy.conditions), added))
    no_exemption = _no_exemption(policies, posture)
    thresholds = None if no_exemption else _thresholds(policies, posture)
    labels = tuple(policy.label for policy in policies)
    return Plan(
        labels,
        tuple(clauses),
        tuple(triggers),
        thresholds,
        no_exemption,
        methods,
        guards=guard_rules([policy.spec for policy in policies], top),
        canaries=tuple(
            Canary(policy.language, policy.language.fold(policy.canaries)) for policy in policies if policy.canaries
        ),
        amount_limits=amount_limits(condition.source for policy in policies for condition in policy.conditions),
    )


def _base(policy: Policy) -> list[Clause]:
    spec = policy.spec
    clauses = []
    waivable = spec.require.waivable is not False
    if not spec.require.empty:
        clauses.append(_clause(policy, "base", spec.require)._replace(waivable=waivable))
    if spec.profile is not None:
        max_age_s, max_idle_s = NIST_PROFILES[spec.profile]
        # Two clauses, so that a grant may waive the level and age but never the inactivity limit.
        clauses.append(Clause(f"{policy.name}/{spec.profile}", spec.profile, max_age_s, waivable=waivable))
        if max_idle_s is not None:
            clauses.append(Clause(f"{policy.name}/{spec.profile}-idle", max_idle_s=max_idle_s))
    return clauses


def _clause(policy: Policy, name: str, require: Require, cause: Code | None = None) -> Clause:
    return Clause(
        f"{policy.name}/{name}",
        require.acr,
        require.max_age,
        require.max_idle,
        require.authenticated_after,
        Evidence(require.evidence),
        bool(require.waivable),
        cause,
    )


def _overlays(policy: Policy, posture: Posture) -> list[tuple[str, model.PostureOverlay]]:
    """The overlays in force: that of the posture and of every lower one."""
    found = []
    for level in (Posture.ELEVATED, Posture.HIGH, Posture.CRITICAL):
        overlay: model.PostureOverlay | None = getattr(policy.spec.posture, level.value)
        if overlay is not None and _RANK[level] <= _RANK[posture]:
            found.append((level.value.lower(), overlay))
    return found


def _posture_clauses(policy: Policy, posture: Posture) -> list[Clause]:
    return [
        _clause(policy, f"posture-{level}", overlay.require, Code.POSTURE_REQUIRES)
        for level, overlay in _overlays(policy, posture)
        if overlay.require is not None
    ]


def _no_exemption(policies: Sequence[Policy], posture: Posture) -> Code | None:
    if any(policy.spec.exemptions is None for policy in policies):
        return Code.NO_EXEMPTIONS
    for policy in policies:
        for _, overlay in _overlays(policy, posture):
            if overlay.exemptions is not None and not overlay.exemptions.enabled:
                return Code.POSTURE_FORBIDS
    return None


def _thresholds(policies: Sequence[Policy], posture: Posture) -> Thresholds:
    parts = [_policy_thresholds(policy, posture) for policy in policies]
    recognised = [part.recognised_ceilings for part in parts]
    return Thresholds(
        identity=tuple(dict.fromkeys(pair for part in parts for pair in part.identity)),
        max_failures=min(part.max_failures for part in parts),
        min_trust=max(part.min_trust for part in parts),
        revalidate_every_s=min(part.revalidate_every_s for part in parts),
        revalidate_jitter=max(part.revalidate_jitter for part in parts),
        half_life_s=min((part.half_life_s for part in parts if part.half_life_s is not None), default=None),
        bound_only=any(part.bound_only for part in parts),
        session_max_age_s=min(part.session_max_age_s for part in parts),
        session_max_idle_s=min(part.session_max_idle_s for part in parts),
        session_verified=any(part.session_verified for part in parts),
        session_proved=any(part.session_proved for part in parts),
        max_score=min(part.max_score for part in parts),
        spot_check_rate=max(part.spot_check_rate for part in parts),
        ceilings=tuple(ceiling for part in parts for ceiling in part.ceilings),
        recognised_ceilings=None if None in recognised else tuple(c for part in recognised if part for c in part),
    )


def _policy_thresholds(policy: Policy, posture: Posture) -> Thresholds:
    exemptions = policy.spec.exemptions
    assert exemptions is not None
    recognised = exemptions.recognised_ceiling
    within = exemptions.identity.min_acr_within
    thresholds = Thresholds(
        identity=((within.acr, within.within),),
        max_failures=exemptions.identity.max_failures,
        min_trust=exemptions.device.min_trust,
        revalidate_every_s=exemptions.device.revalidate_every,
        revalidate_jitter=exemptions.device.revalidate_jitter,
        half_life_s=exemptions.device.half_life,
        bound_only=False,
        session_max_age_s=exemptions.session.max_age,
        session_max_idle_s=exemptions.session.max_idle,
        session_verified=exemptions.session.evidence == "verified",
        session_proved=exemptions.session.proof_of_possession,
        max_score=exemptions.risk.max_score,
        spot_check_rate=exemptions.spot_check_rate,
        ceilings=(Ceiling(exemptions.ceiling.acr, exemptions.ceiling.max_age),),
        recognised_ceilings=None if recognised is None else (Ceiling(recognised.acr, recognised.max_age),),
    )
    for _, overlay in _overlays(policy, posture):
        if overlay.exemptions is not None:
            thresholds = _tighten(thresholds, overlay.exemptions)
    return thresholds


def _tighten(base: Thresholds, by: model.TighterExemptions) -> Thresholds:
    identity, device, session = by.identity, by.device, by.session
    if by.ceiling is not None:
        ceiling = (Ceiling(by.ceiling.acr, by.ceiling.max_age),)
        recognised = base.recognised_ceilings
        base = base._replace(
            ceilings=base.ceilings + ceiling,
            recognised_ceilings=None if recognised is None else recognised + ceiling,
        )
    if identity is not None:
        extra = (
            () if identity.min_acr_within is None else ((identity.min_acr_within.acr, identity.min_acr_within.within),)
        )
        base = base._replace(
            identity=base.identity + extra, max_failures=_lower(base.max_failures, identity.max_failures)
        )
    if device is not None:
        base = base._replace(
            min_trust=_higher(base.min_trust, device.min_trust),
            revalidate_every_s=_lower(base.revalidate_every_s, device.revalidate_every),
            bound_only=base.bound_only or device.bound,
        )
    if session is not None:
        base = base._replace(
            session_max_age_s=_lower(base.session_max_age_s, session.max_age),
            session_max_idle_s=_lower(base.session_max_idle_s, session.max_idle),
            session_proved=base.session_proved or session.proof_of_possession,
        )
    if by.risk is not None:
        base = base._replace(max_score=_lower(base.max_score, by.risk.max_score))
    return base._replace(spot_check_rate=_higher(base.spot_check_rate, by.spot_check_rate))


def _lower(value: _T, other: _T | None) -> _T:
    return value if other is None else min(value, other)


def _higher(value: _T, other: _T | None) -> _T:
    return value if other is None else max(value, other)


def _methods(policies: Sequence[Policy], catalogue: tuple[Method, ...]) -> tuple[Method, ...]:
    """What every policy accepts, strongest first; what any accepts, if they share nothing."""
    strongest_first = sorted(catalogue, key=lambda method: (-method.rank, method.id))
    lists = [set(policy.spec.methods) for policy in policies if policy.spec.methods]
    if not lists:
        return tuple(strongest_first)
    shared = set.intersection(*lists) or set.union(*lists)
    return tuple(method for method in strongest_first if method.id in shared)
