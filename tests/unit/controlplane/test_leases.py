"""LeaseService and the admin's view of it: over real gRPC, into a real database."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import ParseDict
from sidestep.v1 import admin_pb2, lease_pb2
from sidestep.v1 import resources_pb2 as pb

from controlplane.errors import StoreError
from controlplane.store import Store
from controlplane.store.database import Kind
from engine.books import Period
from engine.escrow import Account, Ask, Message, Room
from tests.fakes.admin import AdminServer

HOLDERS = [f"{n:032x}" for n in range(20)]
CANCELLED, EXECUTED = lease_pb2.SETTLEMENT_CANCELLED, lease_pb2.SETTLEMENT_EXECUTED


@pytest.fixture
def server(tmp_path: Path) -> Iterator[AdminServer]:
    with AdminServer(tmp_path) as running:
        put(running, max_count=5)
        yield running


def put(server: AdminServer, grant: str = "g", state: str = "GRANT_STATE_ACTIVE", **budget: Any) -> None:
    body = {
        "name": f"tenants/acme/grants/{grant}",
        "state": state,
        "role": "customer",
        "actions": ["*"],
        "ceiling": {"acr": "nist-aal2", "max_age": "3600s"},
        "expire_time": "2999-01-01T00:00:00Z",
    }
    record = ParseDict(body | ({"budget": budget} if budget else {}), pb.Grant())
    server.stub.PutResource(admin_pb2.PutResourceRequest(resource=pb.Resource(grant=record)))


def room(count: int = 0, units: int = 0, currency: str = "EUR") -> lease_pb2.BudgetRoom:
    return lease_pb2.BudgetRoom(count=count, amount=pb.Amount(currency=currency, units=units) if units else None)


def standing(spent: int = 0, returned: int = 0, period: int = 1, grant: str = "g") -> lease_pb2.LeaseStanding:
    return lease_pb2.LeaseStanding(
        grant=grant, subject="ada", period=period, spent=room(spent), returned=room(returned)
    )


def ask(least: int = 1, want: int = 1, units: int = 0, grant: str = "g", subject: str = "ada") -> lease_pb2.LeaseAsk:
    return lease_pb2.LeaseAsk(grant=grant, subject=subject, least=room(least, units), want=room(want, units))


def call(server: AdminServer, holder: int, sequence: int, *lines: Any, tenant: str = "acme") -> list[Any]:
    request = lease_pb2.LeaseRequest(tenant=tenant, holder=HOLDERS[holder], sidecar="pod-1", sequence=sequence)
    for line in lines:
        (request.asks if isinstance(line, lease_pb2.LeaseAsk) else request.standings).append(line)
    return list(server.leases.Lease(request).slices)


def one(server: AdminServer, holder: int, sequence: int, *lines: Any) -> Any:
    (found,) = call(server, holder, sequence, *lines)
    return found


def close(server: AdminServer, holder: int, *lines: lease_pb2.LeaseStanding) -> list[Any]:
    request = lease_pb2.CloseHolderRequest(tenant="acme", holder=HOLDERS[holder], sidecar="pod-1", standings=lines)
    return list(server.leases.CloseHolder(request).conflicts)


def settle(server: AdminServer, number: int, settlement: Any, holder: int = 1) -> int:
    each = lease_pb2.SpendSettlement(
        decision_id=f"0192f3c4-a1b2-7000-8000-{number:012d}",
        settlement=settlement,
        holder=HOLDERS[holder],
        grant="g",
        subject="ada",
        period=1,
        spent=room(1),
    )
    request = lease_pb2.SettleSpendsRequest(tenant="acme", settlements=[each])
    return int(server.leases.SettleSpends(request).results[0])


def accounts(server: AdminServer, grant: str = "g", **more: Any) -> list[admin_pb2.BudgetAccount]:
    request = admin_pb2.ListBudgetAccountsRequest(name=f"tenants/acme/grants/{grant}", **more)
    return list(server.stub.ListBudgetAccounts(request).accounts)


def test_a_small_budget_is_leased_one_use_at_a_time_and_never_a_sixth(server: AdminServer) -> None:
    slices = [one(server, n, 1, ask(want=100)) for n in range(6)]
    assert [each.granted.count for each in slices] == [1, 1, 1, 1, 1, 0]
    assert [each.left.count for each in slices] == [4, 3, 2, 1, 0, 0]
    assert slices[5].refusal == lease_pb2.LEASE_REFUSAL_EXHAUSTED


def test_a_large_budget_is_leased_in_parts_that_grow_smaller(server: AdminServer) -> None:
    put(server, max_count=1000)
    sizes = [one(server, n, 1, ask(want=1000)).granted.count for n in range(10)]
    assert sizes[0] == 250
    assert sizes == sorted(sizes, reverse=True)
    assert sum(sizes) < 1000


def test_a_repeated_call_is_granted_once(server: AdminServer) -> None:
    assert [one(server, 1, 1, ask()).granted.count for _ in range(3)] == [1, 1, 1]
    assert one(server, 1, 2, ask()).granted.count == 2
    # One that was overtaken.
    assert one(server, 1, 1, ask()).granted.count == 2


def test_what_is_returned_can_be_had_by_another(server: AdminServer) -> None:
    for sequence in range(1, 6):
        one(server, 1, sequence, ask())
    assert one(server, 2, 1, ask()).granted.count == 0
    assert one(server, 1, 6, standing(spent=2, returned=3)).left.count == 3
    assert one(server, 2, 2, ask()).granted.count == 1
    # An older report does not take it back.
    assert one(server, 1, 5, standing(spent=1)).left.count == 2


def test_a_closed_holder_gives_back_what_its_journal_did_not_spend(server: AdminServer) -> None:
    for sequence in (1, 2, 3):
        one(server, 1, sequence, ask())
    assert close(server, 1, standing(spent=1)) == []
    assert close(server, 1, standing(spent=1)) == []
    assert one(server, 2, 1, ask()).left.count == 3
    with pytest.raises(grpc.RpcError) as refused:
        one(server, 1, 4, ask())
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    # Reports of a closed holder, late, change nothing.
    assert one(server, 1, 3, standing(spent=0, returned=3)).left.count == 3


def test_a_journal_that_proves_less_than_was_reported_is_a_conflict(server: AdminServer) -> None:
    for sequence in (1, 2, 3):
        one(server, 1, sequence, ask())
    one(server, 1, 4, standing(spent=2))
    (conflict,) = close(server, 1, standing(spent=1))
    assert (conflict.grant, conflict.subject, conflict.period) == ("g", "ada", 1)
    assert one(server, 2, 1, ask()).left.count == 2


def test_a_cancelled_spend_comes_back_once_and_an_executed_one_never(server: AdminServer) -> None:
    for sequence in range(1, 6):
        one(server, 1, sequence, ask())
    settled, otherwise = lease_pb2.SETTLE_RESULT_SETTLED, lease_pb2.SETTLE_RESULT_SETTLED_OTHERWISE
    assert [settle(server, 1, CANCELLED), settle(server, 1, CANCELLED)] == [settled, settled]
    assert settle(server, 1, EXECUTED) == otherwise
    assert [settle(server, 2, EXECUTED), settle(server, 2, CANCELLED)] == [settled, otherwise]
    assert one(server, 1, 6, standing(spent=5)).left.count == 1
    (account,) = accounts(server)
    assert (account.spent.count, account.cancelled.count, account.left.count) == (5, 1, 1)


def test_a_lowered_budget_grants_nothing_above_it(server: AdminServer) -> None:
    for sequence in (1, 2, 3):
        one(server, 1, sequence, ask())
    put(server, max_count=2)
    found = one(server, 2, 1, ask())
    assert (found.granted.count, found.left.count) == (0, 0)
    put(server, max_count=4)
    assert one(server, 2, 2, ask()).granted.count == 1


@pytest.mark.parametrize("state", ["GRANT_STATE_SUSPENDED", "GRANT_STATE_REVOKED"])
def test_a_grant_that_is_not_in_force_leases_nothing(server: AdminServer, state: str) -> None:
    put(server, state=state, max_count=5)
    found = one(server, 1, 1, ask())
    assert (found.granted.count, found.refusal) == (0, lease_pb2.LEASE_REFUSAL_NO_BUDGET)


def test_an_unknown_grant_and_one_without_budget_lease_nothing(server: AdminServer) -> None:
    put(server, "plain")
    for grant in ("plain", "nothing"):
        assert one(server, 1, 1, ask(grant=grant)).refusal == lease_pb2.LEASE_REFUSAL_NO_BUDGET


def test_amounts_are_leased_exactly(server: AdminServer) -> None:
    put(server, "m", max_amount={"currency": "EUR", "units": "999999999", "nanos": 999_999_999})
    found = one(server, 1, 1, ask(least=0, want=0, units=999_999_999, grant="m"))
    assert (found.granted.amount.units, found.left.amount.nanos) == (999_999_999, 999_999_999)
    assert found.left.amount.currency == "EUR"
    assert one(server, 2, 1, ask(least=0, want=0, units=1, grant="m")).refusal == lease_pb2.LEASE_REFUSAL_EXHAUSTED


def test_a_changed_currency_waits_for_the_next_period(server: AdminServer) -> None:
    put(server, "m", max_amount={"currency": "EUR", "units": "100"})
    one(server, 1, 1, ask(least=0, want=0, units=10, grant="m"))
    put(server, "m", max_amount={"currency": "USD", "units": "100"})
    found = one(server, 1, 2, ask(least=0, want=0, units=10, grant="m"))
    assert (found.granted.amount.units, found.refusal) == (10, lease_pb2.LEASE_REFUSAL_CURRENCY)
    server.run(server.store.budgets.begin_period("acme", "ada", 100.0))
    found = one(server, 1, 3, ask(least=0, want=0, units=10, grant="m"))
    assert (found.period, found.granted.amount.units, found.refusal) == (2, 10, 0)


def test_a_strong_authentication_begins_a_period_once(server: AdminServer) -> None:
    begin = server.store.budgets.begin_period
    for sequence in range(1, 6):
        one(server, 1, sequence, ask())
    assert server.run(begin("acme", "ada", 100.0)) == Period(2, 100.0)
    assert server.run(begin("acme", "ada", 100.0)) == Period(2, 100.0)
    assert server.run(begin("acme", "ada", 99.0)) == Period(2, 100.0)
    assert server.run(begin("globex", "ada", 50.0)) == Period(2, 50.0)
    found = one(server, 1, 6, ask())
    assert (found.period, found.start_time.seconds, found.granted.count) == (2, 100, 1)
    # What is spent late of the first is booked to the first.
    one(server, 1, 7, standing(spent=5, period=1))
    first, second = accounts(server)
    assert (first.current, first.spent.count, first.HasField("left")) == (False, 5, False)
    assert (second.current, second.spent.count, second.held.count, second.left.count) == (True, 0, 1, 4)


def test_the_books_outlive_the_process_and_are_shared_by_several(server: AdminServer) -> None:
    one(server, 1, 1, ask())
    other = server.run(Store.open(server._url))
    message = Message(HOLDERS[2], 1, (), (Ask(Account("acme", "g", "ada"), Room(1), Room(1)),))
    answer = server.run(other.budgets.lease("acme", "pod-2", message))
    assert answer.slices[0].left == Room(3)
    server.run(other.close())
    server.down()
    server.up()
    assert one(server, 1, 1, ask()).granted.count == 1
    assert one(server, 1, 2, ask()).left.count == 2


def test_calls_that_come_together_never_lease_more_than_there_is(server: AdminServer) -> None:
    async def race() -> list[int]:
        asks = (Ask(Account("acme", "g", "ada"), Room(1), Room(5)),)
        calls = (server.store.budgets.lease("acme", "pod", Message(holder, 1, (), asks)) for holder in HOLDERS)
        return [answer.slices[0].granted.uses for answer in await asyncio.gather(*calls)]

    assert sum(server.run(race())) == 5


def test_a_call_whose_database_fails_says_so_and_changes_nothing(server: AdminServer) -> None:
    asks = (Ask(Account("acme", "g", "ada"), Room(1), Room(1)),)
    other = server.run(Store.open(server._url))

    async def broken() -> None:
        await other._database.write(Kind.BUDGETS, lambda conn: conn.exec_driver_sql("DROP TABLE budget_holders"))

    server.run(broken())
    with pytest.raises(StoreError):
        server.run(other.budgets.lease("acme", "pod", Message(HOLDERS[1], 1, (), asks)))
    server.run(other.close())
    assert accounts(server) == []


def test_old_periods_and_settlements_are_forgotten_and_the_current_one_is_not(server: AdminServer) -> None:
    one(server, 1, 1, ask())
    settle(server, 1, CANCELLED)
    server.run(server.store.budgets.begin_period("acme", "ada", 100.0))
    one(server, 1, 2, ask())
    assert server.run(server.store.budgets.forget(time.time() - 60)) == 0
    assert server.run(server.store.budgets.forget(time.time() + 60)) == 1
    assert [account.period for account in accounts(server)] == [2]
    assert one(server, 1, 3, ask()).granted.count == 2


def test_accounts_come_in_pages(server: AdminServer) -> None:
    for subject in ("ada", "bob", "cyd"):
        one(server, 1, 1, ask(subject=subject))
    assert [account.subject for account in accounts(server, page_size=2)] == ["ada", "bob"]
    assert [account.subject for account in accounts(server, subject="bob")] == ["bob"]
    request = admin_pb2.ListBudgetAccountsRequest(name="tenants/acme/grants/g", page_size=2)
    request.page_token = server.stub.ListBudgetAccounts(request).next_page_token
    assert [account.subject for account in server.stub.ListBudgetAccounts(request).accounts] == ["cyd"]


@pytest.mark.parametrize(
    ("grant", "code"),
    [
        ("tenants/acme/grants/none", grpc.StatusCode.NOT_FOUND),
        ("tenants/acme/policies/p", grpc.StatusCode.INVALID_ARGUMENT),
        ("g", grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
def test_accounts_of_what_is_no_grant_are_refused(server: AdminServer, grant: str, code: grpc.StatusCode) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        server.stub.ListBudgetAccounts(admin_pb2.ListBudgetAccountsRequest(name=grant))
    assert refused.value.code() is code


def test_a_tenant_out_of_scope_is_refused(server: AdminServer) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        call(server, 1, 1, ask(), tenant="initech")
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"tenant": "A"}, "tenant"),
        ({"holder": "x"}, "holder"),
        ({"sidecar": ""}, "sidecar"),
        ({"sequence": 0}, "sequence"),
        ({"asks": [ask(), ask()]}, "asks[1]"),
        ({"asks": [ask(least=2, want=1)]}, "asks[0].want"),
        ({"asks": [ask(units=-1)]}, "asks[0].least.amount"),
        ({"asks": [ask(grant="a/b")]}, "asks[0].grant"),
        ({"asks": [ask(subject="")]}, "asks[0].subject"),
        ({"standings": [standing(period=0)]}, "standings[0].period"),
        ({"standings": [standing(), standing()]}, "standings[1]"),
        ({"standings": [standing(spent=2**60)]}, "standings[0].spent.count"),
        ({"asks": [ask(subject=f"s{n}") for n in range(1001)]}, "asks"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_call_that_cannot_be_one_is_refused_by_its_field(
    server: AdminServer, change: dict[str, Any], field: str
) -> None:
    valid: dict[str, Any] = {"tenant": "acme", "holder": HOLDERS[1], "sidecar": "pod-1", "sequence": 1}
    with pytest.raises(grpc.RpcError) as refused:
        server.leases.Lease(lease_pb2.LeaseRequest(**(valid | change)))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert str(refused.value.details()).startswith(f"{field}: ")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"decision_id": "x"}, "settlements[0].decision_id"),
        ({"settlement": 0}, "settlements[0].settlement"),
        ({"holder": ""}, "settlements[0].holder"),
        ({"period": 0}, "settlements[0].period"),
    ],
)
def test_a_settlement_that_cannot_be_one_is_refused_by_its_field(
    server: AdminServer, change: dict[str, Any], field: str
) -> None:
    valid: dict[str, Any] = {
        "decision_id": "0192f3c4-a1b2-7000-8000-000000000001",
        "settlement": EXECUTED,
        "holder": HOLDERS[1],
        "grant": "g",
        "subject": "ada",
        "period": 1,
    }
    each = lease_pb2.SpendSettlement(**(valid | change))
    with pytest.raises(grpc.RpcError) as refused:
        server.leases.SettleSpends(lease_pb2.SettleSpendsRequest(tenant="acme", settlements=[each]))
    assert str(refused.value.details()).startswith(f"{field}: ")
