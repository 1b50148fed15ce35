"""Sends reported authentications to the control plane, out of the pod's durable outbox (local/store.py)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

import grpc
import msgspec
from sidestep.v1 import report_pb2 as pb

from sidecar.front.report import AUTHENTICATION, REFUSAL
from sidecar.gather.jws import JwsError, decode_object, split
from sidecar.local.store import LocalStore, LocalStoreError, Outgoing
from sidecar.outbox.upward import Upward

REPORT_AUTHENTICATIONS: Final = "/sidestep.v1.ReportService/ReportAuthentications"
LOOK_EVERY_S: Final = 0.25
MAX_SENT: Final = 50
"""Of each call: with the longest tokens there are, far below the 4 MiB that gRPC takes."""
# What is wrong with the report itself: sent again, it would be refused again.
_HOPELESS: Final = frozenset({grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.PERMISSION_DENIED})

_log = logging.getLogger(__name__)


class _Claims(msgspec.Struct):
    iss: str
    auth_time: float


class AuthenticationSender:
    """Runs in the agent. What it has sent is sent again if it dies before it has noted that; the control plane counts it once."""

    def __init__(self, local: LocalStore, upward: Upward) -> None:
        self._local = local
        self._upward = upward

    async def run(self) -> None:
        """Sends what there is, until cancelled."""
        while True:
            pause_s = LOOK_EVERY_S
            try:
                pause_s = max(pause_s, await self.step())
            except LocalStoreError as error:
                _log.error("reported authentications: %s", error)
            await asyncio.sleep(pause_s)

    async def step(self) -> float:
        """Sends all there is, in the order it came. Returns how long to wait before the next try, seconds.

        Raises LocalStoreError.
        """
        while waiting := self._local.take((AUTHENTICATION, REFUSAL), MAX_SENT):
            try:
                await self._send(waiting)
            except grpc.aio.AioRpcError as error:
                return self._upward.failed(error)
        return 0.0

    async def _send(self, items: Sequence[Outgoing]) -> None:
        """Raises grpc.aio.AioRpcError where trying again may help."""
        request = pb.ReportAuthenticationsRequest(
            sidecar=self._upward.sidecar,
            authentications=[
                pb.ReportedAuthentication.FromString(item.payload) for item in items if item.kind == AUTHENTICATION
            ],
            refusals=[pb.RefusedAuthentication.FromString(item.payload) for item in items if item.kind == REFUSAL],
        )
        try:
            response = await self._upward.call(REPORT_AUTHENTICATIONS, request, pb.ReportAuthenticationsResponse)
        except grpc.aio.AioRpcError as error:
            if error.code() not in _HOPELESS:
                raise
            if len(items) > 1:  # one of them is at fault, and must not hold up the others
                for item in items:
                    await self._send([item])
                return
            _log.error("a reported authentication cannot be taken over: %s", (error.details() or "")[:200])
        else:
            # The answer has a receipt for each, in their order.
            for reported, receipt in zip(request.authentications, response.receipts, strict=False):
                if receipt.outcome != pb.AUTHENTICATION_OUTCOME_RECORDED:
                    _log.warning("the control plane refused a reported authentication: %s", receipt.problem)
                    self._leave_device(reported)
        self._local.settle(item.number for item in items)

    def _leave_device(self, reported: pb.ReportedAuthentication) -> None:
        """Raises LocalStoreError."""
        if not reported.device:
            return
        try:
            claims = decode_object(split(reported.token).payload, _Claims)
        except JwsError:
            return  # it was never recorded here
        self._local.leave_device(reported.tenant, reported.subject, claims.iss, claims.auth_time, reported.device)
