"""Leases on the wire: `engine.escrow` to the messages of sidestep/v1/lease.proto and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp
from sidestep.v1 import lease_pb2 as pb
from sidestep.v1 import resources_pb2

from engine.escrow import NOTHING, Account, Answer, Message, Room, Slice, Standing
from engine.money import from_nanos, to_nanos

MAX_ITEMS: Final = 1000
"""Standings, and asks, in one request."""

Currencies = Mapping[Account, str]
"""Of accounts whose budget has an amount."""


def lease_requests(message: Message, sidecar: str, currencies: Currencies) -> Iterator[pb.LeaseRequest]:
    """A message as requests, for each tenant as many as it takes. They carry its number, and name different accounts."""
    tenants = dict.fromkeys(
        [each.account.tenant for each in message.standings] + [each.account.tenant for each in message.asks]
    )
    for tenant in tenants:
        standings = [
            to_standing(each, currencies.get(each.account, ""))
            for each in message.standings
            if each.account.tenant == tenant
        ]
        asks = [
            pb.LeaseAsk(
                grant=each.account.grant,
                subject=each.account.subject,
                least=to_room(each.least, currencies.get(each.account, "")),
                want=to_room(each.want, currencies.get(each.account, "")),
            )
            for each in message.asks
            if each.account.tenant == tenant
        ]
        for at in range(0, max(len(standings), len(asks)), MAX_ITEMS):
            yield pb.LeaseRequest(
                tenant=tenant,
                holder=message.holder,
                sidecar=sidecar,
                sequence=message.sequence,
                standings=standings[at : at + MAX_ITEMS],
                asks=asks[at : at + MAX_ITEMS],
            )


def from_lease_response(tenant: str, response: pb.LeaseResponse) -> Answer:
    """What the control plane answered."""
    return Answer(tuple(_slice(tenant, each) for each in response.slices))


def close_requests(
    holder: str, sidecar: str, standings: Iterable[Standing], tenants: Iterable[str], currencies: Currencies
) -> Iterator[pb.CloseHolderRequest]:
    """What ends a holder: one request for each tenant it held anything of, with all it spent there."""
    spent = [each for each in standings if each.spent != NOTHING]
    for tenant in dict.fromkeys(tenants):
        yield pb.CloseHolderRequest(
            tenant=tenant,
            holder=holder,
            sidecar=sidecar,
            standings=[
                to_standing(each, currencies.get(each.account, "")) for each in spent if each.account.tenant == tenant
            ],
        )


def to_standing(standing: Standing, currency: str) -> pb.LeaseStanding:
    """A holder's totals in one period."""
    return pb.LeaseStanding(
        grant=standing.account.grant,
        subject=standing.account.subject,
        period=standing.period,
        granted=to_room(standing.granted, currency),
        spent=to_room(standing.spent, currency),
        returned=to_room(standing.returned, currency),
    )


def to_room(room: Room, currency: str) -> pb.BudgetRoom:
    """Uses and an amount. Without a currency there is no amount to speak of."""
    message = pb.BudgetRoom(count=max(0, room.uses))
    if currency and room.nanos > 0:
        units, nanos = from_nanos(room.nanos)
        message.amount.CopyFrom(resources_pb2.Amount(currency=currency, units=units, nanos=nanos))
    return message


def _room(message: pb.BudgetRoom) -> Room:
    return Room(message.count, to_nanos(message.amount.units, message.amount.nanos))


def _slice(tenant: str, message: pb.LeaseSlice) -> Slice:
    refusal = message.refusal
    return Slice(
        Account(tenant, message.grant, message.subject),
        message.period,
        _time(message.start_time) if message.HasField("start_time") else None,
        _room(message.granted),
        _room(message.left) if message.HasField("left") else None,
        exhausted=refusal == pb.LEASE_REFUSAL_EXHAUSTED,
        refused=refusal not in (pb.LEASE_REFUSAL_UNSPECIFIED, pb.LEASE_REFUSAL_EXHAUSTED),
        currency=message.granted.amount.currency,
    )


def _time(timestamp: Timestamp) -> float:
    return timestamp.seconds + timestamp.nanos / 1e9
