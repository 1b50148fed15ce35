"""ImportResources: staged, compared, written as differences."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from sidestep.v1 import admin_pb2 as api
from sidestep.v1 import resources_pb2 as pb

from controlplane.api.quotas import MAX_IMPORTS
from controlplane.api.staging import RepeatedError, Staged, Staging
from engine.names import Collection
from tests.fakes.admin import AdminServer

FAR = 4_000_000_000


@pytest.fixture
def server(tmp_path: Path) -> Iterator[AdminServer]:
    with AdminServer(tmp_path) as running:
        yield running


def device(number: int, subject: str = "alice", **more: Any) -> pb.Resource:
    return pb.Resource(device=pb.Device(name=f"tenants/acme/devices/d{number:05}", subject=subject, **more))


def signal(number: int, source: str = "ipsum", score: int = 50) -> pb.Resource:
    value = f"203.0.{number // 256}.{number % 256}/32"
    record = pb.Signal(
        name=f"tenants/acme/signals/ip~{value.replace('/', '_')}~{source}",
        kind="SIGNAL_KIND_IP",
        value=value,
        source=source,
        score=score,
    )
    record.expire_time.FromSeconds(FAR)
    return pb.Resource(signal=record)


def subject(record_id: str, *roles: str) -> pb.Resource:
    record = pb.Subject(name=f"tenants/acme/subjects/{record_id}", state="SUBJECT_STATE_ACTIVE", roles=roles)
    return pb.Resource(subject=record)


def messages(
    resources: Sequence[pb.Resource],
    collection: str = "COLLECTION_DEVICES",
    *,
    count: int | None = None,
    size: int = 700,
    **start: Any,
) -> Iterator[api.ImportResourcesRequest]:
    start = {"parent": "tenants/acme", "collection": collection, **start}
    yield api.ImportResourcesRequest(start=api.ImportStart(**start))
    for index in range(0, len(resources), size):
        yield api.ImportResourcesRequest(batch=api.ImportBatch(resources=resources[index : index + size]))
    yield api.ImportResourcesRequest(commit=api.ImportCommit(count=len(resources) if count is None else count))


def run(server: AdminServer, *args: Any, **more: Any) -> tuple[int, int, int, int, int]:
    response = server.stub.ImportResources(messages(*args, **more))
    return response.received, response.added, response.updated, response.removed, response.unchanged


def refused(server: AdminServer, requests: Iterator[api.ImportResourcesRequest]) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as error:
        server.stub.ImportResources(requests)
    return error.value.code().name, str(error.value.details())


def _outcome(server: AdminServer, resources: Sequence[pb.Resource]) -> str:
    """The name of the status code an import ends with."""
    return str(server.stub.ImportResources.future(messages(resources)).code().name)


def count(server: AdminServer, collection: Collection = Collection.DEVICES) -> int:
    return server.run(server.store.count("acme", collection))


def bulk_revision(server: AdminServer) -> int:
    heads = server.stub.GetRevisions(api.GetRevisionsRequest(parent="tenants/acme")).heads
    return next((head.revision for head in heads if head.lane == pb.LANE_BULK), 0)


def test_only_differences_are_written_in_commits_of_a_thousand(server: AdminServer) -> None:
    devices = [device(number) for number in range(2500)]
    assert run(server, devices) == (2500, 2500, 0, 0, 0)
    assert bulk_revision(server) == 3
    assert run(server, devices, replace=True) == (2500, 0, 0, 0, 2500)
    assert bulk_revision(server) == 3
    changed = [device(0, "bob"), *devices[1:2400], device(9000)]
    assert run(server, changed, replace=True) == (2401, 1, 1, 100, 2399)
    assert count(server) == 2401
    assert bulk_revision(server) == 5


def test_adding_removes_nothing(server: AdminServer) -> None:
    run(server, [device(number) for number in range(10)])
    assert run(server, [device(20)]) == (1, 1, 0, 0, 0)
    assert count(server) == 11


def test_shrinking_by_more_than_a_fifth_needs_force(server: AdminServer) -> None:
    devices = [device(number) for number in range(100)]
    run(server, devices)
    code, details = refused(server, messages(devices[:79], replace=True))
    assert code == "FAILED_PRECONDITION"
    assert "from 100 to 79 records, by 21%" in details
    assert count(server) == 100
    assert run(server, devices[:80], replace=True)[3] == 20
    assert run(server, [], replace=True, force=True)[3] == 80
    assert count(server) == 0


def test_signals_of_other_sources_are_left_alone(server: AdminServer) -> None:
    run(server, [signal(n) for n in range(10)], "COLLECTION_SIGNALS", source="ipsum")
    run(server, [signal(n, "bogons") for n in range(10)], "COLLECTION_SIGNALS", source="bogons")
    replaced = [signal(n, score=60) for n in range(9)]
    assert run(server, replaced, "COLLECTION_SIGNALS", source="ipsum", replace=True) == (9, 0, 9, 1, 0)
    assert count(server, Collection.SIGNALS) == 19


def test_server_set_fields_make_no_difference(server: AdminServer) -> None:
    subjects = [subject("alice", "staff"), subject("bob")]
    assert run(server, subjects, "COLLECTION_SUBJECTS") == (2, 2, 0, 0, 0)
    stored = server.stub.GetResource(api.GetResourceRequest(name="tenants/acme/subjects/alice")).resource.subject
    assert stored.HasField("update_time")
    assert run(server, subjects, "COLLECTION_SUBJECTS") == (2, 0, 0, 0, 2)
    assert run(server, [subject("alice"), subject("bob")], "COLLECTION_SUBJECTS") == (2, 0, 1, 0, 1)


def test_a_revoked_session_imported_again_keeps_its_time(server: AdminServer) -> None:
    record = pb.RevokedSession(name="tenants/acme/revokedSessions/s1")
    record.expire_time.FromSeconds(FAR)
    sessions = [pb.Resource(revoked_session=record)]
    assert run(server, sessions, "COLLECTION_REVOKED_SESSIONS") == (1, 1, 0, 0, 0)
    assert run(server, sessions, "COLLECTION_REVOKED_SESSIONS") == (1, 0, 0, 0, 1)


def test_an_invalid_record_is_named_by_index_and_field_and_nothing_is_written(server: AdminServer) -> None:
    devices = [device(number) for number in range(1500)]
    devices[1201].device.subject = ""
    code, details = refused(server, messages(devices))
    assert code == "INVALID_ARGUMENT"
    assert details == "resources[1201].device.subject: must not be empty"
    assert count(server) == 0


@pytest.mark.parametrize(
    ("resources", "start", "problem"),
    [
        ([device(1), device(1)], {}, "resources[1].device.name: 'd00001' was in this import before"),
        ([subject("alice")], {}, "resources[0].subject: the import is of devices"),
        ([signal(1, "other")], {"collection": "COLLECTION_SIGNALS", "source": "ipsum"}, "resources[0].signal.source:"),
        ([device(1)], {"parent": "tenants/other"}, "resources[0].device.name: the import is of tenant 'other'"),
        ([], {"collection": "COLLECTION_SIGNALS"}, "start.source:"),
        ([], {"source": "ipsum"}, "start.source: only signals have a source"),
        ([], {"collection": "COLLECTION_KEYS"}, "start.collection: keys are put one by one"),
        ([], {"collection": "COLLECTION_UNSPECIFIED"}, "start.collection:"),
        ([], {"parent": "acme"}, "start.parent:"),
        ([device(1)], {"count": 2}, "commit.count: is 2, but 1 resources arrived"),
        ([device(number) for number in range(2001)], {"size": 2001}, "batch.resources: 2001 in one batch"),
    ],
)
def test_a_bad_import_is_refused(server: AdminServer, resources: Any, start: dict[str, Any], problem: str) -> None:
    code, details = refused(server, messages(resources, **start))
    assert (code, details[: len(problem)]) == ("INVALID_ARGUMENT", problem)
    assert count(server) == 0


def test_an_id_repeated_in_a_later_batch_is_refused(server: AdminServer) -> None:
    code, details = refused(server, messages([device(1), device(2), device(1)], size=2))
    assert (code, details.split(":")[0]) == ("INVALID_ARGUMENT", "resources[2].device.name")


def test_messages_out_of_order_are_refused(server: AdminServer) -> None:
    start, batch, commit = messages([device(1)])
    for order in ([batch, commit], [start, start], [start, api.ImportResourcesRequest()], [start, batch], []):
        assert refused(server, iter(order))[0] == "INVALID_ARGUMENT"
    assert count(server) == 0


def test_broken_streams_discard_what_they_sent_and_free_their_slots(server: AdminServer) -> None:
    sent = threading.Barrier(5)
    hold = threading.Event()

    def broken() -> Iterator[api.ImportResourcesRequest]:
        start, batch, _ = messages([device(1)])
        yield start
        yield batch
        sent.wait(20)
        hold.wait(20)

    calls = [server.stub.ImportResources.future(broken()) for _ in range(MAX_IMPORTS)]
    sent.wait(20)
    for call in calls:
        call.cancel()
    hold.set()
    deadline = time.monotonic() + 20
    # The cancellations may still be on their way.
    while _outcome(server, [device(2)]) == "RESOURCE_EXHAUSTED":
        assert time.monotonic() < deadline
    assert count(server) == 1


def test_a_device_of_another_subject_than_its_state_is_refused(server: AdminServer) -> None:
    state = pb.DeviceState(name="tenants/acme/deviceStates/d00007", subject="alice", trust="DEVICE_TRUST_REVOKED")
    server.stub.PutResource(api.PutResourceRequest(resource=pb.Resource(device_state=state)))
    code, details = refused(server, messages([device(6), device(7, "bob")]))
    assert (code, details.split(":")[0]) == ("INVALID_ARGUMENT", "resources[1].device.subject")
    run(server, [device(7)])
    states = [pb.Resource(device_state=pb.DeviceState(name=state.name, subject="bob", trust="DEVICE_TRUST_ACTIVE"))]
    assert refused(server, messages(states, "COLLECTION_DEVICE_STATES"))[0] == "INVALID_ARGUMENT"


def test_raw_fingerprints_are_hashed_on_the_way_in(server: AdminServer) -> None:
    raw = [device(1, fingerprint={"os": "macOS"}), device(2, fingerprint={"os_version": "14"})]
    code, details = refused(server, messages(raw))
    assert (code, details.split(":")[0]) == ("INVALID_ARGUMENT", "resources[0].device.fingerprint")
    key = pb.Key(name="tenants/acme/keys/fp1", kind="KEY_KIND_FINGERPRINT")
    server.stub.PutResource(api.PutResourceRequest(resource=pb.Resource(key=key)))
    assert run(server, raw) == (2, 2, 0, 0, 0)
    assert run(server, raw, replace=True) == (2, 0, 0, 0, 2)
    stored = server.stub.GetResource(api.GetResourceRequest(name="tenants/acme/devices/d00002")).resource.device
    assert (stored.key_id, dict(stored.versions), dict(stored.fingerprint)) == ("fp1", {"os_version": 14}, {})


def test_policies_are_imported_with_their_versions(server: AdminServer) -> None:
    def policy(max_age: str) -> pb.Resource:
        source = (
            "apiVersion: sidestep.dev/v1\nkind: Policy\nmetadata: {name: pay, tenant: acme}\n"
            f"spec: {{match: {{actions: ['pay.*']}}, require: {{acr: phr, maxAge: {max_age}}}}}\n"
        )
        return pb.Resource(policy=pb.Policy(name="tenants/acme/policies/pay", source=source))

    for max_age, version, written in (
        ("1h", 1, (1, 1, 0, 0, 0)),
        ("2h", 2, (1, 0, 1, 0, 0)),
        ("2h", 2, (1, 0, 0, 0, 1)),
    ):
        assert run(server, [policy(max_age)], "COLLECTION_POLICIES") == written
        stored = server.stub.GetResource(api.GetResourceRequest(name="tenants/acme/policies/pay")).resource.policy
        assert stored.version == version


def test_nothing_is_written_when_a_late_record_is_bad(server: AdminServer) -> None:
    server.stub.PutResource(api.PutResourceRequest(resource=device(1499)))
    states = [
        pb.Resource(
            device_state=pb.DeviceState(
                name=f"tenants/acme/deviceStates/d{number:05}", subject="bob", trust="DEVICE_TRUST_REVOKED"
            )
        )
        for number in range(1500)
    ]
    code, details = refused(server, messages(states, "COLLECTION_DEVICE_STATES"))
    assert (code, details.split(":")[0]) == ("INVALID_ARGUMENT", "resources[1499].device_state.subject")
    assert count(server, Collection.DEVICE_STATES) == 0
    sessions = [
        pb.Resource(revoked_session=pb.RevokedSession(name=f"tenants/acme/revokedSessions/s{n}")) for n in range(1500)
    ]
    for number, session in enumerate(sessions):
        session.revoked_session.expire_time.FromSeconds(FAR if number < 1499 else 1)
    code, details = refused(server, messages(sessions, "COLLECTION_REVOKED_SESSIONS"))
    assert (code, details.split(":")[0]) == ("INVALID_ARGUMENT", "resources[1499].revoked_session.expire_time")
    assert count(server, Collection.REVOKED_SESSIONS) == 0
    huge = device(1)
    for _ in range(8):
        huge.device.authentications.add(amr=[f"{number:0250}" for number in range(200)])
    code, details = refused(server, messages([device(2), huge]))
    assert details.startswith("resources[1].device: is larger than")


def test_too_many_imports_at_once_are_told_to_come_back(server: AdminServer) -> None:
    hold = threading.Event()
    started = threading.Barrier(MAX_IMPORTS + 1)

    def waiting() -> Iterator[api.ImportResourcesRequest]:
        start, batch, commit = messages([device(1)])
        yield start
        started.wait(20)
        hold.wait(20)
        yield batch
        yield commit

    calls = [server.stub.ImportResources.future(waiting()) for _ in range(MAX_IMPORTS)]
    started.wait(20)
    try:
        # They may not have been taken up yet, so ask until one is refused.
        assert any(_outcome(server, []) == "RESOURCE_EXHAUSTED" for _ in range(200))
    finally:
        hold.set()
    assert sum(call.result(20).added + call.result(20).unchanged for call in calls) == 4


def test_staging_compares_both_ways_and_finds_repeats() -> None:
    staging = Staging()
    try:
        staging.add([Staged("a", 0, b"1", b"A"), Staged("b", 1, b"2", b"B"), Staged("c", 2, b"3", b"C")])
        staging.keep([("b", b"2"), ("c", b"x"), ("z", b"9")])
        assert [(change.id, change.added) for change in staging.changed()] == [("a", True), ("c", False)]
        assert list(staging.removed()) == ["z"]
        assert (staging.kept(), staging.added(), staging.missing()) == (3, 1, 1)
        with pytest.raises(RepeatedError) as repeated:
            staging.add([Staged("d", 3, b"", b""), Staged("d", 4, b"", b"")])
        assert (repeated.value.position, repeated.value.record_id) == (4, "d")
    finally:
        staging.close()
