"""Sends settlements of spends to the control plane, out of the pod's durable outbox (lease/reservations.py)."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from sidestep.v1 import lease_pb2 as pb

from engine.escrow import Room
from sidecar.front.decision_id import id_text
from sidecar.lease.reservations import CANCELLED, Reservation, Reservations, ReservationsError
from sidecar.lease.wire import to_room
from sidecar.outbox.turns import Turns
from sidecar.outbox.upward import Upward

SETTLE_SPENDS: Final = "/sidestep.v1.LeaseService/SettleSpends"
LOOK_EVERY_S: Final = 0.25
MAX_SETTLEMENTS: Final = 1000

_log = logging.getLogger(__name__)


class SettlementSender:
    """Runs in the agent. What it has sent is sent again if it dies before it has noted that."""

    def __init__(self, reservations: Reservations, upward: Upward) -> None:
        self._reservations = reservations
        self._upward = upward
        self._turns = Turns(upward)

    async def run(self) -> None:
        """Sends what there is, until cancelled."""
        while True:
            pause_s = LOOK_EVERY_S
            try:
                pause_s = max(pause_s, await self.step())
            except ReservationsError as error:
                _log.error("settlements: %s", error)
            await asyncio.sleep(pause_s)

    async def step(self) -> float:
        """Sends all there is, of each tenant by itself. Returns how long to wait before the next try, seconds. Raises
        ReservationsError."""
        return await self._turns.take(self._reservations.waiting, self._send)

    async def _send(self, tenant: str) -> bool:
        """A page of one tenant; whether there was one. Raises grpc.aio.AioRpcError."""
        items = self._reservations.unsent(tenant, MAX_SETTLEMENTS)
        if not items:
            return False
        request = pb.SettleSpendsRequest(tenant=tenant, settlements=[_settlement(*item) for item in items])
        response = await self._upward.call(SETTLE_SPENDS, request, pb.SettleSpendsResponse)
        odd = sum(result != pb.SETTLE_RESULT_SETTLED for result in response.results)
        if odd:
            _log.warning("settlements: the control plane did not take over %d of %d", odd, len(items))
        self._reservations.sent(tenant, [decision_id for decision_id, _ in items])
        return True


def _settlement(decision_id: bytes, spent: Reservation) -> pb.SpendSettlement:
    return pb.SpendSettlement(
        decision_id=id_text(decision_id),
        settlement=pb.SETTLEMENT_CANCELLED if spent.state == CANCELLED else pb.SETTLEMENT_EXECUTED,
        holder=spent.holder,
        grant=spent.grant,
        subject=spent.subject,
        period=spent.period,
        spent=to_room(Room(spent.count, spent.nanos), spent.currency),
    )
