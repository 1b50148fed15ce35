"""Grants at the admin and access API: who may do what to them, under which class, and what the audit log says of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from sidestep.v1 import access_pb2, admin_pb2, audit_pb2
from sidestep.v1 import resources_pb2 as pb

from controlplane.store import Write
from engine.names import Collection
from tests.fakes.admin import AdminServer
from tests.fakes.operators import OperatorFiles, bearer, said

DAY = 86_400
NAME = "tenants/acme/grants/g1"
INVALID, FAILED = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION


@pytest.fixture
def server(tmp_path: Path) -> Iterator[AdminServer]:
    with AdminServer(tmp_path) as running:
        classes(running)
        yield running


def grant_class(name: str, **changes: Any) -> pb.GrantClass:
    made = pb.GrantClass(id=name, **{key: value for key, value in changes.items() if not key.endswith("_s")})
    made.ceiling.acr = changes.get("acr_s", "nist-aal2")
    made.ceiling.max_age.FromSeconds(changes.get("max_age_s", 3600))
    made.max_validity.FromSeconds(changes.get("max_validity_s", 90 * DAY))
    if changes.get("review_every_s"):
        made.review_every.FromSeconds(changes["review_every_s"])
    return made


STANDARD = grant_class("standard", approvals=1, ticket_required=True, review_every_s=30 * DAY)


def classes(server: AdminServer, *made: pb.GrantClass) -> None:
    settings = pb.Settings(name="tenants/acme/settings/default")
    settings.grant_classes.extend(made or (STANDARD, grant_class("two", approvals=2), grant_class("free")))
    put(server, "root", settings=settings)


def grant(**changes: Any) -> pb.Grant:
    fields: dict[str, Any] = {
        "name": NAME,
        "state": "GRANT_STATE_REQUESTED",
        "actions": ["payments.*"],
        "grant_class": "standard",
        "ticket": "SEC-1",
    }
    if not {"role", "device"} & changes.keys():
        fields["subject"] = "alice"
    days = changes.pop("days", 30)
    made = pb.Grant(**(fields | changes))
    if days:
        made.expire_time.FromSeconds(int(time.time()) + days * DAY)
    if not made.HasField("ceiling"):
        made.ceiling.acr = "nist-aal2"
        made.ceiling.max_age.FromSeconds(3600)
    return made


def ceiling(acr: str, max_age_s: int) -> pb.Requirement:
    made = pb.Requirement(acr=acr)
    made.max_age.FromSeconds(max_age_s)
    return made


def put(server: AdminServer, who: str, **record: Any) -> pb.Grant:
    request = admin_pb2.PutResourceRequest(resource=pb.Resource(**record))
    return server.stub.PutResource(request, metadata=said(who)).resource.grant  # type: ignore[no-any-return]


def read(server: AdminServer, name: str = NAME) -> pb.Grant:
    request = admin_pb2.GetResourceRequest(name=name)
    return server.stub.GetResource(request, metadata=said("root")).resource.grant  # type: ignore[no-any-return]


def change(server: AdminServer, who: str, transition: str, metadata: Any = None, **more: Any) -> pb.Grant:
    request = access_pb2.ChangeGrantRequest(name=NAME, transition=f"GRANT_TRANSITION_{transition}", **more)
    if transition == "APPROVE" and not request.HasField("update_time"):
        request.update_time.CopyFrom(read(server).update_time)
    answer = server.access.ChangeGrant(request, metadata=said(who) if metadata is None else metadata)
    assert answer.revision.revision > 0
    return answer.grant  # type: ignore[no-any-return]


def state(record: pb.Grant) -> str:
    return pb.GrantState.Name(record.state).removeprefix("GRANT_STATE_")


def entries(server: AdminServer, **more: Any) -> list[audit_pb2.AuditEntry]:
    request = audit_pb2.ListAuditEntriesRequest(parent="tenants/acme", **more)
    answer = server.audit.ListAuditEntries(request, metadata=said("root"))
    return [audit_pb2.AuditEntry.FromString(record.entry) for record in answer.records]


def refused(code: grpc.StatusCode, call: Any, *args: Any, **more: Any) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        call(*args, **more)
    assert caught.value.code() is code, caught.value.details()
    return str(caught.value.details())


def test_a_grant_is_requested_approved_by_another_and_activated(server: AdminServer) -> None:
    requested = put(server, "ann", grant=grant())
    assert (state(requested), requested.requester, list(requested.approvals)) == ("REQUESTED", "ann", [])
    assert requested.HasField("start_time")
    approved = change(server, "ben", "APPROVE")
    assert (state(approved), [approval.actor for approval in approved.approvals]) == ("APPROVED", ["ben"])
    active = change(server, "ann", "ACTIVATE")
    assert state(active) == "ACTIVE"
    assert active.review_time.seconds == pytest.approx(time.time() + 30 * DAY, abs=60)
    told = [(entry.actor, entry.action) for entry in entries(server, name_prefix=NAME)]
    assert told == [("ann", "put"), ("ben", "grant.approve"), ("ann", "grant.activate")]
    assert entries(server, name_prefix=NAME)[0].ticket == "SEC-1"


def test_the_whole_life_of_a_grant(server: AdminServer) -> None:
    put(server, "ann", grant=grant())
    assert state(change(server, "ben", "REJECT", reason="too wide")) == "REJECTED"
    assert state(change(server, "ann", "REQUEST", reason="narrowed", ticket="SEC-2")) == "REQUESTED"
    change(server, "ben", "APPROVE")
    change(server, "ben", "ACTIVATE")
    assert state(change(server, "ann", "SUSPEND", reason="on leave")) == "SUSPENDED"
    assert state(change(server, "ann", "RESUME")) == "ACTIVE"
    before = read(server).review_time.ToNanoseconds()
    assert change(server, "ben", "RENEW").review_time.ToNanoseconds() > before
    revoked = change(server, "ann", "REVOKE", reason="left the company")
    assert (state(revoked), revoked.state_reason) == ("REVOKED", "left the company")
    last = entries(server, name_prefix=NAME, newest_first=True)[0]
    assert (last.action, last.reason, last.outcome) == (
        "grant.revoke",
        "left the company",
        audit_pb2.AUDIT_OUTCOME_DONE,
    )
    assert "state: ACTIVE -> REVOKED" in last.detail
    assert last.evidence == pb.EVIDENCE_ASSERTED


@pytest.mark.parametrize("who", ["ann", "ANN"])
def test_self_approval_is_refused_and_entered(server: AdminServer, who: str) -> None:
    put(server, "ann", grant=grant())
    assert "SELF_APPROVAL" in refused(FAILED, change, server, who, "APPROVE")
    assert state(read(server)) == "REQUESTED"
    entry = entries(server, action="grant.approve")[0]
    assert (entry.actor, entry.name, entry.outcome) == (who, NAME, audit_pb2.AUDIT_OUTCOME_REFUSED)
    assert "SELF_APPROVAL" in entry.detail


def test_nobody_may_not_approve(server: AdminServer) -> None:
    put(server, "ann", grant=grant())
    assert "NOBODY" in refused(FAILED, change, server, "", "APPROVE", metadata=())


def test_two_approvals_are_by_two_people(server: AdminServer) -> None:
    put(server, "ann", grant=grant(grant_class="two"))
    assert state(change(server, "ben", "APPROVE")) == "REQUESTED"
    assert "APPROVED_BEFORE" in refused(FAILED, change, server, "Ben", "APPROVE")
    assert "WRONG_STATE" in refused(FAILED, change, server, "ben", "ACTIVATE")
    assert state(change(server, "cy", "APPROVE")) == "APPROVED"


def test_an_approval_is_for_the_grant_that_was_seen(server: AdminServer) -> None:
    seen = put(server, "ann", grant=grant())
    put(server, "ann", grant=grant(actions=["*"]))
    refused(grpc.StatusCode.ABORTED, change, server, "ben", "APPROVE", update_time=seen.update_time)
    request = access_pb2.ChangeGrantRequest(name=NAME, transition="GRANT_TRANSITION_APPROVE")
    assert "update_time" in refused(INVALID, server.access.ChangeGrant, request, metadata=said("ben"))


def test_a_wrong_transition_is_refused_and_entered(server: AdminServer) -> None:
    put(server, "ann", grant=grant())
    for transition in ("ACTIVATE", "SUSPEND", "RESUME", "RENEW"):
        assert "WRONG_STATE" in refused(FAILED, change, server, "ben", transition, reason="x")
    outcomes = {entry.action: entry.outcome for entry in entries(server, action="grant.")}
    assert outcomes == dict.fromkeys(
        ("grant.activate", "grant.suspend", "grant.resume", "grant.renew"), audit_pb2.AUDIT_OUTCOME_REFUSED
    )


def test_a_reason_is_required_to_take_something_away(server: AdminServer) -> None:
    put(server, "ann", grant=grant())
    for transition in ("REJECT", "REVOKE"):
        assert "REASON_MISSING" in refused(FAILED, change, server, "ben", transition)


BEYOND = [
    ({"ceiling": ceiling("phr", 3600)}, "grant.ceiling.acr"),
    ({"ceiling": ceiling("nist-aal2", 3599)}, "grant.ceiling.max_age"),
    ({"days": 91}, "grant.expire_time"),
    ({"days": 0}, "grant.expire_time: is required"),
    ({"ticket": ""}, "grant.ticket: is required by class 'standard'"),
    ({"grant_class": "vip"}, "grant.grant_class: 'vip' is no class of this tenant (there are: free, standard, two)"),
    ({"grant_class": ""}, "grant.grant_class: 'default' is no class"),
]


@pytest.mark.parametrize(("changes", "problem"), BEYOND, ids=[problem for _, problem in BEYOND])
def test_what_the_class_does_not_allow_is_refused_by_field_and_entered(
    server: AdminServer, changes: dict[str, Any], problem: str
) -> None:
    assert problem in refused(INVALID, put, server, "ann", grant=grant(**changes))
    (entry,) = entries(server, name_prefix=NAME)
    assert entry.outcome == audit_pb2.AUDIT_OUTCOME_REFUSED
    assert problem in entry.detail


def test_scopes_conditions_budgets_and_reviews_of_a_class(server: AdminServer) -> None:
    classes(
        server,
        grant_class("subjects", scopes=["GRANT_SCOPE_SUBJECT"]),
        grant_class("conditional", condition_required=True),
        grant_class("bounded", budget_required=True),
        grant_class("reviewed", review_every_s=DAY),
    )
    assert "grant.role: class 'subjects' is not for a role" in refused(
        INVALID, put, server, "ann", grant=grant(grant_class="subjects", role="staff")
    )
    assert "grant.condition" in refused(INVALID, put, server, "ann", grant=grant(grant_class="conditional"))
    assert "grant.budget" in refused(INVALID, put, server, "ann", grant=grant(grant_class="bounded"))
    late = grant(grant_class="reviewed")
    late.review_time.FromSeconds(int(time.time()) + 2 * DAY)
    assert "grant.review_time" in refused(INVALID, put, server, "ann", grant=late)


def test_a_put_does_not_go_round_the_approval(server: AdminServer) -> None:
    assert "needs 1 approvals" in refused(FAILED, put, server, "ann", grant=grant(state="GRANT_STATE_ACTIVE"))
    for wanted in ("APPROVED", "EXPIRED", "LAPSED", "REJECTED"):
        refused(FAILED, put, server, "ann", grant=grant(state=f"GRANT_STATE_{wanted}"))
    put(server, "ann", grant=grant())
    assert "cannot make it ACTIVE" in refused(FAILED, put, server, "ann", grant=grant_like(server, state="ACTIVE"))
    forged = grant_like(server, state="REQUESTED")
    forged.approvals.add(actor="ben")
    assert "grant.approvals" in refused(INVALID, put, server, "ann", grant=forged)
    assert state(read(server)) == "REQUESTED"


def grant_like(server: AdminServer, **changes: Any) -> pb.Grant:
    """The stored grant in another state."""
    record = read(server)
    record.state = pb.GrantState.Value(f"GRANT_STATE_{changes['state']}")  # type: ignore[assignment]
    return record


def activated(server: AdminServer, **changes: Any) -> pb.Grant:
    put(server, "ann", grant=grant(**changes))
    change(server, "ben", "APPROVE")
    return change(server, "ann", "ACTIVATE")


def test_wider_bounds_for_an_approved_grant_are_a_new_request(server: AdminServer) -> None:
    wider = activated(server)
    wider.actions[:] = ["*"]
    assert "request it" in refused(FAILED, put, server, "ann", grant=wider)
    wider.state = pb.GRANT_STATE_REQUESTED
    again = put(server, "ann", grant=wider)
    # Out of force until somebody else agrees to the new bounds.
    assert (state(again), list(again.approvals), again.requester) == ("REQUESTED", [], "ann")
    refused(FAILED, change, server, "ann", "APPROVE")


def test_reason_owner_and_ticket_are_no_bounds(server: AdminServer) -> None:
    told = activated(server)
    told.owner, told.reason, told.ticket = "sec@acme", "traveller", "SEC-9"
    after = put(server, "cy", grant=told)
    assert (state(after), after.owner, after.requester, len(after.approvals)) == ("ACTIVE", "sec@acme", "ann", 1)


def test_a_document_that_says_requested_leaves_a_living_grant_alone(server: AdminServer) -> None:
    document = grant()
    put(server, "ann", grant=document)
    change(server, "ben", "APPROVE")
    change(server, "ann", "ACTIVATE")
    assert state(put(server, "ci", grant=document)) == "ACTIVE"
    change(server, "ben", "SUSPEND", reason="incident")
    assert state(put(server, "ci", grant=document)) == "SUSPENDED"
    change(server, "ben", "REVOKE", reason="incident")
    assert state(put(server, "ci", grant=document)) == "REVOKED"


def test_a_class_without_approvals_takes_active_grants_as_they_are(server: AdminServer) -> None:
    document = grant(grant_class="free", state="GRANT_STATE_ACTIVE")
    assert state(put(server, "ann", grant=document)) == "ACTIVE"
    document.actions[:] = ["*"]
    after = put(server, "cy", grant=document)
    assert (state(after), after.requester) == ("ACTIVE", "cy")
    # Nobody resumes by a put what somebody suspended.
    change(server, "ben", "SUSPEND", reason="incident")
    document.actions[:] = ["payments.*"]
    assert state(put(server, "cy", grant=document)) == "SUSPENDED"
    change(server, "ben", "REVOKE", reason="incident")
    assert "does not come back" in refused(FAILED, put, server, "cy", grant=document)


def test_a_put_of_the_same_bounds_leaves_a_suspended_grant_suspended(server: AdminServer) -> None:
    document = grant(grant_class="free", state="GRANT_STATE_ACTIVE")
    put(server, "ann", grant=document)
    change(server, "ben", "SUSPEND", reason="incident")
    after = put(server, "ci", grant=document)
    assert (state(after), after.state_reason) == ("SUSPENDED", "incident")


def test_approvals_do_not_outlive_the_bounds_they_were_for(server: AdminServer) -> None:
    activated(server)
    # For a while the class wants nobody's approval, and somebody widens the grant.
    classes(server, grant_class("standard"))
    wider = read(server)
    wider.actions[:] = ["*"]
    assert list(put(server, "ann", grant=wider).approvals) == []
    classes(server, STANDARD)
    change(server, "ben", "SUSPEND", reason="x")
    assert "APPROVALS_MISSING" in refused(FAILED, change, server, "ann", "RESUME")


def test_a_review_that_was_due_before_a_request_does_not_hold_it_up(server: AdminServer) -> None:
    activated(server)
    again = read(server)
    again.review_time.FromSeconds(int(time.time()) - 60)
    again.state = pb.GRANT_STATE_REQUESTED
    assert not put(server, "ann", grant=again).HasField("review_time")
    change(server, "ben", "APPROVE")
    assert state(change(server, "ann", "ACTIVATE")) == "ACTIVE"


def test_a_class_that_changes_while_a_grant_is_approved_counts(server: AdminServer) -> None:
    put(server, "ann", grant=grant())
    change(server, "ben", "APPROVE")
    commit = server.store.commit
    stricter = pb.Settings(name="tenants/acme/settings/default")
    stricter.grant_classes.add().CopyFrom(grant_class("standard", approvals=2))

    async def overtaken(tenant: str, writes: Any, **more: Any) -> Any:
        server.store.commit = commit  # type: ignore[method-assign]
        await commit(tenant, [Write(Collection.SETTINGS, "default", stricter.SerializeToString(deterministic=True))])
        return await commit(tenant, writes, **more)

    server.store.commit = overtaken  # type: ignore[method-assign]
    assert "APPROVALS_MISSING" in refused(FAILED, change, server, "ann", "ACTIVATE")


def test_without_classes_grants_are_put_as_before(server: AdminServer) -> None:
    put(server, "root", settings=pb.Settings(name="tenants/acme/settings/default"))
    assert state(put(server, "ann", grant=grant(grant_class="", state="GRANT_STATE_ACTIVE"))) == "ACTIVE"
    assert "there are: none" in refused(INVALID, put, server, "ann", grant=grant(name=f"{NAME}x"))


def test_a_class_that_was_tightened_holds_up_what_is_not_in_force_yet(server: AdminServer) -> None:
    put(server, "ann", grant=grant())
    change(server, "ben", "APPROVE")
    classes(server, grant_class("standard", approvals=1, acr_s="nist-aal1"))
    assert "its class does not allow it: grant.ceiling.acr" in refused(FAILED, change, server, "ann", "ACTIVATE")
    classes(server, grant_class("standard", approvals=2))
    assert "WRONG_STATE" not in refused(FAILED, change, server, "ann", "ACTIVATE")
    # What takes a grant out of force is never held up.
    classes(server, grant_class("standard", approvals=1))
    change(server, "ann", "ACTIVATE")
    classes(server, grant_class("other"))
    assert state(change(server, "ann", "SUSPEND", reason="x")) == "SUSPENDED"
    assert state(change(server, "ann", "REVOKE", reason="x")) == "REVOKED"


def test_an_import_does_not_go_round_the_approval_either(server: AdminServer) -> None:
    def messages(record: pb.Grant) -> Iterator[admin_pb2.ImportResourcesRequest]:
        start = admin_pb2.ImportStart(parent="tenants/acme", collection="COLLECTION_GRANTS")
        yield admin_pb2.ImportResourcesRequest(start=start)
        yield admin_pb2.ImportResourcesRequest(batch=admin_pb2.ImportBatch(resources=[pb.Resource(grant=record)]))
        yield admin_pb2.ImportResourcesRequest(commit=admin_pb2.ImportCommit(count=1))

    def run(record: pb.Grant) -> None:
        server.stub.ImportResources(messages(record), metadata=said("ann"))

    assert "needs 1 approvals" in refused(FAILED, run, grant(state="GRANT_STATE_ACTIVE"))
    assert "grant.ticket" in refused(INVALID, run, grant(ticket=""))
    run(grant())
    assert (state(read(server)), read(server).requester) == ("REQUESTED", "ann")


def test_other_requests_that_make_no_sense(server: AdminServer) -> None:
    put(server, "ann", grant=grant())
    for fields, problem in (
        ({"name": "tenants/acme/subjects/a"}, "name"),
        ({"name": NAME}, "transition"),
        ({"name": NAME, "transition": 99}, "transition"),
        ({"name": NAME, "transition": "GRANT_TRANSITION_REVOKE", "reason": "x" * 1025}, "reason"),
        (
            {"name": NAME, "transition": "GRANT_TRANSITION_RESUME", "review_time": read(server).expire_time},
            "review_time",
        ),
    ):
        request = access_pb2.ChangeGrantRequest(**fields)  # type: ignore[arg-type]
        assert refused(INVALID, server.access.ChangeGrant, request, metadata=said("ann")).startswith(problem)
    request = access_pb2.ChangeGrantRequest(name="tenants/acme/grants/none", transition="GRANT_TRANSITION_RESUME")
    refused(grpc.StatusCode.NOT_FOUND, server.access.ChangeGrant, request, metadata=said("ann"))


def test_operators_need_the_permission_to_approve(tmp_path: Path) -> None:
    files = OperatorFiles(
        tmp_path / "operators",
        [
            {"name": "alice", "tenants": ["acme"], "permissions": ["write"]},
            {"name": "bob", "tenants": ["acme"], "permissions": ["write", "approve"]},
            {"name": "carol", "tenants": "*"},
        ],
    )
    with AdminServer(tmp_path, files.path) as server:
        settings = pb.Settings(name="tenants/acme/settings/default")
        settings.grant_classes.add().CopyFrom(STANDARD)
        for record in (pb.Resource(settings=settings), pb.Resource(grant=grant())):
            server.stub.PutResource(admin_pb2.PutResourceRequest(resource=record), metadata=bearer("alice"))
        request = access_pb2.ChangeGrantRequest(name=NAME, transition="GRANT_TRANSITION_APPROVE")
        stored = server.stub.GetResource(admin_pb2.GetResourceRequest(name=NAME), metadata=bearer("carol"))
        request.update_time.CopyFrom(stored.resource.grant.update_time)
        for who in ("alice", "carol"):
            refused(grpc.StatusCode.PERMISSION_DENIED, server.access.ChangeGrant, request, metadata=bearer(who))
        refused(grpc.StatusCode.UNAUTHENTICATED, server.access.ChangeGrant, request)
        assert state(server.access.ChangeGrant(request, metadata=bearer("bob")).grant) == "APPROVED"
        listed = server.audit.ListAuditEntries(
            audit_pb2.ListAuditEntriesRequest(parent="tenants/acme", action="grant.approve"), metadata=bearer("carol")
        )
        told = [audit_pb2.AuditEntry.FromString(record.entry) for record in listed.records]
        assert [(entry.actor, entry.evidence, entry.outcome) for entry in told] == [
            ("alice", pb.EVIDENCE_VERIFIED, audit_pb2.AUDIT_OUTCOME_REFUSED),
            ("carol", pb.EVIDENCE_VERIFIED, audit_pb2.AUDIT_OUTCOME_REFUSED),
            ("bob", pb.EVIDENCE_VERIFIED, audit_pb2.AUDIT_OUTCOME_DONE),
        ]


def test_a_budget_is_lowered_at_once_and_raised_only_by_request(server: AdminServer) -> None:
    put(server, "ann", grant=grant(budget=pb.Budget(max_count=5)))
    change(server, "ben", "APPROVE")
    change(server, "ann", "ACTIVATE")
    lowered = read(server)
    lowered.budget.max_count = 3
    after = put(server, "cyd", grant=lowered)
    assert (after.state, after.budget.max_count) == (pb.GRANT_STATE_ACTIVE, 3)
    assert [approval.actor for approval in after.approvals] == [approval.actor for approval in lowered.approvals]
    for wider in (pb.Budget(max_count=4), pb.Budget(max_elapsed=lowered.ceiling.max_age), None):
        raised = read(server)
        raised.ClearField("budget")
        if wider is not None:
            raised.budget.CopyFrom(wider)
        with pytest.raises(grpc.RpcError) as refused:
            put(server, "cyd", grant=raised)
        assert refused.value.code() is FAILED
    assert read(server).budget.max_count == 3


def test_a_lowered_budget_hides_no_other_change(server: AdminServer) -> None:
    put(server, "ann", grant=grant(budget=pb.Budget(max_count=5)))
    change(server, "ben", "APPROVE")
    change(server, "ann", "ACTIVATE")
    wider = read(server)
    wider.budget.max_count = 3
    wider.actions.append("admin.*")
    with pytest.raises(grpc.RpcError) as refused:
        put(server, "cyd", grant=wider)
    assert refused.value.code() is FAILED
