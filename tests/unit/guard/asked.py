"""Requests as the guards see them, made without a store."""

from __future__ import annotations

from typing import Any

from engine.facts import Binding, Candidate, Data, Device, Facts, Posture, Risk, Session, Staleness, Subject
from engine.policy import parse_policy
from engine.rules import TenantRules, compile_policy
from sidecar.gather.gatherer import Gathered
from sidecar.gather.request import Checked
from sidecar.guard.buckets import Limits

NOW = 1_800_000_000.0
LAPTOP = {"os": "macOS", "platform": "MacIntel", "canvas": "c1", "webgl": "w1"}
UNKNOWN = Device(presented=True)
BOUND = Device(presented=True, binding=Binding.BOUND, id="laptop", trust=1.0)
RECOGNISED = Device(presented=True, binding=Binding.RECOGNISED, id="laptop", trust=0.9)


def rules(guards: str = "{}") -> TenantRules:
    """A policy that wants nist-aal1, with the given guards (YAML flow)."""
    source = f"""
apiVersion: sidestep.dev/v1
kind: Policy
metadata: {{name: pay, tenant: acme}}
spec:
  match: {{actions: ["*"]}}
  context: {{lat: double, lon: double, debug: bool}}
  require: {{acr: nist-aal1}}
  triggers: [{{name: high, when: "context.amount.value > 100.0", require: {{acr: phr}}}}]
  guards: {guards}
"""
    return TenantRules([compile_policy(parse_policy(source).document, 1)])


def asked(
    ruled: TenantRules,
    *,
    subject: str = "alice",
    device: Device = UNKNOWN,
    others: tuple[Device, ...] = (),
    fingerprint: dict[str, str] | None = None,
    address: bytes | None = b"\xc6\x33\x64\x07",
    at: float = 0.0,
    known: bool = True,
    limits: Limits | None = None,
    action: str = "pay.send",
    **values: Any,
) -> Gathered:
    """A request `at` seconds after NOW. `values`: of its context."""
    shown = LAPTOP if fingerprint is None else fingerprint
    named = {f"context.{name}": value for name, value in values.items()}
    checked = Checked("acme", subject, action, "s1", "", None, device.id, address, None, "", named, None)
    facts = Facts(
        now=NOW + at,
        tenant="acme",
        action=action,
        data=Data(1, 1, 1, 1, 1.0, Staleness.FRESH),
        posture=Posture.LOW,
        subject=Subject(known=known),
        device=device,
        session=Session(presented=True),
        candidates=tuple(Candidate(other, Risk()) for other in others),
        values=named,
    )
    return Gathered(facts, ruled, None, checked, repr(sorted(shown.items())).encode(), limits, shown)
