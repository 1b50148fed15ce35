"""A candidate policy: what the rules would be with it in force, and which clauses make a decision come out otherwise."""

from __future__ import annotations

from typing import NamedTuple

from engine.decision import Basis, Code, Decision, Outcome
from engine.plan import Policy
from engine.policy import ParsedPolicy
from engine.rules import TenantRules, compile_policy

# Step 4: what an authentication leaves unmet. With step 2, what a decision without any grant rests on.
_UNMET = frozenset(
    {
        Code.NO_AUTHENTICATION,
        Code.ACR_UNMET,
        Code.AUTHENTICATION_TOO_OLD,
        Code.AUTHENTICATION_IN_FUTURE,
        Code.AUTHENTICATED_BEFORE_EVENT,
        Code.EVIDENCE_NOT_VERIFIED,
        Code.SESSION_IDLE,
    }
)
# Step 5: why no grant applies.
_NOT_EXEMPTED = frozenset(
    {
        Code.NO_EXEMPTIONS,
        Code.EXEMPTIONS_OFF,
        Code.POSTURE_FORBIDS,
        Code.DATA_SOFT_STALE,
        Code.DATA_HARD_STALE,
        Code.BEHIND_MIN_REVISION,
        Code.CLOCK_OFFSET,
        Code.JOURNAL_FULL,
        Code.RATE_LIMITED,
        Code.GUARD_RAISED,
        Code.NOT_WAIVABLE,
        Code.NO_GRANT,
        Code.GRANT_INACTIVE,
        Code.GRANT_NOT_YET_VALID,
        Code.GRANT_EXPIRED,
        Code.GRANT_REVIEW_OVERDUE,
        Code.GRANT_CLASS_UNKNOWN,
        Code.GRANT_NOT_APPROVED,
        Code.GRANT_CLASS_SCOPE,
        Code.GRANT_CLASS_CONDITION,
        Code.GRANT_CLASS_BUDGET,
        Code.GRANT_OTHER_ACTION,
        Code.GRANT_CONDITION,
        Code.CEILING_EXCEEDED,
        Code.RECOGNISED_CEILING_EXCEEDED,
        Code.GRANT_CEILING_EXCEEDED,
        Code.CLASS_CEILING_EXCEEDED,
        Code.IDENTITY_TOO_WEAK,
        Code.DEVICE_NOT_TRUSTED,
        Code.DEVICE_REVALIDATION_DUE,
        Code.SESSION_NOT_SOUND,
        Code.RISK_TOO_HIGH,
        Code.CLASS_SUSPENDED,
        Code.SPOT_CHECK,
    }
)


class Candidate(NamedTuple):
    """A policy as it would be once enforced, and the names of those it takes the place of (its own always)."""

    policy: Policy
    replaced: frozenset[str]

    def among(self, rules: TenantRules) -> TenantRules:
        """The rules with the candidate put in place of, or added to, the policies there are."""
        kept = [policy for policy in rules.policies if policy.name not in self.replaced]
        return TenantRules(
            [*kept, self.policy],
            order=rules.order,
            methods=rules.catalogue,
            top=rules.top,
            risk_ceiling=rules.risk_ceiling,
            clock_skew_s=rules.clock_skew_s,
            cool_off_s=rules.cool_off_s,
            classes=rules.classes.values(),
        )


def candidate(parsed: ParsedPolicy) -> Candidate:
    """The candidate that an accepted policy is. `mode: observe` counts as enforced: what would be is the question."""
    compiled = compile_policy(parsed.document, 0)
    replaced = {compiled.name} if compiled.spec.replaces is None else {compiled.name, compiled.spec.replaces}
    spec = compiled.spec.model_copy(update={"mode": "enforce", "replaces": None})
    return Candidate(compiled._replace(spec=spec), frozenset(replaced))


def responsible(before: Decision, after: Decision) -> tuple[str, ...]:
    """Clauses (`payments/high-value`), or codes where no clause is cited, that make `after` another outcome than `before`.

    Of the stricter of the two decisions: what it leaves unmet, or, where the other one is an exemption, why none applies.
    Empty if the outcomes are the same.
    """
    if before.outcome is after.outcome:
        return ()
    stricter, kinder = (before, after) if _RANK[before.outcome] > _RANK[after.outcome] else (after, before)
    if stricter.outcome is Outcome.DENY:
        codes = frozenset(reason.code for reason in stricter.reasons)
    else:
        codes = _NOT_EXEMPTED if kinder.basis is Basis.EXEMPTION_GRANT else _UNMET
    named = (
        reason.clause if "/" in reason.clause else reason.code.value
        for reason in stricter.reasons
        if reason.code in codes
    )
    return tuple(dict.fromkeys(named)) or (stricter.basis.value,)


_RANK = {Outcome.ALLOW: 0, Outcome.STEP_UP: 1, Outcome.DENY: 2}
