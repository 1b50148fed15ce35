"""Authentications that were reported in this pod, beside those that the data holds.

One counts in the session it was reported for, and as history of the device it happened on. It stands on its issuer and key as
they are now: once either is taken away, so is what rests on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from msgspec.structs import replace

from engine.facts import Authentication, Binding, Device, Evidence, Subject
from engine.registration import strong
from engine.rules import TenantRules
from sidecar.gather.keyring import KeyRing
from sidecar.gather.tokens import VerifiedToken
from sidecar.local.store import ReportedAuthentication

# Those of a subject at a time: (tenant, subject, now).
ReportedLately = Callable[[str, str, float], tuple[ReportedAuthentication, ...]]


def still_trusted(events: Iterable[ReportedAuthentication], ring: KeyRing) -> tuple[ReportedAuthentication, ...]:
    """Those whose issuer and key the tenant still has, each with no more acr than its issuer may claim now."""
    trusted = []
    for event in events:
        rule = ring.rule(event.issuer)
        if rule is not None and ring.key(event.issuer, event.kid) is not None:
            acr = ring.capped(rule, event.acr)
            trusted.append(event if acr == event.acr else replace(event, acr=acr))
    return tuple(trusted)


def of_session(
    events: Iterable[ReportedAuthentication], session_id: str, *, proved: bool
) -> tuple[Authentication, ...]:
    """Those of a session. VERIFIED if both the request's token (`proved`) and the proof name it, else the caller's word."""
    if not session_id:
        return ()
    return tuple(
        _authentication(event, Evidence.VERIFIED if proved and event.session_proved else Evidence.ASSERTED)
        for event in events
        if event.session == session_id
    )


def on_device(
    device: Device, events: Iterable[ReportedAuthentication], rules: TenantRules, subject: Subject, now: float
) -> Device:
    """The device with what was proved on it lately; a strong authentication validates it, unless it rests on a phone number whose
    SIM was changed lately."""
    if not device.id or device.binding is Binding.UNKNOWN:
        return device
    history, validated_at = list(device.authentications), device.validated_at
    for event in events:
        if event.device != device.id:
            continue
        proved = _authentication(event, Evidence.VERIFIED)
        if proved not in history:
            history.append(proved)
        if validated_at is not None and event.at <= validated_at:
            continue
        if strong(proved, subject, now, rules.top.acr, rules.cool_off_s, rules.order):
            validated_at = event.at
    if len(history) == len(device.authentications) and validated_at == device.validated_at:
        return device
    history.sort(key=lambda past: past.at or 0.0, reverse=True)
    return replace(device, authentications=tuple(history), validated_at=validated_at)


def names_session(token: VerifiedToken | None, session_id: str) -> bool:
    """Whether a verified token itself says that this is the session."""
    return token is not None and bool(session_id) and token.session == session_id


def _authentication(event: ReportedAuthentication, evidence: Evidence) -> Authentication:
    return Authentication(event.acr, event.at, evidence, event.amr, event.issuer)
