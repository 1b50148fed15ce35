"""What the control plane refuses of a reported authentication no longer counts for a device in this pod."""

from __future__ import annotations

import asyncio
import json
from base64 import urlsafe_b64encode
from pathlib import Path
from typing import Any, cast

import pytest
from sidestep.v1 import report_pb2 as pb

from sidecar.local.store import KEEP_S, LocalStore, ReportedAuthentication
from sidecar.outbox.authentications import AuthenticationSender
from sidecar.outbox.upward import Upward

NOW = 1_800_000_000.0
ISSUER = "https://idp"


class FakeControlPlane:
    """Answers every report with one outcome."""

    sidecar = "pod-1"

    def __init__(self, outcome: str) -> None:
        self._outcome = outcome

    async def call(self, method: str, request: pb.ReportAuthenticationsRequest, response: Any) -> Any:
        return pb.ReportAuthenticationsResponse(
            receipts=[{"outcome": f"AUTHENTICATION_OUTCOME_{self._outcome}"} for _ in request.authentications]
        )


def proof(at: float) -> str:
    parts = {"alg": "ES256"}, {"iss": ISSUER, "auth_time": at}
    return ".".join(urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts) + ".c2ln"


@pytest.mark.parametrize(("outcome", "device"), [("REFUSED", ""), ("RECORDED", "laptop")])
def test_a_proof_that_was_used_elsewhere_for_another_device_counts_for_none_here(
    tmp_path: Path, outcome: str, device: str
) -> None:
    local = LocalStore(tmp_path)
    for number, at in enumerate((NOW - 20, NOW - 10)):
        event = ReportedAuthentication("phr", ("hwk",), at, ISSUER, "k1", at + KEEP_S, "s1", True, "laptop")
        up = pb.ReportedAuthentication(tenant="acme", subject="alice", token=proof(at), device="laptop")
        # The first one is not on its way any more.
        payload = up.SerializeToString()
        local.record("acme", "alice", f"j-{number}", NOW + 300, event, payload, NOW)
        if not number:
            local.settle(item.number for item in local.take(["authentication"], 10))
    asyncio.run(AuthenticationSender(local, cast(Upward, FakeControlPlane(outcome))).step())
    left = [(past.at, past.session, past.device) for past in local.authentications("acme", "alice", NOW)]
    assert left == [(NOW - 10, "s1", device), (NOW - 20, "s1", "laptop")]
    assert not local.waiting()
    local.close()


def test_a_proof_may_never_end(tmp_path: Path) -> None:
    local = LocalStore(tmp_path)
    event = ReportedAuthentication("phr", ("hwk",), NOW, ISSUER, "k1", NOW + KEEP_S, "s1", True)
    local.record("acme", "alice", "j-1", 1e300, event, b"up", NOW)
    assert local.authentications("acme", "alice", NOW)
    local.close()
