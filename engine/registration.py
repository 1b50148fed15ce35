"""When an authentication is strong, when it counts for the device it happened on, and when it may register a new one.

The sidecar and the control plane both judge by these rules: the sidecar for what counts in its pod at once, the control plane for
the fleet. Times are Unix seconds, ages seconds.
"""

from __future__ import annotations

from engine.acr import AcrOrder
from engine.cooloff import credible, voided_at
from engine.facts import Authentication, Subject

DEFAULT_REGISTER_WITHIN_S = 600.0
MIN_REGISTER_WITHIN_S = 30.0
MAX_REGISTER_WITHIN_S = 12 * 3600.0
MAX_REGISTER_LATE_S = 3600.0
"""How much later than `register_within` a registration may arrive at the control plane, by its own clock."""

TOO_OLD = "too_old_to_register"
VOIDED = "voided_by_an_event"
REGISTERED_BEFORE = "registered_before"
NOT_STRONG = "not_strong"

# Times pass through floats and timestamps on their way.
_SAME_LOGIN_S = 0.001


def strong(
    event: Authentication, subject: Subject, now: float, top_acr: str | None, cool_off_s: float, order: AcrOrder
) -> bool:
    """Whether a verified authentication reaches the tenant's top requirement and does not rest on a phone number whose SIM was
    changed lately (`engine.cooloff`)."""
    if not (event.acr and top_acr and order.implies(event.acr, top_acr)):
        return False
    return bool(credible((event,), subject, now, cool_off_s, order))


def counts_for_device(at: float, reported_at: float, within_s: float) -> bool:
    """Whether a login says anything of the device it is reported with: only one that was reported soon after it happened. The
    proof of an older one may have been taken elsewhere."""
    return reported_at - at <= within_s


def unfit_to_register(
    at: float, reported_at: float, within_s: float, subject: Subject, registered_at: float | None, *, is_strong: bool
) -> str:
    """Why an authentication may not register a new device for a subject; empty: it may.

    `registered_at`: the latest authentication that has registered one. One login registers one device, so that the proof of a
    login that did cannot bring in another, by whatever token of it and through whatever pod.
    """
    if not is_strong:
        return NOT_STRONG
    if not counts_for_device(at, reported_at, within_s):
        return TOO_OLD
    void_at = voided_at(subject)
    if void_at is not None and at <= void_at:
        return VOIDED
    if registered_at is not None and at <= registered_at + _SAME_LOGIN_S:
        return REGISTERED_BEFORE
    return ""
