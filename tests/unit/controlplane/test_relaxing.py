"""What relaxes something needs two people, and two of whom one knows who they are: through every door of the admin API."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from sidestep.v1 import access_pb2, admin_pb2, audit_pb2, usage_pb2
from sidestep.v1 import resources_pb2 as pb

from controlplane.actor import system
from controlplane.audit import Note
from controlplane.store import Write
from controlplane.threat.fleet import FleetLimits, suspect
from engine.names import Collection
from tests.fakes.admin import AdminServer
from tests.fakes.operators import OperatorFiles, bearer, said

ANN, BEN, NOBODY = said("ann"), said("ben"), ()
SETTINGS = "tenants/acme/settings/default"
DENIED, INVALID, GONE = grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND


@pytest.fixture
def server(tmp_path: Path) -> Iterator[AdminServer]:
    with AdminServer(tmp_path) as running:
        yield running


def put(server: AdminServer, who: Any = ANN, validate_only: bool = False, **record: Any) -> Any:
    request = admin_pb2.PutResourceRequest(resource=pb.Resource(**record), validate_only=validate_only)
    return server.stub.PutResource(request, metadata=who)


def delete(server: AdminServer, name: str, who: Any = ANN) -> Any:
    return server.stub.DeleteResource(admin_pb2.DeleteResourceRequest(name=name), metadata=who)


def load(server: AdminServer, collection: str, *records: Any, replace: bool = False, who: Any = ANN) -> Any:
    start = admin_pb2.ImportStart(parent="tenants/acme", collection=collection, replace=replace, force=True)
    batch = admin_pb2.ImportBatch(resources=[pb.Resource(**record) for record in records])
    messages = [{"start": start}, {"batch": batch}, {"commit": admin_pb2.ImportCommit(count=len(records))}]
    asked = iter([admin_pb2.ImportResourcesRequest(**message) for message in messages])
    return server.stub.ImportResources(asked, metadata=who)


def propose(server: AdminServer, who: Any = ANN, **request: Any) -> audit_pb2.Proposal:
    asked = audit_pb2.CreateProposalRequest(**request)
    return server.proposals.CreateProposal(asked, metadata=who).proposal  # type: ignore[no-any-return]


def agree(server: AdminServer, proposal: audit_pb2.Proposal, who: Any = BEN) -> audit_pb2.ApproveProposalResponse:
    asked = audit_pb2.ApproveProposalRequest(name=proposal.name, reason="looked at")
    return server.proposals.ApproveProposal(asked, metadata=who)  # type: ignore[no-any-return]


def refused(code: grpc.StatusCode, call: Any, *args: Any, **more: Any) -> str:
    with pytest.raises(grpc.RpcError) as error:
        call(*args, **more)
    assert error.value.code() is code, error.value.details()
    return str(error.value.details())


def settings(server: AdminServer, *classes: pb.GrantClass, **control: bool) -> None:
    put(
        server,
        settings=pb.Settings(name=SETTINGS, grant_classes=classes, change_control=pb.ChangeControl(**control)),
    )


def approved_class(name: str = "default", approvals: int = 1) -> pb.GrantClass:
    made = pb.GrantClass(id=name, approvals=approvals, ceiling=pb.Requirement(acr="nist-aal2"))
    made.ceiling.max_age.FromSeconds(3600)
    made.max_validity.FromSeconds(86_400)
    return made


def grant(state: str = "REQUESTED") -> pb.Grant:
    made = pb.Grant(name="tenants/acme/grants/g1", state=f"GRANT_STATE_{state}", subject="alice", actions=["*"])
    made.ceiling.acr = "nist-aal2"
    made.ceiling.max_age.FromSeconds(3600)
    made.start_time.FromSeconds(int(time.time()))
    made.expire_time.FromSeconds(int(time.time()) + 3600)
    return made


def stored(server: AdminServer) -> pb.Grant:
    asked = admin_pb2.GetResourceRequest(name="tenants/acme/grants/g1")
    return server.stub.GetResource(asked, metadata=ANN).resource.grant  # type: ignore[no-any-return]


def step(server: AdminServer, transition: str, who: Any, **more: Any) -> access_pb2.ChangeGrantResponse:
    asked = access_pb2.ChangeGrantRequest(
        name="tenants/acme/grants/g1",
        transition=f"GRANT_TRANSITION_{transition}",
        update_time=stored(server).update_time,
        **more,
    )
    return server.access.ChangeGrant(asked, metadata=who)  # type: ignore[no-any-return]


# Grants: two people, both known by a name


def test_nobody_requests_a_grant_that_a_second_person_has_to_approve(server: AdminServer) -> None:
    settings(server, approved_class())
    for door in (
        lambda: put(server, NOBODY, grant=grant()),
        lambda: put(server, NOBODY, validate_only=True, grant=grant()),
        lambda: load(server, "COLLECTION_GRANTS", {"grant": grant()}, who=NOBODY),
        lambda: propose(server, NOBODY, put=pb.Resource(grant=grant())),
    ):
        assert "nobody knows who" in refused(DENIED, door)
    refused(GONE, stored, server)
    # Looked at by name it is as good as put by name.
    assert put(server, validate_only=True, grant=grant()).changed
    put(server, grant=grant())
    assert stored(server).requester == "ann"


def test_nobody_requests_a_grant_again_or_changes_what_it_allows(server: AdminServer) -> None:
    settings(server, approved_class())
    put(server, grant=grant())
    step(server, "REJECT", BEN, reason="too wide")
    assert "(NOBODY)" in refused(DENIED, step, server, "REQUEST", NOBODY)
    wider = grant()
    wider.expire_time.FromSeconds(int(time.time()) + 7200)
    assert "(NOBODY)" in refused(DENIED, put, server, NOBODY, grant=wider)
    assert stored(server).state == pb.GRANT_STATE_REJECTED


def test_what_nobody_requested_is_never_approved(server: AdminServer) -> None:
    """A grant from before its class wanted approvals: whoever requested it may be the one who approves it now."""
    settings(server, approved_class(approvals=0))
    put(server, NOBODY, grant=grant())
    assert (stored(server).requester, stored(server).state) == ("anonymous", pb.GRANT_STATE_APPROVED)
    settings(server, approved_class())
    assert "(NOBODY)" in refused(DENIED, step, server, "APPROVE", BEN)
    assert "(APPROVALS_MISSING)" in refused(DENIED, step, server, "ACTIVATE", BEN)
    # Nor counts an approval that is there already.
    record = stored(server)
    record.state = pb.GRANT_STATE_SUSPENDED
    record.approvals.add(actor="ben").time.FromSeconds(int(time.time()))
    write = Write(Collection.GRANTS, "g1", record.SerializeToString(deterministic=True))
    server.run(server.store.commit("acme", [write], audit=Note(system(), "put", record.name)))
    assert "(APPROVALS_MISSING)" in refused(DENIED, step, server, "RESUME", BEN)
    step(server, "REQUEST", ANN)
    step(server, "APPROVE", BEN)
    assert step(server, "ACTIVATE", ANN).grant.state == pb.GRANT_STATE_ACTIVE


def test_without_approvals_nobody_may_request_as_before(server: AdminServer) -> None:
    put(server, NOBODY, grant=grant("ACTIVE"))
    assert stored(server).state == pb.GRANT_STATE_ACTIVE


def test_it_is_said_where_the_second_person_is_one_by_word_alone(server: AdminServer, tmp_path: Path) -> None:
    settings(server, approved_class(), kill_switch=True)
    put(server, grant=grant())
    assert "only said" in step(server, "APPROVE", BEN).warnings[0]
    assert not step(server, "ACTIVATE", ANN).warnings
    posture = pb.Posture(name="tenants/acme/postures/default", level="POSTURE_LEVEL_LOW", exemptions_off=True)
    put(server, posture=posture)
    proposal = propose(server, delete=posture.name)
    assert "only said" in agree(server, proposal).warnings[0]
    files = OperatorFiles(tmp_path / "operators")
    (tmp_path / "verified").mkdir()
    with AdminServer(tmp_path / "verified", files.path) as verified:
        put(verified, bearer("alice"), posture=posture)
        proposal = propose(verified, bearer("alice"), delete=posture.name)
        assert not agree(verified, proposal, bearer("bob")).warnings


# Classes


def test_one_person_suspends_a_class_and_two_resume_it(server: AdminServer) -> None:
    name = "tenants/acme/grantClasses/default"
    settings(server, approved_class(), kill_switch=True)
    record = pb.GrantClassState(name=name, state="CLASS_STATE_SUSPENDED", held=True)
    record.since_time.GetCurrentTime()
    put(server, grant_class_state=record)
    resumed = pb.GrantClassState(name=name, state="CLASS_STATE_ACTIVE", since_time=record.since_time)
    other = pb.GrantClassState(
        name="tenants/acme/grantClasses/other", state="CLASS_STATE_ACTIVE", since_time=record.since_time
    )
    for door in (
        lambda: put(server, grant_class_state=resumed),
        lambda: delete(server, name),
        lambda: load(server, "COLLECTION_GRANT_CLASSES", {"grant_class_state": resumed}),
        lambda: load(server, "COLLECTION_GRANT_CLASSES", {"grant_class_state": other}),
        lambda: load(server, "COLLECTION_GRANT_CLASSES", replace=True),
    ):
        assert "change_control.kill_switch of the settings: needs a second person" in refused(DENIED, door)
    # The same again is no change.
    assert load(server, "COLLECTION_GRANT_CLASSES", {"grant_class_state": record}).unchanged == 1
    agree(server, propose(server, put=pb.Resource(grant_class_state=resumed)))
    found = server.stub.GetResource(admin_pb2.GetResourceRequest(name=name)).resource.grant_class_state
    assert found.state == pb.CLASS_STATE_ACTIVE


def test_a_class_beside_the_one_that_wants_approvals_is_added_by_two(server: AdminServer) -> None:
    settings(server, approved_class(), posture=True)
    details = refused(DENIED, settings, server, approved_class(), approved_class("free", 0), posture=True)
    assert "change_control of the settings: needs a second person" in details
    settings(server, approved_class(), approved_class("strict", 2), posture=True)


# Suspicion


def mark(server: AdminServer, device: str = "phone") -> pb.Subject:
    put(server, subject=pb.Subject(name="tenants/acme/subjects/alice", state="SUBJECT_STATE_ACTIVE"))
    server.run(suspect(server.store, "acme", "alice", device, "a finding", FleetLimits(), time.time()))
    return alice(server)


def alice(server: AdminServer) -> pb.Subject:
    asked = admin_pb2.GetResourceRequest(name="tenants/acme/subjects/alice")
    return server.stub.GetResource(asked).resource.subject  # type: ignore[no-any-return]


def test_suspicion_is_not_shed_by_deleting_and_putting_again(server: AdminServer) -> None:
    device = pb.Device(name="tenants/acme/devices/phone", subject="alice", components={"os": b"a" * 16}, key_id="k1")
    other = pb.Device(name="tenants/acme/devices/phone", subject="alice", components={"os": b"b" * 16}, key_id="k1")
    put(server, device=device)
    assert len(mark(server).suspects) == 1
    settings(server, blocks=True)
    for door in (
        lambda: delete(server, "tenants/acme/subjects/alice"),
        lambda: load(server, "COLLECTION_SUBJECTS", replace=True),
        lambda: put(server, device=other),
        lambda: delete(server, device.name),
        lambda: load(server, "COLLECTION_DEVICES", {"device": other}),
        lambda: load(server, "COLLECTION_DEVICES", replace=True),
    ):
        assert "change_control.blocks of the settings: needs a second person" in refused(DENIED, door)
    assert len(alice(server).suspects) == 1
    assert load(server, "COLLECTION_DEVICES", {"device": device}).unchanged == 1


def test_an_import_that_does_not_mention_what_is_kept_lifts_nothing(server: AdminServer) -> None:
    """It was judged before what a put leaves alone was put back, and refused for lifting it."""
    mark(server)
    recovered = pb.Subject(name="tenants/acme/subjects/bob", state="SUBJECT_STATE_ACTIVE")
    recovered.recover_time.FromSeconds(1_700_000_000)
    put(server, subject=recovered)
    settings(server, blocks=True)
    records = [
        {"subject": pb.Subject(name=f"tenants/acme/subjects/{name}", state="SUBJECT_STATE_ACTIVE", roles=["staff"])}
        for name in ("alice", "bob")
    ]
    assert load(server, "COLLECTION_SUBJECTS", *records, replace=True).updated == 2
    assert (list(alice(server).roles), len(alice(server).suspects)) == (["staff"], 1)
    asked = admin_pb2.GetResourceRequest(name="tenants/acme/subjects/bob")
    assert server.stub.GetResource(asked).resource.subject.recover_time == recovered.recover_time
    records[1]["subject"].recover_time.FromSeconds(1_600_000_000)
    assert "needs a second person" in refused(DENIED, load, server, "COLLECTION_SUBJECTS", *records)
    records[1]["subject"].recover_time.FromSeconds(int(time.time()) + 86_400)
    assert refused(INVALID, load, server, "COLLECTION_SUBJECTS", *records).startswith(
        "resources[1].subject.recover_time"
    )


# Findings


def finding(server: AdminServer, *devices: str) -> str:
    """An open finding about devices of alice, with its effect."""
    for device in devices:
        mark(server, device)
    record = usage_pb2.FleetFinding(
        name="tenants/acme/findings/f1",
        state=usage_pb2.FINDING_STATE_OPEN,
        subjects=24,
        devices=[usage_pb2.FleetDevice(subject="alice", device=device) for device in devices],
    )
    record.first_time.FromSeconds(1_800_000_000)
    record.last_time.GetCurrentTime()
    known = server.run(server.store.findings.get("acme", "f1"))
    server.run(server.store.findings.put("acme", "f1", record, known))
    return record.name


def settle(server: AdminServer, name: str, state: str, who: Any = ANN) -> usage_pb2.SettleFindingResponse:
    asked = usage_pb2.SettleFindingRequest(name=name, state=f"FINDING_STATE_{state}", reason="a kiosk")
    return server.usage.SettleFinding(asked, metadata=who)  # type: ignore[no-any-return]


def test_a_finding_is_applied_by_one_and_dismissed_by_two(server: AdminServer) -> None:
    name = finding(server, "phone")
    settings(server, blocks=True)
    assert "change_control.blocks of the settings" in refused(DENIED, settle, server, name, "DISMISSED")
    assert len(alice(server).suspects) == 1
    assert "nobody knows" in refused(DENIED, propose, server, NOBODY, dismiss=name, reason="a kiosk")
    assert refused(INVALID, propose, server, dismiss=name).startswith("reason: ")
    proposal = propose(server, dismiss=name, reason="a kiosk")
    assert (proposal.dismiss, list(proposal.rules)) == (name, ["change_control.blocks"])
    assert "second person" in refused(DENIED, agree, server, proposal, ANN)
    assert len(alice(server).suspects) == 1
    done = agree(server, proposal).proposal
    assert (done.state, done.decider) == (audit_pb2.PROPOSAL_STATE_APPROVED, "ben")
    assert not alice(server).suspects
    kept = server.run(server.store.findings.get("acme", "f1"))
    assert (kept.state, kept.actor, kept.reason) == (usage_pb2.FINDING_STATE_DISMISSED, "ben", "looked at")
    assert "is approved already" in refused(DENIED, agree, server, proposal)
    told = [audit_pb2.AuditEntry.FromString(row.entry) for _, row in server.run(server.store.audit.read("acme", 0, 99))]
    assert [entry.action for entry in told if entry.outcome == audit_pb2.AUDIT_OUTCOME_DONE][-2:] == [
        "finding.dismiss",
        "proposal.approve",
    ]


def test_applying_a_finding_waits_for_nobody(server: AdminServer) -> None:
    put(server, device=pb.Device(name="tenants/acme/devices/phone", subject="alice"))
    name = finding(server, "phone")
    settings(server, blocks=True)
    assert settle(server, name, "APPLIED").changed == 1


def test_a_finding_that_is_about_more_by_now_is_not_dismissed(server: AdminServer) -> None:
    name = finding(server, "phone")
    proposal = propose(server, dismiss=name, reason="a kiosk")
    finding(server, "phone", "tablet")
    assert "has changed since this was proposed" in refused(DENIED, agree, server, proposal)
    assert len(alice(server).suspects) == 2
    server.proposals.WithdrawProposal(audit_pb2.WithdrawProposalRequest(name=proposal.name), metadata=ANN)
    settle(server, name, "DISMISSED")
    assert "was settled by ann" in refused(DENIED, propose, server, dismiss=name, reason="again")


@pytest.mark.parametrize(
    ("name", "code"), [("tenants/acme/findings/none", GONE), ("tenants/acme/subjects/alice", INVALID), ("", INVALID)]
)
def test_no_other_thing_is_dismissed(server: AdminServer, name: str, code: grpc.StatusCode) -> None:
    refused(code, propose, server, dismiss=name, reason="x")
