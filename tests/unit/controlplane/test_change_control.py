"""Which changes need a second person: as a table, and that none gets round it through the admin API."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st
from sidestep.v1 import admin_pb2 as api
from sidestep.v1 import audit_pb2
from sidestep.v1 import resources_pb2 as pb

from controlplane.actor import system
from controlplane.audit import Note, verify
from controlplane.changecontrol import RULES, Change, concerns, guarded
from controlplane.errors import RefusedError
from controlplane.store import Write
from engine.names import Collection
from tests.fakes.admin import AdminServer
from tests.fakes.operators import OperatorFiles, bearer, said

NOW = 1_800_000_000.0
ALL = pb.ChangeControl(policies=True, keys=True, settings=True, posture=True, kill_switch=True, blocks=True)
ALICE, BOB = said("alice"), said("bob")


def posture(level: str, off: bool = False) -> pb.Posture:
    return pb.Posture(name="tenants/acme/postures/default", level=f"POSTURE_LEVEL_{level}", exemptions_off=off)


def subject(state: str) -> pb.Subject:
    return pb.Subject(name="tenants/acme/subjects/mallory", state=f"SUBJECT_STATE_{state}")


def standing(trust: str, of: str = "mallory") -> pb.DeviceState:
    return pb.DeviceState(name="tenants/acme/deviceStates/d1", subject=of, trust=f"DEVICE_TRUST_{trust}")


def session(expire_in_s: float) -> pb.RevokedSession:
    record = pb.RevokedSession(name="tenants/acme/revokedSessions/s1")
    record.expire_time.FromNanoseconds(int((NOW + expire_in_s) * 1e9))
    return record


def settings(**control: Any) -> pb.Settings:
    return pb.Settings(name="tenants/acme/settings/default", change_control=pb.ChangeControl(**control))


def rules(collection: Collection, before: Any, after: Any, control: pb.ChangeControl = ALL, **more: Any) -> list[str]:
    found = guarded(control, Change(collection, before, after, **more), NOW)
    assert not found or concerns(control, collection)
    return [rule.removeprefix("change_control.") for rule in found]


POSTURES, STATES, SESSIONS = Collection.POSTURES, Collection.DEVICE_STATES, Collection.REVOKED_SESSIONS


@pytest.mark.parametrize(
    ("collection", "before", "after", "expected"),
    [
        (POSTURES, None, posture("HIGH"), []),
        (POSTURES, posture("LOW"), posture("CRITICAL", off=True), []),
        (POSTURES, posture("HIGH"), posture("HIGH"), []),
        (POSTURES, posture("HIGH"), posture("ELEVATED"), ["posture"]),
        (POSTURES, posture("CRITICAL"), posture("HIGH", off=True), ["posture"]),
        (POSTURES, posture("HIGH"), None, ["posture"]),
        (POSTURES, pb.Posture(), posture("HIGH"), ["posture"]),
        (POSTURES, posture("LOW", off=True), posture("LOW"), ["kill_switch"]),
        (POSTURES, posture("LOW", off=True), posture("HIGH"), ["kill_switch"]),
        (POSTURES, posture("HIGH", off=True), None, ["posture", "kill_switch"]),
        (POSTURES, posture("LOW"), posture("LOW", off=True), []),
        (Collection.SUBJECTS, subject("DISABLED"), subject("ACTIVE"), ["blocks"]),
        (Collection.SUBJECTS, subject("DISABLED"), None, ["blocks"]),
        (Collection.SUBJECTS, subject("UNSPECIFIED"), subject("ACTIVE"), ["blocks"]),
        (Collection.SUBJECTS, subject("DISABLED"), subject("DISABLED"), []),
        (Collection.SUBJECTS, subject("ACTIVE"), subject("DISABLED"), []),
        (Collection.SUBJECTS, subject("ACTIVE"), None, []),
        (Collection.SUBJECTS, None, subject("ACTIVE"), []),
        (STATES, standing("QUARANTINED"), standing("ACTIVE"), ["blocks"]),
        (STATES, standing("QUARANTINED"), None, ["blocks"]),
        (STATES, standing("UNSPECIFIED"), standing("ACTIVE"), ["blocks"]),
        (STATES, standing("REVOKED"), standing("QUARANTINED"), ["blocks"]),
        (STATES, standing("REVOKED"), standing("REVOKED", of="dummy"), ["blocks"]),
        (STATES, standing("QUARANTINED"), standing("REVOKED"), []),
        (STATES, standing("ACTIVE"), standing("QUARANTINED"), []),
        (STATES, standing("ACTIVE"), None, []),
        (STATES, None, standing("ACTIVE"), []),
        (SESSIONS, session(60), None, ["blocks"]),
        (SESSIONS, session(60), session(59), ["blocks"]),
        (SESSIONS, session(60), session(61), []),
        (SESSIONS, session(0), None, []),
        (SESSIONS, None, session(60), []),
        (Collection.POLICIES, None, pb.Policy(), ["policies"]),
        (Collection.POLICIES, pb.Policy(), None, ["policies"]),
        (Collection.KEYS, pb.Key(), pb.Key(issuer="x"), ["keys"]),
        (Collection.KEYS, pb.Key(), None, ["keys"]),
        (Collection.GRANTS, pb.Grant(), None, []),
        (Collection.SIGNALS, pb.Signal(), None, []),
        (Collection.POLICIES, None, None, []),
    ],
)
def test_what_needs_a_second_person(collection: Collection, before: Any, after: Any, expected: list[str]) -> None:
    assert rules(collection, before, after) == expected
    assert rules(collection, before, after, pb.ChangeControl()) == []
    for rule in expected:
        assert rules(collection, before, after, pb.ChangeControl(**{rule: True})) == [rule]


def test_a_blocked_device_keeps_what_it_is_known_by() -> None:
    before, after = pb.Device(subject="mallory", jkt="a"), pb.Device(subject="mallory", jkt="b")
    for trust in ("QUARANTINED", "REVOKED", "UNSPECIFIED"):
        assert rules(Collection.DEVICES, before, after, twin=standing(trust)) == ["blocks"]
        assert rules(Collection.DEVICES, before, None, twin=standing(trust)) == ["blocks"]
        assert rules(Collection.DEVICES, None, after, twin=standing(trust)) == ["blocks"]
        assert rules(Collection.DEVICES, before, before, twin=standing(trust)) == []
    assert rules(Collection.DEVICES, before, after, twin=standing("ACTIVE")) == []
    assert rules(Collection.DEVICES, before, after) == []


@pytest.mark.parametrize("rule", RULES)
def test_change_control_cannot_be_weakened_alone_whatever_it_guards(rule: str) -> None:
    control = pb.ChangeControl(**{rule: True})
    others = ["settings"] if rule == "settings" else []
    for after in (None, settings(), settings(**{other: True for other in RULES if other != rule})):
        assert rules(Collection.SETTINGS, settings(**{rule: True}), after, control) == [*others, "change_control"]
    stronger = settings(**dict.fromkeys(RULES, True))
    assert rules(Collection.SETTINGS, settings(**{rule: True}), stronger, control) == others
    longer = settings(**{rule: True}, proposal_lifetime=Duration(seconds=8 * 86400))
    assert rules(Collection.SETTINGS, settings(**{rule: True}), longer, control) == [*others, "change_control"]
    shorter = settings(**{rule: True}, proposal_lifetime=Duration(seconds=3600))
    assert rules(Collection.SETTINGS, settings(**{rule: True}), shorter, control) == others


def bounded(class_id: str, **bounds: Any) -> pb.GrantClass:
    """A class of two approvals, unless it is said otherwise."""
    stated: dict[str, Any] = {
        "approvals": 2,
        "ceiling": pb.Requirement(acr="nist-aal2", max_age=Duration(seconds=3600)),
        "max_validity": Duration(seconds=86_400),
        "review_every": Duration(seconds=86_400),
        "scopes": ["GRANT_SCOPE_SUBJECT", "GRANT_SCOPE_DEVICE"],
        "ticket_required": True,
    }
    return pb.GrantClass(id=class_id, **{**stated, **bounds})


@pytest.mark.parametrize(
    ("approvals", "guarded_change"),
    # A class besides it that wants fewer would be a way round it.
    [([2], False), ([3], False), ([1], True), ([0], True), ([], True), ([2, 0], True), ([2, 1], True), ([2, 2], False)],
)
def test_the_approvals_of_a_grant_class_cannot_be_lowered_alone(approvals: list[int], guarded_change: bool) -> None:
    def classes(*wanted: int) -> pb.Settings:
        record = settings(posture=True)
        for index, number in enumerate(wanted):
            record.grant_classes.append(bounded(f"c{index}", approvals=number))
        return record

    expected = ["change_control"] if guarded_change else []
    assert rules(Collection.SETTINGS, classes(2), classes(*approvals), pb.ChangeControl(posture=True)) == expected
    assert rules(Collection.SETTINGS, classes(2), classes(*approvals), pb.ChangeControl()) == []


LONGER, SHORTER = Duration(seconds=172_800), Duration(seconds=1800)
UP = pb.Requirement(acr="nist-aal3", max_age=Duration(seconds=3600))
SOONER = pb.Requirement(acr="nist-aal2", max_age=SHORTER)
DOWN = pb.Requirement(acr="nist-aal1", max_age=Duration(seconds=7200))


@pytest.mark.parametrize(
    ("bounds", "looser"),
    [
        ({"ceiling": UP}, True),
        ({"ceiling": SOONER}, True),
        ({"ceiling": DOWN}, False),
        ({"max_validity": LONGER}, True),
        ({"max_validity": SHORTER}, False),
        ({"review_every": LONGER}, True),
        ({"review_every": None}, True),
        ({"review_every": SHORTER}, False),
        ({"ticket_required": False}, True),
        ({"budget_required": True, "condition_required": True}, False),
        ({"scopes": []}, True),
        ({"scopes": ["GRANT_SCOPE_ROLE"]}, True),
        ({"scopes": ["GRANT_SCOPE_DEVICE"]}, False),
        ({"approvals": 1}, True),
    ],
)
def test_one_person_only_tightens_what_bounds_grants(bounds: dict[str, Any], looser: bool) -> None:
    before, changed, added = settings(keys=True), settings(keys=True), settings(keys=True)
    before.grant_classes.append(bounded("default"))
    changed.grant_classes.append(bounded("default", **bounds))
    added.grant_classes.extend([bounded("default"), bounded("other", **bounds)])
    for after in (changed, added):
        assert rules(Collection.SETTINGS, before, after, pb.ChangeControl(keys=True)) == ["change_control"] * looser
        # Without change control, one person may.
        assert rules(Collection.SETTINGS, before, after, pb.ChangeControl()) == []


def test_classes_of_grants_begin_alone_and_do_not_end_alone() -> None:
    none, one, covering = settings(keys=True), settings(keys=True), settings(keys=True)
    one.grant_classes.append(bounded("default", approvals=0))
    control = pb.ChangeControl(keys=True)
    assert rules(Collection.SETTINGS, none, one, control) == []
    assert rules(Collection.SETTINGS, one, none, control) == ["change_control"]
    # What a ceiling covers also changes with the order of the levels.
    covering.CopyFrom(one)
    covering.acr_edges.add(higher="nist-aal2", lower="phrh")
    assert rules(Collection.SETTINGS, one, covering, control) == ["change_control"]
    assert rules(Collection.SETTINGS, covering, one, control) == []


def test_a_class_that_is_not_understood_stands_in_nobodys_way_and_is_not_changed_alone() -> None:
    before, other, changed = settings(keys=True), settings(keys=True, posture=True), settings(keys=True)
    for record, scopes in ((before, [99]), (other, [99]), (changed, [98])):
        record.grant_classes.append(bounded("default", scopes=scopes))
    control = pb.ChangeControl(keys=True)
    assert rules(Collection.SETTINGS, before, other, control) == []
    assert rules(Collection.SETTINGS, before, changed, control) == ["change_control"]


@pytest.mark.parametrize(
    ("limits", "looser"),
    [
        ({}, False),
        (None, True),
        ({"max_rate": 0.03}, True),
        ({"max_rate": 0.01}, False),
        ({"min_samples": 51}, True),
        ({"min_samples": 49}, False),
        ({"reopen_after": Duration(seconds=3600)}, True),
        ({"reopen_after": Duration(seconds=10_800)}, False),
        ({"window": Duration(seconds=3600)}, True),
        ({"steps": [0.01]}, True),
    ],
)
def test_a_breaker_is_not_loosened_alone(limits: dict[str, Any] | None, looser: bool) -> None:
    stated = {
        "max_rate": 0.02,
        "min_samples": 50,
        "window": Duration(seconds=604_800),
        "reopen_after": Duration(seconds=7200),
    }
    before, after = settings(keys=True), settings(keys=True)
    before.breakers.append(pb.ClassBreaker(**stated))
    if limits is not None:
        after.breakers.append(pb.ClassBreaker(**{**stated, **limits}))
    assert rules(Collection.SETTINGS, before, after, pb.ChangeControl(keys=True)) == ["change_control"] * looser


def class_state(state: str, since: int = 100, **more: Any) -> pb.GrantClassState:
    record = pb.GrantClassState(name="tenants/acme/grantClasses/default", state=f"CLASS_STATE_{state}", **more)
    record.since_time.FromSeconds(since)
    return record


CLASSES = Collection.GRANT_CLASSES
SUSPENDED, HELD = class_state("SUSPENDED", trips=2), class_state("SUSPENDED", trips=2, held=True)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (None, SUSPENDED, []),
        (class_state("ACTIVE"), HELD, []),
        (class_state("REOPENING", spot_check_rate=0.5), SUSPENDED, []),
        (SUSPENDED, HELD, []),
        (SUSPENDED, class_state("SUSPENDED", since=200, trips=3), []),
        (HELD, None, ["kill_switch"]),
        (SUSPENDED, None, ["kill_switch"]),
        (SUSPENDED, class_state("REOPENING", spot_check_rate=0.5, trips=2), ["kill_switch"]),
        (HELD, class_state("ACTIVE", trips=2), ["kill_switch"]),
        (HELD, SUSPENDED, ["kill_switch"]),
        (SUSPENDED, class_state("SUSPENDED", since=99, trips=2), ["kill_switch"]),
        (SUSPENDED, class_state("SUSPENDED", trips=1), ["kill_switch"]),
        (class_state("REOPENING", spot_check_rate=0.5), class_state("ACTIVE"), ["kill_switch"]),
        (class_state("REOPENING", spot_check_rate=0.5), class_state("REOPENING", spot_check_rate=0.1), ["kill_switch"]),
        # From then on only newer spot checks would count, and what made it trip is forgotten.
        (None, class_state("ACTIVE"), ["kill_switch"]),
        (class_state("ACTIVE", trips=1), class_state("ACTIVE"), ["kill_switch"]),
        (class_state("ACTIVE", trips=1), None, ["kill_switch"]),
        (class_state("ACTIVE"), None, []),
    ],
)
def test_one_person_suspends_a_class_and_two_resume_it(before: Any, after: Any, expected: list[str]) -> None:
    assert rules(CLASSES, before, after) == expected
    assert rules(CLASSES, before, after, pb.ChangeControl(kill_switch=True)) == expected
    assert rules(CLASSES, before, after, pb.ChangeControl(posture=True, blocks=True)) == []


def suspect(*marks: tuple[str, float]) -> pb.Subject:
    record = subject("ACTIVE")
    for device, left_s in marks:
        mark = record.suspects.add(device=device, guard="shared-fingerprint")
        mark.expire_time.FromNanoseconds(int((NOW + left_s) * 1e9))
    return record


def test_suspicion_of_a_device_is_not_shed_alone() -> None:
    subjects, devices = Collection.SUBJECTS, Collection.DEVICES
    assert rules(subjects, suspect(("d1", 60)), None) == ["blocks"]
    assert rules(subjects, suspect(("d1", 60)), suspect()) == ["blocks"]
    assert rules(subjects, suspect(("d1", 60)), suspect(("d1", 59))) == ["blocks"]
    assert rules(subjects, suspect(("d1", 60)), suspect(("d1", 60), ("d2", 60))) == []
    assert rules(subjects, suspect(("d1", 0)), None) == []
    before, after = (
        pb.Device(name="tenants/acme/devices/d1", subject="mallory", components={"os": value}) for value in (b"1", b"2")
    )
    assert rules(devices, before, after, owner=suspect(("d1", 60))) == ["blocks"]
    assert rules(devices, before, None, owner=suspect(("d1", 60))) == ["blocks"]
    assert rules(devices, before, after, owner=suspect(("d2", 60))) == []
    assert rules(devices, before, after, owner=suspect(("d1", 0))) == []


def test_what_voids_a_subjects_past_cannot_be_taken_back_alone() -> None:
    def recovered(at: int) -> pb.Subject:
        record = subject("ACTIVE")
        if at:
            record.recover_time.FromSeconds(at)
        return record

    assert rules(Collection.SUBJECTS, recovered(100), recovered(0)) == ["blocks"]
    assert rules(Collection.SUBJECTS, recovered(100), recovered(99)) == ["blocks"]
    assert rules(Collection.SUBJECTS, recovered(100), recovered(101)) == []
    assert rules(Collection.SUBJECTS, recovered(0), recovered(100)) == []
    # Deleted and put again it would be forgotten.
    assert rules(Collection.SUBJECTS, recovered(100), None) == ["blocks"]
    assert rules(Collection.SUBJECTS, recovered(0), None) == []


def test_without_change_control_settings_are_free() -> None:
    assert rules(Collection.SETTINGS, settings(), None, pb.ChangeControl()) == []
    assert rules(Collection.SETTINGS, None, settings(policies=True), pb.ChangeControl()) == []


LEVELS = st.sampled_from(["LOW", "ELEVATED", "HIGH", "CRITICAL"])
POSTURE = st.none() | st.builds(posture, LEVELS, st.booleans())
SUBJECT = st.none() | st.builds(subject, st.sampled_from(["ACTIVE", "DISABLED", "UNSPECIFIED"]))
TRUSTS = st.sampled_from(["ACTIVE", "QUARANTINED", "REVOKED", "UNSPECIFIED"])
STANDING = st.none() | st.builds(standing, TRUSTS, st.sampled_from(["mallory", "other"]))
CONTROL = st.builds(pb.ChangeControl, **{rule: st.booleans() for rule in RULES})


def protection(world: dict[str, Any]) -> dict[str, int]:
    """How well each thing protects, said in another way than the code says it."""
    level = (
        -1
        if world["posture"] is None
        else ["LOW", "ELEVATED", "HIGH", "CRITICAL"].index(
            pb.PostureLevel.Name(world["posture"].level).rpartition("_")[2]
        )
    )
    state = world["standing"]
    trusted = state is None or state.trust == pb.DEVICE_TRUST_ACTIVE
    return {
        "posture": max(level, 0),
        "kill_switch": int(world["posture"] is not None and world["posture"].exemptions_off),
        "subject": int(world["subject"] is not None and world["subject"].state != pb.SUBJECT_STATE_ACTIVE),
        "mallorys device": 0 if trusted or state.subject != "mallory" else 1 + (state.trust == pb.DEVICE_TRUST_REVOKED),
        **{f"rule {rule}": int(getattr(world["settings"].change_control, rule)) for rule in RULES},
    }


@given(
    POSTURE,
    SUBJECT,
    STANDING,
    st.lists(
        st.one_of(
            st.tuples(st.just("posture"), POSTURE),
            st.tuples(st.just("subject"), SUBJECT),
            st.tuples(st.just("standing"), STANDING),
            st.tuples(st.just("settings"), CONTROL.map(lambda control: pb.Settings(change_control=control))),
        ),
        max_size=30,
    ),
)
def test_one_person_alone_only_ever_adds_protection(
    before: Any, victim: Any, state: Any, attempts: list[tuple[str, Any]]
) -> None:
    world = {"posture": before, "subject": victim, "standing": state, "settings": pb.Settings(change_control=ALL)}
    collections = {"posture": POSTURES, "subject": Collection.SUBJECTS, "standing": STATES}
    collections["settings"] = Collection.SETTINGS
    for what, after in attempts:
        strength = protection(world)
        change = Change(collections[what], world[what], after)
        if not guarded(world["settings"].change_control, change, NOW):
            world[what] = after
        assert all(protection(world)[part] >= least for part, least in strength.items()), (what, after)


# Through the admin API

SOURCE = """apiVersion: sidestep.dev/v1
kind: Policy
metadata: {name: payments, tenant: acme}
spec:
  match: {actions: ["payments.*"]}
  require: {acr: nist-aal2, maxAge: 12h}
"""
POLICY = pb.Policy(name="tenants/acme/policies/payments", source=SOURCE)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[AdminServer]:
    with AdminServer(tmp_path) as running:
        yield running


def put(server: AdminServer, metadata: Any = ALICE, validate_only: bool = False, **record: Any) -> Any:
    request = api.PutResourceRequest(resource=pb.Resource(**record), validate_only=validate_only)
    return server.stub.PutResource(request, metadata=metadata)


def delete(server: AdminServer, name: str) -> Any:
    return server.stub.DeleteResource(api.DeleteResourceRequest(name=name), metadata=ALICE)


def control(server: AdminServer, **rules: bool) -> None:
    put(server, settings=settings(**rules))


def propose(server: AdminServer, metadata: Any = ALICE, **request: Any) -> audit_pb2.Proposal:
    request = {key: pb.Resource(**value) if key == "put" else value for key, value in request.items()}
    response = server.proposals.CreateProposal(audit_pb2.CreateProposalRequest(**request), metadata=metadata)
    proposal: audit_pb2.Proposal = response.proposal
    return proposal


def approve(server: AdminServer, proposal: audit_pb2.Proposal, metadata: Any = BOB) -> audit_pb2.Proposal:
    request = audit_pb2.ApproveProposalRequest(name=proposal.name, reason="looks right")
    approved: audit_pb2.Proposal = server.proposals.ApproveProposal(request, metadata=metadata).proposal
    return approved


def refused(code: grpc.StatusCode, call: Any, *args: Any, **more: Any) -> str:
    with pytest.raises(grpc.RpcError) as error:
        call(*args, **more)
    assert error.value.code() is code, error.value.details()
    return str(error.value.details())


PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION


def entries(server: AdminServer) -> list[audit_pb2.AuditEntry]:
    records = [record for _, record in server.run(server.store.audit.read("acme", 0, 1000))]
    assert list(verify("acme", records, server.run(server.store.audit.head("acme")))) == []
    return [audit_pb2.AuditEntry.FromString(record.entry) for record in records]


def test_a_guarded_write_without_a_proposal_is_refused_by_the_rules_name(server: AdminServer) -> None:
    control(server, policies=True)
    details = refused(PRECONDITION, put, server, policy=POLICY)
    assert details.startswith("tenants/acme/policies/payments: change_control.policies of the settings: needs a second")
    assert list(put(server, validate_only=True, policy=POLICY).guarded_by) == ["change_control.policies"]
    assert entries(server)[-1].outcome == audit_pb2.AUDIT_OUTCOME_REFUSED
    assert entries(server)[-1].detail == details


def test_a_second_person_makes_the_change(server: AdminServer) -> None:
    control(server, policies=True)
    proposal = propose(server, put={"policy": POLICY}, reason="new product", ticket="SEC-1")
    assert proposal.state == audit_pb2.PROPOSAL_STATE_PENDING
    assert (proposal.proposer, list(proposal.rules)) == ("alice", ["change_control.policies"])
    approved = approve(server, proposal)
    assert (approved.state, approved.decider) == (audit_pb2.PROPOSAL_STATE_APPROVED, "bob")
    read = server.stub.GetResource(api.GetResourceRequest(name=POLICY.name)).resource.policy
    assert (read.source, read.version) == (SOURCE, 1)
    _, created, done = entries(server)
    assert (created.action, created.actor, created.name) == ("proposal.create", "alice", proposal.name)
    assert not created.HasField("revision")
    assert (done.action, done.actor, done.name) == ("proposal.approve", "bob", POLICY.name)
    assert (done.reason, done.ticket) == ("looks right", "SEC-1")
    assert f"{proposal.name} of alice" in done.detail
    assert done.revision == approved.revision
    assert done.after_digest


@pytest.mark.parametrize("metadata", [ALICE, said("Alice"), None])
def test_the_proposer_and_nobody_in_particular_may_not_approve(server: AdminServer, metadata: Any) -> None:
    control(server, policies=True)
    proposal = propose(server, put={"policy": POLICY})
    assert "needs a second person" in refused(PRECONDITION, approve, server, proposal, metadata)
    last = entries(server)[-1]
    assert (last.action, last.outcome) == ("proposal.approve", audit_pb2.AUDIT_OUTCOME_REFUSED)
    refused(grpc.StatusCode.NOT_FOUND, server.stub.GetResource, api.GetResourceRequest(name=POLICY.name))


def test_nobody_in_particular_may_not_propose(server: AdminServer) -> None:
    assert "nobody knows" in refused(PRECONDITION, propose, server, None, put={"policy": POLICY})


def test_a_changed_base_makes_the_approval_fail(server: AdminServer) -> None:
    put(server, posture=posture("HIGH"))
    control(server, posture=True)
    proposal = propose(server, put={"posture": posture("LOW")})
    put(server, posture=posture("CRITICAL"))
    assert "has changed since this was proposed" in refused(PRECONDITION, approve, server, proposal)
    read = server.stub.GetResource(api.GetResourceRequest(name="tenants/acme/postures/default")).resource.posture
    assert read.level == pb.POSTURE_LEVEL_CRITICAL


def test_a_proposal_is_decided_once(server: AdminServer) -> None:
    proposal = propose(server, put={"policy": POLICY})
    assert "is so already" in refused(PRECONDITION, propose, server, put={"policy": approve_twice(server, proposal)})
    reject = audit_pb2.RejectProposalRequest(name=proposal.name)
    assert "is approved already" in refused(PRECONDITION, server.proposals.RejectProposal, reject, metadata=BOB)


def approve_twice(server: AdminServer, proposal: audit_pb2.Proposal) -> pb.Policy:
    approve(server, proposal)
    assert "is approved already" in refused(PRECONDITION, approve, server, proposal)
    return POLICY


def test_a_rejected_or_withdrawn_proposal_changes_nothing(server: AdminServer) -> None:
    control(server, policies=True)
    first, second = propose(server, put={"policy": POLICY}), propose(server, put={"policy": POLICY})
    withdraw = audit_pb2.WithdrawProposalRequest(name=first.name, reason="mistake")
    assert "only alice can" in refused(PRECONDITION, server.proposals.WithdrawProposal, withdraw, metadata=BOB)
    gone = server.proposals.WithdrawProposal(withdraw, metadata=ALICE).proposal
    assert (gone.state, gone.decide_reason) == (audit_pb2.PROPOSAL_STATE_WITHDRAWN, "mistake")
    reject = audit_pb2.RejectProposalRequest(name=second.name)
    assert "second person" in refused(PRECONDITION, server.proposals.RejectProposal, reject, metadata=ALICE)
    server.proposals.RejectProposal(reject, metadata=BOB)
    for proposal in (first, second):
        assert "already" in refused(PRECONDITION, approve, server, proposal)
    refused(grpc.StatusCode.NOT_FOUND, server.stub.GetResource, api.GetResourceRequest(name=POLICY.name))
    actions = [entry.action for entry in entries(server) if entry.outcome == audit_pb2.AUDIT_OUTCOME_DONE]
    assert actions == ["put", "proposal.create", "proposal.create", "proposal.withdraw", "proposal.reject"]


def test_an_expired_proposal_cannot_be_approved(server: AdminServer, monkeypatch: pytest.MonkeyPatch) -> None:
    proposal = propose(server, put={"policy": POLICY})
    later = time.time() + 7 * 86400 + 1
    monkeypatch.setattr("controlplane.api.proposals.time.time", lambda: later)
    assert "is expired already" in refused(PRECONDITION, approve, server, proposal)
    found = server.proposals.GetProposal(audit_pb2.GetProposalRequest(name=proposal.name)).proposal
    assert found.state == audit_pb2.PROPOSAL_STATE_EXPIRED
    pending = audit_pb2.ListProposalsRequest(parent="tenants/acme", pending_only=True)
    assert not server.proposals.ListProposals(pending).proposals


def test_tightening_is_immediate_and_relaxing_is_not(server: AdminServer) -> None:
    control(server, posture=True, kill_switch=True)
    put(server, posture=posture("HIGH"))
    put(server, posture=posture("HIGH", off=True))
    assert "change_control.posture of" in refused(PRECONDITION, put, server, posture=posture("LOW", off=True))
    assert "change_control.kill_switch of" in refused(PRECONDITION, put, server, posture=posture("HIGH"))
    both = refused(PRECONDITION, delete, server, "tenants/acme/postures/default")
    assert "change_control.posture and change_control.kill_switch" in both
    approve(server, propose(server, delete="tenants/acme/postures/default"))
    name = api.GetResourceRequest(name="tenants/acme/postures/default")
    refused(grpc.StatusCode.NOT_FOUND, server.stub.GetResource, name)


def test_turning_change_control_off_needs_two(server: AdminServer) -> None:
    control(server, posture=True)
    assert "change_control of the settings" in refused(PRECONDITION, control, server)
    refused(PRECONDITION, delete, server, "tenants/acme/settings/default")
    control(server, posture=True, keys=True)
    approve(server, propose(server, put={"settings": settings()}))
    put(server, key=pb.Key(name="tenants/acme/keys/k1", kind="KEY_KIND_TENANT"))


def test_an_import_cannot_go_round_it(server: AdminServer) -> None:
    put(server, subject=subject("DISABLED"))
    put(server, device=pb.Device(name="tenants/acme/devices/d1", subject="mallory", jkt="a" * 43))
    put(server, device_state=standing("REVOKED"))
    recovered = pb.Subject(name="tenants/acme/subjects/bob", state="SUBJECT_STATE_ACTIVE")
    earlier = pb.Subject(name="tenants/acme/subjects/bob", state="SUBJECT_STATE_ACTIVE")
    recovered.recover_time.FromSeconds(1_700_000_000)
    earlier.recover_time.FromSeconds(1_600_000_000)
    put(server, subject=recovered)
    control(server, policies=True, blocks=True)

    def importing(collection: str, *records: Any, replace: bool = True) -> Any:
        start = api.ImportStart(parent="tenants/acme", collection=collection, replace=replace, force=True)
        batch = api.ImportBatch(resources=[pb.Resource(**record) for record in records])
        messages = [{"start": start}, {"batch": batch}, {"commit": api.ImportCommit(count=len(records))}]
        asked = iter([api.ImportResourcesRequest(**message) for message in messages])
        return server.stub.ImportResources(asked, metadata=ALICE)

    before = server.run(server.store.heads(["acme"]))
    other = pb.Subject(name="tenants/acme/subjects/alice", state="SUBJECT_STATE_ACTIVE")
    device = pb.Device(name="tenants/acme/devices/d1", subject="mallory", jkt="b" * 43)
    for attempt in (
        ("COLLECTION_POLICIES", {"policy": POLICY}),
        ("COLLECTION_SUBJECTS", {"subject": other}),
        ("COLLECTION_SUBJECTS", {"subject": other}, {"subject": subject("ACTIVE")}),
        ("COLLECTION_SUBJECTS", {"subject": subject("DISABLED")}, {"subject": earlier}),
        ("COLLECTION_DEVICE_STATES",),
        ("COLLECTION_DEVICE_STATES", {"device_state": standing("QUARANTINED")}),
        ("COLLECTION_DEVICES",),
        ("COLLECTION_DEVICES", {"device": device}),
    ):
        assert "needs a second person" in refused(PRECONDITION, importing, *attempt), attempt
    # Nothing of any of them was written.
    assert server.run(server.store.heads(["acme"])) == before
    importing("COLLECTION_SUBJECTS", {"subject": other}, {"subject": subject("DISABLED")}, {"subject": recovered})
    importing("COLLECTION_SUBJECTS", {"subject": other}, replace=False)


def test_deleting_and_putting_again_or_registering_late_lifts_no_block(server: AdminServer) -> None:
    recovered = pb.Subject(name="tenants/acme/subjects/bob", state="SUBJECT_STATE_ACTIVE")
    recovered.recover_time.FromSeconds(1_700_000_000)
    put(server, subject=recovered)
    put(server, subject=pb.Subject(name="tenants/acme/subjects/mallory", state="SUBJECT_STATE_ACTIVE"))
    # Blocked before anything of it is registered: with made-up components every evidence would rule it out.
    put(server, device_state=standing("REVOKED"))
    control(server, blocks=True)
    device = pb.Device(name="tenants/acme/devices/d1", subject="mallory", jkt="b" * 43)
    refused(PRECONDITION, delete, server, "tenants/acme/subjects/bob")
    refused(PRECONDITION, put, server, device=device)
    start = api.ImportStart(parent="tenants/acme", collection="COLLECTION_DEVICES")
    batch = api.ImportBatch(resources=[pb.Resource(device=device)])
    messages = [{"start": start}, {"batch": batch}, {"commit": api.ImportCommit(count=1)}]
    asked = iter([api.ImportResourcesRequest(**message) for message in messages])
    refused(PRECONDITION, server.stub.ImportResources, asked, metadata=ALICE)
    delete(server, "tenants/acme/subjects/mallory")


def test_a_change_that_is_no_longer_valid_is_not_made(server: AdminServer) -> None:
    put(server, device_state=standing("REVOKED"))
    device = pb.Device(name="tenants/acme/devices/d2", subject="mallory")
    proposal = propose(server, put={"device": device})
    put(server, device_state=pb.DeviceState(name="tenants/acme/deviceStates/d2", subject="x", trust=1))
    assert "does not agree" in refused(grpc.StatusCode.INVALID_ARGUMENT, approve, server, proposal)


def test_secrets_of_a_proposed_key_are_not_shown(server: AdminServer) -> None:
    key = pb.Key(name="tenants/acme/keys/k1", kind="KEY_KIND_TENANT", secret=b"s" * 32)
    proposal = propose(server, put={"key": key})
    listed = server.proposals.ListProposals(audit_pb2.ListProposalsRequest(parent="tenants/acme")).proposals
    approved = approve(server, proposal)
    stored = server.run(server.store.get("acme", Collection.KEYS, "k1"))
    assert pb.Key.FromString(stored).secret == b"s" * 32
    kept = server.run(server.store.proposals.get("acme", proposal.name.rpartition("/")[2]))
    for shown in (proposal, *listed, approved, kept):
        assert b"s" * 32 not in shown.SerializeToString()


def test_secrets_of_a_key_that_nobody_decided_about_go_when_it_expires(server: AdminServer) -> None:
    key = pb.Key(name="tenants/acme/keys/k1", kind="KEY_KIND_TENANT", secret=b"s" * 32)
    proposal = propose(server, put={"key": key})
    other = propose(server, put={"policy": POLICY})
    proposal_id = proposal.name.rpartition("/")[2]

    def kept() -> audit_pb2.Proposal:
        return server.run(server.store.proposals.get("acme", proposal_id))  # type: ignore[no-any-return]

    expires = proposal.expire_time.ToNanoseconds() / 1e9
    server.run(server.store.proposals.expire(expires - 1))
    assert kept().put.key.secret == b"s" * 32
    server.run(server.store.proposals.expire(expires))
    assert b"s" * 32 not in kept().SerializeToString()
    assert kept().state == audit_pb2.PROPOSAL_STATE_EXPIRED
    assert "is expired already" in refused(PRECONDITION, approve, server, proposal)
    approve(server, other)


def test_proposals_are_listed_the_newest_first_in_pages(server: AdminServer) -> None:
    made = [propose(server, put={"policy": POLICY}).name for _ in range(5)]
    request = audit_pb2.ListProposalsRequest(parent="tenants/acme", page_size=2)
    found: list[str] = []
    while True:
        response = server.proposals.ListProposals(request)
        found += [proposal.name for proposal in response.proposals]
        if not response.next_page_token:
            break
        request.page_token = response.next_page_token
    assert found == made[::-1]


@pytest.mark.parametrize(
    "name", ["tenants/acme/proposals/x", "tenants/acme/grants/0123456789ab", "", "tenants/A/proposals/0123456789ab"]
)
def test_a_bad_name_is_refused(server: AdminServer, name: str) -> None:
    for method, kind in (
        (server.proposals.GetProposal, audit_pb2.GetProposalRequest),
        (server.proposals.ApproveProposal, audit_pb2.ApproveProposalRequest),
    ):
        assert refused(grpc.StatusCode.INVALID_ARGUMENT, method, kind(name=name)).startswith("name: ")


def test_what_is_not_there_is_not_found_and_nothing_is_no_proposal(server: AdminServer) -> None:
    get = audit_pb2.GetProposalRequest(name="tenants/acme/proposals/0123456789ab")
    refused(grpc.StatusCode.NOT_FOUND, server.proposals.GetProposal, get)
    refused(grpc.StatusCode.NOT_FOUND, propose, server, delete="tenants/acme/policies/none")
    assert refused(grpc.StatusCode.INVALID_ARGUMENT, propose, server).startswith("put: a proposal puts")


@pytest.mark.parametrize(("seconds", "good"), [(59, False), (60, True), (30 * 86400, True), (30 * 86400 + 1, False)])
def test_how_long_a_proposal_waits_is_bounded(server: AdminServer, seconds: int, good: bool) -> None:
    record = settings(policies=True, proposal_lifetime=Duration(seconds=seconds))
    if not good:
        details = refused(grpc.StatusCode.INVALID_ARGUMENT, put, server, settings=record)
        assert details.startswith("settings.change_control.proposal_lifetime: ")
        return
    put(server, settings=record)
    proposal = propose(server, put={"policy": POLICY})
    assert proposal.expire_time.ToNanoseconds() - proposal.create_time.ToNanoseconds() == pytest.approx(seconds * 1e9)


def test_operators_need_the_permission_to_approve(tmp_path: Path) -> None:
    files = OperatorFiles(tmp_path / "operators")
    with AdminServer(tmp_path, files.path) as server:
        control_settings = pb.Resource(settings=settings(policies=True))
        server.stub.PutResource(api.PutResourceRequest(resource=control_settings), metadata=bearer("alice"))
        proposal = propose(server, bearer("alice"), put={"policy": POLICY})
        assert proposal.evidence == pb.EVIDENCE_VERIFIED
        denied = grpc.StatusCode.PERMISSION_DENIED
        assert "carol has no permission to approve" in refused(denied, approve, server, proposal, bearer("carol"))
        for name in ("eve", "carol"):
            refused(denied, propose, server, bearer(name), put={"policy": POLICY})
        assert "second person, not alice again" in refused(PRECONDITION, approve, server, proposal, bearer("alice"))
        assert approve(server, proposal, bearer("bob")).decider == "bob"


def test_of_two_approvals_at_once_one_makes_the_change(server: AdminServer) -> None:
    for number in range(5):
        # Without the base of a record both would pass the check of it.
        proposal = propose(server, put={"policy": renamed(f"p{number}")})
        request = audit_pb2.ApproveProposalRequest(name=proposal.name)
        calls = [server.proposals.ApproveProposal.future(request, metadata=said(name)) for name in ("bob", "carol")]
        codes = sorted(str(call.code()) for call in calls)
        assert codes in (["StatusCode.FAILED_PRECONDITION", "StatusCode.OK"],)
    done = [entry for entry in entries(server) if entry.outcome == audit_pb2.AUDIT_OUTCOME_DONE]
    assert [entry.action for entry in done].count("proposal.approve") == 5


def test_a_proposal_that_ends_before_the_commit_undoes_the_change(server: AdminServer) -> None:
    proposal = propose(server, put={"policy": POLICY})
    proposal_id = proposal.name.rpartition("/")[2]
    also = server.run(closing(server, proposal_id, proposal))
    server.proposals.WithdrawProposal(audit_pb2.WithdrawProposalRequest(name=proposal.name), metadata=ALICE)
    note = Note(system(), "proposal.approve", POLICY.name)
    write = Write(Collection.POLICIES, "payments", b"x")
    with pytest.raises(RefusedError, match="was decided meanwhile"):
        server.run(server.store.commit("acme", [write], audit=note, also=also))
    assert server.run(server.store.get("acme", Collection.POLICIES, "payments")) is None
    assert entries(server)[-1].action == "proposal.withdraw"


async def closing(server: AdminServer, proposal_id: str, proposal: audit_pb2.Proposal) -> Any:
    return server.store.proposals.closing("acme", proposal_id, lambda _: proposal)


def renamed(name: str) -> pb.Policy:
    return pb.Policy(name=f"tenants/acme/policies/{name}", source=SOURCE.replace("payments,", f"{name},"))


def test_a_proposed_devices_fingerprint_is_not_kept_raw(server: AdminServer) -> None:
    put(server, key=pb.Key(name="tenants/acme/keys/f1", kind="KEY_KIND_FINGERPRINT"))
    device = pb.Device(name="tenants/acme/devices/d9", subject="alice", fingerprint={"os": "very-rare-os"})
    proposal = propose(server, put={"device": device})
    kept = server.run(server.store.proposals.get("acme", proposal.name.rpartition("/")[2]))
    assert b"very-rare-os" not in kept.SerializeToString()
    assert kept.put.device.components["os"]
    approve(server, proposal)


def test_too_many_waiting_proposals_are_refused(server: AdminServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controlplane.store.proposals.MAX_PENDING", 2)
    first = propose(server, put={"policy": POLICY})
    propose(server, put={"policy": POLICY})
    assert "2 proposals are waiting already" in refused(PRECONDITION, propose, server, put={"policy": POLICY})
    server.proposals.WithdrawProposal(audit_pb2.WithdrawProposalRequest(name=first.name), metadata=ALICE)
    propose(server, put={"policy": POLICY})


def test_a_proposal_is_no_way_round_the_approvals_of_a_grant(server: AdminServer) -> None:
    record = settings()
    record.grant_classes.add(
        id="default",
        approvals=1,
        ceiling=pb.Requirement(acr="nist-aal2", max_age=Duration(seconds=3600)),
        max_validity=Duration(seconds=86_400),
    )
    put(server, settings=record)
    now = int(time.time())
    grant = pb.Grant(
        name="tenants/acme/grants/g1",
        state="GRANT_STATE_ACTIVE",
        subject="alice",
        actions=["*"],
        ceiling=pb.Requirement(acr="nist-aal2", max_age=Duration(seconds=3600)),
    )
    grant.start_time.FromSeconds(now)
    grant.expire_time.FromSeconds(now + 3600)
    assert "needs 1 approvals" in refused(PRECONDITION, put, server, grant=grant)
    assert "needs 1 approvals" in refused(PRECONDITION, propose, server, put={"grant": grant})
    grant.state = pb.GRANT_STATE_REQUESTED
    approve(server, propose(server, put={"grant": grant}))
    stored = server.stub.GetResource(api.GetResourceRequest(name=grant.name)).resource.grant
    assert stored.state == pb.GRANT_STATE_REQUESTED
    assert not stored.approvals
