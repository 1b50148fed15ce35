"""Operators, change control and the audit log with real programs: a control plane, and `sidestep` as people run it."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path
from typing import Any

import grpc
from sidestep.v1 import admin_pb2, admin_pb2_grpc, audit_pb2, audit_pb2_grpc, resources_pb2

from controlplane.audit import verify
from tests.fakes.operators import OPERATORS, OperatorFiles
from tests.processes import PATIENCE_S, Program, controlplane, environment, until

SETTINGS = """apiVersion: sidestep.dev/v1
kind: Settings
metadata: {tenant: acme}
spec:
  changeControl: {policies: true, posture: true, killSwitch: true}
"""
POLICY = """apiVersion: sidestep.dev/v1
kind: Policy
metadata: {name: payments, tenant: acme}
spec:
  match: {actions: ["payments.*"]}
  require: {acr: nist-aal2, maxAge: 12h}
"""


class Operator:
    """One person at a terminal."""

    def __init__(self, server: Program, files: OperatorFiles, name: str) -> None:
        self._settings = {
            "SIDESTEP_SERVER": server.grpc,
            "SIDESTEP_TENANT": "acme",
            "SIDESTEP_OPERATOR_TOKEN_FILE": files.token_file(name),
        }

    def __call__(self, *args: str, code: int = 0, stdin: str = "") -> str:
        """Runs a command that must exit with `code`; returns what it said."""
        command = [str(Path(sys.executable).with_name("sidestep")), *args]
        done = subprocess.run(
            command, input=stdin, env=environment(**self._settings), capture_output=True, text=True, timeout=PATIENCE_S
        )
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        return done.stdout if code == 0 else done.stdout + done.stderr

    def json(self, *args: str, **more: Any) -> Any:
        return json.loads(self("-o", "json", *args, **more))


def readiness(server: Program) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://{server.http}/readyz", timeout=PATIENCE_S) as response:
        found: dict[str, Any] = json.load(response)
    return found


def test_a_policy_changes_by_two_people_and_everything_is_told(tmp_path: Path) -> None:
    files = OperatorFiles(tmp_path / "operators")
    with controlplane(tmp_path / "cp", SIDESTEP_CP_OPERATORS=files.path) as server:
        alice, bob = Operator(server, files, "alice"), Operator(server, files, "bob")
        alice("settings", "put", "-", stdin=SETTINGS)
        assert "change_control.policies of the settings" in alice("policy", "put", "-", stdin=POLICY, code=1)
        assert "change_control.policies" in alice("apply", "-f", "-", stdin=POLICY, code=1)
        assert "needs a second person" in alice("apply", "-f", "-", "--dry-run", stdin=POLICY)
        said = alice("policy", "put", "-", "--propose", "--why", "new product", "--ticket", "SEC-1", stdin=POLICY)
        proposal_id = said.split("approve ")[1].split("`")[0]
        assert "not alice again" in alice("proposal", "approve", proposal_id, code=1)
        (waiting,) = bob.json("proposal", "list")
        assert (waiting["proposer"], waiting["ticket"], waiting["rules"]) == (
            "alice",
            "SEC-1",
            ["change_control.policies"],
        )
        shown = bob("proposal", "show", proposal_id)
        assert "new product" in shown
        assert "+  require: {acr: nist-aal2, maxAge: 12h}" in shown
        assert "policies/payments written at revision" in bob("proposal", "approve", proposal_id)
        assert bob("proposal", "list").count("\n") == 1
        assert "maxAge: 12h" in alice("policy", "get", "payments", "--source")

        # Throwing is immediate, undoing is not.
        alice("posture", "kill-switch", "on", "--reason", "fraud wave")
        assert "change_control.kill_switch" in alice("posture", "kill-switch", "off", code=1)
        alice("posture", "kill-switch", "off", "--propose", "--reason", "over")
        (waiting,) = bob.json("proposal", "list")
        shown = bob("proposal", "show", waiting["name"].rpartition("/")[2])
        assert "-  exemptionsOff: true" in shown
        assert waiting["reason"] == "over"
        bob("proposal", "reject", waiting["name"].rpartition("/")[2], "--reason", "it is not")

        entries = [line["entry"] for line in bob.json("audit", "list", "--oldest-first")]
        assert [(entry["actor"], entry["action"], entry["outcome"].rpartition("_")[2]) for entry in entries] == [
            ("alice", "put", "DONE"),
            ("alice", "put", "REFUSED"),
            ("alice", "proposal.create", "DONE"),
            ("alice", "proposal.approve", "REFUSED"),
            ("bob", "proposal.approve", "DONE"),
            ("alice", "put", "DONE"),
            ("alice", "put", "REFUSED"),
            ("alice", "proposal.create", "DONE"),
            ("bob", "proposal.reject", "DONE"),
        ]
        assert all(entry["evidence"] == "EVIDENCE_VERIFIED" for entry in entries)
        assert "9 entries, whole" in bob("audit", "verify")
        head = bob("audit", "verify").split()[-1]
        exported = bob("audit", "export")

        # A restart loses nothing of it.
        server.stop()
    with controlplane(tmp_path / "cp", SIDESTEP_CP_OPERATORS=files.path) as server:
        bob = Operator(server, files, "bob")
        assert "9 entries, whole" in bob("audit", "verify", "--head", head)
        assert "9 entries, whole" in bob("audit", "verify", "-", stdin=exported)
        assert len(bob.json("proposal", "list", "--all")) == 2


def test_tokens_change_without_a_restart_and_a_bad_file_is_told(tmp_path: Path) -> None:
    files = OperatorFiles(tmp_path / "operators")
    with controlplane(tmp_path / "cp", SIDESTEP_CP_OPERATORS=files.path) as server:
        alice = Operator(server, files, "alice")
        alice("subject", "put", "bob")
        assert readiness(server)["operators"] == 4
        files.put("operators.yaml", "operators: 7")
        until(lambda: readiness(server)["operators_unusable"], "the bad file to be told")
        alice("subject", "list")
        files.write(OPERATORS[1:])
        until(lambda: readiness(server)["operators"] == 3, "the file to be read")
        assert "an operator's token is needed" in alice("subject", "list", code=1)
    assert "operators[0]" not in Path(tmp_path / "cp" / "controlplane.log").read_text().lower()


def test_a_control_plane_does_not_start_with_a_bad_operators_file(tmp_path: Path) -> None:
    program = str(Path(sys.executable).with_name("sidestep-controlplane"))
    settings = {
        "SIDESTEP_CP_OPERATORS": str(tmp_path / "missing"),
        "SIDESTEP_CP_DATABASE_URL": f"sqlite+aiosqlite:///{tmp_path}/cp.db",
        "SIDESTEP_CP_LISTEN": "127.0.0.1:0",
        "SIDESTEP_CP_HTTP_LISTEN": "127.0.0.1:0",
    }
    done = subprocess.run(
        [program], env=environment(**settings), capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 2
    assert f"SIDESTEP_CP_OPERATORS: {tmp_path}/missing: no such file" in done.stderr


def test_a_killed_control_plane_leaves_an_entry_for_every_revision_and_none_besides(tmp_path: Path) -> None:
    acknowledged = 0
    for round_number in range(2):
        with controlplane(tmp_path / "cp") as server, grpc.insecure_channel(server.grpc) as channel:
            stub = admin_pb2_grpc.AdminServiceStub(channel)
            killer = threading.Timer(0.4, server.kill)
            killer.start()
            try:
                for number in itertools.count():
                    record = resources_pb2.Subject(name=f"tenants/acme/subjects/{round_number}-{number}", state=1)
                    request = admin_pb2.PutResourceRequest(resource=resources_pb2.Resource(subject=record))
                    stub.PutResource(request, timeout=PATIENCE_S)
                    acknowledged += 1
            except grpc.RpcError:
                killer.join()
    with controlplane(tmp_path / "cp") as server, grpc.insecure_channel(server.grpc) as channel:
        heads = admin_pb2_grpc.AdminServiceStub(channel).GetRevisions(
            admin_pb2.GetRevisionsRequest(parent="tenants/acme"), timeout=PATIENCE_S
        )
        revision = max(head.revision for head in heads.heads)
        answers = audit_pb2_grpc.AuditServiceStub(channel).ExportAudit(
            audit_pb2.ExportAuditRequest(parent="tenants/acme"), timeout=PATIENCE_S
        )
        head = next(answers).head
        records = [record for answer in answers for record in answer.records]
    assert list(verify("acme", records, head)) == []
    assert acknowledged <= revision <= acknowledged + 2
    entries = [audit_pb2.AuditEntry.FromString(record.entry) for record in records]
    assert [entry.revision.revision for entry in entries] == list(range(1, revision + 1))
