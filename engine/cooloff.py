"""Events after which what was proved before no longer counts: account recovery, a SIM change, a new authenticator.

Each may be the work of somebody who is taking the account over. So whatever a session or device proved before the latest of them
is void until it is proved again, and for a cool-off after each of them no grant applies. After a SIM change codes sent by phone
may reach the wrong person: those sent before the cool-off is over prove nothing, then or later (NIST SP 800-63B-4, restricted
authenticators).
"""

from __future__ import annotations

from collections.abc import Iterable

from engine.acr import AcrOrder
from engine.facts import Authentication, Evidence, Subject

DEFAULT_COOL_OFF_S = 86400.0
MAX_COOL_OFF_S = 365 * 86400.0

RECOVERY = "recovery"
SIM_CHANGE = "sim-change"
NEW_AUTHENTICATOR = "new-authenticator"

# RFC 8176: what tells of a text message or a call, and of a factor that no phone number carries.
_PHONE = frozenset({"sms", "tel"})
_NO_PHONE = frozenset({"hwk", "swk", "pop", "sc", "fpt", "face", "iris", "retina", "vbm"})
# A one-time password may have come by phone though nothing says so; an issuer that is verified would say it.
_CODE = "otp"
_PHISHING_RESISTANT = "phr"


def voided_at(subject: Subject) -> float | None:
    """When the last of the events was: a proof must be later. None: there was none."""
    times = [at for _, at in _events(subject)]
    return max(times) if times else None


def cooling(subject: Subject, now: float, cool_off_s: float) -> tuple[str, ...]:
    """The events whose cool-off is not over. One that lies in the future has just begun."""
    return tuple(name for name, at in _events(subject) if now < at + cool_off_s)


def credible(
    authentications: tuple[Authentication, ...], subject: Subject, now: float, cool_off_s: float, order: AcrOrder
) -> tuple[Authentication, ...]:
    """Those authentications that count: all, but after a SIM change only what certainly did not rest on a phone number, or was
    made when the cool-off was over. Time does not mend what was made before: a thief's code stays a thief's."""
    if subject.sim_changed_at is None:
        return authentications
    end = subject.sim_changed_at + cool_off_s
    return tuple(
        event
        for event in authentications
        if _without_phone(event, order) or (now >= end and event.at is not None and event.at >= end)
    )


def doubtful(at: float, subject: Subject, cool_off_s: float) -> bool:
    """Whether something at this time may have rested on the phone number of a SIM change: it was during the cool-off."""
    changed_at = subject.sim_changed_at
    return changed_at is not None and changed_at <= at < changed_at + cool_off_s


def by_phone(amr: Iterable[str]) -> bool:
    """Whether a method with these references rests on a phone number."""
    said = set(amr)
    return bool(said & _PHONE) and not said & _NO_PHONE


def _without_phone(event: Authentication, order: AcrOrder) -> bool:
    said = set(event.amr)
    if said & _NO_PHONE or order.implies(event.acr, _PHISHING_RESISTANT):
        return True
    return event.evidence is Evidence.VERIFIED and _CODE in said and not said & _PHONE


def _events(subject: Subject) -> Iterable[tuple[str, float]]:
    if subject.recovered_at is not None:
        yield RECOVERY, subject.recovered_at
    if subject.sim_changed_at is not None:
        yield SIM_CHANGE, subject.sim_changed_at
    if subject.authenticator_changed_at is not None:
        yield NEW_AUTHENTICATOR, subject.authenticator_changed_at
