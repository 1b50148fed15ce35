"""The four factors of an exemption: measured, compared with the policy's thresholds, reported.

A value that is not known fails its check. Every check yields what was measured beside the threshold, so that an explanation
shows exactly what the decision compared.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from engine.acr import AcrOrder
from engine.clauses import Ceiling
from engine.cooloff import credible, doubtful, voided_at
from engine.decision import Code
from engine.facts import Authentication, Binding, Evidence, Facts, TokenState


class Thresholds(NamedTuple):
    """Every matching policy's exemption thresholds together: the strictest of each counts."""

    # Each must be held: (acr, within seconds).
    identity: tuple[tuple[str, float], ...]
    max_failures: int
    min_trust: float
    revalidate_every_s: float
    # At most this share earlier, by the device's own draw.
    revalidate_jitter: float
    # Trust halves with every such time since the last validation; None: it does not decay.
    half_life_s: float | None
    bound_only: bool
    session_max_age_s: float
    session_max_idle_s: float
    session_verified: bool
    session_proved: bool
    max_score: float
    spot_check_rate: float
    ceilings: tuple[Ceiling, ...]
    # None: a merely recognised device gets no exemption.
    recognised_ceilings: tuple[Ceiling, ...] | None


# One measured value beside its threshold, not yet formatted: (name, measured, threshold, passed). A plain tuple, since a
# decision makes ten of them.
Compared = tuple[str, Any, Any, bool]


class Measured(NamedTuple):
    """One factor. `score`: identity: seconds since the newest proof that counts; device: trust 0-1; session: age in seconds;
    risk: combined score 0-100; None where it could not be measured. `refusals`: the codes of what failed."""

    name: str
    passed: bool
    score: float | None
    refusals: tuple[Code, ...]
    checks: tuple[Compared, ...]


def measure(
    facts: Facts, thresholds: Thresholds, order: AcrOrder, clock_skew_s: float, cool_off_s: float
) -> tuple[Measured, ...]:
    """All four, in the order identity, device, session, risk. `cool_off_s`: see `engine.cooloff`."""
    return (
        _identity(facts, thresholds, order, clock_skew_s, cool_off_s),
        _device(facts, thresholds, order, clock_skew_s, cool_off_s),
        _session(facts, thresholds, clock_skew_s),
        _risk(facts, thresholds),
    )


def _identity(
    facts: Facts, thresholds: Thresholds, order: AcrOrder, clock_skew_s: float, cool_off_s: float
) -> Measured:
    """What was proved on this device or in this session since the last event that voids proofs, and recent failures."""
    proofs = _proofs(facts, order, clock_skew_s, cool_off_s)
    newest: float | None = None
    checks: list[Compared] = []
    for acr, within_s in thresholds.identity:
        ages = [facts.now - proof.at for proof in proofs if proof.at is not None and order.implies(proof.acr, acr)]
        age_s = min(ages) if ages else None
        checks.append((f"identity.{acr}.age_s", age_s, within_s, age_s is not None and age_s <= within_s))
        if age_s is not None:
            newest = age_s if newest is None else max(newest, age_s)
    failures = facts.subject.failed_attempts
    few = failures is not None and failures <= thresholds.max_failures
    checks.append(("identity.failed_attempts", failures, thresholds.max_failures, few))
    passed = all(check[3] for check in checks)
    return Measured("identity", passed, newest, () if passed else (Code.IDENTITY_TOO_WEAK,), tuple(checks))


def _proofs(facts: Facts, order: AcrOrder, clock_skew_s: float, cool_off_s: float) -> list[Authentication]:
    void_at = voided_at(facts.subject)
    known_device = facts.device.binding is not Binding.UNKNOWN
    candidates = (*facts.authentications, *(facts.device.authentications if known_device else ()))
    return [
        proof
        for proof in credible(candidates, facts.subject, facts.now, cool_off_s, order)
        if proof.evidence is Evidence.VERIFIED
        and proof.at is not None
        and proof.at <= facts.now + clock_skew_s
        and (void_at is None or proof.at > void_at)
    ]


def _device(facts: Facts, thresholds: Thresholds, order: AcrOrder, clock_skew_s: float, cool_off_s: float) -> Measured:
    device = facts.device
    known = device.binding is not Binding.UNKNOWN
    bound = device.binding is Binding.BOUND or not thresholds.bound_only
    validated_age_s = _age(facts, _validated_at(facts, order, cool_off_s) if known else None, clock_skew_s)
    trust = _decayed(device.trust, validated_age_s, thresholds.half_life_s) if known else None
    trusted = trust is not None and trust >= thresholds.min_trust
    due_s = thresholds.revalidate_every_s * (1.0 - thresholds.revalidate_jitter * device.revalidate_draw)
    current = validated_age_s is not None and validated_age_s <= due_s
    refusals: tuple[Code, ...] = ()
    if not trusted or not bound:
        decayed = bound and known and device.trust >= thresholds.min_trust
        refusals = (Code.DEVICE_TRUST_DECAYED if decayed else Code.DEVICE_NOT_TRUSTED,)
    if not current:
        refusals += (Code.DEVICE_REVALIDATION_DUE,)
    checks: tuple[Compared, ...] = (
        ("device.trust", trust, thresholds.min_trust, trusted),
        ("device.binding", device.binding.value, "bound" if thresholds.bound_only else "known", known and bound),
        ("device.validated_age_s", validated_age_s, due_s, current),
    )
    return Measured("device", not refusals, trust, refusals, checks)


def _validated_at(facts: Facts, order: AcrOrder, cool_off_s: float) -> float | None:
    """When the device was last validated, unless that was before an event that voids it, or may have rested on a phone number
    that was not the subject's any more: word of a SIM change may come after the login."""
    at, void_at = facts.device.validated_at, voided_at(facts.subject)
    if at is None or (void_at is not None and at <= void_at):
        return None
    if doubtful(at, facts.subject, cool_off_s):
        logins = tuple(login for login in facts.device.authentications if login.at == at)
        return at if credible(logins, facts.subject, facts.now, cool_off_s, order) else None
    return at


def _decayed(trust: float, validated_age_s: float | None, half_life_s: float | None) -> float:
    if half_life_s is None:
        return trust
    return 0.0 if validated_age_s is None else trust * 0.5 ** (validated_age_s / half_life_s)


def _session(facts: Facts, thresholds: Thresholds, clock_skew_s: float) -> Measured:
    session = facts.session
    age_s = _age(facts, session.started_at, clock_skew_s)
    idle_s = _age(facts, session.last_active_at, clock_skew_s)
    checks: list[Compared] = [
        (
            "session.age_s",
            age_s,
            thresholds.session_max_age_s,
            age_s is not None and age_s <= thresholds.session_max_age_s,
        ),
        (
            "session.idle_s",
            idle_s,
            thresholds.session_max_idle_s,
            idle_s is not None and idle_s <= thresholds.session_max_idle_s,
        ),
    ]
    if thresholds.session_verified:
        verified = session.token is TokenState.VERIFIED
        checks.append(("session.token", session.token.value, TokenState.VERIFIED.value, verified))
    if thresholds.session_proved:
        checks.append(("session.proof_of_possession", session.proved, True, session.proved))
    passed = all(check[3] for check in checks)
    return Measured("session", passed, age_s, () if passed else (Code.SESSION_NOT_SOUND,), tuple(checks))


def _risk(facts: Facts, thresholds: Thresholds) -> Measured:
    score = facts.risk.score
    passed = score is not None and score <= thresholds.max_score
    check: Compared = ("risk.score", score, thresholds.max_score, passed)
    return Measured("risk", passed, score, () if passed else (Code.RISK_TOO_HIGH,), (check,))


def _age(facts: Facts, at: float | None, clock_skew_s: float) -> float | None:
    """Seconds since `at`; a time in the future beyond the skew is impossible and therefore not known."""
    if at is None:
        return None
    age_s = facts.now - at
    return None if age_s < -clock_skew_s else max(0.0, age_s)
