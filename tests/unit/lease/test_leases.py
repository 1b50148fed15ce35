"""The lease client and what loops see of it, against a control plane over gRPC."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from engine.decision import Spend
from engine.escrow import Account, Room
from engine.facts import BudgetHeld
from sidecar.lease.client import LeaseClient, LeaseSettings
from sidecar.lease.holders import HolderFiles
from sidecar.lease.leases import Leases, Taken
from sidecar.upstream import Upstream
from tests.fakes.leases import LeaseDesk
from tests.processes import until

ACCOUNT = Account("acme", "g1", "alice")


@pytest.fixture
def desk() -> Iterator[LeaseDesk]:
    with LeaseDesk() as desk:
        desk.budget("g1", uses=5)
        yield desk
    assert desk.violations == []


def client(directory: Path, desk: LeaseDesk, number: int = 0, **settings: float) -> LeaseClient:
    chain = f"w{number}-0000000000aa"
    made = LeaseClient(
        LeaseSettings(directory / "leases", chain, "boot-1", Upstream(desk.address), "pod-1", **settings)
    )
    made.start()
    return made


@contextlib.contextmanager
def leasing(directory: Path, desk: LeaseDesk, number: int = 0, **settings: float) -> Iterator[Leases]:
    made = client(directory, desk, number, **settings)
    try:
        yield made.leases
    finally:
        made.close(5.0)


def spend(held: BudgetHeld | None, nanos: int = 0) -> Spend:
    if held is None:
        return Spend("", "", 0, 1, 1, nanos, "EUR" if nanos else "")
    return Spend("", held.holder, held.slice, held.period, 1, nanos, "EUR" if nanos else "")


def use(leases: Leases, account: Account = ACCOUNT, nanos: int = 0) -> bool:
    """One use, as a loop makes it: with what is held, else with what comes in time. Whether there was one."""
    taken = take(leases, account, nanos)
    if taken is not None:
        leases.commit([taken])
    return taken is not None


def take(leases: Leases, account: Account = ACCOUNT, nanos: int = 0, within_s: float = 5.0) -> Taken | None:
    deadline = time.monotonic() + within_s
    pause = threading.Event()
    while time.monotonic() < deadline:
        held = leases.held(account)
        if held is not None and held.uses >= 1 and held.nanos >= nanos:
            taken = leases.take(account, spend(held, nanos), held)
            if taken is not None:
                return taken
            continue
        if held is not None and held.left_uses is not None and held.uses + held.left_uses < 1:
            return None
        if held is not None and nanos and held.left_nanos is not None and held.nanos + held.left_nanos < nanos:
            return None
        wait = leases.want(account, spend(None, nanos))
        while wait is not None and not wait() and time.monotonic() < deadline:
            pause.wait(0.001)
        pause.wait(0.001)
    return None


def test_small_budget_is_used_up_and_no_further(desk: LeaseDesk, tmp_path: Path) -> None:
    with leasing(tmp_path, desk) as leases:
        assert [use(leases) for _ in range(7)] == [True] * 5 + [False] * 2
        until(lambda: desk.spent(ACCOUNT) == Room(5, 0), "the report")
    assert HolderFiles(tmp_path / "leases").read() == []


def test_nothing_begins_before_a_slice_is_wanted(desk: LeaseDesk, tmp_path: Path) -> None:
    with leasing(tmp_path, desk) as leases:
        assert leases.held(ACCOUNT) is None
    assert not (tmp_path / "leases").exists()
    assert desk.calls == []


def test_holder_is_on_disk_before_the_control_plane_hears_of_it(desk: LeaseDesk, tmp_path: Path) -> None:
    known: list[bool] = []
    lease = desk.Lease

    def look(request: object, context: object) -> object:
        files = HolderFiles(tmp_path / "leases").read()
        known.append([file.header.holder for file in files] == [request.holder])  # type: ignore[attr-defined]
        known.append(any(account.tenant == "acme" for account in files[0].accounts.values()))
        return lease(request, context)  # type: ignore[arg-type]

    desk.Lease = look  # type: ignore[method-assign, assignment]
    desk.stop()
    desk.start()
    with leasing(tmp_path, desk) as leases:
        assert use(leases)
        (file,) = HolderFiles(tmp_path / "leases").read()
        held = leases.held(ACCOUNT)
        assert held is not None
        assert (file.accounts[held.slice].grant, file.accounts[held.slice].period) == ("g1", 1)
    assert known
    assert all(known)


def test_what_is_not_used_comes_back(desk: LeaseDesk, tmp_path: Path) -> None:
    desk.budget("g1", uses=100)
    with leasing(tmp_path, desk, idle_s=0.1, report_s=0.05, warm_s=0.2) as leases:
        for _ in range(20):
            assert use(leases)
        until(lambda: desk.taken(ACCOUNT) == desk.spent(ACCOUNT) == Room(20, 0), "the rest to come back")
        assert use(leases)


def test_end_gives_everything_back(desk: LeaseDesk, tmp_path: Path) -> None:
    desk.budget("g1", uses=100)
    with leasing(tmp_path, desk) as leases:
        assert use(leases)
        assert desk.open_holders() == 1
    assert (desk.taken(ACCOUNT), desk.open_holders()) == (Room(1, 0), 0)


def test_spend_without_a_record_is_there_again(desk: LeaseDesk, tmp_path: Path) -> None:
    desk.budget("g1", uses=1)
    with leasing(tmp_path, desk) as leases:
        taken = take(leases)
        assert taken is not None
        held = leases.held(ACCOUNT)
        assert held is not None
        assert (held.uses, held.left_uses) == (0, 0)
        leases.undo(taken)
        assert use(leases)
        assert not use(leases)
    assert desk.spent(ACCOUNT) == Room(1, 0)


def test_of_two_loops_that_saw_the_same_one_takes_it(desk: LeaseDesk, tmp_path: Path) -> None:
    desk.budget("g1", uses=1)
    with leasing(tmp_path, desk) as leases:
        until(lambda: leases.want(ACCOUNT, spend(None)) is None or leases.held(ACCOUNT), "a slice")
        held = leases.held(ACCOUNT)
        assert held is not None
        first = leases.take(ACCOUNT, spend(held), held)
        assert first is not None
        assert leases.take(ACCOUNT, spend(held), held) is None
        leases.commit([first])


def test_amounts_are_exact(desk: LeaseDesk, tmp_path: Path) -> None:
    desk.budget("g1", nanos=100 * 10**9)
    with leasing(tmp_path, desk) as leases:
        assert use(leases, nanos=99_999_999_999)
        assert not use(leases, nanos=2)
        assert use(leases, nanos=1)
        assert not use(leases, nanos=1)
    assert desk.spent(ACCOUNT).nanos == 100 * 10**9


def test_without_the_control_plane_nobody_waits_and_nothing_is_spent(desk: LeaseDesk, tmp_path: Path) -> None:
    desk.down = True
    with leasing(tmp_path, desk) as leases:
        wait = leases.want(ACCOUNT, spend(None))
        assert wait is not None
        until(wait, "the failure")
        assert leases.held(ACCOUNT) is None
        desk.down = False
        assert use(leases)


def test_lost_answers_lose_nothing_and_give_nothing_twice(desk: LeaseDesk, tmp_path: Path) -> None:
    desk.budget("g1", uses=50)
    with leasing(tmp_path, desk, idle_s=0.2, report_s=0.05, warm_s=0.2) as leases:
        used = 0
        for _ in range(12):
            desk.lose_answers = 1
            used += use(leases)
        assert used == 12
        until(lambda: desk.taken(ACCOUNT) == Room(used, 0), "the rest to come back")
        while use(leases):
            used += 1
    assert used == 50
    assert desk.spent(ACCOUNT) == Room(50, 0)


def test_closed_holder_makes_way_for_another(desk: LeaseDesk, tmp_path: Path) -> None:
    with leasing(tmp_path, desk, report_s=0.05) as leases:
        assert use(leases)
        for holder in desk._holders.values():
            holder.closed = True
        until(lambda: leases.held(ACCOUNT) is None or not use(leases), "its end")
        until(lambda: len(desk._holders) == 2, "another holder")


def test_holder_of_many_accounts_makes_way(desk: LeaseDesk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidecar.lease.client.MAX_ACCOUNTS", 10)
    with leasing(tmp_path, desk) as leases:
        for number in range(60):
            assert use(leases, Account("acme", "g1", f"s{number}"))
        assert len(desk._holders) > 4
        until(lambda: desk.open_holders() == 1, "the earlier ones to be closed")
        assert len(HolderFiles(tmp_path / "leases").read()) == 1
    assert all(desk.spent(Account("acme", "g1", f"s{number}")) == Room(1, 0) for number in range(60))


def test_five_uses_over_fifty_pods_are_five(desk: LeaseDesk, tmp_path: Path) -> None:
    chance = random.Random(5)
    clients = [
        client(tmp_path / str(number), desk, idle_s=0.05, report_s=0.02, heard_s=0.05, warm_s=0.1)
        for number in range(50)
    ]
    try:
        used = 0

        def spent() -> bool:
            nonlocal used
            used += use(chance.choice(clients).leases)
            return used >= 5

        until(spent, "all five", 30)
        for _ in range(100):
            used += use(chance.choice(clients).leases)
        assert used == 5
        assert desk.spent(ACCOUNT).uses <= 5
    finally:
        for each in clients:
            each.close(5.0)
    assert desk.spent(ACCOUNT) == Room(5, 0)


def test_tenant_that_is_refused_hinders_no_other(
    desk: LeaseDesk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = desk._begin

    def refuse(request: object, context: grpc.ServicerContext) -> None:
        if request.tenant == "gone":  # type: ignore[attr-defined]
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "tenant gone is out of scope")
        begin(request, context)

    monkeypatch.setattr(desk, "_begin", refuse)
    with leasing(tmp_path, desk) as leases:
        assert take(leases, Account("gone", "g1", "bob"), within_s=0.2) is None
        assert [use(leases) for _ in range(6)] == [True] * 5 + [False]
        until(lambda: desk.spent(ACCOUNT) == Room(5, 0), "the report")
    assert HolderFiles(tmp_path / "leases").read() == []


def test_next_slice_of_an_account_in_use_is_there_before_it_is_needed(desk: LeaseDesk, tmp_path: Path) -> None:
    desk.budget("g1", uses=12)
    with leasing(tmp_path, desk, warm_s=60.0) as leases:
        for _ in range(2):
            assert use(leases)
        # Nobody has asked for it.
        until(lambda: (held := leases.held(ACCOUNT)) is not None and held.uses >= 1, "the next slice")
        desk.down = True
        assert use(leases)


def test_one_use_alone_fetches_nothing_ahead(desk: LeaseDesk, tmp_path: Path) -> None:
    with leasing(tmp_path, desk, report_s=0.05, heard_s=0.1) as leases:
        assert use(leases)
        until(lambda: desk.spent(ACCOUNT) == Room(1, 0), "the report")
        assert desk.taken(ACCOUNT) == Room(1, 0)


def test_what_was_fetched_ahead_comes_back_and_the_last_use_is_never_fetched_ahead(
    desk: LeaseDesk, tmp_path: Path
) -> None:
    desk.budget("g1", uses=4)
    with leasing(tmp_path, desk, idle_s=0.05, report_s=0.02, heard_s=60.0, warm_s=0.3) as leases:
        assert [use(leases) for _ in range(3)] == [True] * 3
        held = leases.held(ACCOUNT)
        assert held is not None
        assert held.uses + (held.left_uses or 0) == 1
        until(lambda: desk.taken(ACCOUNT) == desk.spent(ACCOUNT) == Room(3, 0), "what is not used to come back")
        other = client(tmp_path, desk, 1)
        try:
            assert use(other.leases)
        finally:
            other.close(5.0)


def test_amounts_are_fetched_ahead_too(desk: LeaseDesk, tmp_path: Path) -> None:
    desk.budget("g1", nanos=100 * 10**9)
    with leasing(tmp_path, desk, warm_s=60.0) as leases:
        for _ in range(2):
            assert use(leases, nanos=2 * 10**9)
        until(lambda: (held := leases.held(ACCOUNT)) is not None and held.nanos >= 2 * 10**9, "the next slice")
