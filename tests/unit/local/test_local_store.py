"""The store that the processes of a pod share: what is used stays used, what has to go up goes up, damage helps nobody."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.local import store as local
from sidecar.local.store import (
    KEEP_S,
    MAX_PER_SUBJECT,
    LocalStore,
    LocalStoreError,
    ReportedAuthentication,
    StaleProofError,
    UsedProofError,
)

NOW = 1_700_000_000.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LocalStore]:
    opened = LocalStore(tmp_path)
    yield opened
    opened.close()


def event(at: float = NOW - 10, session: str = "s1", device: str = "") -> ReportedAuthentication:
    return ReportedAuthentication("phr", ("hwk",), at, "https://idp", "k1", at + KEEP_S, session, True, device)


def record(
    store: LocalStore,
    jti: str = "j-1",
    at: float = NOW - 10,
    now: float = NOW,
    session: str = "s1",
    subject: str = "alice",
) -> None:
    store.record("acme", subject, jti, now + 300, event(at, session), jti.encode(), now)


def queued(store: LocalStore) -> list[bytes]:
    return [item.payload for item in store.take(["authentication"], 1000)]


def test_what_is_recorded_counts_and_goes_up(store: LocalStore) -> None:
    record(store)
    assert store.authentications("acme", "alice", NOW) == (event(),)
    assert store.authentications("acme", "bob", NOW) == ()
    assert store.authentications("globex", "alice", NOW) == ()
    assert queued(store) == [b"j-1"]


def test_a_jti_counts_once_whoever_it_is_for(store: LocalStore) -> None:
    record(store)
    for session, subject in (("s1", "alice"), ("s2", "alice"), ("s1", "bob")):
        with pytest.raises(UsedProofError):
            record(store, at=NOW - 1, session=session, subject=subject)
    assert len(queued(store)) == 1


def test_an_authentication_must_be_later_than_the_last_one_of_its_session(store: LocalStore) -> None:
    record(store, "j-1", at=NOW - 10)
    for at in (NOW - 10, NOW - 11):
        with pytest.raises(StaleProofError):
            record(store, "j-2", at=at)
    # What was refused is not used up.
    record(store, "j-2", at=NOW - 9)
    record(store, "j-3", at=NOW - 60, session="s2")
    assert [past.at - NOW for past in store.authentications("acme", "alice", NOW)] == [-9, -10, -60]


def test_one_login_registers_one_device(store: LocalStore) -> None:
    def register(jti: str, device: str, at: float, session: str) -> None:
        login = msgspec.structs.replace(event(at, session, device), registering=True)
        store.record("acme", "alice", jti, NOW + 300, login, jti.encode(), NOW)

    register("j-1", "phone", NOW - 10, "s1")
    for at in (NOW - 10, NOW - 11):
        with pytest.raises(StaleProofError, match="registered a device"):
            register("j-2", "tablet", at, "s2")
    # The same device again, by another token of the login; and another device after another login.
    register("j-2", "phone", NOW - 10, "s2")
    register("j-3", "tablet", NOW - 9, "s3")
    assert queued(store) == [b"j-1", b"j-2", b"j-3"]


def test_a_login_whose_device_was_refused_has_registered_none(store: LocalStore) -> None:
    login = msgspec.structs.replace(event(device="phone"), registering=True)
    store.record("acme", "alice", "j-1", NOW + 300, login, b"j-1", NOW)
    store.leave_device("acme", "alice", login.issuer, login.at, "phone")
    again = msgspec.structs.replace(event(session="s2", device="tablet"), registering=True)
    store.record("acme", "alice", "j-2", NOW + 300, again, b"j-2", NOW)
    assert [past.device for past in store.authentications("acme", "alice", NOW)] == ["tablet", ""]


def test_it_stops_counting_after_its_time(store: LocalStore) -> None:
    record(store)
    assert store.authentications("acme", "alice", NOW - 10 + KEEP_S - 1)
    assert store.authentications("acme", "alice", NOW - 10 + KEEP_S) == ()


def test_a_subject_has_at_most_sixteen(store: LocalStore) -> None:
    for number in range(MAX_PER_SUBJECT + 4):
        record(store, f"j-{number}", at=NOW - 100 + number)
    kept = store.authentications("acme", "alice", NOW)
    assert [past.at for past in kept] == [NOW - 100 + MAX_PER_SUBJECT + 3 - number for number in range(MAX_PER_SUBJECT)]


def test_everything_survives_closing(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    record(store)
    store.close()
    store = LocalStore(tmp_path)
    assert (store.authentications("acme", "alice", NOW), queued(store), store.since) == ((event(),), [b"j-1"], 0.0)
    with pytest.raises(UsedProofError):
        record(store, at=NOW - 1)
    store.close()


def test_a_used_jti_is_forgotten_only_when_the_proof_has_expired(store: LocalStore) -> None:
    record(store)
    for number in range(20):  # each prunes a little
        record(store, f"n-{number}", at=NOW + 200 + number, now=NOW + 299, subject="bob")
    with pytest.raises(UsedProofError):
        record(store, at=NOW - 1)
    for number in range(20):
        record(store, f"m-{number}", at=NOW + 300 + number, now=NOW + 1000, subject="bob")
    record(store, at=NOW - 1, now=NOW + 1000)


def test_the_outbox_is_in_order_bounded_and_by_kind(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "MAX_OUTBOX", 4)
    for number in range(4):
        store.put("odd" if number % 2 else "even", b"%d" % number)
    with pytest.raises(LocalStoreError, match="4 reports wait"):
        store.put("even", b"5")
    with pytest.raises(LocalStoreError):
        record(store)
    assert store.authentications("acme", "alice", NOW) == ()  # not half of it
    even = store.take(["even"], 10)
    assert [item.payload for item in even] == [b"0", b"2"]
    assert [item.payload for item in store.take(["even", "odd"], 3)] == [b"0", b"1", b"2"]
    store.settle(item.number for item in even)
    assert [item.payload for item in store.take(["even", "odd"], 10)] == [b"1", b"3"]
    record(store)
    assert store.waiting() == 3


def _report(directory: Path, number: int, found: multiprocessing.Queue[tuple[int, str]]) -> None:
    store = LocalStore(directory)
    try:
        record(store, "j-1", at=NOW - 10 + number)
        found.put((number, "recorded"))
    except UsedProofError:
        found.put((number, "used"))
    store.close()


def test_of_processes_that_use_one_jti_at_once_one_succeeds(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    found: multiprocessing.Queue[tuple[int, str]] = context.Queue()
    reporters = [context.Process(target=_report, args=(tmp_path, number, found)) for number in range(3)]
    for reporter in reporters:
        reporter.start()
    outcomes = sorted(found.get(timeout=30)[1] for _ in reporters)
    for reporter in reporters:
        reporter.join(30)
    assert outcomes == ["recorded", "used", "used"]


def _report_and_wait(directory: Path, ready: multiprocessing.Queue[int]) -> None:
    store = LocalStore(directory)
    record(store)
    ready.put(os.getpid())
    signal.pause()


def test_what_was_answered_survives_sigkill_and_is_seen_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready: multiprocessing.Queue[int] = context.Queue()
    mine = LocalStore(tmp_path)
    reporter = context.Process(target=_report_and_wait, args=(tmp_path, ready))
    reporter.start()
    pid = ready.get(timeout=30)
    assert mine.authentications("acme", "alice", NOW) == (event(),)
    os.kill(pid, signal.SIGKILL)
    reporter.join(30)
    assert queued(mine) == [b"j-1"]
    with pytest.raises(UsedProofError):
        record(mine, at=NOW - 1)
    assert list(tmp_path.glob("damaged-*")) == []
    mine.close()


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_a_damaged_file_is_put_aside_or_means_what_it_meant(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("local")
    store = LocalStore(directory)
    record(store)
    store.close()
    path = directory / "env" / "data.mdb"
    size = path.stat().st_size
    with path.open("r+b") as file:
        if data.draw(st.booleans()):
            file.truncate(data.draw(st.integers(0, size - 1)))
        else:
            at = data.draw(st.integers(8192, size - 1))  # behind LMDB's own two pages
            file.seek(at)
            old = file.read(1)[0]
            file.seek(at)
            file.write(bytes([old ^ data.draw(st.integers(1, 255))]))
    outcome = next(filter(None, (_opened_elsewhere(directory) for _ in range(4))), "died")
    assert outcome in ("whole", "lost")


def _opened_elsewhere(directory: Path) -> str:
    """In a process of its own: what LMDB does with a damaged tree is not promised."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:  # pragma: no cover
        outcome = b"failed"
        try:
            store = LocalStore(directory)
            known = store.authentications("acme", "alice", NOW)
            if known not in ((), (event(),)):
                outcome = b"wrong"
            elif store.since > NOW:
                outcome = b"lost"
            else:
                try:
                    record(store, at=NOW - 1)
                    outcome = b"forgotten"
                except UsedProofError:
                    outcome = b"whole"
        finally:
            os.write(writing, outcome)
            os._exit(0)
    os.close(writing)
    outcome = os.read(reading, 100).decode()
    os.close(reading)
    os.waitpid(pid, 0)
    return outcome


def test_after_a_loss_no_earlier_authentication_is_taken(tmp_path: Path) -> None:
    LocalStore(tmp_path).close()
    (tmp_path / "env" / "data.mdb").write_bytes(b"x" * 65536)
    store = LocalStore(tmp_path)
    assert store.since > NOW
    assert [path.name.partition("-")[0] for path in tmp_path.glob("damaged-*")] == ["damaged"]
    with pytest.raises(StaleProofError, match="older than what this sidecar knows"):
        record(store, at=store.since - 1, now=store.since)
    record(store, at=store.since + 1, now=store.since + 2)
    store.close()


def test_a_folder_that_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LocalStoreError):
        LocalStore(tmp_path / "file")
