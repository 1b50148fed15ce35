from __future__ import annotations

import ipaddress
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.names import Collection, Lane, canonical_prefix, signal_id
from sidecar.clock import Clock
from sidecar.store.errors import NotLoadedError
from sidecar.store.generation import is_trusted, mark_suspect
from sidecar.store.prefix import parse_prefix
from sidecar.store.reader import Reader
from sidecar.store.writer import Writer
from tests.fakes.controlplane import eventually
from tests.fakes.history import History, device, signal
from tests.fakes.store import load

DEVICES, SIGNALS = int(Collection.DEVICES), int(Collection.SIGNALS)

NETWORKS = st.one_of(
    st.builds(
        lambda n, length: ipaddress.ip_network((n & 0x0A0F00FF, length), strict=False),
        st.integers(0, 2**32 - 1),
        st.integers(0, 32),
    ),
    st.builds(
        lambda n, length: ipaddress.ip_network((n, length), strict=False),
        st.sampled_from([0, 1, 0x10002, 1 << 127, (0x20010DB8 << 96) + 5, 0xFFFF00000000 + 7, 0xFFFF << 64]),
        st.integers(0, 128),
    ),
)


def load_networks(writer: Writer, networks: list[str]) -> None:
    history = History()
    changes: dict[tuple[int, str], bytes | None] = {}
    for network in networks:
        for source in ("a", "b"):
            changes[SIGNALS, signal_id("ip", network, source)] = signal(f"{network} {source}")
    history.commit(changes)
    load(writer, history)


@settings(max_examples=40, deadline=None)
@given(networks=st.lists(NETWORKS, max_size=12), more=st.lists(NETWORKS, max_size=3))
def test_ip_signals_are_exactly_those_whose_prefix_covers_the_address(networks: list, more: list) -> None:  # type: ignore[type-arg]
    canonical = [ipaddress.ip_network(canonical_prefix(str(network))) for network in networks]
    with tempfile.TemporaryDirectory() as directory:
        writer, reader = Writer(Path(directory)), Reader(Path(directory))
        load_networks(writer, [str(network) for network in canonical])
        with reader.view() as view:
            for network in [*canonical, *more]:
                for address in (network[0], network[-1]):
                    covering = sorted(
                        {str(n) for n in canonical if n.version == address.version and address in n},
                        key=lambda text: int(text.partition("/")[2]),
                    )
                    expected = [signal(f"{text} {source}") for text in covering for source in ("a", "b")]
                    assert view.ip_signals("acme", address.packed) == expected
                    assert view.ip_signals("other", address.packed) == []
        reader.close()
        writer.close()


@given(NETWORKS)
def test_prefixes_parse_as_they_are_spelled(network: ipaddress.IPv4Network) -> None:
    assert parse_prefix(str(network).replace("/", "_")) == (network.version, network.prefixlen)


def test_signals_of_one_value_from_every_source(tmp_path: Path) -> None:
    writer, reader = Writer(tmp_path), Reader(tmp_path)
    history = History()
    history.commit(
        {
            (SIGNALS, signal_id("asn", "64500", "a")): b"1",
            (SIGNALS, signal_id("asn", "64500", "b")): b"2",
            (SIGNALS, signal_id("asn", "645001", "a")): b"3",
            (SIGNALS, signal_id("country", "64500", "a")): b"4",
        }
    )
    load(writer, history)
    with reader.view() as view:
        assert view.signals("acme", "asn", "64500") == [b"1", b"2"]
        assert view.signals("acme", "asn", "64") == []
        scanned = [record_id for record_id, _ in view.scan(SIGNALS, "acme")]
        assert scanned == ["asn~645001~a", "asn~64500~a", "asn~64500~b", "country~64500~a"]
        assert view.get(99, "acme", "x") is None
    reader.close()
    writer.close()


def test_look_ups_do_not_leak_into_tenants_or_subjects_with_a_common_prefix(tmp_path: Path) -> None:
    writer, reader = Writer(tmp_path), Reader(tmp_path)
    for tenant, subject in (("a", "bob"), ("ab", "bo"), ("a-b", "bobby")):
        history = History(tenant)
        history.commit({(DEVICES, f"{tenant}-{n}"): device(subject) for n in range(3)})
        load(writer, history)
    with reader.view() as view:
        assert view.subject_devices("a", "bob") == ["a-0", "a-1", "a-2"]
        assert view.subject_devices("a", "bob", 2) == ["a-0", "a-1"]
        assert view.subject_devices("a", "bo") == []
        assert view.subject_devices("a", "") == []
        assert [record_id for record_id, _ in view.scan(DEVICES, "a")] == ["a-0", "a-1", "a-2"]
    reader.close()
    writer.close()


def test_nothing_written_and_suspect_and_unexamined_generations_are_not_loaded(tmp_path: Path) -> None:
    clock = Clock("one")
    reader = Reader(tmp_path, clock=clock)
    with pytest.raises(NotLoadedError, match="nothing was written"), reader.view():
        pass
    writer = Writer(tmp_path, clock=clock)
    live = writer.live.path
    reader.follow()
    with reader.view() as view:
        assert view.cursor("acme", Lane.BULK) is None
        assert view.scope() is None
    reader.close()
    other_boot = Reader(tmp_path, clock=Clock("two"))
    with pytest.raises(NotLoadedError, match="examined"), other_boot.view():
        pass
    writer.close()
    mark_suspect(live, "a test says so")
    suspicious = Reader(tmp_path, clock=clock)
    with pytest.raises(NotLoadedError, match="examined"), suspicious.view():
        pass
    writer = Writer(tmp_path, clock=clock)  # examines it
    assert writer.live.path == live
    assert is_trusted(live, "one")
    suspicious.follow()
    with suspicious.view():
        pass
    suspicious.close()
    with pytest.raises(NotLoadedError, match="closed"), suspicious.view():
        pass
    writer.close()


def test_views_in_many_threads_see_whole_revisions_across_swaps(tmp_path: Path) -> None:
    """Every revision has `revision` devices of one subject, whichever generation is read."""
    writer, reader = Writer(tmp_path), Reader(tmp_path)
    history = History()
    load(writer, history)
    stop = threading.Event()
    failures: list[str] = []
    seen: set[int] = set()

    def read() -> None:
        last = 0
        while not stop.is_set():
            with reader.view() as view:
                cursor = view.cursor("acme", Lane.BULK)
                count = len(view.subject_devices("acme", "alice", 1000))
                again = view.cursor("acme", Lane.BULK)
            if cursor is None or count != cursor.revision or again != cursor or cursor.revision < last:
                failures.append(f"{cursor} {again} {count} after {last}")
                return
            last = cursor.revision
            seen.add(last)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for n in range(60):
        writer.apply_delta(history.commit({(DEVICES, f"d{n}"): device("alice")}))
        if n % 6 == 0:
            load(writer, history)
    eventually(lambda: failures or history.revision in seen)
    stop.set()
    for thread in threads:
        thread.join()
    reader.close()
    writer.close()
    assert not failures
    assert len(seen) > 3


READER = """
import sys, time
from pathlib import Path
from engine.names import Lane
from sidecar.store.reader import Reader
reader = Reader(Path(sys.argv[1]))
print("ready", flush=True)
for line in sys.stdin:
    if line == "hold\\n":
        view = reader.view()
        view.__enter__()
        print("held", flush=True)
        continue
    deadline = time.monotonic() + 10
    while True:
        with reader.view() as view:
            cursor = view.cursor("acme", Lane.BULK)
            if cursor is not None and cursor.revision == int(line):
                break
        assert time.monotonic() < deadline, cursor
    print(len(view._dbs.records), flush=True)
"""


def start_reader(directory: Path) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", READER, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def stop(child: subprocess.Popen[str]) -> None:
    child.kill()
    child.communicate()


def ask(child: subprocess.Popen[str], line: str) -> str:
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(line + "\n")
    child.stdin.flush()
    return child.stdout.readline()


def test_reader_in_another_process_follows_deltas_swaps_and_growth_of_the_map(tmp_path: Path) -> None:
    """The reader's map is as large as it was when it opened; the writer's grows beyond it."""
    writer = Writer(tmp_path)
    history = History()
    load(writer, history)
    child = start_reader(tmp_path)
    try:
        for n in range(3):
            writer.apply_delta(history.commit({(DEVICES, f"d{n}"): device("alice")}))
            assert ask(child, str(history.revision))
            load(writer, history)
            writer.apply_delta(history.commit({(DEVICES, f"e{n}"): device("alice")}))
            assert ask(child, str(history.revision))
    finally:
        stop(child)
        writer.close()


def test_small_map_of_a_reader_grows_with_the_file(tmp_path: Path) -> None:
    code = READER.replace("Reader(Path(sys.argv[1]))", "Reader(Path(sys.argv[1]), map_size=1 << 18)")
    writer = Writer(tmp_path)
    history = History()
    load(writer, history)
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        child.stdout.readline()
        assert ask(child, str(history.revision))
        writer.apply_delta(history.commit({(90, f"x{n}"): os.urandom(3000) for n in range(500)}))
        assert (writer.live.path / "data.mdb").stat().st_size > 1 << 20
        assert ask(child, str(history.revision))
    finally:
        stop(child)
        writer.close()


def test_slot_of_a_killed_reader_is_freed(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    load(writer, History())
    child = start_reader(tmp_path)
    assert ask(child, "hold") == "held\n"
    stop(child)
    assert writer.maintain() == 1
    assert writer.maintain() == 0
    writer.close()


def test_view_is_cheap(tmp_path: Path) -> None:
    """2-3 us are the aim; the bound leaves room for a busy machine and still catches a stat or an open per view."""
    writer, reader = Writer(tmp_path), Reader(tmp_path)
    load(writer, History())
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(2000):
            with reader.view():
                pass
        best = min(best, (time.perf_counter() - began) / 2000)
    reader.close()
    writer.close()
    assert best < 20e-6


def test_reader_is_never_without_a_generation_while_they_are_swapped_and_removed_at_once(tmp_path: Path) -> None:
    """In processes of their own, so that a removed generation cannot be shared."""
    writer = Writer(tmp_path)
    history = History()
    load(writer, history)
    code = """
import sys, time
from pathlib import Path
from engine.names import Lane
from sidecar.store.reader import Reader
reader = Reader(Path(sys.argv[1]))
deadline = time.monotonic() + 30
print("ready", flush=True)
while time.monotonic() < deadline:
    reader.follow()
    with reader.view() as view:
        if view.cursor("acme", Lane.BULK).revision == 40:
            print("done", flush=True)
            break
"""
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        for _ in range(40):
            history.commit({(DEVICES, "d"): device("alice")})
            load(writer, history)
        assert child.stdout.readline() == "done\n"
        assert child.wait(10) == 0
    finally:
        stop(child)
        writer.close()
