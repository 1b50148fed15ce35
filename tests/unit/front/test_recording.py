"""What of a call gets into the journal, when there is room and when there is none: through the real loop."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import pytest
from sidestep.v1 import decision_pb2

from engine.decision import Basis
from sidecar.clock import Clock
from sidecar.front.decision_id import id_text
from sidecar.front.loop import SLICE
from sidecar.front.recorder import Recorder
from sidecar.front.transport import StatusCode
from sidecar.gather.gatherer import Gatherer
from sidecar.journal.record import BatchRecord, Record, UnrecordedRecord
from sidecar.journal.segment import JournalError, SegmentWriter, worker_name
from sidecar.page import Page, WorkerWord
from tests.fakes.desk import EVALUATE, EVALUATE_BATCH
from tests.fakes.journal import read_all
from tests.fakes.records import encoded_records
from tests.fakes.stock import exempted, request, satisfied
from tests.processes import until
from tests.unit.front.rig import TRACEPARENT, Rig


def batch_of(*questions: decision_pb2.EvaluateRequest) -> decision_pb2.EvaluateBatchRequest:
    return decision_pb2.EvaluateBatchRequest(requests=questions)


def batch_records(rig: Rig) -> list[BatchRecord]:
    return [record for record in rig.journalled() if isinstance(record, BatchRecord)]


# Batches


def test_batch_is_recorded_after_its_decisions(rig: Rig) -> None:
    begun = time.time()
    questions = [satisfied(), request(""), exempted(), request()]
    rig.desk.put(EVALUATE_BATCH, batch_of(*questions), "batch", traceparent=TRACEPARENT)
    rig.ask(request())
    rig.batch("batch")
    batch = batch_records(rig)[0]
    records = rig.journalled()
    children = [record for record in records if isinstance(record, Record) and record.batch == batch.batch]
    assert len(children) == 3
    assert records.index(batch) == records.index(children[-1]) + 1
    assert (batch.size, batch.errors, batch.traceparent) == (4, 1, TRACEPARENT)
    assert len(batch.batch) == 16
    assert batch.batch[6] >> 4 == 7
    assert begun <= batch.at <= min(child.at for child in children)
    ended_at = batch.at + batch.duration_us / 1e6
    assert max(child.at + child.duration_us / 1e6 for child in children) <= ended_at + 0.001
    assert ended_at <= time.time() + 0.001


def test_single_decision_belongs_to_no_batch_and_two_batches_differ(rig: Rig) -> None:
    rig.ask(request())
    for handle in ("one", "two"):
        rig.desk.put(EVALUATE_BATCH, batch_of(request()), handle)
        rig.batch(handle)
    ids = [record.batch for record in rig.records()]
    assert ids[0] == b""
    assert len(set(ids)) == 3
    assert [batch.batch for batch in batch_records(rig)] == ids[1:]


def test_batch_record_is_in_the_write_of_its_last_slice(rigged: Callable[..., Rig]) -> None:
    rig = rigged(start=False)
    sizes: list[int] = []
    append = rig.journal.append

    def counted(records: Any) -> int:
        sizes.append(len(records))
        return append(records)

    rig.journal.append = counted  # type: ignore[method-assign]
    rig.desk.put(EVALUATE_BATCH, batch_of(*[request()] * (2 * SLICE + 3)), "batch")
    rig.start()
    rig.batch("batch")
    assert sizes == [SLICE, SLICE, 4]
    assert isinstance(rig.journalled()[-1], BatchRecord)
    assert rig.slot.get(WorkerWord.JOURNAL_RECORDS) == 2 * SLICE + 4
    assert rig.slot.get(WorkerWord.JOURNAL_BYTES) > 0


def test_batch_without_a_decision_leaves_no_record(rig: Rig) -> None:
    rig.desk.put(EVALUATE_BATCH, batch_of(request(""), request(tenant="stranger")), "batch")
    assert [result.WhichOneof("result") for result in rig.batch("batch")] == ["error", "error"]
    assert rig.journalled() == []


def between_slices(rig: Rig, act: Callable[[Any], None]) -> Any:
    """A batch of four slices is under way; `act(call of the batch)` is done between its first slice and its second."""
    batch = rig.desk.put(EVALUATE_BATCH, batch_of(*[satisfied()] * (4 * SLICE)), "batch", traceparent=TRACEPARENT)
    rig.desk.put(EVALUATE, request(), "single")
    rig.desk.before_answer = lambda call: act(batch) if call.handle == "single" else None
    rig.start()
    rig.ended("single")
    return batch


def test_cancelled_batch_keeps_what_was_decided(rigged: Callable[..., Rig]) -> None:
    rig = rigged(start=False)

    def cancel(batch: Any) -> None:
        batch.cancelled = True

    between_slices(rig, cancel)
    until(lambda: bool(batch_records(rig)), "the record of the batch")
    (batch,) = batch_records(rig)
    children = [record for record in rig.records() if record.batch == batch.batch]
    assert 0 < len(children) < 4 * SLICE
    assert (batch.size, batch.errors) == (4 * SLICE, 4 * SLICE - len(children))
    assert "batch" not in rig.desk.order


def test_batch_that_fails_half_way_keeps_what_was_decided(
    rigged: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = rigged(start=False)

    def corrupt(*_: Any, **__: Any) -> Any:
        raise lmdb.CorruptedError("a page is damaged")

    between_slices(rig, lambda _: monkeypatch.setattr(Gatherer, "gather", corrupt))
    assert rig.failure("batch")[0] is StatusCode.UNAVAILABLE
    until(lambda: bool(batch_records(rig)), "the record of the batch")
    (batch,) = batch_records(rig)
    children = [record for record in rig.records() if record.batch == batch.batch]
    assert 0 < len(children) == batch.size - batch.errors < batch.size


def test_decision_of_a_failed_batch_is_not_counted_as_answered(
    rigged: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = rigged(start=False)
    rig.fill_journal()
    gather, gathered = Gatherer.gather, []

    def third_is_corrupt(*arguments: Any, **options: Any) -> Any:
        gathered.append(1)
        if len(gathered) == 3:
            raise lmdb.CorruptedError("a page is damaged")
        return gather(*arguments, **options)

    monkeypatch.setattr(Gatherer, "gather", third_is_corrupt)
    rig.desk.put(EVALUATE_BATCH, batch_of(*[satisfied()] * 4), "batch")
    rig.start()
    assert rig.failure("batch")[0] is StatusCode.UNAVAILABLE
    rig.empty_journal()
    until(lambda: rig.recorder.has_room(), "room")
    rig.ask(request())
    assert [type(record) for record in rig.journalled()] == [Record]
    assert rig.slot.get(WorkerWord.UNRECORDED) == 0


@pytest.mark.parametrize("strict", [False, True])
def test_batch_that_ends_without_room_is_recorded_when_there_is_some(rigged: Callable[..., Rig], strict: bool) -> None:
    rig = rigged(start=False, strict=strict)
    between_slices(rig, lambda _: rig.fill_journal())
    rig.ended("batch")
    assert ("batch" in rig.desk.failures) == strict
    rig.empty_journal()
    until(lambda: rig.recorder.has_room(), "room")
    rig.recorder.settle()
    *_, last = rig.journalled()
    (batch,) = batch_records(rig)
    assert last == batch
    children = [record for record in rig.records() if record.batch == batch.batch]
    assert 0 < len(children) < batch.size == 4 * SLICE
    answered = 0 if strict else batch.size - len(children)
    assert batch.errors == batch.size - len(children) - answered
    assert sum(record.count for record in rig.journalled() if isinstance(record, UnrecordedRecord)) == answered
    assert rig.slot.get(WorkerWord.UNRECORDED) == answered


# Decisions without a record


def test_unrecorded_decisions_are_accounted_for_by_the_next_record(full: Callable[..., Rig]) -> None:
    rig = full()
    begun = time.time()
    for _ in range(3):
        assert rig.ask(exempted()).outcome == decision_pb2.OUTCOME_STEP_UP
    rig.desk.put(EVALUATE_BATCH, batch_of(satisfied(), satisfied(), request("")), "batch")
    rig.batch("batch")
    ended = time.time()
    assert rig.slot.get(WorkerWord.UNRECORDED) == rig.decisions() == 5
    assert rig.slot.get(WorkerWord.JOURNAL_FULL) == 1
    rig.empty_journal()
    until(lambda: rig.recorder.has_room(), "room")
    assert rig.slot.get(WorkerWord.JOURNAL_FULL) == 0
    assert rig.ask(exempted()).basis == decision_pb2.BASIS_EXEMPTION_GRANT
    tally, exemption = rig.journalled()
    assert isinstance(tally, UnrecordedRecord)
    assert tally.count == 5
    assert tally.id[6] >> 4 == 7
    assert begun <= tally.at < tally.until <= ended
    assert isinstance(exemption, Record)
    assert exemption.decision.basis is Basis.EXEMPTION_GRANT
    assert rig.slot.get(WorkerWord.JOURNAL_RECORDS) == 2
    # Told once.
    rig.ask(request())
    assert len(rig.journalled()) == 3
    assert rig.slot.get(WorkerWord.UNRECORDED) == 5


def test_strict_mode_leaves_nothing_unrecorded(full: Callable[..., Rig]) -> None:
    rig = full(strict=True)
    rig.desk.put(EVALUATE, satisfied(), "one")
    rig.desk.put(EVALUATE_BATCH, batch_of(satisfied()), "batch")
    rig.ended("one", "batch")
    rig.empty_journal()
    until(lambda: rig.recorder.has_room(), "room")
    rig.ask(satisfied())
    (record,) = rig.journalled()
    assert isinstance(record, Record)
    assert rig.slot.get(WorkerWord.UNRECORDED) == 0


def test_failed_write_is_accounted_for_once_it_works_again(rigged: Callable[..., Rig]) -> None:
    rig = rigged(start=False)
    shutil.rmtree(rig.journal_dir)
    rig.start()
    answers = [rig.ask(question()) for question in (satisfied, exempted, request)]
    assert [answer.outcome for answer in answers] == [
        decision_pb2.OUTCOME_ALLOW,
        decision_pb2.OUTCOME_STEP_UP,
        decision_pb2.OUTCOME_STEP_UP,
    ]
    rig.journal_dir.mkdir()
    until(lambda: rig.recorder.has_room(), "room")
    rig.ask(request())
    tally, _ = rig.journalled()
    assert isinstance(tally, UnrecordedRecord)
    assert tally.count == rig.slot.get(WorkerWord.UNRECORDED) == 3


class ShortWrites:
    """Makes the disk full after so many bytes of the journal's next write."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rig: Rig) -> None:
        self._write = os.write
        self._rig = rig
        self.left: int | None = None
        monkeypatch.setattr(os, "write", self._short)

    def _short(self, fd: int, data: bytes) -> int:
        if self.left is None or fd != self._rig.journal._fd:
            return self._write(fd, data)
        if not self.left:
            self.left = None
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = self._write(fd, data[: self.left])
        self.left -= written
        return written


def test_write_cut_short_leaves_the_answers_that_made_it_as_they_are(
    rigged: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = rigged(start=False)
    monkeypatch.setattr("sidecar.front.loop.BATCH_WORK_S", 10.0)  # all in one pass
    for number in range(6):
        rig.desk.put(EVALUATE, exempted(), number)
    with rig.reader.view() as view:
        record = rig.loop._servicer.evaluate(exempted(), "", view, time.time()).record
    rig.journal.append(encoded_records(1))  # opens the file
    disk = ShortWrites(monkeypatch, rig)
    disk.left = 4 * len(record)  # less than four with their frames, more than two
    rig.start()
    outcomes = {number: rig.response(number).outcome for number in range(6)}
    kept = [number for number, outcome in outcomes.items() if outcome == decision_pb2.OUTCOME_ALLOW]
    assert kept == list(range(len(kept)))
    assert 2 <= len(kept) < 6
    recorded = rig.records()[1:]
    assert [id_text(item.decision_id) for item in recorded] == [rig.response(n).decision_id for n in kept]
    assert rig.slot.get(WorkerWord.UNRECORDED) == 6 - len(kept)
    assert rig.decisions() == 6
    until(lambda: rig.recorder.has_room(), "room")
    rig.recorder.settle()
    tally = rig.journalled()[-1]
    assert isinstance(tally, UnrecordedRecord)
    assert tally.count == 6 - len(kept)


@pytest.fixture
def page(tmp_path: Path) -> Any:
    page = Page.create(tmp_path / "page", 1)
    yield page
    page.close()


def test_what_is_owed_survives_a_failed_write_in_part(
    tmp_path: Path, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = SegmentWriter(tmp_path / "journal", worker_name(0), 8 << 20)
    recorder = Recorder(journal, page.worker(0), Clock())
    recorder.unrecorded(7)
    owed = BatchRecord(bytes(16), 1.0, 1, 9)
    recorder.owe(owed)
    append = journal.append

    def first_only(records: Any) -> int:
        monkeypatch.setattr(journal, "append", append)
        append(records[:1])
        raise JournalError("full")

    monkeypatch.setattr(journal, "append", first_only)
    one, two = encoded_records(2)
    ending = BatchRecord(bytes(16), 2.0, 1, 3)
    assert recorder.record([one], [ending]) == 0
    assert recorder.record([two]) == 1
    recorder.settle()
    tally, *rest = read_all(tmp_path / "journal")
    assert isinstance(tally, UnrecordedRecord)
    assert tally.count == 7
    assert rest[0] == owed
    assert len(rest) == 2
    journal.close()


def test_batch_whose_record_alone_was_cut_off_is_owed(
    tmp_path: Path, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = SegmentWriter(tmp_path / "journal", worker_name(0), 8 << 20)
    recorder = Recorder(journal, page.worker(0), Clock())
    append = journal.append

    def all_but_last(records: Any) -> int:
        monkeypatch.setattr(journal, "append", append)
        append(records[:-1])
        raise JournalError("full")

    monkeypatch.setattr(journal, "append", all_but_last)
    ending = BatchRecord(bytes(16), 2.0, 1, 3)
    assert recorder.record(encoded_records(2), [ending]) == 2
    assert ending not in read_all(tmp_path / "journal")
    recorder.settle()
    assert read_all(tmp_path / "journal")[-1] == ending
    recorder.settle()
    assert len(read_all(tmp_path / "journal")) == 3
    journal.close()


def test_on_a_durable_journal_nothing_of_a_failed_write_counts(
    tmp_path: Path, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = SegmentWriter(tmp_path / "journal", worker_name(0), 8 << 20, durable=True)
    recorder = Recorder(journal, page.worker(0), Clock())

    def broken(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", broken)
    assert recorder.record(encoded_records(2)) == 0
    assert not recorder.has_room()
    journal.close()


def test_loops_of_a_worker_owe_together(tmp_path: Path, page: Page) -> None:
    journal = SegmentWriter(tmp_path / "journal", worker_name(0), 8 << 20)
    recorder = Recorder(journal, page.worker(0), Clock())

    def loop() -> None:
        for number in range(200):
            if number % 3:
                recorder.unrecorded(2)
            else:
                assert recorder.record(encoded_records(1)) == 1

    threads = [threading.Thread(target=loop) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    recorder.settle()
    records = read_all(tmp_path / "journal")
    tallies = [record for record in records if isinstance(record, UnrecordedRecord)]
    assert sum(tally.count for tally in tallies) == page.worker(0).get(WorkerWord.UNRECORDED) == 4 * 133 * 2
    assert sum(isinstance(record, Record) for record in records) == 4 * 67
    assert page.worker(0).get(WorkerWord.JOURNAL_RECORDS) == len(records)
    assert len({tally.id for tally in tallies}) == len(tallies)
    journal.close()
