"""The audit log through the admin API: what leaves an entry, in whose name, and that it stands or falls with its change."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from sidestep.v1 import admin_pb2 as api
from sidestep.v1 import audit_pb2, report_pb2
from sidestep.v1 import resources_pb2 as pb

from controlplane.actor import system
from controlplane.api.refusals import MAX_PER_TENANT, WINDOW_S, Refusals
from controlplane.audit import Note, record_digest, verify
from controlplane.errors import StoreError
from controlplane.store import Store, Write
from engine.names import Collection
from tests.fakes.admin import AdminServer
from tests.fakes.operators import OperatorFiles, bearer, said

DONE, REFUSED = audit_pb2.AUDIT_OUTCOME_DONE, audit_pb2.AUDIT_OUTCOME_REFUSED


@pytest.fixture
def server(tmp_path: Path) -> Iterator[AdminServer]:
    with AdminServer(tmp_path) as running:
        yield running


@pytest.fixture
def operated(tmp_path: Path) -> Iterator[AdminServer]:
    with AdminServer(tmp_path, OperatorFiles(tmp_path / "operators").path) as running:
        yield running


def subject(record_id: str = "alice", **more: Any) -> pb.Subject:
    return pb.Subject(name=f"tenants/acme/subjects/{record_id}", state="SUBJECT_STATE_ACTIVE", **more)


def put(server: AdminServer, metadata: Any = None, validate_only: bool = False, **record: Any) -> Any:
    request = api.PutResourceRequest(resource=pb.Resource(**record), validate_only=validate_only)
    return server.stub.PutResource(request, metadata=metadata)


def entries(server: AdminServer, tenant: str = "acme", **more: Any) -> list[audit_pb2.AuditEntry]:
    metadata = bearer("carol") if server.operators else None
    request = audit_pb2.ListAuditEntriesRequest(parent=f"tenants/{tenant}", page_size=1000, **more)
    response = server.audit.ListAuditEntries(request, metadata=metadata)
    records = [record for _, record in server.run(server.store.audit.read(tenant, 0, 1000))]
    assert list(verify(tenant, records, server.run(server.store.audit.head(tenant)))) == []
    return [audit_pb2.AuditEntry.FromString(record.entry) for record in response.records]


def refused(code: grpc.StatusCode, call: Any, *args: Any, **more: Any) -> str:
    with pytest.raises(grpc.RpcError) as error:
        call(*args, **more)
    assert error.value.code() is code, error.value.details()
    return str(error.value.details())


def test_a_put_leaves_an_entry_with_what_changed(server: AdminServer) -> None:
    written = put(server, said("alice"), subject=subject(roles=["staff"]))
    before = server.run(server.store.get("acme", Collection.SUBJECTS, "alice"))
    posture = pb.Posture(name="tenants/acme/postures/default", level="POSTURE_LEVEL_HIGH", reason="fraud wave")
    put(server, said("bob"), posture=posture)
    first, second = entries(server)
    assert (first.number, first.tenant, first.action, first.name) == (1, "acme", "put", "tenants/acme/subjects/alice")
    assert (first.actor, first.evidence, first.outcome) == ("alice", pb.EVIDENCE_ASSERTED, DONE)
    assert first.detail == "new; state: UNSPECIFIED -> ACTIVE, roles"
    assert first.before_digest == b""
    assert first.after_digest == record_digest({(3, "alice"): before})
    assert first.revision == written.revision
    assert (second.number, second.actor, second.reason) == (2, "bob", "fraud wave")
    assert "level: UNSPECIFIED -> HIGH" in second.detail


def test_nobody_in_particular_is_called_anonymous(server: AdminServer) -> None:
    put(server, subject=subject())
    assert [(entry.actor, entry.evidence) for entry in entries(server)] == [("anonymous", pb.EVIDENCE_ASSERTED)]


@pytest.mark.parametrize("name", ["controlplane", "Anonymous", "a b", "x" * 129, "-"])
def test_a_name_that_nobody_may_take_is_refused(server: AdminServer, name: str) -> None:
    details = refused(grpc.StatusCode.INVALID_ARGUMENT, put, server, said(name), subject=subject())
    assert details.startswith("x-sidestep-actor: not a name")


def test_what_changes_nothing_leaves_no_entry(server: AdminServer) -> None:
    put(server, validate_only=True, subject=subject())
    put(server, subject=subject())
    put(server, subject=subject())
    assert len(entries(server)) == 1


def test_a_deletion_and_an_import_leave_entries(server: AdminServer) -> None:
    put(server, subject=subject("bob"))
    before = server.run(server.store.get("acme", Collection.SUBJECTS, "bob"))
    server.stub.DeleteResource(api.DeleteResourceRequest(name="tenants/acme/subjects/bob"))
    start = api.ImportStart(parent="tenants/acme", collection="COLLECTION_SUBJECTS", replace=True)
    batch = api.ImportBatch(resources=[pb.Resource(subject=subject(name)) for name in ("carol", "dave")])
    messages = [{"start": start}, {"batch": batch}, {"commit": api.ImportCommit(count=2)}]
    server.stub.ImportResources(iter(api.ImportResourcesRequest(**message) for message in messages))
    _, deleted, imported = entries(server)
    assert (deleted.action, deleted.after_digest) == ("delete", b"")
    assert deleted.before_digest == record_digest({(3, "bob"): before})
    assert (imported.action, imported.name) == ("import", "tenants/acme/subjects")
    assert imported.detail == "2 records written"


def test_secrets_are_not_told(server: AdminServer) -> None:
    put(server, key=pb.Key(name="tenants/acme/keys/k1", kind="KEY_KIND_TENANT", secret=b"s" * 32))
    (entry,) = entries(server)
    assert b"s" * 32 not in entry.SerializeToString()
    assert entry.detail == "new; kind: UNSPECIFIED -> TENANT, secret"


def test_an_entry_stands_or_falls_with_its_change(server: AdminServer, tmp_path: Path) -> None:
    put(server, subject=subject())
    with sqlite3.connect(tmp_path / "admin.db") as database:
        database.execute("CREATE TRIGGER broken BEFORE INSERT ON audit BEGIN SELECT RAISE(ABORT, 'no'); END")
    refused(grpc.StatusCode.UNAVAILABLE, put, server, subject=subject(roles=["admin"]))
    read = server.stub.GetResource(api.GetResourceRequest(name="tenants/acme/subjects/alice"))
    assert not read.resource.subject.roles
    with sqlite3.connect(tmp_path / "admin.db") as database:
        database.execute("DROP TRIGGER broken")
    put(server, subject=subject(roles=["admin"]))
    assert [entry.number for entry in entries(server)] == [1, 2]


def test_each_tenant_has_its_own_chain(server: AdminServer) -> None:
    put(server, subject=subject())
    put(server, subject=pb.Subject(name="tenants/globex/subjects/x", state="SUBJECT_STATE_ACTIVE"))
    assert [entry.number for entry in entries(server, "globex")] == [1]


def test_a_refused_write_is_entered_and_repeats_are_counted(server: AdminServer) -> None:
    put(server, subject=subject())
    grant = pb.Grant(name="tenants/acme/grants/g", state="GRANT_STATE_ACTIVE", subject="alice", actions=["*"])
    for _ in range(4):
        details = refused(grpc.StatusCode.INVALID_ARGUMENT, put, server, said("eve"), grant=grant)
    (entry,) = entries(server, outcome=REFUSED)
    assert (entry.actor, entry.action, entry.name) == ("eve", "put", "tenants/acme/grants/g")
    assert (entry.detail, entry.repeats) == (details, 0)
    assert not entry.HasField("revision")
    server.run(server.refusals.close())
    assert [entry.repeats for entry in entries(server, outcome=REFUSED)] == [0, 2]


def test_a_flood_of_different_refusals_is_bounded(server: AdminServer) -> None:
    put(server, subject=subject())
    clock = [0.0]
    refusals = Refusals(server.store, now=lambda: clock[0])

    def attempt(number: int) -> Note:
        return Note(system(), "put", f"tenants/acme/grants/{number}")

    for number in range(3 * MAX_PER_TENANT):
        server.run(refusals.record("acme", attempt(number), "no"))
    # The first of what is only counted is entered too, and the tenth and hundredth after it: so much a SIGKILL cannot take.
    assert len(entries(server, outcome=REFUSED)) == MAX_PER_TENANT + 3
    assert sum(entry.repeats + 1 for entry in entries(server, outcome=REFUSED)) == MAX_PER_TENANT + 101
    clock[0] = WINDOW_S
    server.run(refusals.record("acme", attempt(0), "no"))
    repeats = [entry.repeats for entry in entries(server, outcome=REFUSED)]
    assert sum(repeats) + len(repeats) == 3 * MAX_PER_TENANT + 1
    assert len(repeats) == MAX_PER_TENANT + 5


def test_refusals_for_a_tenant_that_is_none_are_not_kept(server: AdminServer) -> None:
    bad = pb.Subject(name="tenants/nobody/subjects/x")
    refused(grpc.StatusCode.INVALID_ARGUMENT, put, server, subject=bad)
    assert entries(server, "nobody") == []


def test_a_commit_without_a_note_leaves_no_entry(server: AdminServer) -> None:
    server.run(server.store.commit("acme", [Write(Collection.SUBJECTS, "x", b"")]))
    assert entries(server) == []


def test_listing_filters_and_pages(server: AdminServer) -> None:
    for number in range(7):
        put(server, said("alice" if number % 2 else "bob"), subject=subject(f"s{number}"))
    server.stub.DeleteResource(api.DeleteResourceRequest(name="tenants/acme/subjects/s0"), metadata=said("bob"))
    assert [entry.number for entry in entries(server, actor="alice")] == [2, 4, 6]
    assert [entry.number for entry in entries(server, action="delete")] == [8]
    assert [entry.number for entry in entries(server, name_prefix="tenants/acme/subjects/s0")] == [1, 8]
    for newest_first, expected in ((False, list(range(1, 9))), (True, list(range(8, 0, -1)))):
        request = audit_pb2.ListAuditEntriesRequest(parent="tenants/acme", page_size=3, newest_first=newest_first)
        found = []
        while True:
            response = server.audit.ListAuditEntries(request)
            found += [audit_pb2.AuditEntry.FromString(record.entry).number for record in response.records]
            assert response.head.number == 8
            if not response.next_page_token:
                break
            request.page_token = response.next_page_token
        assert found == expected


def test_export_gives_everything_and_the_head(server: AdminServer) -> None:
    for number in range(5):
        put(server, subject=subject(f"s{number}"))
    messages = list(server.audit.ExportAudit(audit_pb2.ExportAuditRequest(parent="tenants/acme")))
    records = [record for message in messages for record in message.records]
    assert list(verify("acme", records, messages[0].head)) == []
    assert messages[0].head.number == 5
    later = server.audit.ExportAudit(audit_pb2.ExportAuditRequest(parent="tenants/acme", from_number=4))
    assert [record for message in later for record in message.records] == records[3:]


def test_bad_requests_name_the_field(server: AdminServer) -> None:
    request = audit_pb2.ListAuditEntriesRequest(parent="tenants/acme", page_token="eA==")
    assert refused(grpc.StatusCode.INVALID_ARGUMENT, server.audit.ListAuditEntries, request).startswith("page_token: ")
    export = audit_pb2.ExportAuditRequest(parent="tenants/acme", from_number=2**63)
    assert refused(grpc.StatusCode.INVALID_ARGUMENT, lambda: list(server.audit.ExportAudit(export))).startswith("from")


# Operators


def test_an_operator_is_known_by_token(operated: AdminServer) -> None:
    put(operated, bearer("alice"), subject=subject())
    # The word of a caller counts for nothing here.
    put(operated, (*bearer("bob"), *said("alice")), subject=subject(roles=["x"]))
    assert [(entry.actor, entry.evidence) for entry in entries(operated)] == [
        ("alice", pb.EVIDENCE_VERIFIED),
        ("bob", pb.EVIDENCE_VERIFIED),
    ]


def test_without_a_token_nothing_is_answered(operated: AdminServer) -> None:
    wrong = (("authorization", "Bearer nobodys-token-0123456789"),)
    for metadata in (None, said("alice"), wrong):
        refused(grpc.StatusCode.UNAUTHENTICATED, put, operated, metadata, subject=subject())
    # Reports come from sidecars, which are no operators.
    assert refused(grpc.StatusCode.INVALID_ARGUMENT, operated.reports.ReportJournal, report_pb2.ReportJournalRequest())


def test_what_an_operator_may_not_do_is_refused_and_entered(operated: AdminServer) -> None:
    put(operated, bearer("alice"), subject=subject())
    details = refused(grpc.StatusCode.PERMISSION_DENIED, put, operated, bearer("carol"), subject=subject(roles=["x"]))
    assert details == "carol has no permission to write tenants/acme"
    details = refused(grpc.StatusCode.PERMISSION_DENIED, put, operated, bearer("eve"), subject=subject(roles=["x"]))
    assert details == "eve has no permission to write tenants/acme"
    assert [(entry.actor, entry.outcome) for entry in entries(operated)] == [
        ("alice", DONE),
        ("carol", REFUSED),
        ("eve", REFUSED),
    ]


def test_no_method_is_open_to_an_operator_of_another_tenant(operated: AdminServer) -> None:
    """A method that forgets to ask would answer, or fail otherwise."""
    put(operated, bearer("alice"), subject=subject())
    forms = {
        "parent": "tenants/acme",
        "name": "tenants/acme/subjects/alice",
        "collection": "COLLECTION_SUBJECTS",
        "resource": pb.Resource(subject=subject()),
        "sidecar": "pod",
        "chain": "w0-0192f3c4a1b2",
    }
    asked = 0
    for stub, service in (
        (operated.stub, api.DESCRIPTOR.services_by_name["AdminService"]),
        (operated.audit, audit_pb2.DESCRIPTOR.services_by_name["AuditService"]),
        (operated.proposals, audit_pb2.DESCRIPTOR.services_by_name["ProposalService"]),
    ):
        for method in service.methods:
            message = method.input_type._concrete_class
            if method.client_streaming:
                request: Any = iter([message(start=api.ImportStart(parent="tenants/acme", collection=3))])
            else:
                fields = {name: value for name, value in forms.items() if name in method.input_type.fields_by_name}
                if "Proposal" in method.name and "name" in fields:
                    fields["name"] = "tenants/acme/proposals/0123456789ab"
                if method.name == "CreateProposal":
                    fields = {"delete": "tenants/acme/subjects/alice"}
                request = message(**fields)
            answer = partial(getattr(stub, method.name), request, metadata=bearer("eve"))
            call = (lambda answer=answer: list(answer())) if method.server_streaming else answer
            refused(grpc.StatusCode.PERMISSION_DENIED, call)
            asked += 1
    assert asked >= 20


def test_a_refusal_that_cannot_be_entered_is_answered_all_the_same(
    operated: AdminServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any) -> None:
        raise StoreError("no")

    monkeypatch.setattr(operated.refusals, "record", broken)
    refused(grpc.StatusCode.PERMISSION_DENIED, put, operated, bearer("carol"), subject=subject())


def test_writers_at_once_make_one_chain_without_gaps(server: AdminServer, tmp_path: Path) -> None:
    """Also two processes over one database: here two stores."""

    async def write(store: Store, name: str) -> None:
        for number in range(20):
            note = Note(system(), "put", f"tenants/acme/subjects/{name}{number}")
            await store.commit("acme", [Write(Collection.SUBJECTS, f"{name}{number}", b"x")], audit=note)

    async def together() -> None:
        other = await Store.open(f"sqlite+aiosqlite:///{tmp_path}/admin.db")
        try:
            await asyncio.gather(write(server.store, "a"), write(server.store, "b"), write(other, "c"))
        finally:
            await other.close()

    server.run(together())
    assert [entry.number for entry in entries(server)] == list(range(1, 61))
    # One revision, one entry, in the same order.
    assert [entry.revision.revision for entry in entries(server)] == list(range(1, 61))


def test_a_database_of_an_earlier_version_gets_an_audit_log(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/old.db"

    async def open_and(*notes: Note) -> int:
        store = await Store.open(url)
        try:
            await store.commit("acme", [Write(1, f"{len(notes)}", b"x")], audit=notes[0] if notes else None)
            return (await store.audit.head("acme")).number
        finally:
            await store.close()

    asyncio.run(open_and())
    with sqlite3.connect(tmp_path / "old.db") as database:
        for table in ("audit", "audit_heads", "proposals", "epochs", "epoch_starts", "budget_settlements"):
            database.execute(f"DROP TABLE {table}")
        database.execute("UPDATE schema SET version = 2")
    assert asyncio.run(open_and(Note(system(), "put", "tenants/acme/policies/1"))) == 1


def test_a_refused_import_is_entered(server: AdminServer) -> None:
    put(server, subject=subject())
    messages = [{"start": api.ImportStart(parent="tenants/acme", collection="COLLECTION_SUBJECTS", replace=True)}]
    messages.append({"commit": api.ImportCommit(count=0)})
    asked = iter([api.ImportResourcesRequest(**message) for message in messages])
    refused(grpc.StatusCode.FAILED_PRECONDITION, server.stub.ImportResources, asked)
    (entry,) = entries(server, outcome=REFUSED)
    assert (entry.action, entry.name) == ("import", "tenants/acme/subjects")
    assert "would shrink" in entry.detail
