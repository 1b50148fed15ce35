"""A worker's journal, as its loops share it: what cannot be recorded now is owed, and made up for as soon as there is room."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Final

from sidecar.clock import Clock
from sidecar.front.decision_id import DecisionIds
from sidecar.journal.record import BatchRecord, UnrecordedRecord, encode_record
from sidecar.journal.segment import JournalError, SegmentWriter
from sidecar.page import WorkerSlot, WorkerWord

_log = logging.getLogger(__name__)

_LOG_EVERY_S: Final = 1.0


class Recorder:
    """Appends records and counts them on the page. Thread-safe.

    Two kinds of records are owed: of how many decisions were answered without a record, and of batches that ended when nothing
    could be recorded while earlier decisions of theirs are in the journal. The next append that succeeds begins with them. They
    die with the process; the page's count of unrecorded decisions does not.
    """

    def __init__(self, journal: SegmentWriter, slot: WorkerSlot, clock: Clock) -> None:
        self._journal = journal
        self._slot = slot
        self._clock = clock
        self._lock = threading.Lock()
        self._ids = DecisionIds()
        self._full = False
        slot.set(WorkerWord.JOURNAL_FULL, 0)  # what an earlier process left
        # Decisions answered without a record, and when the first and the last of them were.
        self._unrecorded = 0
        self._first_at = self._last_at = 0.0
        self._batches: list[BatchRecord] = []
        self._log_at = 0.0

    def has_room(self) -> bool:
        """Whether what is decided next can be recorded. To be asked before deciding."""
        with self._lock:
            return self._has_room()

    def record(self, records: Sequence[bytes], batches: Iterable[BatchRecord] = ()) -> int:
        """Appends in one write what is owed, encoded records, and those of batches that end with them.

        Returns how many of `records` are in the journal as safely as it promises. If that is all of them, those of the batches
        are in it too, or owed. Otherwise the write failed, which has been logged: only the first so many count.
        """
        with self._lock:
            return self._append(records, list(batches))

    def owe(self, batch: BatchRecord) -> None:
        """Records the batch when there is room again."""
        with self._lock:
            self._batches.append(batch)

    def unrecorded(self, count: int) -> None:
        """So many decisions are about to be answered without a record."""
        now = self._clock.wall()
        with self._lock:
            if not self._unrecorded:
                self._first_at = now
            self._last_at = now
            self._unrecorded += count
            self._slot.add(WorkerWord.UNRECORDED, count)

    def settle(self) -> None:
        """Records what is owed, if there is any and there is room, and sees to it that the file being written is still there."""
        with self._lock:
            try:
                self._journal.replace_removed()
            except OSError as error:
                self._complain(f"the file being written was removed, and there can be no other: {error.strerror}")
            if (self._unrecorded or self._batches) and self._has_room():
                self._append((), [])

    def _has_room(self) -> bool:
        try:
            room = self._journal.has_room()
        except OSError as error:
            self._complain(f"cannot read the journal's directory: {error.strerror}")
            room = False
        self._set_full(not room)
        return room

    def _append(self, records: Sequence[bytes], batches: list[BatchRecord]) -> int:
        owed = self._owed()
        parts = [*owed, *records, *map(encode_record, batches)]
        before = self._journal.records
        failed = False
        try:
            self._journal.append(parts)
        except JournalError as error:
            self._complain(str(error))
            self._set_full(True)
            failed = True
        # A write that was cut short by a full disk leaves whole records behind.
        appended = self._journal.records - before
        if appended:
            self._slot.add(WorkerWord.JOURNAL_RECORDS, appended)
            self._slot.add(WorkerWord.JOURNAL_BYTES, sum(map(len, parts[:appended])))
        self._settled(min(appended, len(owed)))
        kept = max(0, min(appended - len(owed), len(records)))
        if failed and self._journal.durable:
            kept = 0  # none of them is on the disk for sure
        if kept == len(records):
            self._batches += batches[max(0, appended - len(owed) - kept) :]
        return kept

    def _owed(self) -> list[bytes]:
        owed = []
        if self._unrecorded:
            tally = UnrecordedRecord(
                self._ids.next(), self._first_at, max(self._first_at, self._last_at), self._unrecorded
            )
            owed.append(encode_record(tally))
        owed += map(encode_record, self._batches)
        return owed

    def _settled(self, count: int) -> None:
        """The first so many records that were owed are in the journal."""
        if count and self._unrecorded:
            self._unrecorded = 0
            count -= 1
        del self._batches[:count]

    def _set_full(self, full: bool) -> None:
        if full != self._full:
            self._full = full
            self._slot.set(WorkerWord.JOURNAL_FULL, int(full))

    def _complain(self, text: str) -> None:
        """At most once a second."""
        now = time.monotonic()
        if now >= self._log_at:
            self._log_at = now + _LOG_EVERY_S
            _log.error("journal: %s", text)
