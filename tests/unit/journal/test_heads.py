"""Where chains stand, asked while they are written, rotated, shipped, torn and damaged."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from sidecar.journal.chain import genesis, link
from sidecar.journal.heads import Head, Heads
from sidecar.journal.reader import SegmentReader
from sidecar.journal.segment import FRAME, HEADER, MAX_RECORD_BYTES, SegmentWriter, list_segments

MIB = 1 << 20


def head_of(writer: SegmentWriter, ended: bool = False) -> Head:
    return Head(writer.chain, writer.records, writer.head, ended)


def test_a_journal_without_records_has_no_chains(tmp_path: Path) -> None:
    assert Heads(tmp_path).read() == []
    assert Heads(tmp_path / "missing").read() == []


def test_heads_follow_their_writers(tmp_path: Path) -> None:
    writers = [SegmentWriter(tmp_path, f"w{index}", 64 * MIB, segment_bytes=2000) for index in range(2)]
    heads = Heads(tmp_path)
    for round_ in range(40):
        for writer in writers:
            writer.append([os.urandom(100)] * (round_ % 3 + 1))
        assert heads.read() == [head_of(writer) for writer in writers]
        assert Heads(tmp_path).read() == heads.read(), "memory of earlier calls changes nothing"
    assert len(list_segments(tmp_path)) > 10
    for writer in writers:
        writer.close()
    assert heads.read() == [head_of(writer, ended=True) for writer in writers]


def test_what_was_seen_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = SegmentWriter(tmp_path, "w0", 64 * MIB)
    writer.append([b"x" * 1000] * 1000)
    heads = Heads(tmp_path)
    heads.read()
    writer.append([b"y" * 1000])
    read: list[int] = []
    pread = os.pread

    def counting(fd: int, size: int, offset: int) -> bytes:
        data = pread(fd, size, offset)
        read.append(len(data))
        return data

    monkeypatch.setattr("sidecar.journal.reader.os.pread", counting)
    assert heads.read() == [head_of(writer)]
    assert sum(read) < 10_000
    writer.close()


def test_a_new_start_is_a_new_chain_and_the_old_one_has_ended(tmp_path: Path) -> None:
    first = SegmentWriter(tmp_path, "w0", 64 * MIB)
    first.append([b"a"])
    first.close()
    second = SegmentWriter(tmp_path, "w0", 64 * MIB)
    second.append([b"b"])
    assert Heads(tmp_path).read() == [head_of(first, ended=True), head_of(second)]
    second.close()


def test_the_quarantine_is_no_chain_of_its_own(tmp_path: Path) -> None:
    quarantine = SegmentWriter(tmp_path, "q", MIB)
    quarantine.append([b"a"])
    assert Heads(tmp_path).read() == []
    quarantine.close()


def test_shipped_files_are_not_missed_and_a_chain_without_files_is_gone(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, "w0", 64 * MIB, segment_bytes=400)
    heads = Heads(tmp_path)
    for _ in range(3):
        writer.append([b"x" * 300])
        heads.read()
    for name in list_segments(tmp_path)[:-1]:
        (tmp_path / str(name)).unlink()
    assert heads.read() == [head_of(writer)] == Heads(tmp_path).read()
    writer.close()
    (tmp_path / str(list_segments(tmp_path)[0])).unlink()
    assert heads.read() == []
    writer.append([b"x"])  # it goes on, where it was
    assert heads.read() == [Head(writer.chain, 4, writer.head, False)]
    writer.close()


def test_a_file_with_nothing_but_a_header_tells_what_came_before(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, "w0", 64 * MIB, segment_bytes=400)
    writer.append([b"x" * 300])
    second = head_of(writer)
    writer.append([b"x" * 300])
    writer.close()
    (first_path, path) = [tmp_path / str(name) for name in list_segments(tmp_path)]
    os.truncate(path, HEADER.size)
    assert Heads(tmp_path).read() == [second._replace(ended=True)]
    os.truncate(path, 0)
    assert Heads(tmp_path).read() == [second], "with its last file unreadable, nothing is known of the chain's end"
    first_path.unlink()
    assert Heads(tmp_path).read() == []


def test_an_empty_chain_stands_at_its_genesis(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, "w0", 64 * MIB)
    writer.append([b"x"])
    writer.close()
    os.truncate(tmp_path / str(list_segments(tmp_path)[0]), HEADER.size + 10)
    assert Heads(tmp_path).read() == [Head(writer.chain, 0, genesis(writer.chain), True)]


def sound_head(path: Path) -> tuple[int, bytes]:
    """As the reader sees it."""
    reader = SegmentReader(path)
    try:
        records, head = reader.first.sequence, reader.previous
        while entries := reader.read(100):
            records, head = entries[-1].sequence + 1, entries[-1].hash
        return records, head
    finally:
        reader.close()


def test_a_tail_torn_or_damaged_at_any_byte_is_not_counted(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, "w0", 64 * MIB)
    payloads = [b"first", b"second", b"third"]
    writer.append(payloads)
    writer.close()
    path = tmp_path / str(list_segments(tmp_path)[0])
    whole = path.read_bytes()
    ends, due = [HEADER.size], [genesis(writer.chain)]
    for payload in payloads:
        ends.append(ends[-1] + FRAME.size + len(payload))
        due.append(link(due[-1], payload))
    for length in range(HEADER.size, len(whole)):
        records = sum(end <= length for end in ends) - 1
        for rest in (b"", b"\0" * (len(whole) - length), b"\xff" * (len(whole) - length)):
            path.write_bytes(whole[:length] + rest)
            assert Heads(tmp_path).read() == [Head(writer.chain, records, due[records], True)], length
    for at in range(HEADER.size, len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 0x10
        path.write_bytes(damaged)
        (found,) = Heads(tmp_path).read()
        known = Heads(tmp_path)
        path.write_bytes(whole[: ends[1]])
        known.read()
        path.write_bytes(damaged)
        if at >= ends[2]:
            assert (found.records, found.head) == sound_head(path) == (2, due[2])
            assert known.read() == [found]
        else:  # in front of a sound last record; a damaged length hides what is behind
            assert (found.records, found.head) in (sound_head(path), (3, due[3]))


def test_large_records_are_hopped_over(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, "w0", 64 * MIB, segment_bytes=32 * MIB)
    writer.append([b"a", b"b" * MAX_RECORD_BYTES, b"c" * (70 << 10), b"d" * MAX_RECORD_BYTES])
    assert Heads(tmp_path).read() == [head_of(writer)]
    writer.append([b"e"])
    assert Heads(tmp_path).read() == [head_of(writer)]
    writer.close()


def watched(work: Callable[[], None], watch: Callable[[], None]) -> None:
    """Runs `watch` again and again while `work` runs in a thread."""
    thread = threading.Thread(target=work)
    thread.start()
    while thread.is_alive():
        watch()
    thread.join()
    watch()


def test_heads_of_a_growing_rotating_and_shipped_chain_are_always_true(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, "w0", 64 * MIB, segment_bytes=5000)
    chain = {0: genesis(writer.chain)}
    for number in range(6000):
        chain[number + 1] = link(chain[number], b"%d" % number * 20)
    seen = [0]
    heads = Heads(tmp_path)

    def write() -> None:
        for number in range(0, 6000, 3):
            writer.append([b"%d" % at * 20 for at in range(number, number + 3)])
            for name in list_segments(tmp_path)[:-1]:
                if name.number % 2:
                    (tmp_path / str(name)).unlink(missing_ok=True)

    def watch() -> None:
        for found in heads.read():
            assert found.head == chain[found.records]
            assert found.records >= seen[-1]
            assert not found.ended
            seen.append(found.records)

    watched(write, watch)
    assert seen[-1] == 6000
    assert len(set(seen)) > 3
    writer.close()
