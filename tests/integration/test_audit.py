"""From decisions to the audit: a real control plane, a real sidecar, a collector, and the command an auditor uses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner, Result
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from sidestep.v1 import admin_pb2, admin_pb2_grpc, decision_pb2, decision_pb2_grpc

from controlplane.cli.main import cli
from tests.fakes.otlp import OtlpReceiver
from tests.fakes.otlp_json import write_lines
from tests.processes import Program, controlplane, sidecar, until

POLICY = """apiVersion: sidestep.dev/v1
kind: Policy
metadata: {name: payments, tenant: acme}
spec:
  match: {actions: ["payments.*"]}
  require: {acr: nist-aal2, maxAge: 12h}
"""


class Auditor:
    """A control plane with a tenant, and the command line on it."""

    def __init__(self, plane: Program) -> None:
        self.plane = plane
        with grpc.insecure_channel(plane.grpc) as channel:
            request = admin_pb2.PutResourceRequest()
            request.resource.policy.name = "tenants/acme/policies/payments"
            request.resource.policy.source = POLICY
            admin_pb2_grpc.AdminServiceStub(channel).PutResource(request, timeout=10)  # type: ignore[no-untyped-call]

    def run(self, *args: str, **env: str) -> Result:
        return CliRunner(env={"SIDESTEP_SERVER": self.plane.grpc} | env).invoke(cli, list(args))

    def audit(self, *args: str) -> tuple[int, dict[str, Any]]:
        """Exit code, and the account of the only chain (none yet: empty)."""
        result = self.run("sidecars", "audit", "-o", "json", *args)
        chains = json.loads(result.stdout)
        assert len(chains) <= 1
        return result.exit_code, chains[0] if chains else {}


@pytest.fixture
def auditor(tmp_path: Path) -> Iterator[Auditor]:
    with controlplane(tmp_path / "controlplane") as plane:
        yield Auditor(plane)


def settings(auditor: Auditor, receiver: OtlpReceiver) -> dict[str, str]:
    return {
        "SIDESTEP_CONTROL_PLANE": auditor.plane.grpc,
        "SIDESTEP_SIDECAR_NAME": "pod-1",
        "SIDESTEP_JOURNAL_SINK": "otlp",
        "SIDESTEP_JOURNAL_REPORT_INTERVAL": "200ms",
        "SIDESTEP_SHUTDOWN_GRACE": "4s",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{receiver.endpoint}",
        "OTEL_METRICS_EXPORTER": "none",
    }


def remove(folder: Path) -> None:
    """Removes a pod's volume, while the last of its processes may still be dying."""

    def removed() -> bool:
        shutil.rmtree(folder, ignore_errors=True)
        return not folder.exists()

    until(removed, "the folder to be removed")


def decide(pod: Program, count: int) -> set[str]:
    """So many answered decisions; their ids."""
    request = decision_pb2.EvaluateRequest()
    request.subject.id, request.action.name = "alice", "payments.transfer"
    ids: set[str] = set()
    with grpc.insecure_channel(pod.grpc) as channel:
        stub = decision_pb2_grpc.DecisionServiceStub(channel)  # type: ignore[no-untyped-call]

        def answered() -> bool:
            try:
                ids.add(stub.Evaluate(request, timeout=5).decision_id)
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:  # before the data is there
                    raise
            return len(ids) == count

        until(answered, f"{count} decisions")
    return ids


def test_what_was_decided_was_anchored_and_delivered(auditor: Auditor, tmp_path: Path) -> None:
    with OtlpReceiver() as receiver, sidecar(tmp_path / "pod", **settings(auditor, receiver)) as pod:
        ids = decide(pod, 200)
        until(lambda: auditor.audit()[1].get("lastDelivered") == 199, "the last record to be told as delivered")
        code, account = auditor.audit("--lost-after", "1ms")
        assert (code, account["lastAnchored"], account["waiting"], account["lostInAll"]) == (0, 199, 0, 0)
        assert (account["sidecar"], account["connected"], account["chain"]["ended"]) == ("pod-1", True, False)
        ids |= decide(pod, 20)
        assert pod.stop() == 0
        # The last report came with the drain, not with the next interval.
        code, account = auditor.audit("--lost-after", "1ms")
        assert (code, account["lastAnchored"], account["lastDelivered"]) == (0, 219, 219)
        assert account["chain"]["ended"]
        request = ExportTraceServiceRequest()
        group = request.resource_spans.add()
        group.resource.attributes.add(key="service.instance.id").value.string_value = "pod-1"
        group.scope_spans.add().spans.extend(receiver.spans)
        write_lines(tmp_path / "export.json", [request])
        result = auditor.run("journal", "verify", str(tmp_path / "export.json"), "--all")
        assert (result.exit_code, "whole  220 records, 220 anchored" in result.stdout) == (0, True), result.stdout
        del group.scope_spans[0].spans[100]
        write_lines(tmp_path / "export.json", [request])
        result = auditor.run("journal", "verify", str(tmp_path / "export.json"))
        assert (result.exit_code, "record 100: missing" in result.stdout) == (13, True), result.stdout
        assert len(ids) == 220


def test_what_a_pod_took_with_it_is_counted_as_lost(auditor: Auditor, tmp_path: Path) -> None:
    with OtlpReceiver() as receiver, sidecar(tmp_path / "pod", **settings(auditor, receiver)) as pod:
        decide(pod, 30)
        until(lambda: auditor.audit()[1].get("lastDelivered") == 29, "30 records to be delivered")
        receiver.stop()
        decide(pod, 12)
        until(lambda: auditor.audit()[1]["lastAnchored"] == 41, "42 records to be anchored while nothing is delivered")
        code, account = auditor.audit()
        assert (code, account["waiting"], account["lostInAll"]) == (0, 12, 0)
        pod.kill()
    remove(tmp_path / "pod")
    until(lambda: not auditor.audit()[1]["connected"], "the stream to end")
    # It may still come back.
    code, account = auditor.audit()
    assert (code, account["waiting"], account["lostInAll"]) == (0, 12, 0)
    code, account = auditor.audit("--lost-after", "1ms")
    assert (code, account["waiting"], account["lostInAll"], account["gone"]) == (13, 0, 12, True)


def test_what_was_spooled_is_not_lost_and_delivered_later(auditor: Auditor, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    with OtlpReceiver() as receiver:
        receiver.stop()
        more = {"SIDESTEP_JOURNAL_SPOOL": str(spool), "SIDESTEP_SHUTDOWN_GRACE": "2s"}
        with sidecar(tmp_path / "pod", **(settings(auditor, receiver) | more)) as pod:
            ids = decide(pod, 25)
            assert pod.stop() == 0
        remove(tmp_path / "pod")
        code, account = auditor.audit("--lost-after", "1ms")
        assert (code, account["lastAnchored"], account["inSpool"], account["lostInAll"]) == (0, 24, 25, 0)
        receiver.start()
        result = auditor.run("journal", "ship", str(spool), OTEL_EXPORTER_OTLP_ENDPOINT=f"http://{receiver.endpoint}")
        assert result.exit_code == 0, result.stderr
        assert set(receiver.decision_ids()) == ids
    code, account = auditor.audit("--lost-after", "1ms")
    assert (code, account["lastDelivered"], account["inSpool"], account["lostInAll"]) == (0, 24, 0, 0)
