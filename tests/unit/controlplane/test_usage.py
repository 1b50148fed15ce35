"""Reports of usage over real gRPC into a real database, and what the control plane concludes from them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from sidestep.v1 import admin_pb2, report_pb2, usage_pb2
from sidestep.v1 import resources_pb2 as pb

from controlplane.threat.breakers import run_breakers
from controlplane.threat.fleet import FleetLimits, find_shared
from engine.names import Collection
from engine.sketch import DistinctCount, item_hash, sketch_key
from tests.fakes.admin import AdminServer

CHAIN = "w0-0192f3c4a1b2"
KEY = sketch_key(b"s" * 32)
FINGERPRINT = b"f" * 16
LIMITS = FleetLimits(subjects=20)
PASSED, FAILED, ABANDONED = (
    report_pb2.SPOT_CHECK_OUTCOME_PASSED,
    report_pb2.SPOT_CHECK_OUTCOME_FAILED,
    report_pb2.SPOT_CHECK_OUTCOME_ABANDONED,
)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[AdminServer]:
    with AdminServer(tmp_path) as running:
        put(running, pb.Resource(subject=pb.Subject(name="tenants/acme/subjects/alice", state="SUBJECT_STATE_ACTIVE")))
        yield running


def put(server: AdminServer, resource: pb.Resource) -> None:
    server.stub.PutResource(admin_pb2.PutResourceRequest(resource=resource))


def stamp(at: float | None = None) -> Any:
    from google.protobuf.timestamp_pb2 import Timestamp

    made = Timestamp()
    made.FromNanoseconds(int((time.time() if at is None else at) * 1e9))
    return made


def window(number: int = 1, chain: str = CHAIN, **usage: Any) -> report_pb2.UsageWindow:
    usage.setdefault("tenant", "acme")
    return report_pb2.UsageWindow(
        chain=chain, number=number, end_time=stamp(), tenants=[report_pb2.TenantUsage(**usage)]
    )


def report(server: AdminServer, *windows: report_pb2.UsageWindow, sidecar: str = "pod-1", **more: Any) -> None:
    server.reports.ReportUsage(report_pb2.ReportUsageRequest(sidecar=sidecar, windows=windows, **more))


def used(grant: str, uses: int, at: float) -> report_pb2.GrantUse:
    return report_pb2.GrantUse(grant=grant, uses=uses, last_time=stamp(at))


def check(number: int, outcome: int = 0, rate: float = 0.1, **more: Any) -> report_pb2.SpotCheck:
    return report_pb2.SpotCheck(
        tenant="acme",
        sample=number.to_bytes(16, "big"),
        grant="g1",
        rate=rate,
        draw_time=stamp(),
        outcome=report_pb2.SpotCheckOutcome.ValueType(outcome),
        **more,
    )


def seen(subjects: Iterable[str], *devices: tuple[str, str]) -> dict[str, Any]:
    sketch = DistinctCount()
    for subject in subjects:
        sketch.add(item_hash(KEY, subject))
    pairs = [report_pb2.SubjectDevice(subject=subject, device=device) for subject, device in devices]
    use = report_pb2.FingerprintUse(fingerprint=FINGERPRINT, subjects=sketch.to_bytes(), devices=pairs)
    return {"sketch_key": b"k" * 8, "fingerprints": [use]}


def found(server: AdminServer, **more: Any) -> list[usage_pb2.FleetFinding]:
    request = usage_pb2.ListFindingsRequest(parent="tenants/acme", **more)
    return list(server.usage.ListFindings(request).findings)


def subject(server: AdminServer, name: str = "alice") -> pb.Subject:
    request = admin_pb2.GetResourceRequest(name=f"tenants/acme/subjects/{name}")
    return server.stub.GetResource(request).resource.subject  # type: ignore[no-any-return]


def test_a_window_counts_once(server: AdminServer) -> None:
    one = window(decisions={"ALLOW EXEMPTION_GRANT": 3}, grants=[used("g1", 3, 1_700_000_000.0)])
    report(server, one)
    report(server, one, window(2, decisions={"ALLOW EXEMPTION_GRANT": 1}, grants=[used("g1", 1, 1_600_000_000.0)]))
    report(server, one, sidecar="pod-2")
    counts = server.run(server.store.usage.counts("acme", 0.0))
    assert counts == {("decision", "ALLOW EXEMPTION_GRANT"): 7, ("class", "default"): 7}
    assert server.run(server.store.usage.last_used("acme")) == {"g1": 1_700_000_000.0}


def test_nothing_is_kept_of_tenants_there_are_none_of(server: AdminServer) -> None:
    report(server, window(tenant="nobody", decisions={"ALLOW": 1}))
    assert server.run(server.store.usage.counts("nobody", 0.0)) == {}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"tenant": "Bad"}, "windows[0].tenants[0].tenant"),
        ({"draws": [check(1, rate=0.0)]}, "draws[0].rate"),
        ({"draws": [check(1, rate=float("nan"))]}, "draws[0].rate"),
        ({"draws": [report_pb2.SpotCheck(sample=b"x", grant="g", rate=0.5)]}, "draws[0].sample"),
        ({"grants": [report_pb2.GrantUse(grant="g")]}, "grants[0].last_time"),
        ({"fingerprints": [report_pb2.FingerprintUse(fingerprint=FINGERPRINT)]}, "sketch_key"),
        (
            {
                "sketch_key": b"k" * 8,
                "fingerprints": [report_pb2.FingerprintUse(fingerprint=FINGERPRINT, subjects=b"no")],
            },
            "fingerprints[0].subjects",
        ),
        ({"guards": [report_pb2.GuardCount(guard="x" * 65)]}, "guards[0].guard"),
    ],
    ids=["tenant", "rate", "nan", "sample", "time", "key", "sketch", "guard"],
)
def test_what_cannot_be_a_report_is_refused(server: AdminServer, change: dict[str, Any], field: str) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        report(server, window(**change))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert field in refused.value.details()


def abuse(server: AdminServer) -> usage_pb2.ClassAbuse:
    request = usage_pb2.ListClassAbuseRequest(parent="tenants/acme")
    (only,) = server.usage.ListClassAbuse(request).classes
    return only  # type: ignore[no-any-return]


def test_the_first_outcome_of_a_sample_counts(server: AdminServer) -> None:
    report(server, window(draws=[check(1), check(2), check(3), check(4)]))
    report(server, outcomes=[check(1, PASSED), check(2, FAILED), check(3, ABANDONED)])
    report(server, window(2, draws=[check(2)]), outcomes=[check(2, PASSED)])
    told = abuse(server)
    assert (told.draws, told.passed, told.failed, told.abandoned) == (4, 1, 1, 1)
    assert told.rate == pytest.approx(2 / 3)
    assert told.lower < told.rate < told.upper


def breaker(server: AdminServer) -> None:
    limits = pb.ClassBreaker(max_rate=0.1, min_samples=20, steps=[0.5])
    limits.window.FromSeconds(86400)
    limits.reopen_after.FromSeconds(600)
    put(server, pb.Resource(settings=pb.Settings(name="tenants/acme/settings/default", breakers=[limits])))


def state(server: AdminServer) -> pb.GrantClassState:
    return abuse(server).state


def test_a_class_with_too_many_failed_checks_is_suspended_and_reopens_in_steps(server: AdminServer) -> None:
    breaker(server)
    now = time.time()
    report(server, outcomes=[check(number, PASSED) for number in range(30)])
    assert server.run(run_breakers(server.store, "acme", now)) == []
    report(server, outcomes=[check(100 + number, FAILED) for number in range(20)])
    assert server.run(run_breakers(server.store, "acme", now)) == ["default"]
    assert state(server).state == pb.CLASS_STATE_SUSPENDED
    assert "suspended" in state(server).reason
    # Nothing further happens before its time.
    assert server.run(run_breakers(server.store, "acme", now + 599.0)) == []
    assert server.run(run_breakers(server.store, "acme", now + 600.0)) == ["default"]
    reopening = state(server)
    assert (reopening.state, reopening.spot_check_rate, reopening.trips) == (pb.CLASS_STATE_REOPENING, 0.5, 1)
    records = server.run(server.store.audit.read("acme", 0, 100))
    assert sum(b"grantClasses/default" in record.entry for _, record in records) == 2


def test_two_replicas_suspend_a_class_once(server: AdminServer) -> None:
    breaker(server)
    report(server, outcomes=[check(number, FAILED) for number in range(20)])

    async def both() -> list[list[str]]:
        import asyncio

        now = time.time()
        return list(await asyncio.gather(*(run_breakers(server.store, "acme", now) for _ in range(2))))

    assert sorted(server.run(both())) in ([[], ["default"]], [["default"]])
    assert state(server).trips == 1


def test_a_sidecar_whose_clock_is_ahead_does_not_count_in_the_future(server: AdminServer) -> None:
    """What lay there would be in every window that is looked at, and never be forgotten."""
    ahead = time.time() + 40 * 86400.0
    late = window(
        decisions={"ALLOW": 1}, grants=[used("g1", 1, ahead)], draws=[check(1)], **seen(["a", "b"], ("alice", "phone"))
    )
    late.end_time.CopyFrom(stamp(ahead))
    late.tenants[0].draws[0].draw_time.CopyFrom(stamp(ahead))
    told = check(2, FAILED)
    told.draw_time.CopyFrom(stamp(ahead))
    report(server, late, outcomes=[told])
    usage = server.store.usage
    assert server.run(usage.counts("acme", time.time() + 3600)) == {}
    assert server.run(usage.last_used("acme"))["g1"] <= time.time()
    assert server.run(usage.checks("acme", "default", time.time() + 1)).draws == 0
    assert server.run(usage.checks("acme", "default", time.time() - 3600)).draws == 2
    server.run(usage.forget(time.time() + 3600, time.time() + 3600))
    assert server.run(usage.counts("acme", 0.0)) == {}
    assert server.run(usage.checks("acme", "default", 0.0)).draws == 0


def test_a_device_that_was_not_seen_lately_is_no_suspect(server: AdminServer) -> None:
    """Who had the fingerprint long ago has nothing to do with who has it today."""
    old = window(**seen(["a", "b"], ("alice", "phone")))
    old.end_time.CopyFrom(stamp(time.time() - 3 * 86400.0))
    report(server, old, sidecar="pod-0")
    spread(server, ("bob", "tablet"))
    server.run(find_shared(server.store, "acme", LIMITS))
    (finding,) = found(server)
    assert [(pair.subject, pair.device) for pair in finding.devices] == [("bob", "tablet")]
    assert not subject(server).suspects


def test_however_many_devices_are_known_a_known_one_is_seen_anew(server: AdminServer) -> None:
    long_ago = stamp(time.time() - 3 * 86400.0)
    for number in range(1, 18):
        pairs = [(f"s{number}-{each}", "d") for each in range(16)]
        old = window(number, **seen(["a", "b"], *pairs))
        old.end_time.CopyFrom(long_ago)
        report(server, old, sidecar="pod-0")
    spread(server, ("s1-0", "d"), ("s17-0", "d"))
    (shared,) = server.run(server.store.usage.shared("acme", time.time() - 86400.0)).values()
    assert list(shared.devices) == [("s1-0", "d")]


def test_fingerprints_are_forgotten_before_the_rest(server: AdminServer) -> None:
    old = window(decisions={"ALLOW": 1}, **seen(["a", "b"], ("alice", "phone")))
    old.end_time.CopyFrom(stamp(time.time() - 3 * 86400.0))
    report(server, old)
    report(server, old, sidecar="pod-2")
    usage = server.store.usage
    assert server.run(usage.shared("acme", 0.0))
    server.run(usage.forget(time.time() - 91 * 86400.0, time.time() - 2 * 86400.0))
    assert server.run(usage.shared("acme", 0.0)) == {}
    assert server.run(usage.counts("acme", 0.0)) == {("decision", "ALLOW"): 2}


def spread(server: AdminServer, *devices: tuple[str, str]) -> None:
    report(server, window(**seen((f"a{number}" for number in range(12)), *devices)), sidecar="pod-1")
    report(server, window(**seen(f"b{number}" for number in range(12))), sidecar="pod-2")


def test_a_fingerprint_spread_over_pods_is_found_though_each_saw_few(server: AdminServer) -> None:
    spread(server, ("alice", "phone"))
    (new,) = server.run(find_shared(server.store, "acme", LIMITS))
    (finding,) = found(server)
    assert finding.name == f"tenants/acme/findings/{new}"
    assert list(finding.sidecars) == ["pod-1", "pod-2"]
    assert round(finding.subjects) == 24
    # The pair is asked for an authentication, and nothing is denied.
    (suspect,) = subject(server).suspects
    assert (suspect.device, suspect.guard) == ("phone", "shared-fingerprint")
    # Again: nothing new.
    assert server.run(find_shared(server.store, "acme", LIMITS)) == []
    assert len(subject(server).suspects) == 1


def test_one_sidecar_alone_is_not_enough(server: AdminServer) -> None:
    report(server, window(**seen((f"a{number}" for number in range(500)), ("alice", "phone"))), sidecar="pod-1")
    report(server, window(**seen(["b"])), sidecar="pod-2")
    assert server.run(find_shared(server.store, "acme", LIMITS)) == []
    assert not subject(server).suspects


def test_the_same_few_subjects_in_many_pods_are_few(server: AdminServer) -> None:
    for pod in range(8):
        report(server, window(**seen((f"a{number}" for number in range(5)), ("alice", "phone"))), sidecar=f"pod-{pod}")
    assert server.run(find_shared(server.store, "acme", LIMITS)) == []


def test_a_subject_nobody_registered_is_left_alone(server: AdminServer) -> None:
    spread(server, ("stranger", "phone"))
    assert len(server.run(find_shared(server.store, "acme", LIMITS))) == 1
    with pytest.raises(grpc.RpcError):
        subject(server, "stranger")


def test_a_put_does_not_take_marks_back(server: AdminServer) -> None:
    spread(server, ("alice", "phone"))
    server.run(find_shared(server.store, "acme", LIMITS))
    put(server, pb.Resource(subject=pb.Subject(name="tenants/acme/subjects/alice", state="SUBJECT_STATE_DISABLED")))
    assert len(subject(server).suspects) == 1


def settle(server: AdminServer, state: str, name: str = "", reason: str = "seen to") -> usage_pb2.SettleFindingResponse:
    request = usage_pb2.SettleFindingRequest(name=name or found(server)[0].name, state=state, reason=reason)
    return server.usage.SettleFinding(request)  # type: ignore[no-any-return]


def test_a_person_applies_a_finding(server: AdminServer) -> None:
    put(server, pb.Resource(device=pb.Device(name="tenants/acme/devices/phone", subject="alice")))
    spread(server, ("alice", "phone"), ("alice", "unknown"))
    server.run(find_shared(server.store, "acme", LIMITS))
    name = found(server)[0].name
    assert settle(server, "FINDING_STATE_APPLIED").changed == 1
    stored = server.run(server.store.get("acme", Collection.DEVICE_STATES, "phone"))
    assert pb.DeviceState.FromString(stored).trust == pb.DEVICE_TRUST_QUARANTINED
    assert found(server) == []
    with pytest.raises(grpc.RpcError) as refused:
        settle(server, "FINDING_STATE_DISMISSED", name)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION


def test_a_person_dismisses_a_finding_and_it_stays_so(server: AdminServer) -> None:
    spread(server, ("alice", "phone"))
    server.run(find_shared(server.store, "acme", LIMITS))
    assert settle(server, "FINDING_STATE_DISMISSED").changed == 1
    assert not subject(server).suspects
    assert server.run(find_shared(server.store, "acme", LIMITS)) == []
    assert [finding.state for finding in found(server, all=True)] == [usage_pb2.FINDING_STATE_DISMISSED]


@pytest.mark.parametrize(
    ("settled", "field"),
    [
        ({"state": "FINDING_STATE_OPEN"}, "state"),
        ({"state": "FINDING_STATE_APPLIED", "reason": " "}, "reason"),
        ({"state": "FINDING_STATE_APPLIED", "name": "acme"}, "name"),
    ],
    ids=["open", "no reason", "no name"],
)
def test_a_finding_is_settled_one_way_or_the_other(server: AdminServer, settled: dict[str, str], field: str) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        settle(server, **{"name": "tenants/acme/findings/f", **settled})
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert field in refused.value.details()
