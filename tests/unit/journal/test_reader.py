"""Reading segments: from a position on, while they grow, and past damage."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from struct import pack

import pytest

from sidecar.journal.reader import Entry, Position, SegmentReader
from sidecar.journal.segment import FRAME, HEADER, JournalError, SegmentWriter, list_segments

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


def only_segment(directory: Path) -> Path:
    (name,) = list_segments(directory)
    return directory / str(name)


def test_reading_resumes_at_a_position(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, "w0", 64 * MIB)
    writer.append([b"a", b"b", b"c"])
    path = only_segment(tmp_path)
    position = read_all(path)[0][0].after
    assert [(e.sequence, e.payload) for e in read_all(path, position)[0]] == [(1, b"b"), (2, b"c")]
    writer.close()


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


@pytest.mark.parametrize("damaged", [1, 2, 5])
def test_records_behind_several_damaged_ones_are_read_with_their_own_numbers(tmp_path: Path, damaged: int) -> None:
    writer = SegmentWriter(tmp_path, "w0", 64 * MIB)
    writer.append([b"first", *[b"%d" % number * 9 for number in range(damaged)], b"behind", b"last"])
    writer.close()
    path = only_segment(tmp_path)
    data = bytearray(path.read_bytes())
    at = HEADER.size + FRAME.size + len(b"first")
    for _ in range(damaged):
        data[at + FRAME.size] ^= 1
        at += FRAME.size + 9
    path.write_bytes(data)
    entries, rest = read_all(path)
    assert [(e.sequence, e.payload, e.skipped) for e in entries] == [
        (0, b"first", 0),
        (damaged + 1, b"behind", damaged),
        (damaged + 2, b"last", 0),
    ]
    assert rest == 0


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


def test_a_file_of_the_first_format_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "w0-000000000001-00000001.seg"
    header = pack("<8sQQ", b"SSJRNL\x00\x01", 0, 1)
    path.write_bytes(header + pack("<I", zlib.crc32(header)))
    with pytest.raises(JournalError, match="format 1; this version reads 2"):
        SegmentReader(path)


def test_no_file_descriptor_stays_open_behind_a_bad_header(tmp_path: Path) -> None:
    path = tmp_path / "w0-000000000001-00000001.seg"
    path.write_bytes(b"x" * 100)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(JournalError):
            SegmentReader(path)
    assert len(os.listdir("/proc/self/fd")) == before
