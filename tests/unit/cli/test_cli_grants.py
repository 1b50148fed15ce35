"""`sidestep grant` and `sidestep access`: the life of a grant at the command line."""

from __future__ import annotations

import csv
import io
import json

import pytest

from tests.fakes.admin import AdminServer
from tests.unit.cli.conftest import Sidestep

SETTINGS = """apiVersion: sidestep.dev/v1
kind: Settings
metadata: {name: default, tenant: acme}
spec:
  grantClasses:
    - id: standard
      ceiling: {acr: nist-aal2, maxAge: 3600s}
      maxValidity: 7776000s
      reviewEvery: 2592000s
      approvals: 1
    - id: free
      ceiling: {acr: nist-aal2, maxAge: 3600s}
      maxValidity: 7776000s
"""
BOUNDS = ("--subject", "alice", "--action", "payments.*", "--acr", "nist-aal2", "--max-age", "1h", "--expires", "+30d")


@pytest.fixture
def classes(sidestep: Sidestep) -> None:
    sidestep("settings", "put", sidestep.file("settings.yaml", SETTINGS))


@pytest.mark.usefixtures("classes")
def test_request_approve_activate(sidestep: Sidestep) -> None:
    request = ("grant", "request", "g1", *BOUNDS, "--class", "standard", "--ticket", "SEC-1", "--owner", "sec@acme")
    assert "g1 is REQUESTED at revision" in sidestep("--actor", "ann", *request)
    assert "SELF_APPROVAL" in sidestep("--actor", "ann", "grant", "approve", "g1", code=1)
    shown = sidestep("--actor", "ben", "grant", "approve", "g1")
    assert "payments.*" in shown
    assert "g1 is APPROVED" in shown
    assert "g1 is ACTIVE" in sidestep("--actor", "ann", "grant", "activate", "g1")
    assert "WRONG_STATE" in sidestep("--actor", "ben", "grant", "reject", "g1", "--reason", "late", code=1)
    assert "next review:" in sidestep("--actor", "ben", "grant", "renew", "g1")
    stored = sidestep.json("grant", "get", "g1")
    assert (stored["requester"], stored["approvals"][0]["actor"], stored["ticket"]) == ("ann", "ben", "SEC-1")


@pytest.mark.usefixtures("classes")
def test_show_tells_what_happened(sidestep: Sidestep) -> None:
    sidestep("--actor", "ann", "grant", "request", "g1", *BOUNDS, "--class", "standard")
    sidestep("--actor", "ann", "grant", "request", "g10", *BOUNDS, "--class", "standard")
    sidestep("--actor", "ann", "grant", "approve", "g1", code=1)
    sidestep("--actor", "ben", "grant", "reject", "g1", "--reason", "too wide", "--ticket", "SEC-2")
    shown = sidestep("grant", "show", "g1")
    assert "ben grant.reject (too wide): state: REQUESTED -> REJECTED" in shown
    assert "ann grant.approve: REFUSED: " in shown
    data = sidestep.json("grant", "show", "g1")
    assert [entry["action"] for entry in data["history"]] == ["grant.reject", "grant.approve", "put"]
    assert data["grant"]["stateReason"] == "too wide"


@pytest.mark.usefixtures("classes")
def test_request_again_by_id_alone(sidestep: Sidestep) -> None:
    sidestep("--actor", "ann", "grant", "request", "g1", *BOUNDS, "--class", "standard")
    sidestep("--actor", "ben", "grant", "reject", "g1", "--reason", "not now")
    assert "is REQUESTED" in sidestep("--actor", "cy", "grant", "request", "g1")
    assert sidestep.json("grant", "get", "g1")["requester"] == "cy"
    sidestep("grant", "request", "none", code=4)


@pytest.mark.usefixtures("classes")
def test_a_request_that_changes_nothing_says_so(sidestep: Sidestep) -> None:
    document = sidestep.file(
        "grant.yaml",
        """apiVersion: sidestep.dev/v1
kind: Grant
metadata: {name: g1, tenant: acme}
spec:
  subject: alice
  grantClass: standard
  actions: ["payments.*"]
  expireTime: "2999-01-01T00:00:00Z"
  startTime: "2998-12-01T00:00:00Z"
  ceiling: {acr: nist-aal2, maxAge: 3600s}
""",
    )
    assert "is REQUESTED" in sidestep("--actor", "ann", "grant", "request", "-f", document)
    sidestep("--actor", "ben", "grant", "revoke", "g1", "--reason", "mistake")
    assert "is REVOKED with these very bounds" in sidestep("grant", "request", "-f", document, code=1)


@pytest.mark.usefixtures("classes")
def test_put_is_for_classes_without_approval(sidestep: Sidestep) -> None:
    assert "request it" in sidestep("grant", "put", "g1", *BOUNDS, "--class", "standard", code=1)
    sidestep("grant", "put", "g1", *BOUNDS, "--class", "free")
    assert sidestep.json("grant", "get", "g1")["state"] == "GRANT_STATE_ACTIVE"
    problem = sidestep("grant", "put", "g1", *BOUNDS[:4], "--acr", "phr", *BOUNDS[6:], "--class", "free", code=1)
    assert "grant.ceiling.acr: 'phr' is not within what class 'free' allows ('nist-aal2')" in problem


@pytest.mark.usefixtures("classes")
@pytest.mark.parametrize("command", ["suspend", "revoke", "reject"])
def test_a_reason_is_asked_for(sidestep: Sidestep, command: str) -> None:
    assert "--reason" in sidestep("grant", command, "g1", code=2)


@pytest.mark.usefixtures("classes")
def test_suspend_and_revoke_print_the_revision_to_wait_for(sidestep: Sidestep) -> None:
    sidestep("grant", "put", "g1", *BOUNDS, "--class", "free")
    assert "min_revision: {epoch: 1, revision: 3}" in sidestep("grant", "suspend", "g1", "--reason", "incident")
    assert "min_revision: {epoch: 1, revision: 4}" in sidestep("grant", "revoke", "g1", "--reason", "incident")


@pytest.mark.usefixtures("classes")
def test_access_review_as_table_json_and_csv(sidestep: Sidestep, server: AdminServer) -> None:
    sidestep("subject", "put", "bob", "--role", "staff")
    role = ("--role", "staff", *BOUNDS[2:])
    sidestep("grant", "put", "a", *BOUNDS, "--class", "free", "--owner", "=cmd()", "--reason", "travels, in May")
    sidestep("grant", "put", "b", *role, "--class", "free")
    sidestep("grant", "suspend", "b", "--reason", "incident")
    server.last_used = {"a": 1_700_000_000.0}
    table = sidestep("access", "review")
    assert "2023-11-14 22:13:20Z" in table
    assert "role:staff" not in table
    data = sidestep.json("access", "review", "--dormant")
    assert [(entry["grant"], entry["subject"], entry["refusal"]) for entry in data["entries"]] == [
        ("a", "alice", ""),
        ("b", "bob", "GRANT_INACTIVE"),
        ("b", "", "GRANT_INACTIVE"),
    ]
    rows = list(csv.DictReader(io.StringIO(sidestep("access", "review", "--csv", "--dormant"))))
    assert [row["subject"] for row in rows] == ["alice", "bob", "(role in token)"]
    assert rows[0]["last_used"] == "2023-11-14 22:13:20Z"
    assert rows[0]["owner"] == "'=cmd()"
    assert rows[0]["reason"] == "travels, in May"
    assert rows[1]["last_used"] == "not reported"
    assert rows[1]["by"] == "role:staff"
    assert sidestep("access", "review", "--subject", "nobody", "--csv").count("\n") == 1


@pytest.mark.usefixtures("classes")
def test_access_review_tells_of_the_kill_switch(sidestep: Sidestep) -> None:
    sidestep("posture", "kill-switch", "on")
    assert json.loads(sidestep("-o", "json", "access", "review"))["exemptions_off"] is True
    assert "kill switch" in sidestep.stderr
