"""`sidestep finding dismiss`: at once, or by two people where change control has `blocks`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidestep.v1 import usage_pb2

from tests.fakes.admin import AdminServer

if TYPE_CHECKING:
    from conftest import Sidestep

SETTINGS = """apiVersion: sidestep.dev/v1
kind: Settings
metadata: {tenant: acme}
spec:
  changeControl: {blocks: true}
"""


def test_two_people_dismiss_a_finding(sidestep: Sidestep, server: AdminServer) -> None:
    found = usage_pb2.FleetFinding(name="tenants/acme/findings/f1", state="FINDING_STATE_OPEN")
    found.devices.add(subject="alice", device="phone")
    found.first_time.GetCurrentTime()
    found.last_time.GetCurrentTime()
    server.run(server.store.findings.put("acme", "f1", found))
    sidestep("settings", "put", sidestep.file("settings.yaml", SETTINGS))
    assert "propose it" in sidestep("finding", "dismiss", "f1", "--reason", "a kiosk", code=1)
    said = sidestep("--actor", "ann", "finding", "dismiss", "f1", "--reason", "a kiosk", "--propose")
    assert said.startswith("tenants/acme/findings/f1 proposed: ")
    (proposed,) = sidestep.json("proposal", "list")
    proposal_id = proposed["name"].rpartition("/")[2]
    shown = sidestep("proposal", "show", proposal_id)
    assert "dismiss tenants/acme/findings/f1" in shown
    assert "1 devices no longer suspect" in shown
    assert sidestep("--actor", "ben", "proposal", "approve", proposal_id) == "tenants/acme/findings/f1 dismissed\n"
    assert "dismissed" in sidestep("finding", "show", "f1")
