"""Segment files: what is appended is read back; what is damaged is cut, skipped and counted; the bound holds."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sidecar.journal.chain import genesis, link
from sidecar.journal.reader import Entry, Position, SegmentReader
from sidecar.journal.segment import (
    FRAME,
    HEADER,
    MAX_RECORD_BYTES,
    JournalError,
    SegmentWriter,
    list_segments,
    parse_segment_name,
)

MIB = 1 << 20


def read_all(path: Path, position: Position | None = None) -> tuple[list[Entry], int]:
    """Every record of a segment, and the length of its torn tail."""
    reader = SegmentReader(path, position)
    try:
        entries: list[Entry] = []
        while batch := reader.read(3):
            entries += batch
        return entries, reader.rest()
    finally:
        reader.close()


def read_directory(directory: Path) -> list[bytes]:
    return [entry.payload for name in list_segments(directory) for entry in read_all(directory / str(name))[0]]


def only_segment(directory: Path) -> Path:
    (name,) = list_segments(directory)
    return directory / str(name)


def test_records_are_read_back_in_order_and_numbered(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, "w0", 64 * MIB)
    assert writer.append([b"a", b"bb"]) == 0
    assert writer.append([b"ccc"]) == 2
    entries, rest = read_all(only_segment(tmp_path))
    assert [(e.sequence, e.payload, e.skipped) for e in entries] == [(0, b"a", 0), (1, b"bb", 0), (2, b"ccc", 0)]
    assert rest == 0
    assert (writer.records, writer.head) == (3, entries[-1].hash)
    writer.close()


def test_records_are_chained_across_appends_and_files(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, "w0", 64 * MIB, segment_bytes=400)
    due = genesis(writer.chain)
    assert (writer.records, writer.head) == (0, due)
    for batch in ([b"a" * 90, b"b"], [b"c" * 200], [b"d" * 200, b"e"]):
        writer.append(batch)
    writer.close()
    names = list_segments(tmp_path)
    assert len(names) == 3
    for name in names:
        reader = SegmentReader(tmp_path / str(name))
        assert reader.previous == due
        for entry in reader.read(100):
            due = link(due, entry.payload)
            assert entry.hash == due
        reader.close()
    assert (writer.records, writer.head) == (5, due)


def test_no_file_before_the_first_record(tmp_path: Path) -> None:
    SegmentWriter(tmp_path, "w0", 64 * MIB).close()
    assert os.listdir(tmp_path) == []


def test_segments_rotate_and_numbers_go_on(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, "w0", 64 * MIB, segment_bytes=1100)
    records = [bytes([65 + i]) * 300 for i in range(10)]
    for record in records:
        writer.append([record])
    names = list_segments(tmp_path)
    assert len(names) == 4
    assert all((tmp_path / str(name)).stat().st_size <= 1100 for name in names)
    assert read_directory(tmp_path) == records
    firsts = [read_all(tmp_path / str(name))[0][0].sequence for name in names]
    assert firsts == [0, 3, 6, 9]
    writer.close()


def test_a_batch_larger_than_a_segment_stays_together(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, "w0", 64 * MIB, segment_bytes=1000)
    writer.append([b"x" * 600] * 5)
    assert len(list_segments(tmp_path)) == 1
    writer.append([b"y"])
    assert len(list_segments(tmp_path)) == 2
    writer.close()


def test_only_the_file_being_written_is_unfinished(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, "w0", 64 * MIB, segment_bytes=400)
    for _ in range(2):
        writer.append([b"x" * 300])
    readers = [SegmentReader(tmp_path / str(name)) for name in list_segments(tmp_path)]
    assert [reader.finished() for reader in readers] == [True, False]
    writer.append([b"x"])  # asking did not disturb the writer
    writer.close()
    assert [reader.finished() for reader in readers] == [True, True]
    for reader in readers:
        reader.close()


def test_a_chain_never_looks_ended_while_its_writer_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither between two files nor after a failed write: whoever sees no lock on the last file counts the chain as over."""

    def finished() -> list[bool]:
        readers = [SegmentReader(tmp_path / str(name)) for name in list_segments(tmp_path)]
        try:
            return [reader.finished() for reader in readers]
        finally:
            for reader in readers:
                reader.close()

    seen: list[list[bool]] = []
    rename = Path.rename

    def watched(path: Path, target: Path) -> Path:
        seen.append(finished())
        done = rename(path, target)
        seen.append(finished())
        return done

    monkeypatch.setattr(Path, "rename", watched)
    writer = SegmentWriter(tmp_path, "w0", 64 * MIB, segment_bytes=400)
    writer.append([b"x" * 300])
    writer.append([b"x" * 300])
    assert seen == [[], [False], [False], [False, False]]
    assert finished() == [True, False]

    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "disk full")

    with monkeypatch.context() as disk:
        disk.setattr("sidecar.journal.segment.os.write", full)
        for _ in range(2):  # within the file, and where the next one cannot begin
            with pytest.raises(JournalError, match="disk full"):
                writer.append([b"y"])
            assert finished() == [True, False]
            assert writer.records == 2
    assert writer.append([b"z"]) == 2
    assert finished() == [True, True, False]
    assert sorted(os.listdir(tmp_path)) == [str(name) for name in list_segments(tmp_path)]
    writer.close()
    assert all(finished())
    assert read_directory(tmp_path) == [b"x" * 300, b"x" * 300, b"z"]


def test_a_file_whose_name_may_not_survive_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = SegmentWriter(tmp_path, "w0", 64 * MIB, durable=True, segment_bytes=400)
    writer.append([b"x" * 300])
    (before,) = list_segments(tmp_path)

    def broken(directory: Path) -> None:
        raise OSError(errno.EIO, "I/O error")

    with monkeypatch.context() as disk:
        disk.setattr("sidecar.journal.segment.sync_directory", broken)
        with pytest.raises(JournalError, match="I/O error"):
            writer.append([b"y" * 300])
    assert os.listdir(tmp_path) == [str(before)]
    assert writer.append([b"z" * 300]) == 1
    assert read_directory(tmp_path) == [b"x" * 300, b"z" * 300]
    writer.close()


@pytest.mark.parametrize("closing", [False, True])
def test_a_file_that_was_removed_while_it_was_written_is_replaced_and_its_records_are_missed(
    tmp_path: Path, closing: bool
) -> None:
    writer = SegmentWriter(tmp_path, "w0", 8 << 20)
    writer.append([b"gone"] * 3)
    writer.replace_removed()
    (removed,) = list_segments(tmp_path)
    (tmp_path / str(removed)).unlink()
    writer.append([b"gone too"])
    if closing:
        writer.close()
    else:
        writer.replace_removed()
    (name,) = list_segments(tmp_path)
    assert (name.chain, name.number) == (removed.chain, removed.number + 1)
    reader = SegmentReader(tmp_path / str(name))
    assert (reader.first.sequence, reader.previous) == (4, writer.head)
    assert reader.finished() == closing
    reader.close()
    writer.close()


def test_without_a_place_for_another_file_there_is_no_room(tmp_path: Path) -> None:
    directory = tmp_path / "journal"
    writer = SegmentWriter(directory, "w0", 8 << 20)
    writer.append([b"gone"])
    shutil.rmtree(directory)
    with pytest.raises(OSError, match="No such file"):
        writer.replace_removed()
    assert not writer.has_room()
    with pytest.raises(JournalError):
        writer.append([b"nowhere"])
    directory.mkdir()
    writer.append([b"here"])
    reader = SegmentReader(only_segment(directory))
    assert reader.first.sequence == 1
    reader.close()
    writer.close()


def test_a_restart_begins_a_new_chain_even_if_the_clock_was_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = SegmentWriter(tmp_path, "w0", 64 * MIB)
    first.append([b"a"])
    first.close()
    monkeypatch.setattr("sidecar.journal.segment.time.time", lambda: 1.0)
    second = SegmentWriter(tmp_path, "w0", 64 * MIB)
    assert second.append([b"b"]) == 0
    second.close()
    assert first.chain != second.chain
    assert [name.chain for name in list_segments(tmp_path)] == [first.chain, second.chain]
    assert read_directory(tmp_path) == [b"a", b"b"]


def test_the_largest_record_is_read_back_and_a_larger_one_refused(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, "w0", 64 * MIB)
    large = os.urandom(MAX_RECORD_BYTES)
    writer.append([b"small", large, large, b"small"])
    assert read_directory(tmp_path) == [b"small", large, large, b"small"]
    for bad in (b"", large + b"x"):
        with pytest.raises(JournalError, match="bytes"):
            writer.append([b"fine", bad])
    assert len(read_directory(tmp_path)) == 4, "nothing of a refused batch is written"
    writer.close()


def test_the_bound_is_known_before_appending_and_room_comes_back_when_segments_go(tmp_path: Path) -> None:
    bound = 64 << 10
    writer = SegmentWriter(tmp_path, "w0", bound)
    batch = [b"x" * 500] * 8
    appended = 0
    while writer.has_room():
        writer.append(batch)
        appended += 1
        assert appended < 100
    on_disk = sum((tmp_path / str(name)).stat().st_size for name in list_segments(tmp_path))
    assert bound * 0.75 < on_disk <= bound
    assert not writer.has_room()
    (tmp_path / str(list_segments(tmp_path)[0])).unlink()
    deadline = time.monotonic() + 5
    while not writer.has_room():
        assert time.monotonic() < deadline, "no room although a segment was removed"
    writer.close()


def test_durability_disk_syncs_every_batch_before_append_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    fdatasync = os.fdatasync

    def counting(fd: int) -> None:
        fdatasync(fd)
        synced.append(os.fstat(fd).st_size)

    monkeypatch.setattr("sidecar.journal.segment.os.fdatasync", counting)
    durable = SegmentWriter(tmp_path, "w0", 64 * MIB, durable=True)
    for _ in range(3):
        durable.append([b"x" * 10] * 2)
    assert synced == [HEADER.size + n * 2 * (FRAME.size + 10) for n in (1, 2, 3)]
    SegmentWriter(tmp_path, "w1", 64 * MIB).append([b"x"])
    assert len(synced) == 3


def test_a_writer_starts_with_what_earlier_ones_left(tmp_path: Path) -> None:
    bound = 64 << 10
    first = SegmentWriter(tmp_path, "w0", bound)
    while first.has_room():
        first.append([b"x" * 4000])
    first.close()
    assert not SegmentWriter(tmp_path, "w0", bound).has_room()
    assert SegmentWriter(tmp_path, "w1", bound, shared_by=2).has_room(), "another worker's files are its own"


def test_files_without_a_running_owner_count_for_everyone(tmp_path: Path) -> None:
    bound = 64 << 10
    gone = SegmentWriter(tmp_path, "w3", 10 * bound)
    for _ in range(2 * bound // 4000):
        gone.append([b"x" * 4000])
    gone.close()
    for index in range(2):
        writer = SegmentWriter(tmp_path, f"w{index}", bound, shared_by=2)
        assert not writer.has_room()


def test_a_full_disk_is_an_error_and_the_next_file_carries_on(tmp_path: Path) -> None:
    """A file size limit stands in for the full disk: both cut a write short and then fail it."""
    script = f"""
import resource, signal, sys
from pathlib import Path
from sidecar.journal.segment import SegmentWriter, JournalError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
writer = SegmentWriter(Path({str(tmp_path)!r}), "w0", 1 << 26)
assert writer.append([b"a" * 100] * 10) == 0
resource.setrlimit(resource.RLIMIT_FSIZE, (1980, resource.RLIM_INFINITY))
try:
    writer.append([b"b" * 100] * 10)
except JournalError as error:
    print(error)
else:
    sys.exit("the write did not fail")
assert not writer.has_room()
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert writer.records == 13
print("next", writer.append([b"c" * 100]))
"""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert "cannot append" in done.stdout
    first, second = list_segments(tmp_path)
    entries, rest = read_all(tmp_path / str(first))
    torn_at = entries[-1].hash
    # 60 + 10 * 140 = 1460 bytes, then 3 whole records and a torn one fit into 1980.
    assert [e.payload[:1] for e in entries] == [b"a"] * 10 + [b"b"] * 3
    assert rest == 1980 - 1460 - 3 * 140
    entries, _ = read_all(tmp_path / str(second))
    assert [(e.sequence, e.payload[:1]) for e in entries] == [(13, b"c")]
    assert entries[0].hash == link(torn_at, entries[0].payload), "the chain goes on behind what is whole in the file"
    assert "next 13" in done.stdout


def test_what_was_appended_survives_kill_9(tmp_path: Path) -> None:
    script = f"""
import os, sys
from pathlib import Path
from sidecar.journal.segment import SegmentWriter
writer = SegmentWriter(Path({str(tmp_path)!r}), "w0", 1 << 30, segment_bytes=1 << 16)
for number in range(10**9):
    writer.append([b"%d" % number] * 5)
    os.write(1, b"%d\\n" % number)
"""
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert child.stdout is not None
    while int(child.stdout.readline()) < 2000:
        pass
    child.kill()
    answered = child.stdout.read().split()
    child.wait()
    child.stdout.close()
    last = int(answered[-1]) if answered else 2000
    records = read_directory(tmp_path)
    assert records[: (last + 1) * 5] == [b"%d" % (at // 5) for at in range((last + 1) * 5)]
    assert all(SegmentReader(tmp_path / str(name)).finished() for name in list_segments(tmp_path))


def test_an_unwritable_directory_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "journal").write_text("a file")
    with pytest.raises(JournalError, match="journal"):
        SegmentWriter(tmp_path / "journal", "w0", MIB)


@pytest.mark.parametrize(
    "name", ["cursor", "w0-1-1.seg", "w0-0123456789ab-00000001.new", "w0-0123456789ab-00000001.seg.x"]
)
def test_other_files_are_no_segments(name: str) -> None:
    assert parse_segment_name(name) is None


def test_names_sort_by_age_per_worker() -> None:
    names = ["w10-000000000001-00000001.seg", "w2-000000000002-00000001.seg", "w2-000000000001-00000010.seg"]
    parsed = sorted(name for name in map(parse_segment_name, names) if name is not None)
    assert [str(name) for name in parsed] == [names[2], names[1], names[0]]
    assert parsed[0].chain == "w2-000000000001"
