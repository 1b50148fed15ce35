"""The life of a grant with real programs: people at terminals, a control plane, and what a sidecar answers meanwhile."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
from sidestep.client import Basis, Outcome
from sidestep.v1 import admin_pb2, admin_pb2_grpc
from sidestep.v1 import resources_pb2 as pb

from tests.integration.test_replay import PAYMENTS, Shop
from tests.processes import PATIENCE_S, controlplane, environment, sidecar, until

DAY = 86_400
REQUEST = (
    "grant", "request", "travel", "--subject", "dora", "--action", "payments.*", "--acr", "nist-aal2", "--max-age", "1h",
    "--class", "standard", "--ticket", "SEC-1", "--owner", "sec@acme", "--reason", "travels",
)  # fmt: skip


class Terminal:
    """`terminal("ann", "grant", "list")`: what one person runs."""

    def __init__(self, address: str) -> None:
        self._address = address

    def __call__(self, who: str, *args: str, code: int = 0) -> str:
        settings = {"SIDESTEP_SERVER": self._address, "SIDESTEP_TENANT": "acme", "SIDESTEP_ACTOR": who}
        command = [str(Path(sys.executable).with_name("sidestep")), *args]
        done = subprocess.run(
            command, env=environment(**settings), capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        return done.stdout if code == 0 else done.stdout + done.stderr

    def state(self) -> str:
        return str(json.loads(self("ann", "-o", "json", "grant", "get", "travel"))["state"])


def put_class(address: str, **changes: Any) -> None:
    """Gives the tenant the class `standard`, and leaves its other settings as they are."""
    with grpc.insecure_channel(address) as channel:
        stub = admin_pb2_grpc.AdminServiceStub(channel)  # type: ignore[no-untyped-call]
        name = "tenants/acme/settings/default"
        settings = stub.GetResource(admin_pb2.GetResourceRequest(name=name)).resource.settings
        settings.ClearField("grant_classes")
        made = settings.grant_classes.add(id="standard", approvals=changes.get("approvals", 1), ticket_required=True)
        made.ceiling.acr = changes.get("acr", "nist-aal2")
        made.ceiling.max_age.FromSeconds(3600)
        made.max_validity.FromSeconds(changes.get("valid_s", 90 * DAY))
        made.review_every.FromSeconds(30 * DAY)
        stub.PutResource(admin_pb2.PutResourceRequest(resource=pb.Resource(settings=settings)))


def test_from_the_request_to_the_end(tmp_path: Path) -> None:
    with (
        controlplane(tmp_path / "cp", SIDESTEP_CP_DUE_INTERVAL="50ms") as running,
        sidecar(tmp_path / "pod", SIDESTEP_CONTROL_PLANE=running.grpc) as pod,
    ):
        run = Terminal(running.grpc)
        shop = Shop(running.grpc, pod.grpc)
        try:
            shop.world.build()
            shop.log_in()
            shop.put_policy(PAYMENTS, "payments")
            put_class(running.grpc)

            def answer() -> tuple[Outcome, Basis]:
                shop.admin.wait_until_everywhere()
                decision = shop.ask(shop.doras("20"))
                return decision.outcome, decision.basis

            exempt, challenged = (Outcome.ALLOW, Basis.EXEMPTION_GRANT), (Outcome.STEP_UP, Basis.CHALLENGE)
            run("ann", *REQUEST, "--expires", "+30d")
            assert answer() == challenged
            assert "SELF_APPROVAL" in run("ann", "grant", "approve", "travel", code=1)
            run("ben", "grant", "approve", "travel")
            assert answer() == challenged
            run("ann", "grant", "activate", "travel")
            assert answer() == exempt

            # Who could skip what is known while they can.
            rows = list(csv.DictReader(io.StringIO(run("ann", "access", "review", "--csv"))))
            assert [(row["subject"], row["grant"], row["class"]) for row in rows] == [("dora", "travel", "standard")]

            # A class that is tightened bites at once, and the other way round.
            for tighter in ({"acr": "nist-aal1"}, {"approvals": 2}):
                put_class(running.grpc, **tighter)
                assert answer() == challenged
            put_class(running.grpc)
            assert answer() == exempt

            run("ben", "grant", "suspend", "travel", "--reason", "incident")
            assert answer() == challenged
            run("ann", "grant", "resume", "travel")
            assert answer() == exempt

            # Other bounds are a new request. When its time is over the record says so too.
            run("ann", *REQUEST, "--expires", "+20d")
            assert answer() == challenged
            put_class(running.grpc, valid_s=1)
            until(lambda: run.state() == "GRANT_STATE_EXPIRED", "the grant expires")
            assert answer() == challenged
            assert "ENDED" in run("ann", "grant", "request", "travel", code=1)
        finally:
            shop.close()
    with controlplane(tmp_path / "cp") as running:
        run = Terminal(running.grpc)
        history = json.loads(run("ann", "-o", "json", "grant", "show", "travel"))["history"]
        told = [(entry["actor"], entry["action"], entry["outcome"].removeprefix("AUDIT_OUTCOME_")) for entry in history]
        assert told[::-1] == [
            ("ann", "put", "DONE"),
            ("ann", "grant.approve", "REFUSED"),
            ("ben", "grant.approve", "DONE"),
            ("ann", "grant.activate", "DONE"),
            ("ben", "grant.suspend", "DONE"),
            ("ann", "grant.resume", "DONE"),
            ("ann", "put", "DONE"),
            ("controlplane", "grant.expire", "DONE"),
            ("ann", "grant.request", "REFUSED"),
        ]
        assert "whole" in run("ann", "audit", "verify")
