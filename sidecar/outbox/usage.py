"""Sends windows of usage and outcomes of spot checks to the control plane (ReportService.ReportUsage)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
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
                await self._send(windows)
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
        await self._send([check for _, check in outcomes])
        self._checks.sent(tenant, [key for key, _ in outcomes])
        return True

    async def _send(self, items: Sequence[pb.UsageWindow | pb.SpotCheck]) -> None:
        """Raises grpc.aio.AioRpcError where trying again may help. Of what is refused only what is at fault is dropped: these are
        statistics, and better some are missing than all that come after wait for ever."""
        if not items:
            return
        request = pb.ReportUsageRequest(
            sidecar=self._upward.sidecar,
            windows=[item for item in items if isinstance(item, pb.UsageWindow)],
            outcomes=[item for item in items if isinstance(item, pb.SpotCheck)],
        )
        try:
            await self._upward.call(REPORT_USAGE, request, pb.ReportUsageResponse)
        except grpc.aio.AioRpcError as error:
            if error.code() not in _HOPELESS:
                raise
            # Outcomes are sent by tenant: one that is refused is refused with all of them.
            refused = error.code() is grpc.StatusCode.PERMISSION_DENIED and isinstance(items[0], pb.SpotCheck)
            if len(items) > 1 and not refused:
                half = len(items) // 2
                await self._send(items[:half])
                await self._send(items[half:])
            else:
                _log.error("usage: %d x %s dropped: %s", len(items), items[0].DESCRIPTOR.name, error.details())

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
