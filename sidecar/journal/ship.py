"""Ships the journal: segments in order, as batches of spans, at least once.

A record leaves the journal only when the collector has acknowledged it, when the collector refuses it for good (then
it is set aside in a quarantine chain, which counts towards the journal's bound), or when it is damaged (then it is
counted as lost). Whole segments are removed; the place reached in the others is kept in the cursor file. No lock is
taken that a worker waits for.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from sidecar.journal.cursor import load_cursor
from sidecar.journal.export import ExportResult, Verdict
from sidecar.journal.reader import Entry, Position, SegmentReader
from sidecar.journal.segment import JournalError, SegmentName, SegmentWriter, list_segments
from sidecar.journal.span import UnreadableRecordError, encode_request, encode_span
from sidecar.page import AgentSlot, AgentWord

MAX_BATCH_RECORDS = 512
# Receivers refuse messages above 4 MiB by default.
_MAX_BATCH_BYTES = 1 << 20
_IDLE_S = 0.1
_CURSOR_EVERY_S = 1.0
_BACKOFF_FIRST_S = 0.1
_BACKOFF_LAST_S = 15.0
_BISECT_S = 0.02
# A record that is refused alone so often in a row is at fault itself; as "too much", only if it is large.
_ATTEMPTS_ALONE = 3
_LARGE_BYTES = 64 << 10
_SLICE_RECORDS = 64

_log = logging.getLogger(__name__)


class Exporter(Protocol):
    """Where spans go."""

    async def export(self, request: bytes, timeout_s: float | None = None) -> ExportResult:
        """Sends one encoded ExportTraceServiceRequest."""


class _Source(NamedTuple):
    """A segment that is being read."""

    name: SegmentName
    reader: SegmentReader


@dataclass
class _Batch:
    """Spans to send, and what is true once they are acknowledged."""

    spans: list[bytes] = field(default_factory=list)
    size: int = 0
    lost: int = 0
    # Places reached, and segments that are done with.
    reached: dict[SegmentName, Position] = field(default_factory=dict)
    done: list[SegmentName] = field(default_factory=list)
    torn: int = 0
    # A record no span can be made of; it is alone in its batch.
    unreadable: Entry | None = None
    # The batch's record, if it is a single one.
    alone: Entry | None = None


class Shipper:
    """Moves one journal directory to one exporter; without an exporter, records are discarded and counted as such.

    Runs in one task. Publishes its counters in the agent's slot.
    """

    def __init__(
        self, directory: Path, exporter: Exporter | None, slot: AgentSlot, *, resource: bytes, quarantine_bytes: int
    ) -> None:
        """Raises JournalError if the directory cannot be used. `resource`: from `encode_resource`."""
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._exporter = exporter
        self._slot = slot
        self._resource = resource
        self._cursor = load_cursor(directory)
        self._quarantine = SegmentWriter(directory, "q", quarantine_bytes)
        self._sources: dict[SegmentName, _Source] = {}
        self._limit = MAX_BATCH_RECORDS
        self._failures = 0
        self._alone = 0
        self._saved_at = time.monotonic()
        self._unsaved = False
        self._measure()

    async def run(self, stop: asyncio.Event) -> None:
        """Ships until `stop` is set; a batch in flight is finished first."""
        while not stop.is_set():
            pause_s = await self.step()
            if pause_s > 0:
                await _wait(stop, pause_s)

    async def drain(self, deadline: float) -> bool:
        """Ships what is left until `deadline` (time.monotonic()); for when the writers are gone. True: nothing is left."""
        self._rewind()  # a batch may have been in flight when run() was cancelled
        while (left_s := deadline - time.monotonic()) > 0:
            pause_s = await self.step(timeout_s=left_s)
            if not self._backlog():
                return True
            if pause_s:
                await asyncio.sleep(min(pause_s, left_s, 0.5))
        return not self._backlog()

    def close(self) -> None:
        """Saves the cursor and closes the files."""
        if self._unsaved:
            self._cursor.save(self._directory)
        for source in self._sources.values():
            source.reader.close()
        self._sources.clear()
        self._quarantine.close()

    async def step(self, timeout_s: float | None = None) -> float:
        """One batch. Returns how long to pause before the next, seconds."""
        try:
            batch = await self._collect()
            pause_s = await self._send(batch, timeout_s)
            await self._housekeep()
        except OSError as error:
            # The disk: nothing was acknowledged on our side that is not, so try again.
            _log.error("journal: %s: %s", self._directory, error.strerror)
            self._rewind()
            return self._backoff_s()
        return pause_s

    async def _send(self, batch: _Batch, timeout_s: float | None) -> float:
        if batch.unreadable is not None:
            return await self._set_aside(batch, batch.unreadable, "no span can be made of it")
        if not batch.spans:
            await self._commit(batch)
            return 0.0 if batch.done else _IDLE_S
        if self._exporter is None:
            self._slot.add(AgentWord.JOURNAL_DISCARDED, len(batch.spans))
            await self._commit(batch)
            return 0.0
        result = await self._exporter.export(encode_request(batch.spans, self._resource), timeout_s)
        if result.verdict is not Verdict.ACCEPTED:
            return await self._failed(batch, result)
        if self._failures:
            _log.info("journal: the collector accepts again after %d failures", self._failures)
        rejected = min(result.rejected, len(batch.spans))
        if rejected:
            self._slot.add(AgentWord.JOURNAL_REJECTED, rejected)
            _log.warning("journal: the collector dropped %d of %d spans", rejected, len(batch.spans))
        self._slot.add(AgentWord.JOURNAL_SHIPPED, len(batch.spans) - rejected)
        await self._commit(batch)
        self._failures = self._alone = 0
        self._limit = min(MAX_BATCH_RECORDS, self._limit * 2)
        return 0.0

    async def _failed(self, batch: _Batch, result: ExportResult) -> float:
        self._slot.add(AgentWord.EXPORT_FAILURES)
        if self._failures == 0:  # once per outage, not once per attempt
            _log.warning("journal: export failed, will retry: %s", result.detail)
        self._rewind()
        if result.verdict is Verdict.RETRY:
            return max(result.retry_after_s or 0.0, self._backoff_s())
        if batch.alone is None:  # look for the record that is at fault
            self._limit = max(1, len(batch.spans) // 2)
            return _BISECT_S if result.verdict is Verdict.REFUSED else self._backoff_s()
        if result.verdict is Verdict.REFUSED or batch.size > _LARGE_BYTES:
            self._alone += 1
        if self._alone >= _ATTEMPTS_ALONE:
            return await self._set_aside(batch, batch.alone, result.detail)
        return self._backoff_s()

    async def _set_aside(self, batch: _Batch, entry: Entry, why: str) -> float:
        """Quarantines one record. Without room for it the record stays where it is."""
        if not self._quarantine.has_room():
            _log.error("journal: the quarantine is full; shipping waits")
            self._rewind()
            return self._backoff_s()
        try:
            self._quarantine.append([entry.payload])
        except JournalError as error:
            _log.error("journal: %s", error)
            self._rewind()
            return self._backoff_s()
        _log.error("journal: record set aside: %s", why)
        self._slot.add(AgentWord.JOURNAL_QUARANTINED)
        await self._commit(batch)
        self._alone = 0
        return 0.0

    def _backoff_s(self) -> float:
        """Full jitter, doubling from 0.1 s to 15 s."""
        self._failures += 1
        ceiling = min(_BACKOFF_LAST_S, _BACKOFF_FIRST_S * 2 ** min(self._failures, 16))
        return random.uniform(_BACKOFF_FIRST_S / 2, ceiling)  # noqa: S311

    async def _collect(self) -> _Batch:
        batch = _Batch()
        for name in list_segments(self._directory):
            if name.kind != "w":
                continue
            source = self._open(name)
            if source is None:
                continue
            finished = source.reader.finished()
            if not await self._fill(batch, source):
                break
            if finished:
                batch.reached[name] = source.reader.position
                batch.done.append(name)
                batch.torn += source.reader.rest() > 0
        return batch

    async def _fill(self, batch: _Batch, source: _Source) -> bool:
        """Adds the segment's next records. True: it has no more; False: the batch is to be sent as it is."""
        while (room := self._limit - len(batch.spans)) > 0:
            entries = source.reader.read(room)
            if not entries:
                return True
            for count, entry in enumerate(entries):
                if batch.size >= _MAX_BATCH_BYTES or not self._add(batch, source, entry):
                    source.reader.position = batch.reached.get(source.name, self._acknowledged(source))
                    return False
                if count % _SLICE_RECORDS == _SLICE_RECORDS - 1:
                    await asyncio.sleep(0)  # other tasks share the loop
        return False

    def _add(self, batch: _Batch, source: _Source, entry: Entry) -> bool:
        try:
            span = encode_span(entry.payload, source.name.chain, entry.sequence)
        except UnreadableRecordError:
            if batch.spans:  # send those before it first
                return False
            batch.unreadable = entry
        else:
            batch.spans.append(span)
            batch.size += len(span)
            batch.alone = entry if len(batch.spans) == 1 else None
        batch.lost += entry.skipped
        batch.reached[source.name] = entry.after
        return batch.unreadable is None

    def _open(self, name: SegmentName) -> _Source | None:
        source = self._sources.get(name)
        if source is not None:
            return source
        path = self._directory / str(name)
        try:
            reader = SegmentReader(path, self._cursor.segments.get(str(name)))
        except FileNotFoundError:
            return None
        except JournalError as error:
            # Kept for people; its records show up as a gap in the numbers.
            _log.error("journal: %s", error)
            self._slot.add(AgentWord.JOURNAL_TORN)
            path.rename(path.with_suffix(".damaged"))
            return None
        source = self._sources[name] = _Source(name, reader)
        return source

    def _missing(self, name: SegmentName) -> int:
        """How many records are missing between the end of the writer's previous segment and this one."""
        chain, due = self._cursor.next.get(name.writer, ("", 0))
        if chain != name.chain or str(name) in self._cursor.segments:
            return 0
        return max(0, self._sources[name].reader.first.sequence - due)

    async def _commit(self, batch: _Batch) -> None:
        """The batch needs no more care: moves the cursor, removes finished segments."""
        for name, position in batch.reached.items():
            batch.lost += self._missing(name)
            self._sources[name].reader.position = position
            self._cursor.segments[str(name)] = position
            self._cursor.next[name.writer] = (name.chain, position.sequence)
            self._unsaved = True
        if batch.lost:
            self._slot.add(AgentWord.JOURNAL_LOST, batch.lost)
            _log.error("journal: %d records are damaged or missing", batch.lost)
        if batch.torn:
            self._slot.add(AgentWord.JOURNAL_TORN, batch.torn)
            _log.warning("journal: cut the torn tail of %d segments", batch.torn)
        if batch.done:
            # First: without it, a segment that is gone would look like one whose records are missing.
            await self._save()
        for name in batch.done:
            (self._directory / str(name)).unlink(missing_ok=True)
            self._sources.pop(name).reader.close()
            self._cursor.segments.pop(str(name), None)

    def _acknowledged(self, source: _Source) -> Position:
        return self._cursor.segments.get(str(source.name), source.reader.first)

    def _rewind(self) -> None:
        """Reads on from what is acknowledged."""
        for source in self._sources.values():
            source.reader.position = self._acknowledged(source)

    async def _housekeep(self) -> None:
        now = time.monotonic()
        if now - self._saved_at < _CURSOR_EVERY_S:
            return
        if self._unsaved:
            await self._save()
        self._measure()
        self._saved_at = now

    async def _save(self) -> None:
        await asyncio.to_thread(self._cursor.save, self._directory)  # waits for the disk
        self._unsaved = False

    def _backlog(self) -> int:
        """Bytes of records not yet acknowledged."""
        total = 0
        for name in list_segments(self._directory):
            source = self._sources.get(name)
            if name.kind == "w":
                total += _size(self._directory / str(name))
                position = self._cursor.segments.get(str(name))
                total -= position.offset if position else source.reader.first.offset if source else 0
        return total

    def _measure(self) -> None:
        segments = list_segments(self._directory)
        quarantined = sum(_size(self._directory / str(name)) for name in segments if name.kind != "w")
        self._slot.set(AgentWord.JOURNAL_SEGMENTS, len(segments))
        self._slot.set(AgentWord.JOURNAL_BACKLOG_BYTES, self._backlog() + quarantined)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


async def _wait(stop: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return
