"""DecisionService.Settle: a service tells what became of what it was permitted."""

from __future__ import annotations

from typing import Final

from google.protobuf.message import DecodeError
from sidestep.v1 import decision_pb2, lease_pb2

from engine.errors import InvalidInputError
from sidecar.callers import Caller
from sidecar.clock import Clock
from sidecar.front.decision_id import parse_id
from sidecar.lease.reservations import CANCELLED, EXECUTED, Reservations, ReservationsError

MAX_SETTLE_BYTES: Final = 1024
"""Size of a SettleRequest."""
_STATES: Final[dict[int, str]] = {
    lease_pb2.SETTLEMENT_EXECUTED: EXECUTED,
    lease_pb2.SETTLEMENT_CANCELLED: CANCELLED,
}
_SETTLED: Final = decision_pb2.SettleResponse().SerializeToString()


class Settler:
    """Settles spends of this pod. Thread-safe. `reservations`: None if they cannot be used."""

    def __init__(self, reservations: Reservations | None, clock: Clock) -> None:
        self._reservations = reservations
        self._clock = clock

    def answer(self, payload: bytes, caller: Caller | None) -> bytes:
        """The answer to a SettleRequest, once the settlement is on its way to the control plane and survives any process.

        Raises InvalidInputError naming the field, UnknownDecisionError, AlreadySettledError, ReservationsError.
        """
        try:
            request = decision_pb2.SettleRequest.FromString(payload)
        except DecodeError:
            raise InvalidInputError("request", "is not a SettleRequest message") from None
        state = _STATES.get(request.settlement)
        if state is None:
            raise InvalidInputError("settlement", "must be SETTLEMENT_EXECUTED or SETTLEMENT_CANCELLED")
        decision_id = parse_id(request.decision_id)
        if self._reservations is None:
            raise ReservationsError("the reservations of this sidecar cannot be used")
        name = "" if caller is None else caller.name
        self._reservations.settle(decision_id, name, state, self._clock.boottime())
        return _SETTLED
