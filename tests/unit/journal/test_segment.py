"""Segment files: what is appended is read back; what is damaged is cut, skipped and counted; the bound holds."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

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
    writer.close()


def test_reading_resumes_at_a_position(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, "w0", 64 * MIB)
    writer.append([b"a", b"b", b"c"])
    path = only_segment(tmp_path)
    position = read_all(path)[0][0].after
    assert [(e.sequence, e.payload) for e in read_all(path, position)[0]] == [(1, b"b"), (2, b"c")]
    writer.close()


def test_no_file_before_the_first_record(tmp_path: Path) -> None:
    SegmentWriter(tmp_path, "w0", 64 * MIB).close()
    assert os.listdir(tmp_path) == []


def test_segments_rotate_and_numbers_go_on(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, "w0", 64 * MIB, segment_bytes=1000)
    records = [bytes([65 + i]) * 300 for i in range(10)]
    for record in records:
        writer.append([record])
    names = list_segments(tmp_path)
    assert len(names) == 4
    assert all((tmp_path / str(name)).stat().st_size <= 1000 for name in names)
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


def test_a_tail_torn_at_any_byte_costs_only_the_torn_record(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, "w0", 64 * MIB)
    writer.append([b"first", b"second"])
    writer.close()
    path = only_segment(tmp_path)
    whole = path.read_bytes()
    end_of_first = HEADER.size + FRAME.size + len(b"first")
    for length in range(end_of_first, len(whole)):
        path.write_bytes(whole[:length])
        entries, rest = read_all(path)
        assert [e.payload for e in entries] == [b"first"], length
        assert rest == length - end_of_first
    # A node crash may also leave the right length, filled with zeros or anything else.
    for garbage in (b"\0", b"\xff"):
        for length in range(end_of_first, len(whole)):
            path.write_bytes(whole[:length] + garbage * (len(whole) - length))
            entries, rest = read_all(path)
            assert [e.payload for e in entries] == [b"first"], (garbage, length)
            assert rest == len(whole) - end_of_first


def test_a_flipped_bit_anywhere_in_the_middle_never_yields_a_wrong_record(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, "w0", 64 * MIB)
    writer.append([b"first", b"second", b"third"])
    writer.close()
    path = only_segment(tmp_path)
    whole = path.read_bytes()
    second = HEADER.size + FRAME.size + len(b"first")
    payload = range(second + FRAME.size, second + FRAME.size + len(b"second"))
    for at in range(second, payload.stop):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[at] ^= 1 << bit
            path.write_bytes(damaged)
            entries, _ = read_all(path)
            assert entries[0].payload == b"first"
            if at in payload:  # the length is sound, so the record behind is found, with its own number
                assert [(e.sequence, e.payload, e.skipped) for e in entries[1:]] == [(2, b"third", 1)]
            else:
                assert all((e.sequence, e.payload, e.skipped) == (2, b"third", 1) for e in entries[1:])


@pytest.mark.parametrize("at", range(HEADER.size))
def test_a_damaged_header_is_an_error(tmp_path: Path, at: int) -> None:
    writer = SegmentWriter(tmp_path, "w0", 64 * MIB)
    writer.append([b"a"])
    writer.close()
    path = only_segment(tmp_path)
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(JournalError, match="header"):
        SegmentReader(path)
    path.write_bytes(data[:at])
    with pytest.raises(JournalError, match="header"):
        SegmentReader(path)


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
resource.setrlimit(resource.RLIMIT_FSIZE, (1500, resource.RLIM_INFINITY))
try:
    writer.append([b"b" * 100] * 10)
except JournalError as error:
    print(error)
else:
    sys.exit("the write did not fail")
assert not writer.has_room()
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print("next", writer.append([b"c" * 100]))
"""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert "cannot append" in done.stdout
    first, second = list_segments(tmp_path)
    entries, rest = read_all(tmp_path / str(first))
    # 28 + 10 * 108 = 1108 bytes, then 3 whole records and a torn one fit into 1500.
    assert [e.payload[:1] for e in entries] == [b"a"] * 10 + [b"b"] * 3
    assert rest == 1500 - 1108 - 3 * 108
    entries, _ = read_all(tmp_path / str(second))
    assert [(e.sequence, e.payload[:1]) for e in entries] == [(13, b"c")]
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
