"""Sidecars are known by their certificates: who has none, a wrong one or a dead one gets nothing, is counted and logged."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from sidestep.v1 import lease_pb2, report_pb2

from tests.fakes.certificates import Authority
from tests.fakes.guarded import PAYMENTS, Guarded, following, refusal, secrets_of, stubs
from tests.processes import until

DENIED, UNKNOWN = grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[Guarded]:
    with Guarded(tmp_path) as running:
        running.put("ann")
        running.put("zoe", tenant="globex", operator="eve")
        yield running


def journal_report(name: str) -> report_pb2.ReportJournalRequest:
    request = report_pb2.ReportJournalRequest(sidecar=name)
    chain = request.chains.add(chain="w0-0000000000aa", records=1, head=bytes(32))
    chain.report_time.GetCurrentTime()
    return request


def lease(name: str, tenant: str, holder: str, sequence: int = 1) -> lease_pb2.LeaseRequest:
    request = lease_pb2.LeaseRequest(tenant=tenant, sidecar=name, holder=holder, sequence=sequence)
    ask = request.asks.add(grant="g1", subject="ann")
    ask.least.count = ask.want.count = 1
    return request


def usage(name: str, tenant: str) -> report_pb2.ReportUsageRequest:
    request = report_pb2.ReportUsageRequest(sidecar=name)
    window = request.windows.add(chain="w0-0000000000aa", number=1)
    window.end_time.GetCurrentTime()
    window.tenants.add(tenant=tenant)
    return request


def test_the_scope_of_everything_a_sidecar_does_comes_from_its_certificate(plane: Guarded) -> None:
    payments = plane.authority.issue("payments", uris=[PAYMENTS])
    before = plane.counters.refused()
    with plane.channel(payments) as channel:
        with following(channel) as stream:
            assert stream.tenants() == ["acme"]
            until(lambda: plane.listed()["pod-1"].identity == PAYMENTS, "the identity to be shown")
        reports, leases = stubs(channel)
        reports.ReportJournal(journal_report("pod-1"))
        reports.ReportUsage(usage("pod-1", "acme"))
        leases.Lease(lease("pod-1", "acme", secrets.token_hex(16)))
        # Of another tenant: nothing, anywhere.
        foreign = report_pb2.ReportAuthenticationsRequest(sidecar="pod-1")
        reported = foreign.authentications.add(tenant="globex", subject="zoe", token="x")
        reported.report_time.GetCurrentTime()
        settling = lease_pb2.SettleSpendsRequest(tenant="globex")
        for call in (
            lambda: reports.ReportUsage(usage("pod-1", "globex")),
            lambda: reports.ReportAuthentications(foreign),
            lambda: leases.Lease(lease("pod-1", "globex", secrets.token_hex(16))),
            lambda: leases.CloseHolder(
                lease_pb2.CloseHolderRequest(tenant="globex", sidecar="pod-1", holder=secrets.token_hex(16))
            ),
            lambda: leases.SettleSpends(settling),
        ):
            error = refusal(call)
            assert (error.code(), error.details()) == (DENIED, "tenants/globex: out of scope for this caller")
    after = plane.counters.refused()
    assert after.pop("tenant_out_of_scope") == before.pop("tenant_out_of_scope") + 5
    assert after == before


def test_who_has_no_certificate_a_foreign_or_an_expired_one_does_not_get_through_the_handshake(plane: Guarded) -> None:
    foreign = Authority(plane.folder, "foreign").issue("foreign-payments", uris=[PAYMENTS])
    expired = plane.authority.issue("expired", uris=[PAYMENTS], valid_s=-60)
    before = plane.counters.handshakes, plane.counters.connections
    for identity in (None, foreign, expired):
        with plane.channel(identity, plane.grpc) as channel, following(channel) as stream:
            assert stream.end().code() is grpc.StatusCode.UNAVAILABLE
    assert plane.counters.handshakes >= before[0] + 3
    assert plane.counters.connections == before[1]


def test_at_the_operators_address_a_sidecar_is_nobody(plane: Guarded, caplog: pytest.LogCaptureFixture) -> None:
    payments = plane.authority.issue("payments", uris=[PAYMENTS])
    for identity in (None, payments):
        with plane.channel(identity, plane.admin) as channel:
            with following(channel) as stream:
                assert stream.end().code() is UNKNOWN
            reports, leases = stubs(channel)
            assert refusal(lambda r=reports: r.ReportJournal(journal_report("pod-1"))).code() is UNKNOWN
            assert refusal(lambda each=leases: each.Lease(lease("p", "acme", secrets.token_hex(16)))).code() is UNKNOWN
    assert plane.counters.refused()["no_certificate"] == 6
    assert "no_certificate; the last one: without a certificate" in caplog.text


def test_a_certificate_that_maps_to_nothing_is_an_error_and_no_empty_snapshot(
    plane: Guarded, caplog: pytest.LogCaptureFixture
) -> None:
    unmapped = plane.authority.issue("unmapped", uris=["spiffe://example.org/elsewhere"])
    impossible = plane.authority.issue("impossible", uris=["spiffe://example.org/ns/Not.A.Tenant/sa/x"])
    for identity in (unmapped, impossible):
        with plane.channel(identity) as channel, following(channel) as stream:
            error = stream.end()
            assert error.code() is DENIED
            assert "no tenant is mapped to a certificate of spiffe://example.org/" in str(error.details())
    assert plane.counters.refused()["unmapped_certificate"] == 2
    assert "unmapped_certificate" in caplog.text
    assert not any(line in caplog.text for line in secrets_of([unmapped, impossible]))


def test_a_changed_mapping_reaches_running_streams(plane: Guarded) -> None:
    payments = plane.authority.issue("payments", uris=[PAYMENTS])
    with plane.channel(payments) as channel:
        with following(channel) as stream:
            assert stream.tenants() == ["acme"]
            plane.write(plane.mapping, sidecars=[{"match": PAYMENTS, "tenants": ["acme", "globex"]}])
            assert stream.end().code() is grpc.StatusCode.UNAVAILABLE
        with following(channel) as stream:
            assert stream.tenants() == ["acme", "globex"]
            # What cannot be used changes nothing; what maps to nothing ends the stream.
            plane.mapping.write_text("sidecars: [")
            plane.write(plane.revoked, revoked=[{"name": "spiffe://example.org/other"}])
            plane.write(plane.mapping, sidecars=[{"match": "dns:{pod}.example.org", "tenants": ["acme"]}])
            assert stream.end().code() is DENIED
    assert plane.counters.ended()["unmapped_certificate"] == 1


@pytest.mark.parametrize("by", ["name", "fingerprint", "serial", "crl"])
def test_a_revoked_certificate_is_refused_and_its_stream_ended(
    plane: Guarded, by: str, caplog: pytest.LogCaptureFixture
) -> None:
    payments = plane.authority.issue("payments", uris=[PAYMENTS])
    other = plane.authority.issue("other", uris=["spiffe://example.org/ns/acme/sa/other"])
    certificate = x509.load_pem_x509_certificate(payments.certificate.read_bytes())
    entries = {
        "name": {"name": PAYMENTS},
        "fingerprint": {"fingerprint": certificate.fingerprint(hashes.SHA256()).hex(":")},
        "serial": {"serial": f"{certificate.serial_number:x}", "issuer": "CN=authority"},
    }
    with plane.channel(payments) as channel, plane.channel(other) as second, following(second, "pod-2") as unharmed:
        assert unharmed.tenants() == ["acme"]
        with following(channel) as stream:
            assert stream.tenants() == ["acme"]
            if by == "crl":
                plane.write(plane.revoked, crls=[str(plane.authority.revoke(payments))])
            else:
                plane.write(plane.revoked, revoked=[entries[by]])
            error = stream.end()
        assert error.code() is DENIED
        assert "is revoked" in str(error.details())
        # The connection is still there; nothing is to be had on it.
        reports, _ = stubs(channel)
        assert refusal(lambda: reports.ReportJournal(journal_report("pod-1"))).code() is DENIED
        stubs(second)[0].ReportJournal(journal_report("pod-2"))
        assert unharmed.call.is_active()
    assert plane.counters.ended()["revoked_certificate"] == 1
    assert plane.counters.refused()["revoked_certificate"] == 1
    assert "revoked_certificate" in caplog.text
    assert not any(line in caplog.text for line in secrets_of([payments, plane.server]))


def test_a_revocation_list_that_no_authority_signed_changes_nothing(
    plane: Guarded, caplog: pytest.LogCaptureFixture
) -> None:
    payments = plane.authority.issue("payments", uris=[PAYMENTS])
    forged = plane.authority.revoke(payments, signed_by=Authority(plane.folder, "forger"))
    with plane.channel(payments) as channel, following(channel) as stream:
        assert stream.tenants() == ["acme"]
        plane.write(plane.revoked, crls=[str(forged)])
        until(lambda: "is not signed by an authority" in caplog.text, "the list to be refused")
        assert stream.call.is_active()


def test_a_stream_ends_when_its_certificate_expires(plane: Guarded) -> None:
    brief = plane.authority.issue("brief", uris=[PAYMENTS], valid_s=4)
    with plane.channel(brief) as channel, following(channel) as stream:
        assert stream.tenants() == ["acme"]
        error = stream.end()
    assert error.code() is DENIED
    assert "has expired" in str(error.details())
    assert plane.counters.ended()["expired_certificate"] == 1


def test_one_sidecar_cannot_take_the_name_of_another(plane: Guarded) -> None:
    payments = plane.authority.issue("payments", uris=[PAYMENTS])
    thief = plane.authority.issue("thief", uris=["spiffe://example.org/ns/acme/sa/thief"])
    holder = secrets.token_hex(16)
    with plane.channel(payments) as channel:
        reports, leases = stubs(channel)
        reports.ReportJournal(journal_report("pod-1"))
        leases.Lease(lease("pod-1", "acme", holder))
        with following(channel) as stream:
            assert stream.tenants() == ["acme"]
    with plane.channel(thief) as channel:
        with following(channel) as stream:
            assert stream.end().code() is DENIED
        reports, leases = stubs(channel)
        assert refusal(lambda: reports.ReportJournal(journal_report("pod-1"))).code() is DENIED
        assert refusal(lambda: reports.ReportUsage(usage("pod-1", "acme"))).code() is DENIED
        # Nor, under a name of its own, what the other one holds.
        reports.ReportJournal(journal_report("pod-2"))
        assert refusal(lambda: leases.Lease(lease("pod-2", "acme", holder, 2))).code() is DENIED
        closing = lease_pb2.CloseHolderRequest(tenant="acme", sidecar="pod-2", holder=holder)
        assert refusal(lambda: leases.CloseHolder(closing)).code() is DENIED
    assert plane.counters.refused()["sidecar_name_taken"] == 5
    # A successor with the same identity may close it.
    with plane.channel(payments) as channel:
        closing = lease_pb2.CloseHolderRequest(tenant="acme", sidecar="pod-1b", holder=holder)
        stubs(channel)[1].CloseHolder(closing)


def test_a_pod_in_the_certificate_is_the_only_name_it_may_use(plane: Guarded) -> None:
    pod = plane.authority.issue("pod", uris=["spiffe://example.org/ns/acme/pod/pod-7"])
    with plane.channel(pod) as channel:
        with following(channel, "pod-8") as stream:
            assert stream.end().code() is DENIED
        with following(channel, "pod-7") as stream:
            assert stream.tenants() == ["acme"]


def test_new_certificates_are_used_without_a_restart_and_half_written_ones_are_not(
    plane: Guarded, caplog: pytest.LogCaptureFixture
) -> None:
    payments = plane.authority.issue("payments", uris=[PAYMENTS])
    second = Authority(plane.folder, "second")
    old_key = plane.server.key.read_bytes()
    renewed = second.issue("server")
    # The certificate is there, its key not yet: connections go on with what was there before.
    key, renewed_key = plane.server.key, renewed.key.read_bytes()
    key.write_bytes(old_key)
    until(lambda: "the key is not that of the certificate" in caplog.text, "the half to be noticed")
    with plane.channel(payments) as channel, following(channel) as stream:
        assert stream.tenants() == ["acme"]
    key.write_bytes(renewed_key)

    def renewed_is_served() -> bool:
        with plane.channel(payments, ca=second.certificate) as channel, following(channel) as stream:
            try:
                return stream.tenants() == ["acme"]
            except grpc.RpcError:
                return False

    until(renewed_is_served, "the new certificate")
    assert not any(line in caplog.text for line in secrets_of([payments, plane.server]))
