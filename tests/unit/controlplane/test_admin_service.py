"""AdminService over real gRPC and a real store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from sidestep.v1 import admin_pb2 as api
from sidestep.v1 import resources_pb2 as pb

from engine.fingerprint import hash_component
from engine.names import Collection
from tests.fakes.admin import AdminServer

SOURCE = """apiVersion: sidestep.dev/v1
kind: Policy
metadata: {name: payments, tenant: acme}
spec:
  match: {actions: ["payments.*"]}
  require: {acr: nist-aal2, maxAge: 12h}
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[AdminServer]:
    with AdminServer(tmp_path) as running:
        yield running


def put(server: AdminServer, record: Any, **more: Any) -> api.PutResourceResponse:
    field = next(
        name for name, kind in pb.Resource.DESCRIPTOR.fields_by_name.items() if kind.message_type is record.DESCRIPTOR
    )
    response: api.PutResourceResponse = server.stub.PutResource(
        api.PutResourceRequest(resource=pb.Resource(**{field: record}), **more)
    )
    return response


def refused(code: grpc.StatusCode, method: Any, request: Any) -> str:
    with pytest.raises(grpc.RpcError) as error:
        method(request)
    assert error.value.code() is code
    return str(error.value.details())


def subject(record_id: str = "alice", **more: Any) -> pb.Subject:
    return pb.Subject(name=f"tenants/acme/subjects/{record_id}", state="SUBJECT_STATE_ACTIVE", **more)


def fingerprint_key(record_id: str, start: int | None = None, expire: int | None = None) -> pb.Key:
    key = pb.Key(name=f"tenants/acme/keys/{record_id}", kind="KEY_KIND_FINGERPRINT")
    if start is not None:
        key.start_time.FromSeconds(start)
    if expire is not None:
        key.expire_time.FromSeconds(expire)
    return key


def stored_key(server: AdminServer, record_id: str) -> pb.Key:
    value = server.run(server.store.get("acme", Collection.KEYS, record_id))
    assert value is not None
    return pb.Key.FromString(value)


def test_a_put_is_read_back_with_a_revision(server: AdminServer) -> None:
    written = put(server, subject(roles=["staff"]))
    assert written.changed
    assert (written.revision.epoch, written.revision.revision) == (1, 1)
    read = server.stub.GetResource(api.GetResourceRequest(name="tenants/acme/subjects/alice")).resource.subject
    assert read == written.resource.subject
    assert read.HasField("update_time")


def test_equal_content_changes_nothing_whatever_its_server_set_fields(server: AdminServer) -> None:
    first = put(server, subject(roles=["staff"]))
    again = subject(roles=["staff"])
    again.update_time.FromSeconds(1)
    second = put(server, again)
    assert not second.changed
    assert second.revision == first.revision
    assert second.resource.subject.update_time == first.resource.subject.update_time
    assert put(server, subject(roles=["admin"])).revision.revision == 2


def test_validate_only_writes_nothing(server: AdminServer) -> None:
    response = put(server, subject(), validate_only=True)
    assert response.changed
    assert not response.HasField("revision")
    refused(
        grpc.StatusCode.NOT_FOUND, server.stub.GetResource, api.GetResourceRequest(name="tenants/acme/subjects/alice")
    )


def test_a_refusal_names_the_field(server: AdminServer) -> None:
    bad = pb.Resource(subject=pb.Subject(name="tenants/acme/subjects/alice"))
    details = refused(grpc.StatusCode.INVALID_ARGUMENT, server.stub.PutResource, api.PutResourceRequest(resource=bad))
    assert details.startswith("subject.state: must be one of SUBJECT_STATE_ACTIVE")


def test_policy_versions_rise_with_the_document_only(server: AdminServer) -> None:
    def version(source: str) -> tuple[int, bool]:
        response = put(server, pb.Policy(name="tenants/acme/policies/payments", source=source, version=77))
        return response.resource.policy.version, response.changed

    assert version(SOURCE) == (1, True)
    assert version(SOURCE) == (1, False)
    assert version(SOURCE + "# a comment\n") == (1, True)
    assert version(SOURCE.replace("12h", "6h")) == (2, True)
    stored = server.stub.GetResource(api.GetResourceRequest(name="tenants/acme/policies/payments")).resource.policy
    assert '"maxAge"' in stored.document


def test_check_policy_reports_every_problem_and_stores_nothing(server: AdminServer) -> None:
    bad = SOURCE.replace("require:", "rquire:").replace("match:", "mtch:")
    response = server.stub.CheckPolicy(api.CheckPolicyRequest(parent="tenants/acme", source=bad))
    assert {(problem.line, problem.path) for problem in response.problems} >= {(6, "spec.rquire"), (5, "spec.mtch")}
    other = server.stub.CheckPolicy(api.CheckPolicyRequest(parent="tenants/other", source=SOURCE))
    assert [problem.path for problem in other.problems] == ["metadata.tenant"]
    assert not server.stub.CheckPolicy(api.CheckPolicyRequest(parent="tenants/acme", source=SOURCE)).problems
    assert not server.stub.GetRevisions(api.GetRevisionsRequest(parent="tenants/acme")).heads


def test_a_secret_is_made_once_kept_and_never_shown(server: AdminServer) -> None:
    response = put(server, fingerprint_key("fp1"))
    assert response.resource.key.secret == b""
    secret = stored_key(server, "fp1").secret
    assert len(secret) == 32
    later = put(server, fingerprint_key("fp1", expire=2_000_000_000))
    assert later.changed
    assert stored_key(server, "fp1").secret == secret
    assert not put(server, fingerprint_key("fp1", expire=2_000_000_000)).changed
    request = api.ListResourcesRequest(parent="tenants/acme", collection="COLLECTION_KEYS")
    listed = server.stub.ListResources(request).resources
    got = server.stub.GetResource(api.GetResourceRequest(name="tenants/acme/keys/fp1")).resource
    assert [resource.key.secret for resource in [*listed, got]] == [b"", b""]


def test_a_given_secret_is_stored_and_a_kind_does_not_change(server: AdminServer) -> None:
    key = fingerprint_key("fp1")
    key.secret = b"s" * 32
    assert put(server, key).resource.key.secret == b""
    assert stored_key(server, "fp1").secret == b"s" * 32
    other = pb.Key(name=key.name, kind="KEY_KIND_TENANT")
    request = api.PutResourceRequest(resource=pb.Resource(key=other))
    assert refused(grpc.StatusCode.INVALID_ARGUMENT, server.stub.PutResource, request).startswith("key.kind:")


def test_a_secret_is_not_replaced_since_devices_hashed_with_it_would_be_told_apart_from_themselves(
    server: AdminServer,
) -> None:
    key = fingerprint_key("fp1")
    key.secret = b"s" * 32
    put(server, key)
    assert not put(server, key).changed
    key.secret = b"t" * 32
    request = api.PutResourceRequest(resource=pb.Resource(key=key))
    assert refused(grpc.StatusCode.INVALID_ARGUMENT, server.stub.PutResource, request).startswith("key.secret:")
    assert stored_key(server, "fp1").secret == b"s" * 32


def test_at_most_two_fingerprint_keys_are_usable_at_a_time(server: AdminServer) -> None:
    put(server, fingerprint_key("a", expire=100))
    put(server, fingerprint_key("b", start=50, expire=200))
    # From 100 on `a` is no longer usable: the bound is exclusive.
    put(server, fingerprint_key("c", start=100))
    request = api.PutResourceRequest(resource=pb.Resource(key=fingerprint_key("d", start=150, expire=160)))
    details = refused(grpc.StatusCode.INVALID_ARGUMENT, server.stub.PutResource, request)
    assert details.startswith("key.start_time: 3 fingerprint keys would be usable at once (b, c, d)")
    put(server, fingerprint_key("d", start=200))


def test_a_device_and_its_state_are_about_one_subject(server: AdminServer) -> None:
    put(server, pb.Device(name="tenants/acme/devices/d1", subject="alice"))
    state = pb.DeviceState(name="tenants/acme/deviceStates/d1", subject="bob", trust="DEVICE_TRUST_REVOKED")
    request = api.PutResourceRequest(resource=pb.Resource(device_state=state))
    assert "'alice'" in refused(grpc.StatusCode.INVALID_ARGUMENT, server.stub.PutResource, request)
    state.subject = "alice"
    put(server, state)
    moved = pb.Resource(device=pb.Device(name="tenants/acme/devices/d1", subject="bob"))
    request = api.PutResourceRequest(resource=moved)
    assert refused(grpc.StatusCode.INVALID_ARGUMENT, server.stub.PutResource, request).startswith("device.subject:")


def test_a_raw_fingerprint_is_hashed_with_the_newest_usable_key_and_forgotten(server: AdminServer) -> None:
    raw = {"os": "macOS", "browser_version": "126.0", "colour": "red"}
    device = pb.Device(name="tenants/acme/devices/d1", subject="alice", fingerprint=raw)
    request = api.PutResourceRequest(resource=pb.Resource(device=device))
    details = refused(grpc.StatusCode.INVALID_ARGUMENT, server.stub.PutResource, request)
    assert details.startswith("device.fingerprint: the tenant has no usable FINGERPRINT key")
    put(server, fingerprint_key("old"))
    put(server, fingerprint_key("newest", start=1000, expire=4_000_000_000))
    put(server, fingerprint_key("future", start=4_000_000_000))
    response = put(server, device)
    assert list(response.warnings) == ["device.fingerprint[colour]: not among the tenant's components; left out"]
    stored = server.stub.GetResource(api.GetResourceRequest(name=device.name)).resource.device
    digest = hash_component(stored_key(server, "newest").secret, "os", "macOS")
    assert (stored.key_id, dict(stored.components), dict(stored.versions)) == (
        "newest",
        {"os": digest},
        {"browser_version": 126},
    )
    assert not stored.fingerprint
    assert not put(server, device).changed
    device.fingerprint["browser_version"] = "beta"
    request = api.PutResourceRequest(resource=pb.Resource(device=device))
    details = refused(grpc.StatusCode.INVALID_ARGUMENT, server.stub.PutResource, request)
    assert details == "device.fingerprint[browser_version]: 'beta' does not begin with a number"


def test_a_fingerprint_is_read_by_the_tenants_own_components(server: AdminServer) -> None:
    put(server, fingerprint_key("fp1"))
    settings = pb.Settings(name="tenants/acme/settings/default")
    settings.fingerprint.add(id="colour", kind="KIND_EXACT", weight=1)
    settings.fingerprint.add(id="os", kind="KIND_VERSION", weight=1)
    put(server, settings)
    raw = {"os": "14.2", "colour": "red"}
    response = put(server, pb.Device(name="tenants/acme/devices/d1", subject="alice", fingerprint=raw))
    device = response.resource.device
    assert (list(device.components), dict(device.versions)) == (["colour"], {"os": 14})


def test_a_revoked_session_keeps_its_first_time(server: AdminServer) -> None:
    record = pb.RevokedSession(name="tenants/acme/revokedSessions/s1")
    record.expire_time.FromSeconds(4_000_000_000)
    first = put(server, record).resource.revoked_session
    assert first.HasField("revoke_time")
    second = put(server, record)
    assert not second.changed
    assert second.resource.revoked_session == first


def test_delete_removes_once(server: AdminServer) -> None:
    put(server, subject())
    request = api.DeleteResourceRequest(name="tenants/acme/subjects/alice")
    assert server.stub.DeleteResource(request).revision.revision == 2
    refused(grpc.StatusCode.NOT_FOUND, server.stub.DeleteResource, request)
    bad = api.DeleteResourceRequest(name="tenants/acme/nonsense/alice")
    assert refused(grpc.StatusCode.INVALID_ARGUMENT, server.stub.DeleteResource, bad).startswith("name:")


def test_lists_come_in_pages_by_id(server: AdminServer) -> None:
    for number in range(5):
        put(server, subject(f"user-{number}"))
    put(server, subject("other"))
    request = api.ListResourcesRequest(
        parent="tenants/acme", collection="COLLECTION_SUBJECTS", page_size=2, id_prefix="user-"
    )
    names: list[str] = []
    pages = 0
    while True:
        response = server.stub.ListResources(request)
        names += [resource.subject.name.rpartition("/")[2] for resource in response.resources]
        pages += 1
        assert response.total_size == 6
        if not response.next_page_token:
            break
        request.page_token = response.next_page_token
    assert names == [f"user-{number}" for number in range(5)]
    assert pages == 3


def test_a_page_of_large_records_is_cut_below_the_message_limit(server: AdminServer) -> None:
    for number in range(24):
        name = f"p{number:02}"
        source = SOURCE.replace("name: payments", f"name: {name}") + "# " + "x" * 100_000
        put(server, pb.Policy(name=f"tenants/acme/policies/{name}", source=source))
    request = api.ListResourcesRequest(parent="tenants/acme", collection="COLLECTION_POLICIES", page_size=1000)
    seen = []
    while True:
        response = server.stub.ListResources(request)
        assert response.ByteSize() < 4 * 1024 * 1024
        seen += [resource.policy.name for resource in response.resources]
        if not response.next_page_token:
            break
        request.page_token = response.next_page_token
    assert len(seen) == len(set(seen)) == 24


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"page_size": 1001}, "page_size"),
        ({"page_size": -1}, "page_size"),
        ({"page_token": "%%%"}, "page_token"),
        ({"collection": 0}, "collection"),
        ({"collection": 99}, "collection"),
        ({"parent": "acme"}, "parent"),
    ],
)
def test_a_bad_list_request_is_refused_by_field(server: AdminServer, change: dict[str, Any], field: str) -> None:
    values: dict[str, Any] = {"parent": "tenants/acme", "collection": 3, **change}
    details = refused(grpc.StatusCode.INVALID_ARGUMENT, server.stub.ListResources, api.ListResourcesRequest(**values))
    assert details.startswith(f"{field}:")


def test_revisions_are_those_of_the_lanes(server: AdminServer) -> None:
    assert not server.stub.GetRevisions(api.GetRevisionsRequest(parent="tenants/acme")).heads
    put(server, subject())
    put(server, pb.Device(name="tenants/acme/devices/d1", subject="alice"))
    put(server, pb.Device(name="tenants/acme/devices/d2", subject="alice"))
    heads = server.stub.GetRevisions(api.GetRevisionsRequest(parent="tenants/acme")).heads
    assert [(head.lane, head.revision, len(head.digest)) for head in heads] == [
        (pb.LANE_URGENT, 1, 32),
        (pb.LANE_BULK, 2, 32),
    ]


def test_sidecars_are_listed_by_page(server: AdminServer) -> None:
    async def seen() -> None:
        for number in range(3):
            status = api.SidecarStatus(sidecar=f"pod-{number}", instance="i", connected=True)
            status.cursors.add(tenant="acme" if number < 2 else "other", lane=pb.LANE_URGENT)
            status.seen_time.GetCurrentTime()
            server.store.record_sidecar(status)

    server.run(seen())
    first = server.stub.ListSidecars(api.ListSidecarsRequest(page_size=2))
    rest = server.stub.ListSidecars(api.ListSidecarsRequest(page_size=2, page_token=first.next_page_token))
    assert [status.sidecar for status in [*first.sidecars, *rest.sidecars]] == ["pod-0", "pod-1", "pod-2"]
    assert not rest.next_page_token
    of_acme = server.stub.ListSidecars(api.ListSidecarsRequest(parent="tenants/acme"))
    assert [status.sidecar for status in of_acme.sidecars] == ["pod-0", "pod-1"]
    assert refused(
        grpc.StatusCode.INVALID_ARGUMENT, server.stub.ListSidecars, api.ListSidecarsRequest(parent="x")
    ).startswith("parent:")


def test_concurrent_puts_of_one_policy_lose_no_version(server: AdminServer) -> None:
    futures = [
        server.stub.PutResource.future(
            api.PutResourceRequest(
                resource=pb.Resource(
                    policy=pb.Policy(name="tenants/acme/policies/payments", source=SOURCE.replace("12h", f"{hours}h"))
                )
            )
        )
        for hours in (1, 2, 3, 4)
    ]
    written = [future.result(20) for future in futures]
    versions = sorted(response.resource.policy.version for response in written)
    assert versions == [1, 2, 3, 4]


def test_new_fingerprint_keys_put_at_once_stay_within_two(server: AdminServer) -> None:
    futures = [
        server.stub.PutResource.future(api.PutResourceRequest(resource=pb.Resource(key=fingerprint_key(f"k{number}"))))
        for number in range(5)
    ]
    codes = [future.code() for future in futures]
    assert sorted(code.name for code in codes) == ["INVALID_ARGUMENT"] * 3 + ["OK"] * 2
