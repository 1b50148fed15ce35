"""What the disk, another boot and SIGKILL may do to the store."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.names import Collection, Lane
from sidecar.clock import Clock
from sidecar.store import keys
from sidecar.store.environment import Environment
from sidecar.store.errors import DamagedRowError, NotLoadedError, UnreadableError
from sidecar.store.generation import DataDir, is_suspect, is_trusted, shortfall
from sidecar.store.reader import Reader
from sidecar.store.writer import Writer
from tests.fakes.history import History, device, device_state, grant
from tests.fakes.history import signal as signal_record
from tests.fakes.store import content, load, records


class Stopped(Clock):
    """A clock that stands at ten seconds."""

    def wall(self) -> float:
        return 10.0

    def boottime(self) -> float:
        return 10.0


DEVICES, SIGNALS = int(Collection.DEVICES), int(Collection.SIGNALS)
ONE, TWO = Clock("one"), Clock("two")
URGENT_RECORDS: dict[tuple[int, str], bytes | None] = {
    (int(Collection.DEVICE_STATES), "d1"): device_state("alice", 3),
    (int(Collection.GRANTS), "g1"): grant("subject", "alice"),
}


def fill(directory: Path, clock: Clock = ONE) -> tuple[Writer, History]:
    writer = Writer(directory, clock=clock)
    urgent, history = History(lane=Lane.URGENT), History()
    urgent.commit(URGENT_RECORDS)
    load(writer, urgent)
    changes: dict[tuple[int, str], bytes | None] = {
        (DEVICES, f"d{n:04}"): device("marker-subject") for n in range(2000)
    }
    changes |= {(SIGNALS, f"ip~10.0.{n}.0_24~x"): signal_record("") for n in range(50)}
    history.commit(changes)
    load(writer, history)
    return writer, history


def findings(writer: Writer) -> list[str]:
    return [finding.kind for finding in writer.scrub() if finding is not None]


def flip_in_record(environment: Environment) -> None:
    with environment.write() as txn:
        value = bytearray(txn.get(b"acme\0d0007", db=environment.dbs.records[DEVICES]) or b"")
        value[-1] ^= 1
        txn.put(b"acme\0d0007", bytes(value), db=environment.dbs.records[DEVICES])


def drop_record(environment: Environment) -> None:
    with environment.write() as txn:
        txn.delete(b"acme\0d0007", db=environment.dbs.records[DEVICES])


def add_record(environment: Environment) -> None:
    with environment.write() as txn:
        txn.put(b"acme\0zzz", device("eve"), db=environment.dbs.records[DEVICES])


def change_index_row(name: bytes, value: bytes | None) -> Callable[[Environment], None]:
    def change(environment: Environment) -> None:
        db = environment.dbs.indexes[name]
        with environment.write() as txn:
            cursor = txn.cursor(db)
            assert cursor.first()
            if value is None:
                cursor.delete()
            else:
                txn.put(cursor.key(), value, db=db)

    return change


def add_index_row(environment: Environment) -> None:
    with environment.write() as txn:
        txn.put(b"acme\0eve\0d0001", b"", db=environment.dbs.device)


def break_cursor(environment: Environment) -> None:
    with environment.write() as txn:
        txn.put(keys.lane_row(keys.META_CURSOR, "acme", Lane.BULK), b"short", db=environment.dbs.meta)


@pytest.mark.parametrize(
    ("damage", "kinds"),
    [
        (flip_in_record, {"digest", "index", "record"}),
        (drop_record, {"digest", "index"}),
        (add_record, {"digest", "index"}),
        (add_index_row, {"index"}),
        (break_cursor, {"cursor", "record", "index"}),
        *[(change_index_row(name, value), {"index"}) for name in keys.INDEXES for value in (None, b"7")],
    ],
)
def test_scrub_finds_what_differs(tmp_path: Path, damage: Callable[[Environment], None], kinds: set[str]) -> None:
    writer, _ = fill(tmp_path)
    assert findings(writer) == []
    damage(writer.live)
    found = set(findings(writer))
    assert found
    assert found <= kinds
    writer.condemn()
    assert writer.cursors() == {}
    assert findings(writer) == []
    assert len(list(tmp_path.glob("quarantine-*"))) == 1
    writer.close()


def bookkeep(directory: Path) -> Writer:
    """A writer whose store has a bookkeeping row of every kind."""
    writer = Writer(directory, clock=ONE)
    for tenant in ("acme", "beta"):
        for lane in Lane:
            history = History(tenant=tenant, lane=lane)
            history.commit({(int(Collection.KEYS) if lane is Lane.URGENT else SIGNALS, "odd"): b""})
            load(writer, history)
            writer.confirm(tenant, lane, boottime=1.0, wall=1.0)
    writer.note_time(boottime=1.0, server_time=1e9)
    writer.set_scope(frozenset({"acme"}))
    return writer


def flips(row: bytes) -> Iterator[bytes]:
    """The row with each of its bits flipped, cut, and lengthened."""
    for at in range(len(row)):
        for bit in range(8):
            yield row[:at] + bytes([row[at] ^ 1 << bit]) + row[at + 1 :]
    yield row[:-1]
    yield row + b"\0"


def said(reader: Reader) -> list[object]:
    """All that the bookkeeping rows tell a reader."""
    with reader.view() as view:
        cursors = [view.cursor(tenant, lane) for tenant in ("acme", "beta") for lane in Lane]
        confirmed = [view.age_s("acme", at) for at in (Stopped("one"), Stopped("two"))]
        offsets = [view.clock_offset_s(at) for at in (Stopped("one"), Stopped("two"))]
        return [*cursors, *confirmed, *offsets, view.scope()]


@pytest.mark.parametrize("kind", keys.SEALED, ids=lambda kind: kind.strip(b"\0").decode())
def test_a_bit_flipped_in_a_bookkeeping_row_is_never_believed(tmp_path: Path, kind: bytes) -> None:
    writer = bookkeep(tmp_path)
    assert findings(writer) == []
    reader = Reader(tmp_path, clock=ONE)
    true = said(reader)
    meta = writer.live.dbs.meta
    with writer.live.env.begin() as txn:
        rows = list(keys.iterate(txn.cursor(meta), kind))
    assert rows
    for key, value in rows:
        damaged = [(key, other) for other in flips(value)] + [(other, value) for other in flips(key)]
        for row in damaged:
            with writer.live.write() as txn:
                txn.delete(key, db=meta)
                there = txn.get(row[0], db=meta)
                txn.put(*row, db=meta)
            assert "cursor" in findings(writer), row
            try:
                told = said(reader)
            except UnreadableError:
                assert is_suspect(writer.live.path)
                (writer.live.path / "suspect").unlink()
            else:
                # A row that got another key is missing, which is stale or never loaded; nothing else may differ.
                assert all(now in (was, None) for now, was in zip(told, true, strict=True)), row
            with writer.live.write() as txn:
                txn.delete(row[0], db=meta)
                if there is not None:
                    txn.put(row[0], there, db=meta)
                txn.put(key, value, db=meta)
    assert said(reader) == true
    assert findings(writer) == []
    reader.close()
    writer.close()


@pytest.mark.parametrize("kind", [keys.META_CURSOR, keys.META_SCOPE], ids=["cursor", "scope"])
def test_a_store_with_a_damaged_row_that_the_writer_needs_is_quarantined_in_the_same_boot(
    tmp_path: Path, kind: bytes
) -> None:
    writer = bookkeep(tmp_path)
    with writer.live.write() as txn:
        key, value = next(keys.iterate(txn.cursor(writer.live.dbs.meta), kind))
        txn.put(key, bytes([value[0] ^ 8]) + value[1:], db=writer.live.dbs.meta)
    writer.close()
    writer = Writer(tmp_path, clock=ONE)
    assert writer.quarantined == 1
    assert (writer.cursors(), writer.scope()) == ({}, None)
    writer.close()


def test_a_damaged_mark_drops_nobody(tmp_path: Path) -> None:
    writer = bookkeep(tmp_path)
    mark = keys.META_DROP + b"beta"
    with writer.live.write() as txn:
        value = txn.pop(mark, db=writer.live.dbs.meta)
        txn.put(keys.META_DROP + b"acme", value, db=writer.live.dbs.meta)
    before = records(writer.live, "acme", Lane.URGENT)
    assert before
    with pytest.raises(DamagedRowError):
        list(writer.drop())
    assert records(writer.live, "acme", Lane.URGENT) == before
    with pytest.raises(UnreadableError):
        writer.maintain()
    writer.close()


def test_byte_flipped_on_disk_is_found_on_the_next_boot_and_quarantined(tmp_path: Path) -> None:
    writer, _ = fill(tmp_path)
    data = writer.live.path / "data.mdb"
    writer.close()
    raw = bytearray(data.read_bytes())
    node = b"acme\0d0007" + device("marker-subject")
    assert node in raw
    data.write_bytes(raw.replace(node, node.replace(b"marker", b"mArker")))
    reader = Reader(tmp_path, clock=TWO)
    with pytest.raises(NotLoadedError), reader.view():
        pass
    writer = Writer(tmp_path, clock=TWO)
    assert writer.quarantined == 1
    assert writer.cursors() == {}
    reader.follow()
    with reader.view() as view:
        assert view.get(DEVICES, "acme", "d0000") is None
    reader.close()
    writer.close()


def test_sound_store_is_examined_after_another_boot_and_kept(tmp_path: Path) -> None:
    writer, history = fill(tmp_path)
    before = content(writer.live)
    writer.close()
    beats: list[float] = []
    writer = Writer(tmp_path, clock=TWO, pulse=lambda: beats.append(time.monotonic()))
    assert writer.quarantined == 0
    assert content(writer.live) == before
    assert beats
    assert is_trusted(writer.live.path, "two")
    assert writer.apply_delta(history.commit({(DEVICES, "new"): device("bob")})) == history.cursor
    writer.close()


@pytest.mark.parametrize("clock", [ONE, TWO], ids=["same boot", "another boot"])
@pytest.mark.parametrize("left", [0, 100, 5000, 0.3, 0.9, -4096])
def test_truncated_file_is_quarantined_and_kills_nobody(tmp_path: Path, clock: Clock, left: float) -> None:
    writer, _ = fill(tmp_path)
    data = writer.live.path / "data.mdb"
    writer.close()
    size = data.stat().st_size
    os.truncate(data, int(size * left) if isinstance(left, float) else size + left if left < 0 else left)
    reader = Reader(tmp_path, clock=clock)
    with pytest.raises(NotLoadedError), reader.view():
        pass
    reopened = Writer(tmp_path, clock=clock)
    if left == -4096 and not reopened.quarantined:
        # The last page may have been a free one: then all is still there.
        assert findings(reopened) == []
    else:
        assert reopened.quarantined == 1
        assert reopened.cursors() == {}
        assert [path.name for path in tmp_path.glob("quarantine-*")] == [
            data.parent.name.replace("gen-", "quarantine-")
        ]
    reader.close()
    reopened.close()


def test_garbage_and_foreign_formats_are_quarantined_keeping_the_latest(tmp_path: Path) -> None:
    writer = Writer(tmp_path, clock=ONE)
    for spoil in (
        lambda path: (path / "data.mdb").write_bytes(os.urandom(20_000)),
        lambda path: (path / "data.mdb").unlink(),
    ):
        live = writer.live.path
        writer.close()
        spoil(live)
        writer = Writer(tmp_path, clock=ONE)
        assert writer.quarantined == 1
        assert len(list(tmp_path.glob("quarantine-*"))) == 1
    with writer.live.write() as txn:
        txn.put(keys.META_FORMAT, b"0:other", db=writer.live.dbs.meta)
    writer.close()
    reader = Reader(tmp_path, clock=ONE)
    with pytest.raises(NotLoadedError, match="format"), reader.view():
        pass
    writer = Writer(tmp_path, clock=ONE)
    assert writer.quarantined == 1
    reader.close()
    writer.close()


def test_file_truncated_under_the_running_writer_is_told_not_mended(tmp_path: Path) -> None:
    writer, history = fill(tmp_path)
    live = writer.live.path
    for _ in range(4):  # some MiB, so that it cannot pass for a few free pages
        writer.apply_delta(history.commit({(90, f"x{history.revision}-{n}"): bytes(3000) for n in range(700)}))
    copy = tmp_path / "copy"
    shutil.copytree(live, copy)
    os.truncate(live / "data.mdb", 1 << 20)
    # The map is not touched beyond the end here: the writer looks at the length alone.
    with pytest.raises(UnreadableError):
        writer.live._cover_free_tail()
    assert is_suspect(live)
    with pytest.raises(UnreadableError):
        writer.maintain()
    shutil.copyfile(copy / "data.mdb", live / "data.mdb")  # so that closing touches no missing page
    writer.close()


def test_file_is_as_long_as_it_claims_after_every_commit(tmp_path: Path) -> None:
    """LMDB itself does not write pages that a transaction took and freed again; seeds that show it without our cover."""
    writer = Writer(tmp_path)
    history = History()
    load(writer, history)
    rng = random.Random(7)
    for _ in range(300):
        changes: dict[tuple[int, str], bytes | None] = {}
        for _ in range(rng.choice([1, 5, 50, 200])):
            value = None if rng.random() < 0.5 else bytes(rng.choice([10, 300, 5000]))
            changes[rng.choice([90, 91, 92]), f"x{rng.randrange(3000)}"] = value
        writer.apply_delta(history.commit(changes))
        assert shortfall(writer.live.path) == 0
    assert records(writer.live, "acme", Lane.BULK) == history.records
    writer.close()


def test_leftovers_of_a_crash_are_removed(tmp_path: Path) -> None:
    writer, history = fill(tmp_path)
    live = writer.live.path
    offer, chunks, _ = history.snapshot()
    writer.stage(offer).add(chunks[0])
    staged = max(tmp_path.glob("gen-*"), key=lambda path: int(path.name[4:]))
    assert staged != live
    shutil.copytree(staged, tmp_path / "gen-77")
    (tmp_path / "CURRENT.tmp").write_text("gen-77")
    writer.close()
    Writer(tmp_path, clock=ONE).close()
    assert [path.name for path in tmp_path.glob("gen-*")] == [live.name]
    assert not (tmp_path / "CURRENT.tmp").exists()


@pytest.mark.parametrize("name", ["", "gen-9", "../elsewhere", "gen-1/../gen-1", "quarantine-1", "\ud800"])
def test_current_that_makes_no_sense_is_no_generation(tmp_path: Path, name: str) -> None:
    directory = DataDir(tmp_path)
    (tmp_path / "CURRENT").write_bytes(name.encode(errors="surrogatepass"))
    assert directory.current() is None
    Writer(tmp_path).close()
    assert directory.current() is not None


WRITER = """
import random, sys
from pathlib import Path
from engine.names import Lane
from sidecar.store.writer import Writer
from tests.fakes.history import History, device
from tests.fakes.store import load
directory, seed = Path(sys.argv[1]), int(sys.argv[2])
writer = Writer(directory)
history = History()
rng = random.Random(5)
while True:
    if history.revision % 5 == 0:
        held = writer.cursor("acme", Lane.BULK)
        if held is None or held.revision <= history.revision:
            load(writer, history, chunk_records=30)
            print(history.revision, flush=True)
    changes = {(64, f"d{rng.randrange(400)}"): device(f"s{rng.randrange(9)}") for _ in range(60)}
    changes |= {(64, f"d{rng.randrange(400)}"): None for _ in range(20)}
    held = writer.cursor("acme", Lane.BULK)
    raw = history.commit(changes)
    if held is None or held.revision < history.revision:
        writer.apply_delta(raw)
"""


def truth(revision: int) -> History:
    """What the child above has at a revision."""
    history = History()
    rng = random.Random(5)
    for _ in range(revision):
        changes: dict[tuple[int, str], bytes | None] = {
            (64, f"d{rng.randrange(400)}"): device(f"s{rng.randrange(9)}") for _ in range(60)
        }
        changes |= {(64, f"d{rng.randrange(400)}"): None for _ in range(20)}
        history.commit(changes)
    return history


def test_writer_killed_at_any_moment_leaves_a_whole_revision(tmp_path: Path) -> None:
    rng = random.Random()
    last = 0
    for attempt in range(8):
        child = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(attempt)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        child.stdout.readline()  # past the start
        deadline = time.monotonic() + rng.uniform(0.0, 0.12)
        while time.monotonic() < deadline:
            child.poll()
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        writer = Writer(tmp_path)
        assert writer.quarantined == 0
        cursor = writer.cursor("acme", Lane.BULK)
        assert cursor is not None
        assert cursor.revision >= last
        last = cursor.revision
        history = truth(last)
        assert cursor == history.cursor
        assert records(writer.live, "acme", Lane.BULK) == history.records
        assert findings(writer) == []
        writer.close()
    assert last > 5
