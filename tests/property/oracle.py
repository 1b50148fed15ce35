"""What DESIGN section 3 says of ALLOW, written down once more as plainly as possible, without the engine's plan.

It reads the typed policy documents, goes through every policy, clause, authentication, grant and bound one by one, and knows
nothing of folding, ranking, caching or intersecting.
"""

from __future__ import annotations

from typing import NamedTuple

from engine.acr import AcrOrder
from engine.classes import GrantClass
from engine.facts import Authentication, Binding, DeviceBlock, Evidence, Facts, Grant, Posture, Staleness, TokenState
from engine.policy.model import Ceiling, Exemptions, PostureOverlay, Require, Spec
from tests.property.strategies import COOL_OFF_S, Ruled, grant_condition_holds

SKEW = 30.0
_LEVELS = [Posture.ELEVATED, Posture.HIGH, Posture.CRITICAL]
_NIST: dict[str, tuple[float, float | None]] = {
    "nist-aal1": (30 * 86400.0, None),
    "nist-aal2": (86400.0, 3600.0),
    "nist-aal3": (43200.0, 900.0),
}


class Demand(NamedTuple):
    """One clause."""

    acr: str | None
    max_age_s: float | None
    max_idle_s: float | None
    after: str | None
    verified: bool
    waivable: bool


class Aging(NamedTuple):
    """What lets a device's standing age: of several policies the strictest."""

    jitter: float
    half_life_s: float | None


TOP = Demand("phr", 300.0, None, None, True, False)


def may_allow(facts: Facts, tenant: Ruled) -> set[str]:
    """The bases on which ALLOW is right; empty: it is not."""
    if (
        facts.subject.disabled
        or facts.device.block is not DeviceBlock.NONE
        or facts.session.revoked
        or facts.session.token in (TokenState.INVALID, TokenState.MISMATCH)
    ):
        return set()
    if not facts.session.presented:
        return set()
    specs = [
        policy.spec
        for policy in tenant.policies
        if _matches(policy.spec, facts.action) and policy.spec.mode == "enforce"
    ]
    names = [policy.name for policy in tenant.policies if policy.spec in specs]
    demands = _demands(facts, tenant, specs, names)
    if not demands:
        return {"NOT_REQUIRED"}
    order = tenant.rules.order
    believed = [login for login in facts.authentications if _believed(login, facts, order)]
    if any(all(_met(d, login, facts, order) for d in demands) for login in believed):
        return {"ASSURANCE_SATISFIED"}
    logins: list[Authentication | None] = [*believed] or [None]
    unmet = [[d for d in demands if login is None or not _met(d, login, facts, order)] for login in logins]
    classes = tenant.rules.classes
    if any(
        _exempt(grant, left, facts, specs, order) and _class_allows(grant, left, facts, classes, order)
        for grant in facts.grants
        for left in unmet
    ):
        return {"EXEMPTION_GRANT"}
    return set()


def _matches(spec: Spec, action: str) -> bool:
    return any(
        pattern in ("*", action) or (pattern.endswith(".*") and action.startswith(pattern[:-1]))
        for pattern in spec.match.actions
    )


def _overlays(spec: Spec, posture: Posture) -> list[PostureOverlay]:
    reached = _LEVELS[: _LEVELS.index(posture) + 1] if posture in _LEVELS else []
    found = [getattr(spec.posture, level.value) for level in reached]
    return [overlay for overlay in found if overlay is not None]


def _of(require: Require, waivable: bool) -> Demand:
    return Demand(
        require.acr,
        require.max_age,
        require.max_idle,
        require.authenticated_after,
        require.evidence == "verified",
        waivable if require.waivable is None else require.waivable,
    )


def _demands(facts: Facts, tenant: Ruled, specs: list[Spec], names: list[str]) -> list[Demand]:
    demands = [] if specs else [TOP]
    for name, spec in zip(names, specs, strict=True):
        if not spec.require.empty:
            demands.append(_of(spec.require, True))
        if spec.profile:
            max_age_s, max_idle_s = _NIST[spec.profile]
            demands.append(Demand(spec.profile, max_age_s, None, None, True, spec.require.waivable is not False))
            if max_idle_s:
                demands.append(Demand(None, None, max_idle_s, None, True, False))
        demands += [_of(o.require, False) for o in _overlays(spec, facts.posture) if o.require is not None]
        for trigger in spec.triggers:
            if tenant.truths[f"{name}/{trigger.name}"](facts) is not False:
                demands.append(_of(trigger.require, False))
    ceiling, score = tenant.rules.risk_ceiling, facts.risk.score
    if ceiling is not None and (score is None or score >= ceiling):
        demands.append(TOP)
    if facts.data.staleness is Staleness.HARD or facts.data.behind:
        demands.append(TOP)
    return demands


def _met(demand: Demand, login: Authentication, facts: Facts, order: AcrOrder) -> bool:
    at, now = login.at, facts.now
    if at is not None and at > now + SKEW:
        return False
    if login.evidence is Evidence.ASSERTED and (demand.verified or at is None):
        return False
    if demand.acr is not None and not order.implies(login.acr, demand.acr):
        return False
    if demand.max_age_s is not None and (at is None or now - at > demand.max_age_s):
        return False
    event = {"recovery": facts.subject.recovered_at, "posture-change": facts.posture_changed_at, None: None}[
        demand.after
    ]
    if event is not None and (at is None or at <= event):
        return False
    if demand.max_idle_s is not None:
        active = facts.session.last_active_at
        recently = active is not None and now - demand.max_idle_s <= active <= now + SKEW
        return recently or (at is not None and now - at <= demand.max_idle_s)
    return True


def _covered(demand: Demand, acr: str, max_age_s: float, order: AcrOrder) -> bool:
    return (
        demand.waivable
        and demand.max_idle_s is None
        and demand.after is None
        and (demand.acr is None or order.implies(acr, demand.acr))
        and (demand.max_age_s is None or demand.max_age_s >= max_age_s)
    )


def _under(ceiling: Ceiling | None, demands: list[Demand], order: AcrOrder) -> bool:
    return ceiling is not None and all(_covered(d, ceiling.acr, ceiling.max_age, order) for d in demands)


def _recent(at: float | None, limit_s: float, now: float) -> bool:
    return at is not None and at <= now + SKEW and now - at <= limit_s


def _exempt(grant: Grant, unmet: list[Demand], facts: Facts, specs: list[Spec], order: AcrOrder) -> bool:
    now = facts.now
    if facts.data.staleness is not Staleness.FRESH or facts.data.behind or facts.journal_full or facts.exemptions_off:
        return False
    if facts.data.clock_off:
        return False
    if _cooling(facts):
        return False
    if not specs or any(spec.exemptions is None for spec in specs):
        return False
    in_scope = any(
        p in ("*", facts.action) or (p.endswith(".*") and facts.action.startswith(p[:-1])) for p in grant.actions
    )
    valid = (grant.start_at is None or grant.start_at <= now) and grant.expire_at is not None and now < grant.expire_at
    if not (grant.active and in_scope and valid and grant_condition_holds(grant, facts)):
        return False
    if not all(_covered(d, grant.ceiling_acr, grant.ceiling_max_age_s, order) for d in unmet):
        return False
    devices = [spec.exemptions.device for spec in specs if spec.exemptions is not None]
    aging = Aging(
        max(device.revalidate_jitter for device in devices),
        min((device.half_life for device in devices if device.half_life is not None), default=None),
    )
    return all(_policy_exempts(spec, grant, unmet, facts, order, aging) for spec in specs)


def _class_allows(
    grant: Grant, unmet: list[Demand], facts: Facts, classes: dict[str, GrantClass], order: AcrOrder
) -> bool:
    if grant.review_at is not None and grant.review_at <= facts.now:
        return False
    if not classes and grant.grant_class == "default":
        return True
    if grant.grant_class not in classes:
        return False
    bounds = classes[grant.grant_class]
    return (
        all(_covered(d, bounds.ceiling.acr, bounds.ceiling.max_age_s, order) for d in unmet)
        and grant.start_at is not None
        and facts.now < grant.start_at + bounds.max_validity_s
        and (bounds.review_every_s is None or grant.review_at is not None)
        and grant.approvals >= bounds.approvals
        and (not bounds.condition_required or grant.condition != "")
        and (not bounds.scopes or grant.scope in bounds.scopes)
    )


def _policy_exempts(spec: Spec, grant: Grant, unmet: list[Demand], facts: Facts, order: AcrOrder, aging: Aging) -> bool:
    exemptions = spec.exemptions
    assert exemptions is not None
    if not _under(exemptions.ceiling, unmet, order):
        return False
    if facts.device.binding is Binding.RECOGNISED and not _under(exemptions.recognised_ceiling, unmet, order):
        return False
    if not _factors_pass(exemptions, grant, facts, order, aging):
        return False
    return all(
        _overlay_exempts(overlay, grant, unmet, facts, order, aging) for overlay in _overlays(spec, facts.posture)
    )


def _proved(acr: str, within_s: float, facts: Facts, order: AcrOrder) -> bool:
    known = facts.device.binding is not Binding.UNKNOWN
    proofs = [*facts.authentications, *(facts.device.authentications if known else ())]
    events = [facts.subject.recovered_at, facts.subject.sim_changed_at, facts.subject.authenticator_changed_at]
    return any(
        proof.evidence is Evidence.VERIFIED
        and _recent(proof.at, within_s, facts.now)
        and order.implies(proof.acr, acr)
        and all(event is None or (proof.at is not None and proof.at > event) for event in events)
        for proof in proofs
        if _believed(proof, facts, order)
    )


def _believed(login: Authentication, facts: Facts, order: AcrOrder) -> bool:
    """After a SIM change only what cannot have come by phone, or came when the cool-off was over."""
    changed = facts.subject.sim_changed_at
    if changed is None:
        return True
    if facts.now - changed >= COOL_OFF_S and login.at is not None and login.at - changed >= COOL_OFF_S:
        return True
    if order.implies(login.acr, "phr") or any(amr in ("hwk", "swk", "pop", "face") for amr in login.amr):
        return True
    return login.evidence is Evidence.VERIFIED and "otp" in login.amr and "sms" not in login.amr


def _cooling(facts: Facts) -> bool:
    subject = facts.subject
    events = (subject.recovered_at, subject.sim_changed_at, subject.authenticator_changed_at)
    return any(event is not None and facts.now < event + COOL_OFF_S for event in events)


def _valid_at(facts: Facts, order: AcrOrder) -> float | None:
    """When the device was validated, if that was after everything that voids it and is no time to come. While a SIM was
    cooling off only by a login that cannot have come by phone."""
    at, subject = facts.device.validated_at, facts.subject
    void = [subject.recovered_at, subject.sim_changed_at, subject.authenticator_changed_at]
    if at is None or at > facts.now + SKEW or any(event is not None and at <= event for event in void):
        return None
    changed = subject.sim_changed_at
    if changed is not None and changed <= at < changed + COOL_OFF_S:
        proofs = [login for login in facts.device.authentications if login.at == at and _believed(login, facts, order)]
        return at if proofs else None
    return at


def _validated(every_s: float, aging: Aging, facts: Facts, order: AcrOrder) -> bool:
    return _recent(_valid_at(facts, order), every_s * (1.0 - aging.jitter * facts.device.revalidate_draw), facts.now)


def _trusted(least: float, aging: Aging, facts: Facts, order: AcrOrder) -> bool:
    at, trust = _valid_at(facts, order), facts.device.trust
    if aging.half_life_s is not None:
        trust = 0.0 if at is None else trust * 0.5 ** (max(0.0, facts.now - at) / aging.half_life_s)
    return trust >= least


def _few_failures(most: int, facts: Facts) -> bool:
    return facts.subject.failed_attempts is not None and facts.subject.failed_attempts <= most


def _factors_pass(exemptions: Exemptions, grant: Grant, facts: Facts, order: AcrOrder, aging: Aging) -> bool:
    identity, device, session = exemptions.identity, exemptions.device, exemptions.session
    return (
        _proved(identity.min_acr_within.acr, identity.min_acr_within.within, facts, order)
        and _few_failures(identity.max_failures, facts)
        and facts.device.binding is not Binding.UNKNOWN
        and _trusted(device.min_trust, aging, facts, order)
        and _validated(device.revalidate_every, aging, facts, order)
        and _recent(facts.session.started_at, session.max_age, facts.now)
        and _recent(facts.session.last_active_at, session.max_idle, facts.now)
        and (session.evidence == "asserted" or facts.session.token is TokenState.VERIFIED)
        and (not session.proof_of_possession or facts.session.proved)
        and facts.risk.score is not None
        and facts.risk.score <= exemptions.risk.max_score
        and grant.spot_draw >= exemptions.spot_check_rate
    )


def _overlay_exempts(  # one condition per bound, on purpose
    overlay: PostureOverlay, grant: Grant, unmet: list[Demand], facts: Facts, order: AcrOrder, aging: Aging
) -> bool:
    tighter = overlay.exemptions
    if tighter is None:
        return True
    bounds = [tighter.enabled]
    if tighter.ceiling is not None:
        bounds.append(_under(tighter.ceiling, unmet, order))
    if tighter.identity is not None:
        within = tighter.identity.min_acr_within
        bounds.append(within is None or _proved(within.acr, within.within, facts, order))
        most = tighter.identity.max_failures
        bounds.append(most is None or _few_failures(most, facts))
    if tighter.device is not None:
        bounds.append(tighter.device.min_trust is None or _trusted(tighter.device.min_trust, aging, facts, order))
        every = tighter.device.revalidate_every
        bounds.append(every is None or _validated(every, aging, facts, order))
        bounds.append(not tighter.device.bound or facts.device.binding is Binding.BOUND)
    if tighter.session is not None:
        age, idle = tighter.session.max_age, tighter.session.max_idle
        bounds.append(age is None or _recent(facts.session.started_at, age, facts.now))
        bounds.append(idle is None or _recent(facts.session.last_active_at, idle, facts.now))
        bounds.append(not tighter.session.proof_of_possession or facts.session.proved)
    if tighter.risk is not None and tighter.risk.max_score is not None:
        bounds.append(facts.risk.score is not None and facts.risk.score <= tighter.risk.max_score)
    if tighter.spot_check_rate is not None:
        bounds.append(grant.spot_draw >= tighter.spot_check_rate)
    return all(bounds)
