"""Usage on its way up: what the control plane refuses holds up nothing else, and is all that is dropped."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from sidestep.v1 import report_pb2 as pb

from sidecar.outbox.upward import Upward
from sidecar.outbox.usage import UsageSender
from sidecar.usage.windows import waiting, write_window

CHAIN = "w0-0192f3c4a1b2"


class FakeControlPlane:
    """Refuses every report that has one of these windows, by number."""

    sidecar = "pod-1"

    def __init__(self, code: grpc.StatusCode, bad: Iterable[int]) -> None:
        self._code = code
        self._bad = frozenset(bad)
        self.taken: list[int] = []

    async def call(self, method: str, request: pb.ReportUsageRequest, response: Any) -> Any:
        numbers = [window.number for window in request.windows]
        if self._bad.intersection(numbers):
            raise grpc.aio.AioRpcError(self._code, grpc.aio.Metadata(), grpc.aio.Metadata(), "no")
        self.taken += numbers
        return pb.ReportUsageResponse()

    def failed(self, error: grpc.aio.AioRpcError) -> float:
        return 5.0


def run(folder: Path, code: grpc.StatusCode, bad: Iterable[int]) -> tuple[FakeControlPlane, float]:
    for number in range(1, 11):
        write_window(folder, pb.UsageWindow(chain=CHAIN, number=number))
    plane = FakeControlPlane(code, bad)
    return plane, asyncio.run(UsageSender(folder, None, cast(Upward, plane)).step())


@pytest.mark.parametrize("code", [grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.PERMISSION_DENIED])
def test_only_what_is_refused_is_dropped_and_the_rest_goes_in_order(tmp_path: Path, code: grpc.StatusCode) -> None:
    plane, pause_s = run(tmp_path, code, [3, 8])
    assert plane.taken == [1, 2, 4, 5, 6, 7, 9, 10]
    assert (waiting(tmp_path), pause_s) == ([], 0.0)


def test_what_may_be_taken_later_waits(tmp_path: Path) -> None:
    plane, pause_s = run(tmp_path, grpc.StatusCode.UNAVAILABLE, [3])
    assert (plane.taken, pause_s) == ([], 5.0)
    assert len(waiting(tmp_path)) == 10
