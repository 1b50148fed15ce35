"""Verification: whatever is done to records or to the files they are in is found, and nothing else is."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.journal import verify as verification
from sidecar.journal.chain import genesis, link
from sidecar.journal.findings import Finding, Kind
from sidecar.journal.hashes import Hashes
from sidecar.journal.origin import Coverage, SourceRecord
from sidecar.journal.record import encode_record
from sidecar.journal.segment import FRAME, SegmentWriter, checksum, list_segments
from sidecar.journal.source import read_sources
from sidecar.journal.verify import Anchor, ChainResult, ChainState, Verification, verify
from tests.fakes.journal import read_entries
from tests.fakes.otlp_json import export_request, write_lines
from tests.fakes.records import make_record, make_unrecorded

MIB = 1 << 20
CHAIN = "w0-000000000001"
KEY = ("pod-1", CHAIN)


def make_records(payloads: Iterable[bytes], sidecar: str = "pod-1", chain: str = CHAIN) -> list[SourceRecord]:
    """A whole chain, as an export has it."""
    records, head = [], genesis(chain)
    for number, payload in enumerate(payloads):
        head = link(head, payload)
        records.append(SourceRecord(sidecar, chain, number, head, payload, "x"))
    return records


def payloads(count: int) -> list[bytes]:
    return [b"record %d" % number for number in range(count)]


def anchored(records: Sequence[SourceRecord], *at: int, settled: int | None = None) -> ChainState:
    """Anchors after so many records; without, after all. Everything is settled unless told otherwise."""
    counts = at or (len(records),)
    anchors = tuple(Anchor(count, records[count - 1].hash) for count in counts)
    return ChainState(anchors, settled=max(counts) if settled is None else settled)


def check(
    records: Iterable[SourceRecord], state: ChainState | None, coverage: Coverage = Coverage.EVERYTHING
) -> ChainResult:
    (result,) = verify(records, {KEY: state} if state else {}, coverage).chains
    return result


def found(result: ChainResult) -> list[tuple[Kind, int, int]]:
    return [(finding.kind, finding.first, finding.last) for finding in result.findings]


WHOLE = make_records(payloads(200))


def test_a_whole_chain_is_whole() -> None:
    result = check(WHOLE, anchored(WHOLE, 50, 200))
    assert result == ChainResult("pod-1", CHAIN, 200, 200, 0, ())
    assert result.is_whole


@given(st.data())
@settings(deadline=None, max_examples=30)
def test_order_and_repetition_mean_nothing(data: st.DataObject) -> None:
    records = WHOLE[:40]
    shuffled = data.draw(st.permutations(records + data.draw(st.lists(st.sampled_from(records), max_size=10))))
    assert check(shuffled, anchored(records)) == ChainResult("pod-1", CHAIN, 40, 40, 0, ())


def test_records_that_wait_may_be_more_than_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "_IN_MEMORY_BYTES", 100)
    assert check(reversed(WHOLE), anchored(WHOLE)).findings == ()
    edited = WHOLE[77]._replace(payload=b"x")
    result = check(reversed([*WHOLE[:77], edited, *WHOLE[78:]]), anchored(WHOLE))
    assert found(result) == [(Kind.EDIT, 77, 77)]


def test_gaps_are_ranges_and_what_is_behind_them_is_checked_from_the_next_record_on() -> None:
    records = [record for record in WHOLE if record.sequence not in (5, 6, 7, 100)]
    records[20] = records[20]._replace(payload=b"x")
    result = check(records, anchored(WHOLE))
    assert found(result) == [
        (Kind.GAP, 5, 7),
        (Kind.EDIT, records[20].sequence, records[20].sequence),
        (Kind.GAP, 100, 100),
        (Kind.UNCHECKED, 8, 8),
        (Kind.UNCHECKED, 101, 101),
    ]
    assert not result.is_whole
    assert str(result.findings[0]) == "records 5 to 7: missing"


def test_an_anchor_in_front_of_a_record_stands_in_for_the_one_before() -> None:
    records = WHOLE[:30] + WHOLE[40:]
    assert found(check(records, anchored(WHOLE, 40, 200))) == [(Kind.GAP, 30, 39)]
    records[30] = records[30]._replace(payload=b"x")
    assert found(check(records, anchored(WHOLE, 40, 200))) == [(Kind.GAP, 30, 39), (Kind.EDIT, 40, 40)]


def test_a_cut_tail_is_what_the_anchors_know_more() -> None:
    result = check(WHOLE[:150], anchored(WHOLE))
    assert found(result) == [(Kind.CUT, 150, 199)]
    assert result.anchored == 0
    assert check(WHOLE[:150], anchored(WHOLE, 100, 200)).anchored == 100


def test_a_chain_without_any_record_is_cut_from_the_beginning() -> None:
    assert found(check([], anchored(WHOLE))) == [(Kind.CUT, 0, 199)]


def test_records_behind_the_last_anchor_are_no_fault() -> None:
    result = check(WHOLE, anchored(WHOLE, 150))
    assert found(result) == [(Kind.UNANCHORED, 150, 199)]
    assert result.is_whole
    assert found(check(WHOLE, None)) == [(Kind.UNANCHORED, 0, 199)]


def rehash(records: Sequence[SourceRecord], at: int, payload: bytes) -> list[SourceRecord]:
    """What an attacker makes of it who changes one record and all hashes behind it."""
    changed = [record.payload for record in records]
    changed[at] = payload
    return make_records(changed)


@given(st.integers(0, 39), st.integers(1, 40))
def test_who_changes_a_record_and_all_hashes_behind_it_is_found_by_any_anchor_behind_it(at: int, anchor: int) -> None:
    records = WHOLE[:40]
    result = check(rehash(records, at, b"x"), anchored(records, anchor))
    if anchor > at:
        assert (Kind.ANCHOR, anchor - 1, anchor - 1) in found(result)
        assert result.anchored == 0
    else:
        assert result.is_whole


def test_copies_with_different_content_are_a_fault_whichever_comes_first() -> None:
    forged = rehash(WHOLE, 60, b"x")[60]
    for records in ([*WHOLE, forged], [forged, *WHOLE], [*WHOLE[:60], forged, *WHOLE[60:]]):
        result = check(records, anchored(WHOLE))
        assert (Kind.DUPLICATE, 60, 60) in found(result)
    # With the same hash, the content does not fit it.
    forged = WHOLE[60]._replace(payload=b"x")
    for records in ([*WHOLE, forged], [forged, *WHOLE]):
        assert found(check(records, anchored(WHOLE))) == [(Kind.EDIT, 60, 60)]
    # Where nothing tells which of them is right, they still differ.
    result = check([WHOLE[60], forged], anchored(WHOLE))
    assert (Kind.DUPLICATE, 60, 60) in found(result)


def test_altered_attributes_are_named() -> None:
    records = list(WHOLE)
    for at in (7, 8, 9, 20):
        records[at] = records[at]._replace(altered=("sidestep.outcome", "user.hash"))
    result = check(records, anchored(WHOLE))
    assert result.findings == (
        Finding(Kind.ALTERED, 7, 9, "sidestep.outcome, user.hash"),
        Finding(Kind.ALTERED, 20, 20, "sidestep.outcome, user.hash"),
    )
    assert not result.is_whole


def test_unrecorded_decisions_are_counted() -> None:
    extra = [encode_record(make_unrecorded(7)), b"no record at all", encode_record(make_unrecorded(5))]
    records = make_records([*payloads(3), *extra])
    assert check([*records, *records], anchored(records)).unrecorded == 12
    assert check(records, ChainState(unrecorded=20)).unrecorded == 20


def test_chains_are_told_apart_by_sidecar_and_name() -> None:
    other = make_records(payloads(10), chain="w1-000000000001")
    third = make_records(payloads(10), sidecar="pod-2")
    result = verify([*WHOLE, *third[:5], *other], {KEY: anchored(WHOLE), ("pod-2", CHAIN): anchored(third)})
    assert [(chain.sidecar, chain.chain, chain.is_whole) for chain in result.chains] == [
        ("pod-1", CHAIN, True),
        ("pod-1", "w1-000000000001", True),
        ("pod-2", CHAIN, False),
    ]
    assert not result.is_whole
    assert Verification(result.chains[:2]).is_whole


def test_records_of_another_chain_do_not_fit() -> None:
    moved = [record._replace(chain=CHAIN) for record in make_records(payloads(10), chain="w1-000000000001")]
    assert found(check(moved, None))[0] == (Kind.EDIT, 0, 0)


# What the sources ought to hold


def test_a_folder_need_not_hold_what_was_dealt_with() -> None:
    state = anchored(WHOLE, settled=120)
    folder = Coverage.UNDELIVERED
    assert found(check(WHOLE[120:], state, folder)) == [(Kind.ELSEWHERE, 0, 119), (Kind.UNCHECKED, 120, 120)]
    assert found(check(WHOLE[100:], state, folder)) == [(Kind.ELSEWHERE, 0, 99), (Kind.UNCHECKED, 100, 100)]
    assert check(WHOLE[120:], state, folder).is_whole
    assert found(check(WHOLE[130:], state, folder))[0] == (Kind.GAP, 120, 129)
    assert found(check(WHOLE[100:190], state, folder))[0] == (Kind.CUT, 190, 199)
    assert found(check([], state, folder)) == [(Kind.CUT, 120, 199), (Kind.ELSEWHERE, 0, 119)]
    aside = WHOLE[3]._replace(quarantined=True)
    assert check([aside, *WHOLE[120:]], state, folder).is_whole
    # Without a word from the control plane, a folder begins where it begins.
    assert check([aside, *WHOLE[120:]], None, folder).is_whole
    assert not check([*WHOLE[120:150], *WHOLE[151:]], None, folder).is_whole


def test_an_export_need_not_hold_what_was_not_delivered_yet() -> None:
    state = anchored(WHOLE, settled=120)
    export = Coverage.DELIVERED
    assert found(check(WHOLE[:120], state, export)) == [(Kind.WAITING, 120, 199)]
    assert found(check(WHOLE[:140], state, export)) == [(Kind.WAITING, 140, 199)]
    assert check(WHOLE[:140], state, export).is_whole
    assert found(check(WHOLE[:110], state, export)) == [(Kind.CUT, 110, 119), (Kind.WAITING, 120, 199)]
    assert found(check(WHOLE[1:], state, export)) == [(Kind.GAP, 0, 0), (Kind.UNCHECKED, 1, 1)]
    assert found(check([*WHOLE[:130], *WHOLE[131:]], state, export))[0] == (Kind.GAP, 130, 130)
    assert found(check([], state, export)) == [(Kind.CUT, 0, 119), (Kind.WAITING, 120, 199)]


def test_both_together_hold_everything() -> None:
    state = anchored(WHOLE, settled=120)
    assert check([*WHOLE[120:], *WHOLE[:120]], state).findings == ()
    assert found(check([*WHOLE[120:], *WHOLE[:119]], state))[0] == (Kind.GAP, 119, 119)


def test_known_losses_are_said_beside_the_gap() -> None:
    state = ChainState(anchored(WHOLE).anchors, settled=200, lost=2, quarantined=1)
    result = check([*WHOLE[:50], *WHOLE[53:]], state, Coverage.DELIVERED)
    assert str(result.findings[0]) == "records 50 to 52: missing (the sidecar told of 2 lost, 1 quarantined)"
    assert not result.is_whole


# Folders and exports


class Journal:
    """A sound journal folder of several files, kept as bytes, with what the control plane knows of it."""

    def __init__(self) -> None:
        with TemporaryDirectory() as name:
            folder = Path(name)
            writer = SegmentWriter(folder, "w0", 64 * MIB, segment_bytes=700)
            for number in range(12):
                writer.append([b"record %d " % number * 8])
            writer.close()
            self.key = ("", writer.chain)
            self.state = ChainState((Anchor(writer.records, writer.head),))
            self.files = {str(each): (folder / str(each)).read_bytes() for each in list_segments(folder)}
            self.records = self.read(folder)
        assert len(self.files) > 2
        assert len(self.records) == 12

    def restore(self, folder: Path, **changed: bytes | None) -> None:
        """Writes the files, except for some with other content, or without them."""
        for name, content in (self.files | changed).items():
            if content is not None:
                (folder / name).write_bytes(content)

    @staticmethod
    def read(folder: Path) -> set[tuple[int, bytes, bytes]]:
        return {(record.sequence, record.hash, record.payload) for record in read_sources([folder], lambda _: None)}

    def is_found(self, folder: Path) -> bool:
        """Whether verification finds a fault in it."""
        records = read_sources([folder], lambda _: None) if any(folder.iterdir()) else iter(())
        return not verify(records, {self.key: self.state}, Coverage.UNDELIVERED).is_whole

    def assert_found_or_unchanged(self, **changed: bytes | None) -> None:
        with TemporaryDirectory() as name:
            folder = Path(name)
            self.restore(folder, **changed)
            if any(folder.iterdir()) and self.read(folder) == self.records:
                return
            assert self.is_found(folder)


JOURNAL = Journal()
NAMES = sorted(JOURNAL.files)


def frames_of(content: bytes) -> tuple[bytes, list[bytes]]:
    """A segment's header and its frames."""
    at = 60
    frames = []
    while at < len(content):
        end = at + FRAME.size + int.from_bytes(content[at : at + 4], "little")
        frames.append(content[at:end])
        at = end
    return content[:60], frames


def test_a_sound_folder_is_whole(tmp_path: Path) -> None:
    JOURNAL.restore(tmp_path)
    assert not JOURNAL.is_found(tmp_path)


@given(st.sampled_from(NAMES), st.integers(0, 10_000), st.integers(1, 255))
@settings(deadline=None, max_examples=300)
def test_any_byte_flipped_in_a_folder_is_found(name: str, at: int, flip: int) -> None:
    content = bytearray(JOURNAL.files[name])
    content[at % len(content)] ^= flip
    JOURNAL.assert_found_or_unchanged(**{name: bytes(content)})


@given(st.sampled_from(NAMES), st.integers(0, 10_000))
@settings(deadline=None, max_examples=100)
def test_any_file_cut_or_removed_is_found(name: str, length: int) -> None:
    content = JOURNAL.files[name]
    JOURNAL.assert_found_or_unchanged(**{name: content[: length % len(content)]})
    JOURNAL.assert_found_or_unchanged(**{name: None})


@given(st.data())
@settings(deadline=None, max_examples=150)
def test_any_record_removed_repeated_or_moved_in_a_file_is_found(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(NAMES))
    header, frames = frames_of(JOURNAL.files[name])
    kept = data.draw(st.lists(st.sampled_from(frames), max_size=len(frames) + 2))
    JOURNAL.assert_found_or_unchanged(**{name: header + b"".join(kept)})


@given(st.data())
@settings(deadline=None, max_examples=100)
def test_any_record_rewritten_with_its_checksum_is_found(data: st.DataObject) -> None:
    """By someone who knows the format, and may even set the hash right."""
    name = data.draw(st.sampled_from(NAMES))
    header, frames = frames_of(JOURNAL.files[name])
    at = data.draw(st.integers(0, len(frames) - 1))
    payload = data.draw(st.binary(min_size=1, max_size=20))
    chain_hash = frames[at][8:40]
    if data.draw(st.booleans()):
        before = frames[at - 1][8:40] if at else header[24:56]
        chain_hash = link(before, payload)
    frames[at] = FRAME.pack(len(payload), checksum(len(payload), chain_hash, payload), chain_hash) + payload
    JOURNAL.assert_found_or_unchanged(**{name: header + b"".join(frames)})


def test_a_record_behind_what_was_shipped_is_checked_by_the_header_of_its_file(tmp_path: Path) -> None:
    first, second, *_ = NAMES
    header, frames = frames_of(JOURNAL.files[second])
    chain_hash = frames[0][8:40]
    frames[0] = FRAME.pack(1, checksum(1, chain_hash, b"x"), chain_hash) + b"x"
    JOURNAL.restore(tmp_path, **{first: None, second: header + b"".join(frames)})
    number = int.from_bytes(header[8:16], "little")
    state = ChainState(JOURNAL.state.anchors, settled=number)
    (result,) = verify(read_sources([tmp_path]), {JOURNAL.key: state}, Coverage.UNDELIVERED).chains
    assert found(result) == [(Kind.EDIT, number, number), (Kind.ELSEWHERE, 0, number - 1)]


def test_a_record_that_does_not_lead_to_the_next_file_is_found_in_any_order(tmp_path: Path) -> None:
    """The last record of one file changed together with its hash; the files come in reverse order."""
    first, second, *_ = NAMES
    header, frames = frames_of(JOURNAL.files[first])
    chain_hash = link(frames[-2][8:40], b"x")
    frames[-1] = FRAME.pack(1, checksum(1, chain_hash, b"x"), chain_hash) + b"x"
    for folder, name, content in (("a", second, JOURNAL.files[second]), ("b", first, header + b"".join(frames))):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_bytes(content)
    (result,) = verify(read_sources([tmp_path / "a", tmp_path / "b"]), {}, Coverage.UNDELIVERED).chains
    number = int.from_bytes(JOURNAL.files[second][8:16], "little")
    assert found(result)[0] == (Kind.EDIT, number, number)


def test_an_export_and_the_rest_in_the_folder_are_whole_together(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    writer = SegmentWriter(folder, "w0", 64 * MIB, segment_bytes=3000)
    for _ in range(10):
        writer.append([encode_record(make_record())])
    writer.close()
    (folder / "resource.json").write_text('{"service.instance.id": "pod-1"}')
    state = {("pod-1", writer.chain): ChainState((Anchor(10, writer.head),), settled=6)}
    entries = [(name.chain, entry) for name, entry in read_entries(folder)]
    export = tmp_path / "spans.json"
    write_lines(export, [export_request(entries[3:6]), export_request(entries[:4])])
    assert verify(read_sources([export]), state, Coverage.DELIVERED).is_whole
    assert verify(read_sources([folder]), state, Coverage.UNDELIVERED).is_whole
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "resource.json").write_text('{"service.instance.id": "pod-1"}')
    assert verify(read_sources([export]), state, Coverage.DELIVERED).is_whole
    assert not verify(read_sources([export, folder]), state).is_whole


# Memory


@given(st.sets(st.integers(0, 500), max_size=300))
def test_runs_of_hashes_are_what_was_put(numbers: set[int]) -> None:
    hashes = Hashes()
    for number in sorted(numbers, key=lambda each: each * 7919 % 501):
        hashes.put(number, number.to_bytes(32, "big"))
    assert len(hashes) == len(numbers)
    covered = [number for first, last in hashes.runs() for number in range(first, last + 1)]
    assert covered == sorted(numbers)
    assert all(first > last + 1 for (_, last), (first, _) in zip(hashes.runs(), list(hashes.runs())[1:], strict=False))
    for number in range(502):
        assert hashes.get(number) == (number.to_bytes(32, "big") if number in numbers else None)


def test_numbers_far_apart_take_no_room_between_them() -> None:
    hashes = Hashes()
    hashes.put(2**63 - 1, bytes(32))
    hashes.put(0, bytes(32))
    assert list(hashes.runs()) == [(0, 0), (2**63 - 1, 2**63 - 1)]
    records = [*WHOLE[:3], WHOLE[3]._replace(sequence=2**63 - 1)]
    assert found(check(records, None))[0] == (Kind.GAP, 3, 2**63 - 2)


def test_a_record_takes_less_than_150_bytes_of_memory() -> None:
    count = 20_000

    def records() -> Iterable[SourceRecord]:
        head = genesis(CHAIN)
        for number in range(count):
            payload = b"record %d" % number
            head = link(head, payload)
            yield SourceRecord("pod-1", CHAIN, number, head, payload, "x")

    tracemalloc.start()
    try:
        assert check(records(), None).records == count
        assert tracemalloc.get_traced_memory()[1] < 60 * count
    finally:
        tracemalloc.stop()


def test_many_records_in_any_order_are_checked_quickly_enough() -> None:
    records = make_records(payloads(5000))
    random.Random(1).shuffle(records)
    assert check(records, None).records == 5000


def test_verification_needs_nothing_of_a_running_sidecar() -> None:
    """The command line verifies where there is no sidecar, and no LMDB either."""
    script = """
import sys
import sidecar.journal.source, sidecar.journal.verify
assert not {"lmdb", "grpc", "sidecar.config", "sidecar.front", "sidecar.store", "sidecar.sync"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
