"""Reservations: what all workers of a pod know of a spend, across processes, deaths and boots."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.lease import reservations as module
from sidecar.lease.reservations import (
    CANCELLED,
    EXECUTED,
    AlreadySettledError,
    Answered,
    Reservation,
    Reservations,
    ReservationsError,
    Spending,
    UnknownDecisionError,
)

NOW = 1000.0


def decision_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


def spending(number: int, at: float = NOW, key: bytes = b"", caller: str = "payments") -> Spending:
    reservation = Reservation("acme", "g1", "alice", 2, "h" * 32, 1, 5 * 10**9, at, caller)
    answered = Answered(b"content", at + 300, b"decision", b"answer") if key else None
    return Spending(decision_id(number), reservation, key, answered)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Reservations]:
    store = Reservations(tmp_path, "boot-1")
    yield store
    store.close()


def test_spend_is_settled_once_and_the_same_way_again(store: Reservations) -> None:
    store.keep([spending(1), spending(2)], NOW)
    for _ in range(3):
        assert store.settle(decision_id(1), "payments", CANCELLED, NOW).state == CANCELLED
    store.settle(decision_id(2), "payments", EXECUTED, NOW)
    assert [(key, each.state) for key, each in store.unsent("acme", 10)] == [
        (decision_id(1), CANCELLED),
        (decision_id(2), EXECUTED),
    ]
    store.sent("acme", [decision_id(1)])
    assert [key for key, _ in store.unsent("acme", 10)] == [decision_id(2)]
    store.settle(decision_id(1), "payments", CANCELLED, NOW)
    assert [key for key, _ in store.unsent("acme", 10)] == [decision_id(2)]


@pytest.mark.parametrize(("first", "second"), [(EXECUTED, CANCELLED), (CANCELLED, EXECUTED)])
def test_what_is_settled_is_final(store: Reservations, first: str, second: str) -> None:
    store.keep([spending(1)], NOW)
    store.settle(decision_id(1), "payments", first, NOW)
    with pytest.raises(AlreadySettledError, match=first):
        store.settle(decision_id(1), "payments", second, NOW)
    assert len(store.unsent("acme", 10)) == 1


def test_unknown_foreign_and_old_spends_cannot_be_settled(store: Reservations) -> None:
    store.keep([spending(1)], NOW)
    with pytest.raises(UnknownDecisionError):
        store.settle(decision_id(2), "payments", EXECUTED, NOW)
    with pytest.raises(UnknownDecisionError):
        store.settle(decision_id(1), "browsing", EXECUTED, NOW)
    with pytest.raises(UnknownDecisionError):
        store.settle(decision_id(1), "payments", CANCELLED, NOW + module.SETTLE_S + 1)
    assert store.unsent("acme", 10) == []


def test_only_one_request_with_a_key_may_spend(store: Reservations) -> None:
    assert store.claim(b"k" * 16, b"content", NOW)
    assert not store.claim(b"k" * 16, b"content", NOW + 1)
    pending = store.repeat(b"k" * 16, NOW + 1)
    assert pending is not None
    assert pending.answer == b""
    store.keep([spending(1, key=b"k" * 16)], NOW)
    assert not store.claim(b"k" * 16, b"content", NOW + 1)
    answered = store.repeat(b"k" * 16, NOW + 1)
    assert answered is not None
    assert answered.answer == b"answer"
    assert store.repeat(b"k" * 16, NOW + 300) is None
    assert store.claim(b"k" * 16, b"content", NOW + 301)


def test_who_did_not_spend_makes_way(store: Reservations) -> None:
    assert store.claim(b"k" * 16, b"content", NOW)
    store.release([b"k" * 16, b"unknown"])
    assert store.repeat(b"k" * 16, NOW) is None
    assert store.claim(b"k" * 16, b"content", NOW + 100)
    store.keep([spending(number, NOW + 350) for number in range(10)], NOW + 350)  # prunes what expired until now
    assert store.repeat(b"k" * 16, NOW + 350) is not None


def test_settlements_of_the_version_before_are_taken_over(tmp_path: Path) -> None:
    store = Reservations(tmp_path, "boot-1")
    store.keep([spending(1)], NOW)
    store.settle(decision_id(1), "payments", CANCELLED, NOW)
    env = store._env
    with env.begin(write=True) as txn:
        ((key, settled),) = [(key, txn.get(key, db=store._reservations)) for key in (decision_id(1),)]
        assert settled is not None
        txn.put(key, settled, db=env.open_db(b"outbox", txn=txn))
    store.sent("acme", [decision_id(1)])
    assert store.waiting() == []
    store.close()
    store = Reservations(tmp_path, "boot-1")
    assert [(key, each.state) for key, each in store.unsent("acme", 10)] == [(decision_id(1), CANCELLED)]
    store.close()


def test_damaged_file_is_begun_anew_and_gives_nothing_back(tmp_path: Path) -> None:
    store = Reservations(tmp_path, "boot-1")
    store.keep([spending(1)], NOW)
    store.settle(decision_id(1), "payments", CANCELLED, NOW)
    store.close()
    (tmp_path / "reservations" / "data.mdb").write_bytes(b"x" * 65536)
    store = Reservations(tmp_path, "boot-1")
    assert store.waiting() == []
    store.keep([spending(2)], NOW)
    store.settle(decision_id(2), "payments", EXECUTED, NOW)
    store.close()


_OTHER = """
import sys
from pathlib import Path
from sidecar.lease.reservations import Reservations
store = Reservations(Path(sys.argv[1]), "boot-1")
print(store.claim(b"k" * 16, b"content", 1000.0), store.settle(bytes(15) + b"\\1", "payments", "CANCELLED", 1000.0).state)
import os, signal
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_every_process_of_the_pod_knows_the_same_and_so_does_the_next(store: Reservations, tmp_path: Path) -> None:
    store.keep([spending(1)], NOW)
    found = subprocess.run(
        [sys.executable, "-c", _OTHER, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert found.returncode == -9, found.stderr
    # What it printed may have died with it, what it wrote has not.
    assert not store.claim(b"k" * 16, b"content", NOW)
    assert [each.state for _, each in store.unsent("acme", 10)] == [CANCELLED]


def test_another_boot_begins_empty(tmp_path: Path) -> None:
    store = Reservations(tmp_path, "boot-1")
    store.keep([spending(1, key=b"k" * 16)], NOW)
    store.settle(decision_id(1), "payments", CANCELLED, NOW)
    store.close()
    store = Reservations(tmp_path, "boot-1")
    assert len(store.unsent("acme", 10)) == 1
    store.close()
    store = Reservations(tmp_path, "boot-2")
    assert store.unsent("acme", 10) == []
    assert store.repeat(b"k" * 16, NOW) is None
    store.close()


def test_bounds_hold_and_the_oldest_go_first(store: Reservations, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_RESERVATIONS", 50)
    monkeypatch.setattr(module, "MAX_REPEATS", 20)
    for number in range(1, 500):
        store.keep([spending(number, NOW + number / 10, key=decision_id(number))], NOW + number / 10)
    with pytest.raises(UnknownDecisionError):
        store.settle(decision_id(440), "payments", EXECUTED, NOW + 50)
    store.settle(decision_id(460), "payments", EXECUTED, NOW + 50)
    assert store.repeat(decision_id(470), NOW + 50) is None
    assert store.repeat(decision_id(485), NOW + 50) is not None


def test_full_outbox_takes_no_more_settlements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_OUTBOX", 1)
    store = Reservations(tmp_path / "full", "boot-1")
    store.keep([spending(1), spending(2)], NOW)
    store.settle(decision_id(1), "payments", EXECUTED, NOW)
    with pytest.raises(ReservationsError):
        store.settle(decision_id(2), "payments", EXECUTED, NOW)
    store.sent("acme", [decision_id(1)])
    store.settle(decision_id(2), "payments", EXECUTED, NOW)


def test_without_room_nothing_is_kept_by_halves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAP_BYTES", 1 << 20)
    store = Reservations(tmp_path, "boot-1")
    number = 1

    def fill() -> None:
        nonlocal number
        while True:
            store.keep([spending(number), spending(number + 1)], NOW)
            number += 2

    with pytest.raises(ReservationsError, match="MAP_FULL"):
        fill()
    with pytest.raises(UnknownDecisionError):
        store.settle(decision_id(number), "payments", EXECUTED, NOW)
    store.close()


def test_directory_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "leases").write_text("")
    with pytest.raises(ReservationsError):
        Reservations(tmp_path / "leases", "boot-1")
