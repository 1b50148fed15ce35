"""LeaseService: slices of budgets for the sidecars' workers. It translates and checks; the rules are in engine.books."""
# ruff: noqa: N802 - the methods are named by the proto service

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from uuid import UUID

from sidestep.v1 import lease_pb2 as pb
from sidestep.v1 import lease_pb2_grpc, resources_pb2

from controlplane.api.sidecars import check_sidecar
from controlplane.errors import ScopeError
from controlplane.metrics.catalogue import LEASES
from controlplane.metrics.tally import Tally
from controlplane.store import Store
from engine.books import Settled, Settling
from engine.errors import InvalidInputError
from engine.escrow import Account, Ask, Message, Room, Slice, Standing
from engine.money import NANOS, from_nanos, to_nanos
from engine.names import check_id, check_tenant

MAX_LINES = 1_000
MAX_CLOSING = 10_000
# More than anybody can spend: keeps totals far from what JSON and columns could not hold.
MAX_COUNT = 2**53
_MAX_NUMBER = 2**63 - 1
_HOLDER = re.compile(r"[0-9a-f]{32}")
_RESULTS = {
    Settled.SETTLED: pb.SETTLE_RESULT_SETTLED,
    Settled.SETTLED_OTHERWISE: pb.SETTLE_RESULT_SETTLED_OTHERWISE,
}
_RESULT_NAMES = {
    pb.LEASE_REFUSAL_UNSPECIFIED: "granted",
    pb.LEASE_REFUSAL_EXHAUSTED: "exhausted",
    pb.LEASE_REFUSAL_NO_BUDGET: "no_budget",
    pb.LEASE_REFUSAL_CURRENCY: "currency",
}
_SETTLEMENTS = {pb.SETTLEMENT_EXECUTED: True, pb.SETTLEMENT_CANCELLED: False}

_LOG = logging.getLogger(__name__)


class LeaseService(lease_pb2_grpc.LeaseServiceServicer):
    """The calls of lease.proto over a store. `scope_of` gives a connection's tenants (None: all) from its identity."""

    def __init__(self, store: Store, scope_of: Callable[[Any], frozenset[str] | None]) -> None:
        self._store = store
        self._scope_of = scope_of
        self.results = Tally.of(LEASES)

    async def Lease(self, request: pb.LeaseRequest, context: Any) -> pb.LeaseResponse:
        """Takes totals over and grants asks."""
        self._admit(request.tenant, context)
        message = read_lease(request)
        answer = await self._store.budgets.lease(request.tenant, request.sidecar, message)
        response = pb.LeaseResponse(slices=[_slice(each) for each in answer.slices])
        for line in response.slices:
            self.results.add(_RESULT_NAMES[line.refusal])
        return response

    async def CloseHolder(self, request: pb.CloseHolderRequest, context: Any) -> pb.CloseHolderResponse:
        """Ends a holder by its exact totals."""
        self._admit(request.tenant, context)
        _check_holder(request.holder, "holder")
        check_sidecar(request.sidecar, "sidecar")
        _check_number_of(request.standings, MAX_CLOSING, "standings")
        totals = _standings(request.tenant, request.standings)
        conflicts = await self._store.budgets.close_holder(request.tenant, request.sidecar, request.holder, totals)
        if conflicts:
            _LOG.warning(
                "sidecar %s: holder %s ends with less spent than it had reported of %d accounts; the greater counts",
                request.sidecar,
                request.holder,
                len(conflicts),
            )
        return pb.CloseHolderResponse(
            conflicts=[
                pb.LeaseConflict(grant=account.grant, subject=account.subject, period=period)
                for account, period in conflicts
            ]
        )

    async def SettleSpends(self, request: pb.SettleSpendsRequest, context: Any) -> pb.SettleSpendsResponse:
        """Completes spends, each once."""
        self._admit(request.tenant, context)
        settlements = read_settlements(request)
        results = await self._store.budgets.settle(request.tenant, settlements)
        return pb.SettleSpendsResponse(results=[_RESULTS[result] for result in results])

    def _admit(self, tenant: str, context: Any) -> None:
        check_tenant(tenant, "tenant")
        scope = self._scope_of(context)
        if scope is not None and tenant not in scope:
            raise ScopeError(tenant)


def read_lease(request: pb.LeaseRequest) -> Message:
    """The call as a message. Raises InvalidInputError naming the field."""
    _check_holder(request.holder, "holder")
    check_sidecar(request.sidecar, "sidecar")
    if not 0 < request.sequence <= _MAX_NUMBER:
        raise InvalidInputError("sequence", "must be at least 1")
    _check_number_of(request.standings, MAX_LINES, "standings")
    _check_number_of(request.asks, MAX_LINES, "asks")
    asks: list[Ask] = []
    seen: set[Account] = set()
    for index, ask in enumerate(request.asks):
        field = f"asks[{index}]"
        account = _account(request.tenant, ask, field)
        if account in seen:
            raise InvalidInputError(field, f"a second ask for {ask.grant} and {ask.subject}")
        seen.add(account)
        least, want = _room(ask.least, f"{field}.least"), _room(ask.want, f"{field}.want")
        if not want.covers(least):
            raise InvalidInputError(f"{field}.want", "is less than least")
        asks.append(Ask(account, least, want))
    return Message(request.holder, request.sequence, _standings(request.tenant, request.standings), tuple(asks))


def read_settlements(request: pb.SettleSpendsRequest) -> list[Settling]:
    """Settlements as the books know them. Raises InvalidInputError naming the field."""
    if not request.settlements:
        raise InvalidInputError("settlements", "at least one is required")
    _check_number_of(request.settlements, MAX_LINES, "settlements")
    read = []
    for index, each in enumerate(request.settlements):
        field = f"settlements[{index}]"
        try:
            decision_id = str(UUID(each.decision_id))
        except ValueError:
            raise InvalidInputError(f"{field}.decision_id", "is not a UUID") from None
        executed = _SETTLEMENTS.get(each.settlement)
        if executed is None:
            raise InvalidInputError(f"{field}.settlement", "must be SETTLEMENT_EXECUTED or SETTLEMENT_CANCELLED")
        _check_holder(each.holder, f"{field}.holder")
        account = _account(request.tenant, each, field)
        period = _period(each.period, f"{field}.period")
        room = _room(each.spent, f"{field}.spent")
        read.append(Settling(decision_id, executed, each.holder, account, period, room))
    return read


def _standings(tenant: str, lines: Iterable[pb.LeaseStanding]) -> tuple[Standing, ...]:
    read = []
    seen: set[tuple[Account, int]] = set()
    for index, line in enumerate(lines):
        field = f"standings[{index}]"
        account = _account(tenant, line, field)
        period = _period(line.period, f"{field}.period")
        if (account, period) in seen:
            raise InvalidInputError(field, f"a second one of {line.grant}, {line.subject} and period {period}")
        seen.add((account, period))
        rooms = (_room(getattr(line, name), f"{field}.{name}") for name in ("granted", "spent", "returned"))
        read.append(Standing(account, period, *rooms))
    return tuple(read)


def _account(tenant: str, line: Any, field: str) -> Account:
    return Account(tenant, check_id(line.grant, f"{field}.grant"), check_id(line.subject, f"{field}.subject"))


def _period(number: int, field: str) -> int:
    if not 0 < number <= _MAX_NUMBER:
        raise InvalidInputError(field, "must be at least 1")
    return number


def _room(room: pb.BudgetRoom, field: str) -> Room:
    if room.count > MAX_COUNT:
        raise InvalidInputError(f"{field}.count", "is not a possible number of uses")
    amount = room.amount
    if amount.units < 0 or not 0 <= amount.nanos < NANOS:
        raise InvalidInputError(f"{field}.amount", "must not be negative, its nanos below one unit")
    return Room(room.count, to_nanos(amount.units, amount.nanos))


def _check_holder(holder: str, field: str) -> None:
    if not _HOLDER.fullmatch(holder):
        raise InvalidInputError(field, "is not 32 lower-case hexadecimal digits")


def _check_number_of(lines: Sequence[Any], limit: int, field: str) -> None:
    if len(lines) > limit:
        raise InvalidInputError(field, f"more than {limit}")


def _slice(found: Slice) -> pb.LeaseSlice:
    currency = found.currency
    line = pb.LeaseSlice(
        grant=found.account.grant,
        subject=found.account.subject,
        period=found.period,
        granted=to_room(found.granted, currency),
    )
    if found.started_at is not None:
        line.start_time.FromNanoseconds(int(found.started_at * 1e9))
    if found.left is not None:
        line.left.CopyFrom(to_room(found.left, currency))
    if found.refused:
        line.refusal = pb.LEASE_REFUSAL_NO_BUDGET if found.left is None else pb.LEASE_REFUSAL_CURRENCY
    elif found.exhausted:
        line.refusal = pb.LEASE_REFUSAL_EXHAUSTED
    return line


def to_room(room: Room, currency: str) -> pb.BudgetRoom:
    """A room on the wire."""
    units, nanos = from_nanos(room.nanos)
    amount = resources_pb2.Amount(currency=currency, units=units, nanos=nanos) if room.nanos else None
    return pb.BudgetRoom(count=room.uses, amount=amount)
