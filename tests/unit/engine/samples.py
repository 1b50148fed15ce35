"""A payments policy, and facts on which a grant applies; each test changes what it is about."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from engine.facts import (
    Authentication,
    Binding,
    Data,
    Device,
    Evidence,
    Facts,
    Grant,
    GrantScope,
    Posture,
    Risk,
    Session,
    Staleness,
    Subject,
    TokenState,
)
from engine.plan import Policy
from engine.policy import parse_policy
from engine.risk import combine
from engine.rules import TenantRules, compile_policy

NOW = 1_800_000_000.0
DAY = 86400.0
HOUR = 3600.0

EXEMPTIONS = """
  exemptions:
    ceiling: {acr: nist-aal2, maxAge: 1h}
    recognisedCeiling: {acr: nist-aal1, maxAge: 24h}
    identity: {minAcrWithin: {acr: phr, within: 30d}, maxFailures: 3}
    device: {minTrust: 0.85, revalidateEvery: 30d}
    session: {maxAge: 24h, maxIdle: 1h}
    risk: {maxScore: 30}
    spotCheckRate: 0.01
"""
PAYMENTS = f"""
apiVersion: sidestep.dev/v1
kind: Policy
metadata: {{name: payments, tenant: acme}}
spec:
  match: {{actions: ["payments.*"]}}
  require: {{acr: nist-aal2, maxAge: 12h}}
  triggers:
    - {{name: unknown-device, when: "!device.known", require: {{acr: phr, maxAge: 5m}}}}
    - name: high-value
      when: "context.amount.value > 5000.0 || context.amount.currency != 'EUR'"
      require: {{acr: phr, maxAge: 5m}}
    - {{name: flagged-network, when: "risk.network >= 40.0", require: {{acr: phr, maxAge: 2m}}}}
{EXEMPTIONS}
  methods: [webauthn, totp, push]
  posture:
    ELEVATED: {{exemptions: {{risk: {{maxScore: 15}}}}}}
    CRITICAL: {{exemptions: {{enabled: false}}, require: {{acr: phr, maxAge: 2m}}}}
"""


def compiled(source: str, version: int = 1) -> Policy:
    return compile_policy(parse_policy(source).document, version)


def tenant(*sources: str, **settings: Any) -> TenantRules:
    return TenantRules([compiled(source) for source in sources], **settings)


def policy(spec: str, name: str = "p", actions: str = "pay.*") -> str:
    """A policy with this spec, indented by two, beside its match."""
    return (
        f"apiVersion: sidestep.dev/v1\nkind: Policy\nmetadata: {{name: {name}, tenant: acme}}\n"
        f'spec:\n  match: {{actions: ["{actions}"]}}\n{spec}\n'
    )


def login(acr: str = "nist-aal2", age_s: float | None = 60.0, evidence: Evidence = Evidence.VERIFIED) -> Authentication:
    return Authentication(acr, None if age_s is None else NOW - age_s, evidence)


def grant(**changes: Any) -> Grant:
    fields: dict[str, Any] = {
        "id": "g1",
        "scope": GrantScope.SUBJECT,
        "actions": ("*",),
        "ceiling_acr": "nist-aal2",
        "ceiling_max_age_s": HOUR,
        "active": True,
        "expire_at": NOW + DAY,
        "spot_draw": 0.5,
    }
    return Grant(**(fields | changes))


BOUND = Device(
    presented=True,
    binding=Binding.BOUND,
    id="d1",
    trust=1.0,
    validated_at=NOW - DAY,
    authentications=(login("phrh", 3 * DAY),),
)
NO_RISK: Risk = combine(())
EXEMPT = Facts(
    now=NOW,
    tenant="acme",
    action="payments.transfer",
    data=Data(1, 7, 1, 3, 1.0, Staleness.FRESH),
    posture=Posture.LOW,
    subject=Subject(known=True, methods=("webauthn", "totp"), failed_attempts=0),
    device=BOUND,
    session=Session(presented=True, token=TokenState.VERIFIED, started_at=NOW - 2 * HOUR, last_active_at=NOW - 60.0),
    authentications=(login("nist-aal1", 2 * HOUR),),
    risk=NO_RISK,
    grants=(grant(),),
    values={"context.amount.value": 100.0, "context.amount.currency": "EUR"},
)
"""Facts on which PAYMENTS is met by an exemption grant only."""


def facts(**changes: Any) -> Facts:
    """EXEMPT with top-level changes, or changes of a part: `device={"trust": 0.5}`."""
    made = {}
    for name, value in changes.items():
        part = getattr(EXEMPT, name)
        made[name] = replace(part, **value) if isinstance(value, dict) and name != "values" else value
    return replace(EXEMPT, **made)
