"""A control plane's LeaseService in memory, over real gRPC: it keeps exact books, and fails as a test wants.

with LeaseDesk() as desk:
    desk.budget("g1", uses=5)
    # start workers on desk.address
    desk.down = True            # every call ends UNAVAILABLE
    desk.lose_answers = 3       # so many calls are carried out, but their answers are lost
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import grpc
from sidestep.v1 import lease_pb2 as pb
from sidestep.v1 import lease_pb2_grpc, resources_pb2

from engine.escrow import NOTHING, Room
from engine.money import from_nanos, to_nanos

Key = tuple[str, str, str]
_UNLIMITED = 10**18


@dataclass
class _Held:
    granted: Room = NOTHING
    spent: Room = NOTHING
    returned: Room = NOTHING
    asked: int = 0

    @property
    def taken(self) -> Room:
        return self.granted.minus(self.returned).most(self.spent)


@dataclass
class _Holder:
    closed: bool = False
    accounts: dict[Key, _Held] = field(default_factory=dict)


class LeaseDesk(lease_pb2_grpc.LeaseServiceServicer):
    """Thread-safe. Each grant's budget counts for every subject apart; there is one period."""

    def __init__(self) -> None:
        self.down = False
        self.lose_answers = 0
        self.calls: list[Any] = []
        # What no holder should have said, and what should not have come of it.
        self.violations: list[str] = []
        self.settled: dict[str, pb.SpendSettlement] = {}
        self._limits: dict[str, tuple[Room, str]] = {}
        self._holders: dict[str, _Holder] = {}
        self._lock = threading.Lock()
        self._server: grpc.Server | None = None
        self.port = 0

    def budget(self, grant: str, *, uses: int = 0, nanos: int = 0, currency: str = "EUR") -> None:
        """What a grant allows; 0: not limited."""
        self._limits[grant] = Room(uses or _UNLIMITED, nanos or _UNLIMITED), currency

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def spent(self, key: Key) -> Room:
        """What is known to be spent."""
        with self._lock:
            return self._total(key, "spent")

    def taken(self, key: Key) -> Room:
        """What is spent or may be."""
        with self._lock:
            return self._total(key, "taken")

    def open_holders(self) -> int:
        with self._lock:
            return sum(not holder.closed for holder in self._holders.values())

    def start(self) -> None:
        """Listens, again on the same port after `stop`."""
        self._server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
        lease_pb2_grpc.add_LeaseServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        self._server.start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop(0).wait()

    def __enter__(self) -> LeaseDesk:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def Lease(self, request: pb.LeaseRequest, context: Any) -> pb.LeaseResponse:  # noqa: N802
        self._begin(request, context)
        with self._lock:
            holder = self._holders.setdefault(request.holder, _Holder())
            closed = holder.closed
            response = None if closed else self._lease(holder, request)
        if response is None:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "holder: is closed")
        self._end(context)
        return response

    def CloseHolder(self, request: pb.CloseHolderRequest, context: Any) -> pb.CloseHolderResponse:  # noqa: N802
        self._begin(request, context)
        with self._lock:
            holder = self._holders.setdefault(request.holder, _Holder())
            holder.closed = True
            spent = {(request.tenant, each.grant, each.subject): _room(each.spent) for each in request.standings}
            for key, held in holder.accounts.items():
                if key[0] == request.tenant:
                    held.spent = held.spent.most(spent.pop(key, NOTHING))
                    held.returned = held.granted.minus(held.spent)
            if spent:
                self.violations.append(f"spent of what it never held: {spent}")
        self._end(context)
        return pb.CloseHolderResponse()

    def SettleSpends(self, request: pb.SettleSpendsRequest, context: Any) -> pb.SettleSpendsResponse:  # noqa: N802
        self._begin(request, context)
        with self._lock:
            for each in request.settlements:
                self.settled.setdefault(each.decision_id, each)
        self._end(context)
        return pb.SettleSpendsResponse(results=[pb.SETTLE_RESULT_SETTLED] * len(request.settlements))

    def _begin(self, request: Any, context: Any) -> None:
        self.calls.append(request)
        if self.down:
            context.abort(grpc.StatusCode.UNAVAILABLE, "down")

    def _end(self, context: Any) -> None:
        if self.lose_answers > 0:
            self.lose_answers -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "lost")

    def _lease(self, holder: _Holder, request: pb.LeaseRequest) -> pb.LeaseResponse:
        for each in request.standings:
            held = holder.accounts[request.tenant, each.grant, each.subject]
            held.spent = held.spent.most(_room(each.spent))
            held.returned = held.returned.most(_room(each.returned))
            limit, _ = self._limits[each.grant]
            # Of what is not limited, a holder may spend more than it asked for.
            over = held.spent.plus(held.returned).minus(held.granted)
            if (over.uses > 0 and limit.uses < _UNLIMITED) or (over.nanos > 0 and limit.nanos < _UNLIMITED):
                self.violations.append(f"spent or returned more than it was granted: {held}, {each}")
        slices = {}
        for ask in request.asks:
            key = request.tenant, ask.grant, ask.subject
            held = holder.accounts.setdefault(key, _Held())
            least, want = _room(ask.least), _room(ask.want)
            limit, _ = self._limits[ask.grant]
            left = limit.minus(self._total(key, "taken"))
            short = not left.covers(least)
            if request.sequence > held.asked:
                held.asked = request.sequence
                if not short:
                    share = Room(left.uses // 4, left.nanos // 4)
                    held.granted = held.granted.plus(want.least(share).most(least))
            slices[ask.grant, ask.subject] = short
        for each in request.standings:
            slices.setdefault((each.grant, each.subject), False)
        return pb.LeaseResponse(
            slices=[self._slice(holder, (request.tenant, *names), short) for names, short in slices.items()]
        )

    def _slice(self, holder: _Holder, key: Key, short: bool) -> pb.LeaseSlice:
        limit, currency = self._limits[key[1]]
        left = limit.minus(self._total(key, "taken"))
        if not left.covers(NOTHING):
            self.violations.append(f"leased more than there is: {left}")
        return pb.LeaseSlice(
            grant=key[1],
            subject=key[2],
            period=1,
            granted=_message(holder.accounts[key].granted, currency),
            left=_message(left, currency),
            refusal=pb.LEASE_REFUSAL_EXHAUSTED if short else pb.LEASE_REFUSAL_UNSPECIFIED,
        )

    def _total(self, key: Key, what: str) -> Room:
        total = NOTHING
        for holder in self._holders.values():
            if key in holder.accounts:
                total = total.plus(getattr(holder.accounts[key], what))
        return total


def _room(message: pb.BudgetRoom) -> Room:
    return Room(message.count, to_nanos(message.amount.units, message.amount.nanos))


def _message(room: Room, currency: str) -> pb.BudgetRoom:
    units, nanos = from_nanos(room.nanos)
    return pb.BudgetRoom(count=room.uses, amount=resources_pb2.Amount(currency=currency, units=units, nanos=nanos))
