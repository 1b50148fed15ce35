"""Detectors that learn from decisions: what they find holds from the next request on."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from math import exp
from typing import Final

from engine.decision import Basis, Decision, Outcome
from engine.facts import Facts
from engine.plan import Plan
from engine.policy.guards import MAX_COUNT, ExemptionBurst, Probing
from sidecar.guard.detect import Detected, excess
from sidecar.guard.track import Rate, Track

_STEP_UP: Final = Outcome.STEP_UP


def probing(settings: Probing, plan: Plan, facts: Facts, decision: Decision, own: Track) -> Detected | None:
    """Counts a near miss; found once there are too many."""
    code = near_miss(settings, plan, facts, decision)
    if not code:
        return None
    if own.misses is None:
        own.misses = array("d")
    misses = own.misses
    misses.append(facts.now)
    if len(misses) > 2 * MAX_COUNT:
        del misses[0]
    while misses and misses[0] < facts.now - settings.window:
        del misses[0]
    if len(misses) <= settings.max_near_misses:
        return None
    return Detected(code, excess(len(misses), settings.max_near_misses), fresh=True)


def near_miss(settings: Probing, plan: Plan, facts: Facts, decision: Decision) -> str:
    """What the request only just failed, or only just stayed below; empty if nothing."""
    if decision.outcome is _STEP_UP and plan.thresholds is not None:
        failed = [factor for factor in decision.factors if not factor.passed]
        if len(failed) == 1 and failed[0].score is not None:
            name, score, limits = failed[0].name, failed[0].score, plan.thresholds
            share = settings.within
            # Of identity and session the score is an age, which everyone's passes the limit on its way.
            if name == "device" and limits.min_trust * (1 - share) <= score < limits.min_trust:
                return "PROBING_DEVICE"
            if name == "risk" and limits.max_score < score <= limits.max_score * (1 + share):
                return "PROBING_RISK"
    if not plan.amount_limits:
        return ""
    amount = facts.values.get("context.amount.value")
    if isinstance(amount, float | int):
        for limit in plan.amount_limits:
            if limit * (1 - settings.within) <= amount <= limit and limit > 0:
                return "PROBING_AMOUNT"
    return ""


class Bursts:
    """Uses of exemptions, by device and by grant, against what is usual. Not thread-safe."""

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._grants: OrderedDict[tuple[str, str], Rate] = OrderedDict()

    def __len__(self) -> int:
        return len(self._grants)

    def of_device(self, settings: ExemptionBurst, facts: Facts, decision: Decision, own: Track) -> Detected | None:
        """Counts a use by the track's device."""
        if decision.basis is not Basis.EXEMPTION_GRANT:
            return None
        if own.uses is None:
            own.uses = Rate(facts.now)
        return _burst("EXEMPTION_BURST", settings, own.uses, facts.now)

    def of_grant(self, settings: ExemptionBurst, facts: Facts, decision: Decision) -> Detected | None:
        """Counts a use of the grant, by whomever."""
        if decision.basis is not Basis.EXEMPTION_GRANT:
            return None
        key = (facts.tenant, decision.grant)
        uses = self._grants.pop(key, None) or Rate(facts.now)
        self._grants[key] = uses
        if len(self._grants) > self._entries:
            self._grants.popitem(last=False)
        return _burst("GRANT_BURST", settings, uses, facts.now)


def _burst(code: str, settings: ExemptionBurst, uses: Rate, now: float) -> Detected | None:
    """Adds one use at `now`. The slow count excludes what the fast one still holds, or a burst would vouch for itself."""
    elapsed_s = max(0.0, now - uses.at)
    faded = uses.fast * (1 - exp(-elapsed_s / settings.window))
    uses.slow = (uses.slow + faded) * exp(-elapsed_s / settings.baseline)
    uses.fast += 1.0 - faded
    uses.at = max(now, uses.at)
    # Of a young track the baseline is as long as it is old.
    usual_over_s = min(settings.baseline, max(settings.window, now - uses.began_at))
    usual = uses.slow * settings.window / usual_over_s
    limit = max(float(settings.min_uses), settings.factor * usual)
    return Detected(code, excess(uses.fast, limit), fresh=True) if uses.fast > limit else None
