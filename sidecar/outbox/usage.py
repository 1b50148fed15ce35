"""Sends windows of usage and outcomes of spot checks to the control plane (ReportService.ReportUsage)."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Final

import grpc
from sidestep.v1 import report_pb2 as pb

from sidecar.outbox.turns import Turns
from sidecar.outbox.upward import Upward
from sidecar.usage.checks import Checks, ChecksError
from sidecar.usage.windows import read_window, remove, waiting

REPORT_USAGE: Final = "/sidestep.v1.ReportService/ReportUsage"
LOOK_EVERY_S: Final = 1.0
MAX_WINDOWS: Final = 16
MAX_OUTCOMES: Final = 1_000
_MAX_BYTES: Final = 2 << 20
# The control plane will never take it.
_HOPELESS: Final = frozenset({grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.PERMISSION_DENIED})

_log = logging.getLogger(__name__)


class UsageSender:
    """Runs in the agent. What it has sent is sent again if it dies before it has noted that, and counts once."""

    def __init__(self, directory: Path, checks: Checks | None, upward: Upward) -> None:
        self._directory = directory
        self._checks = checks
        self._upward = upward
        self._turns = Turns(upward)

    async def run(self) -> None:
        """Sends what there is, until cancelled."""
        while True:
            pause_s = LOOK_EVERY_S
            try:
                pause_s = max(pause_s, await self.step())
            except ChecksError as error:
                _log.error("usage: %s", error)
            except OSError as error:
                _log.error("usage: %s: %s", error.filename, error.strerror)
            await asyncio.sleep(pause_s)

    async def step(self) -> float:
        """Sends all there is. Returns how long to wait before the next try, seconds. Raises ChecksError, OSError."""
        while True:
            paths, windows = self._windows()
            if not paths:
                break
            try:
                if not await self._taken(windows, []) and len(windows) > 1:
                    # One of them is at fault, and must not take the others with it.
                    for window in windows:
                        await self._taken([window], [])
            except grpc.aio.AioRpcError as error:
                return self._upward.failed(error)
            remove(paths)
        return 0.0 if self._checks is None else await self._turns.take(self._checks.waiting, self._send_outcomes)

    async def _send_outcomes(self, tenant: str) -> bool:
        """A page of one tenant; whether there was one. Raises grpc.aio.AioRpcError."""
        assert self._checks is not None
        outcomes = self._checks.unsent(tenant, MAX_OUTCOMES)
        if not outcomes:
            return False
        await self._taken([], [check for _, check in outcomes])
        self._checks.sent(tenant, [key for key, _ in outcomes])
        return True

    async def _taken(self, windows: list[pb.UsageWindow], outcomes: list[pb.SpotCheck]) -> bool:
        """False: the control plane will never take it. Raises grpc.aio.AioRpcError."""
        request = pb.ReportUsageRequest(sidecar=self._upward.sidecar, windows=windows, outcomes=outcomes)
        try:
            await self._upward.call(REPORT_USAGE, request, pb.ReportUsageResponse)
        except grpc.aio.AioRpcError as error:
            if error.code() not in _HOPELESS:
                raise
            if len(windows) <= 1:
                # Statistics: better some are missing than all that come after wait for ever.
                _log.error(
                    "usage: %d windows and %d outcomes are dropped: %s", len(windows), len(outcomes), error.details()
                )
            return False
        return True

    def _windows(self) -> tuple[list[Path], list[pb.UsageWindow]]:
        """The oldest windows that fit into one message, and files that are dealt with once they are sent."""
        paths: list[Path] = []
        windows: list[pb.UsageWindow] = []
        size = 0
        for path in waiting(self._directory)[:MAX_WINDOWS]:
            window = read_window(path)
            if window is not None:
                size += window.ByteSize()
                if windows and size > _MAX_BYTES:
                    break
                windows.append(window)
            paths.append(path)
        return paths, windows
