"""Settle: who may say what became of a decision, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sidestep.v1 import decision_pb2, lease_pb2

from engine.errors import InvalidInputError
from sidecar.callers import Caller
from sidecar.clock import Clock
from sidecar.front.decision_id import DecisionIds, id_text
from sidecar.front.settle import Settler
from sidecar.lease.reservations import (
    AlreadySettledError,
    Reservation,
    Reservations,
    ReservationsError,
    Spending,
    UnknownDecisionError,
)

PAYMENTS = Caller.of("payments", ["Settle"], ["*"], diagnose=False)
BROWSING = Caller.of("browsing", ["Settle"], ["*"], diagnose=False)
EXECUTED, CANCELLED = lease_pb2.SETTLEMENT_EXECUTED, lease_pb2.SETTLEMENT_CANCELLED
ID = DecisionIds().next()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Reservations]:
    store = Reservations(tmp_path, "boot-1")
    now = Clock().boottime()
    store.keep([Spending(ID, Reservation("acme", "g1", "alice", 1, "h" * 32, 1, 0, now, "payments"))], now)
    yield store
    store.close()


def settle(
    store: Reservations | None, decision_id: str, settlement: lease_pb2.Settlement, caller: Caller | None = PAYMENTS
) -> bytes:
    request = decision_pb2.SettleRequest(decision_id=decision_id, settlement=settlement)
    return Settler(store, Clock()).answer(request.SerializeToString(), caller)


def test_settled_spend_is_on_its_way_up(store: Reservations) -> None:
    assert settle(store, id_text(ID), CANCELLED) == b""
    assert settle(store, id_text(ID).upper(), CANCELLED) == b""
    assert [(key, each.state) for key, each in store.unsent("acme", 10)] == [(ID, "CANCELLED")]
    with pytest.raises(AlreadySettledError):
        settle(store, id_text(ID), EXECUTED)


@pytest.mark.parametrize(
    ("decision_id", "settlement", "field"),
    [
        ("", EXECUTED, "decision_id"),
        ("alice", EXECUTED, "decision_id"),
        ("{" + id_text(ID) + "}", EXECUTED, "decision_id"),
        (id_text(ID).replace("-", ""), EXECUTED, "decision_id"),
        (id_text(ID), lease_pb2.SETTLEMENT_UNSPECIFIED, "settlement"),
        (id_text(ID), 77, "settlement"),
    ],
    ids=["none", "no id", "braces", "no dashes", "unspecified", "unknown"],
)
def test_bad_input_is_refused_by_its_field(
    store: Reservations, decision_id: str, settlement: lease_pb2.Settlement, field: str
) -> None:
    with pytest.raises(InvalidInputError) as error:
        settle(store, decision_id, settlement)
    assert str(error.value).startswith(f"{field}: ")
    assert store.unsent("acme", 10) == []


def test_garbage_is_refused(store: Reservations) -> None:
    with pytest.raises(InvalidInputError):
        Settler(store, Clock()).answer(b"\xff\xff", None)


@pytest.mark.parametrize("caller", [BROWSING, None], ids=["another", "nobody"])
def test_spend_of_another_caller_is_unknown(store: Reservations, caller: Caller | None) -> None:
    with pytest.raises(UnknownDecisionError):
        settle(store, id_text(ID), CANCELLED, caller)


def test_without_reservations_nothing_is_settled() -> None:
    with pytest.raises(ReservationsError):
        settle(None, id_text(ID), EXECUTED)
