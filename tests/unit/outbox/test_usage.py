"""What the agent tells of usage and spot checks: a tenant the control plane refuses takes nobody with it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from sidestep.v1 import report_pb2, report_pb2_grpc

from sidecar.outbox.upward import Upward
from sidecar.outbox.usage import UsageSender
from sidecar.upstream import Upstream
from sidecar.usage.checks import Check, Checks
from sidecar.usage.windows import waiting, write_window
from tests.fakes.shipping import in_a_loop


class Reports(report_pb2_grpc.ReportServiceServicer):
    """Takes usage of every tenant but `gone`."""

    def __init__(self) -> None:
        self.windows: list[str] = []
        self.outcomes: list[str] = []

    def ReportUsage(self, request: report_pb2.ReportUsageRequest, context: Any) -> report_pb2.ReportUsageResponse:  # noqa: N802
        tenants = [check.tenant for check in request.outcomes]
        named = [usage.tenant for window in request.windows for usage in window.tenants]
        if "gone" in (*tenants, *named):
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "tenant gone is out of scope")
        self.outcomes += tenants
        self.windows += named
        return report_pb2.ReportUsageResponse()


@pytest.fixture
def plane() -> Iterator[tuple[Reports, str]]:
    reports = Reports()
    server = grpc.server(ThreadPoolExecutor(2))
    report_pb2_grpc.add_ReportServiceServicer_to_server(reports, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield reports, f"127.0.0.1:{port}"
    server.stop(0).wait()


@in_a_loop
async def test_a_refused_tenants_windows_and_outcomes_cost_no_other(tmp_path: Path, plane: tuple[Reports, str]) -> None:
    reports, address = plane
    for number, tenant in enumerate(("acme", "gone", "other"), 1):
        window = report_pb2.UsageWindow(chain="w0-0000000000aa", number=number)
        window.tenants.add(tenant=tenant)
        assert write_window(tmp_path / "usage", window)
    checks = Checks(tmp_path / "checks", "boot-1")
    for number, tenant in enumerate(("acme", *("gone",) * 5, "other")):
        decision_id = bytes([number]) * 16
        message = report_pb2.SpotCheck(tenant=tenant, sample=decision_id)
        checks.keep([(decision_id, Check(message.SerializeToString(), 1.0))], 1.0)
        checks.report(decision_id, "", report_pb2.SPOT_CHECK_OUTCOME_PASSED, 1.0)
    upward = Upward(Upstream(address), "pod-1", "usage")
    await UsageSender(tmp_path / "usage", checks, upward).step()
    assert sorted(reports.windows) == sorted(reports.outcomes) == ["acme", "other"]
    assert waiting(tmp_path / "usage") == []
    assert checks.waiting() == []
    await upward.close()
    checks.close()
