"""What is asked in benchmarks, of the demo's world."""

from __future__ import annotations

from pathlib import Path

from sidestep.v1 import decision_pb2, resources_pb2

from examples.story import CLEAN_ADDRESS
from examples.world import LAPTOP, PHONE, TENANT, Admin, World

_POLICY = Path(__file__).resolve().parents[1] / "examples" / "policies" / "payments.yaml"


def transfer(
    world: World,
    *,
    fingerprint: dict[str, str] = LAPTOP,
    device: str = "alice-laptop",
    units: int = 120,
    user: str = "alice",
) -> decision_pb2.EvaluateRequest:
    """Alice pays from her laptop: verified token, 13 fingerprint components, address lookup. As it stands: ALLOW."""
    return decision_pb2.EvaluateRequest(
        subject=decision_pb2.SubjectRef(id="alice"),
        action=decision_pb2.Action(name="payments.transfer"),
        context=decision_pb2.Context(ip=CLEAN_ADDRESS, amount=resources_pb2.Amount(currency="EUR", units=units)),
        session=decision_pb2.SessionEvidence(token=world.idp.token(user, "nist-aal2", age_s=60)),
        device=decision_pb2.DeviceEvidence(id=device, fingerprint=fingerprint),
    )


def mixed(world: World) -> list[decision_pb2.EvaluateRequest]:
    """Allowed, challenged for the device, challenged for the amount, refused for somebody else's token."""
    return [
        transfer(world),
        transfer(world, fingerprint=PHONE, device=""),
        transfer(world, units=9500),
        transfer(world, user="bob"),
    ]


def build(admin: Admin) -> World:
    """The world with its one policy on payments, loaded by every sidecar."""
    world = World(admin)
    world.build()
    admin.put(policy=resources_pb2.Policy(name=f"tenants/{TENANT}/policies/payments", source=_POLICY.read_text()))
    admin.wait_until_everywhere()
    return world
