"""Who could skip what: grants held against the subjects they are for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sidestep.v1 import access_pb2
from sidestep.v1 import resources_pb2 as pb

from controlplane.grants import facts_of
from controlplane.store import Write
from engine.names import SEGMENTS, Collection
from sidecar.gather.grants import parse_grant
from tests.fakes.admin import AdminServer
from tests.fakes.operators import OperatorFiles, bearer

DAY = 86_400


@pytest.fixture
def server(tmp_path: Path) -> Iterator[AdminServer]:
    with AdminServer(tmp_path) as running:
        write(running, Collection.SUBJECTS, pb.Subject(state="SUBJECT_STATE_ACTIVE", roles=["staff"]), "alice")
        write(running, Collection.SUBJECTS, pb.Subject(state="SUBJECT_STATE_ACTIVE", roles=["staff", "x"]), "bob")
        write(running, Collection.SUBJECTS, pb.Subject(state="SUBJECT_STATE_DISABLED", roles=["staff"]), "mallory")
        write(running, Collection.DEVICES, pb.Device(subject="bob"), "tablet")
        yield running


def write(server: AdminServer, collection: Collection, record: Any, record_id: str) -> None:
    """Stores a record as it is, whatever an API would say of it."""
    record.name = f"tenants/acme/{SEGMENTS[collection]}/{record_id}"
    value = record.SerializeToString(deterministic=True)
    server.run(server.store.commit("acme", [Write(collection, record_id, value)]))


def grant(server: AdminServer, name: str, state: str = "ACTIVE", days: float = 1, **more: Any) -> None:
    record = pb.Grant(state=f"GRANT_STATE_{state}", actions=["pay.*"], **more)
    record.ceiling.acr = "nist-aal2"
    record.ceiling.max_age.FromSeconds(3600)
    record.expire_time.FromSeconds(int(time.time() + days * DAY))
    write(server, Collection.GRANTS, record, name)


def review(server: AdminServer, **more: Any) -> list[access_pb2.AccessEntry]:
    first, *answers = server.access.ReviewAccess(access_pb2.ReviewAccessRequest(parent="tenants/acme", **more))
    assert first.HasField("time")
    assert not first.entries
    return [entry for answer in answers for entry in answer.entries]


def pairs(entries: list[access_pb2.AccessEntry]) -> list[tuple[str, str]]:
    return [(entry.grant, entry.subject) for entry in entries]


def test_roles_and_devices_are_expanded_to_subjects(server: AdminServer) -> None:
    grant(server, "a-subject", subject="alice", owner="sec", ticket="SEC-1", reason="travels")
    grant(server, "b-role", role="staff")
    grant(server, "c-device", device="tablet")
    grant(server, "d-nobodys", device="gone")
    entries = review(server)
    # Whoever has the role by their token is not known by name.
    assert pairs(entries) == [
        ("a-subject", "alice"),
        ("b-role", "alice"),
        ("b-role", "bob"),
        ("b-role", ""),
        ("c-device", "bob"),
    ]
    first = entries[0]
    assert (first.owner, first.ticket, first.reason, first.scope, first.scope_value) == (
        "sec",
        "SEC-1",
        "travels",
        1,
        "alice",
    )
    assert (first.ceiling.acr, list(first.actions), first.refusal) == ("nist-aal2", ["pay.*"], "")
    assert (entries[1].scope, entries[1].scope_value) == (pb.GRANT_SCOPE_ROLE, "staff")


def test_disabled_subjects_are_denied_anyway(server: AdminServer) -> None:
    grant(server, "g1", subject="mallory")
    assert review(server, dormant=True) == []


def test_one_subject(server: AdminServer) -> None:
    grant(server, "a", subject="alice")
    grant(server, "b", role="staff")
    grant(server, "c", subject="bob")
    assert pairs(review(server, subject="bob")) == [("b", "bob"), ("b", ""), ("c", "bob")]


def test_what_waives_nothing_is_shown_only_if_asked_for_and_says_why(server: AdminServer) -> None:
    grant(server, "a-ended", days=-1, subject="alice")
    grant(server, "b-suspended", "SUSPENDED", subject="alice")
    grant(server, "c-unknown", subject="alice", grant_class="gone")
    grant(server, "d-revoked", "REVOKED", subject="alice")
    grant(server, "e-rejected", "REJECTED", subject="alice")
    grant(server, "f-lapsed", "LAPSED", subject="alice")
    assert review(server) == []
    assert [(entry.grant, entry.refusal) for entry in review(server, dormant=True)] == [
        ("a-ended", "GRANT_EXPIRED"),
        ("b-suspended", "GRANT_INACTIVE"),
        ("c-unknown", "GRANT_CLASS_UNKNOWN"),
        ("f-lapsed", "GRANT_INACTIVE"),
    ]


def test_grants_of_a_suspended_class_waive_nothing(server: AdminServer) -> None:
    grant(server, "a", subject="alice")
    for state, shown in (("SUSPENDED", []), ("REOPENING", [""]), ("UNSPECIFIED", []), ("ACTIVE", [""])):
        write(server, Collection.GRANT_CLASSES, pb.GrantClassState(state=f"CLASS_STATE_{state}"), "default")
        assert [entry.refusal for entry in review(server)] == shown
    write(server, Collection.GRANT_CLASSES, pb.GrantClassState(state="CLASS_STATE_SUSPENDED"), "default")
    assert [entry.refusal for entry in review(server, dormant=True)] == ["CLASS_SUSPENDED"]


def test_last_use_is_shown_where_it_is_reported(server: AdminServer) -> None:
    grant(server, "a", subject="alice")
    grant(server, "b", subject="alice")
    server.last_used = {"a": 1_700_000_000.0}
    used, unused = review(server)
    assert used.last_use_time.seconds == 1_700_000_000
    assert not unused.HasField("last_use_time")


def test_the_kill_switch_is_told(server: AdminServer) -> None:
    request = access_pb2.ReviewAccessRequest(parent="tenants/acme")
    assert not next(server.access.ReviewAccess(request)).exemptions_off
    write(server, Collection.POSTURES, pb.Posture(level="POSTURE_LEVEL_LOW", exemptions_off=True), "default")
    assert next(server.access.ReviewAccess(request)).exemptions_off


def test_many_holders_come_in_several_messages(server: AdminServer) -> None:
    writes = []
    for number in range(1_200):
        subject = pb.Subject(name=f"tenants/acme/subjects/s{number:04}", state="SUBJECT_STATE_ACTIVE", roles=["crowd"])
        writes.append(Write(Collection.SUBJECTS, f"s{number:04}", subject.SerializeToString(deterministic=True)))
    for begin in (0, 600):
        server.run(server.store.commit("acme", writes[begin : begin + 600]))
    grant(server, "g", role="crowd")
    answers = list(server.access.ReviewAccess(access_pb2.ReviewAccessRequest(parent="tenants/acme")))
    assert [len(answer.entries) for answer in answers] == [0, 500, 500, 201]


def test_a_review_needs_the_permission_to_read(tmp_path: Path) -> None:
    files = OperatorFiles(tmp_path / "operators")
    with AdminServer(tmp_path, files.path) as server:
        request = access_pb2.ReviewAccessRequest(parent="tenants/acme")
        for metadata, code in (
            ((), grpc.StatusCode.UNAUTHENTICATED),
            (bearer("eve"), grpc.StatusCode.PERMISSION_DENIED),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                list(server.access.ReviewAccess(request, metadata=metadata))
            assert caught.value.code() is code
        assert len(list(server.access.ReviewAccess(request, metadata=bearer("carol")))) == 1


TIMES = st.none() | st.integers(0, 4_000_000_000)


@given(
    st.sampled_from(range(9)),
    st.sampled_from(["subject", "role", "device"]),
    st.tuples(TIMES, TIMES, TIMES),
    st.sampled_from(["", "default", "x"]),
    st.lists(st.sampled_from(["", "ann", "Ann", "ben"]), max_size=3),
)
def test_a_review_sees_a_grant_as_sidecars_do(
    state: int, scope: str, times: tuple[int | None, int | None, int | None], grant_class: str, approvers: list[str]
) -> None:
    record = pb.Grant(name="tenants/acme/grants/g", state=state, requester="ann", grant_class=grant_class)  # type: ignore[arg-type]
    setattr(record, scope, "s")
    record.ceiling.acr = "phr"
    record.ceiling.max_age.FromSeconds(60)
    for field, at in zip(("start_time", "expire_time", "review_time"), times, strict=True):
        if at is not None:
            getattr(record, field).FromSeconds(at)
    for name in approvers:
        record.approvals.add(actor=name)
    assert facts_of(record) == parse_grant("g", record.SerializeToString(deterministic=True))
