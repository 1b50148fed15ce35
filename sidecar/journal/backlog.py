"""The backlog: the records of one journal directory that have not been dealt with, as batches of spans, in order.

A record leaves the backlog when its batch is settled: delivered, quarantined or discarded. What is missing between the
numbers of the records found is lost, and counted as such, chain by chain. Whole segments are removed; the place reached in
the others is kept in the cursor file. No lock is taken that a worker waits for.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import NamedTuple

import msgspec

from engine.decision import Spend
from sidecar.journal.cursor import CursorFile, Spent, Tally, load_cursor, save_cursor
from sidecar.journal.heads import Head
from sidecar.journal.reader import Entry, Position, SegmentReader
from sidecar.journal.recent import RecentSpends
from sidecar.journal.record import spend_of
from sidecar.journal.segment import JournalError, SegmentName, list_segments
from sidecar.journal.span import UnreadableRecordError, encode_span
from sidecar.lease.holders import HolderFiles
from sidecar.lease.replay import begins_at
from sidecar.page import AgentSlot, AgentWord

DAMAGED = ".damaged"
"""What a segment whose header cannot be read is called instead of `.seg`."""

# Receivers refuse messages above 4 MiB by default.
_MAX_BATCH_BYTES = 1 << 20
_SLICE_RECORDS = 64
_FULL = (errno.ENOSPC, errno.EDQUOT)

_log = logging.getLogger(__name__)


class Fate(Enum):
    """What became of a batch."""

    DELIVERED = "delivered"
    QUARANTINED = "quarantined"
    DISCARDED = "discarded"


class _Source(NamedTuple):
    """A segment that is being read."""

    name: SegmentName
    reader: SegmentReader


@dataclass(slots=True)
class _Reach:
    """How far a batch gets in one segment: the place, how many of its records are in the batch, the last one's hash, and what
    they spent, each with the number of its record, and the record."""

    position: Position
    count: int = 0
    head: bytes = b""
    spends: list[tuple[int, Spend, bytes]] = field(default_factory=list)


class Unsettled(NamedTuple):
    """Finished segments with records that are not settled, the content of a cursor file for them; and those without."""

    segments: list[SegmentName]
    cursor: bytes
    done: list[SegmentName]


@dataclass(slots=True)
class Batch:
    """Spans to send, and what is true once they are settled."""

    spans: list[bytes] = field(default_factory=list)
    # The records, with their chains.
    entries: list[tuple[str, Entry]] = field(default_factory=list)
    # Of the spans, bytes.
    size: int = 0
    # No span can be made of its only record.
    unreadable: bool = False
    # It took what it could hold: there are records behind it, as far as is known.
    full: bool = False
    reached: dict[SegmentName, _Reach] = field(default_factory=dict)
    # Segments that are done with, and how many of them end in a torn record.
    done: list[SegmentName] = field(default_factory=list)
    torn: int = 0


class Backlog:
    """The workers' chains in one directory. Used by one task; counts in `slot` what is lost or torn.

    One of them at a time may be open on a directory.
    """

    kind = "w"

    def __init__(self, directory: Path, slot: AgentSlot) -> None:
        """Raises OSError if the directory cannot be used."""
        self._directory = directory
        self._slot = slot
        self._sources: dict[SegmentName, _Source] = {}
        # A save that nobody waits for any more may still be under way in its thread.
        self._saving = threading.Lock()
        cursor = load_cursor(directory)
        self._cursor = cursor or CursorFile()
        # Without a cursor nobody knows whether the records before a chain's first segment were delivered or lost. They are
        # taken for delivered: their segments are removed only then.
        self._presumed = {name.chain for name in self._segments()} if cursor is None else set()
        self._unsaved = cursor is None
        self._holders = HolderFiles(directory.parent / "leases")
        self.recent = RecentSpends()
        for chain, tally in self._cursor.chains.items():
            self.recent.begin(chain, tally.settled)
        if cursor is None and self.kind == Backlog.kind:
            self._doubt()

    async def collect(self, max_records: int) -> Batch:
        """The next records; settle them before the next call, or rewind. Raises OSError."""
        batch = Batch()
        names = self._segments()
        for name in self._sources.keys() - names:  # removed by someone else
            self._close(name)
        for name in names:
            source = self._open(name)
            if source is None:
                continue
            finished = source.reader.finished()
            if not await self._fill(batch, source, max_records):
                batch.full = True
                break
            if finished:
                batch.reached.setdefault(name, _Reach(source.reader.position))
                batch.done.append(name)
                batch.torn += source.reader.rest() > 0
        return batch

    async def settle(self, batch: Batch, fate: Fate) -> None:
        """The batch needs no more care: moves the cursor, removes finished segments. Raises OSError.

        A crash before the cursor is saved brings the batch back: it is sent, or set aside, twice, and counted once.
        """
        lost = 0
        for name, reach in batch.reached.items():
            lost += self._account(name, reach, fate)
            self._sources[name].reader.position = reach.position
            self._cursor.segments[str(name)] = reach.position
            self._unsaved = True
        if lost:
            self._slot.add(AgentWord.JOURNAL_LOST, lost)
            _log.error("journal: %d records are damaged or missing", lost)
        if batch.done:
            try:
                # First: without it, a segment that is gone would look like one whose records are missing.
                await self.save()
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                # What they spent is in no cursor, and soon in no segment either.
                self._condemn(batch.done)
            self._remove(batch.done)  # on a full disk, this is what makes room
        if batch.torn:
            self._slot.add(AgentWord.JOURNAL_TORN, batch.torn)
            _log.warning("journal: cut the torn tail of %d segments", batch.torn)

    def rewind(self) -> None:
        """Collects anew from what is settled."""
        for source in self._sources.values():
            source.reader.position = self._settled(source)

    async def save(self) -> None:
        """Saves the cursor, if it has moved. Raises OSError."""
        if self._unsaved:
            self._unsaved = False
            try:
                await asyncio.to_thread(self._save, self._cursor.encode())  # waits for the disk
            except OSError:
                self._unsaved = True
                raise

    def close(self) -> None:
        """Saves the cursor and closes the files. Raises OSError if the cursor cannot be saved."""
        for name in list(self._sources):
            self._sources.pop(name).reader.close()
        if self._unsaved:
            self._save(self._cursor.encode())
            self._unsaved = False

    def tallies(self) -> dict[str, Tally]:
        """What became of the records, by chain; chains of which nothing was settled yet may be missing."""
        return dict(self._cursor.chains)

    def forget(self, chains: Iterable[str]) -> None:
        """Drops the tallies of chains whose end was reported. Chains that still have segments, or a holder, are kept."""
        kept = {name.chain for name in self._segments()} | self._holders.open_chains()
        for chain in chains:
            if chain not in kept and self._cursor.chains.pop(chain, None) is not None:
                self._unsaved = True

    def spent(self, chain: str, holder: str) -> tuple[Tally, Spent, bool]:
        """What is known of a holder's spends without reading the chain's segments: up to where they are settled, how much they
        are, and whether that is exact."""
        tally = self._cursor.chains.get(chain, Tally())
        known = self._cursor.spent.get(holder, Spent(chain, {}))
        return tally, Spent(chain, dict(known.slices)), not (tally.lost or tally.spooled)

    def drop_spent(self) -> None:
        """Forgets what was spent by holders whose files are gone: nobody will ask any more."""
        self.recent.keep(self._holders.open_chains() | {name.chain for name in self._segments()})
        if not self._cursor.spent:
            return
        known = self._holders.names()
        for holder in self._cursor.spent.keys() - known:
            del self._cursor.spent[holder]
            self._unsaved = True

    def size(self) -> int:
        """Bytes of records not yet settled."""
        total = 0
        for name in self._segments():
            source = self._sources.get(name)
            position = self._cursor.segments.get(str(name)) or (source.reader.first if source else None)
            total += max(0, file_size(self._directory / str(name)) - (position.offset if position else 0))
        return total

    def unsettled(self) -> Unsettled:
        """What is left, for the spool. Chains that are still being written are not among it. Raises OSError."""
        self.rewind()
        sources = [source for name in self._segments() if (source := self._open(name))]
        growing = {source.name.chain for source in sources if not source.reader.finished()}
        finished = [source for source in sources if source.name.chain not in growing]
        found = [source.name for source in finished if source.reader.rest()]
        for name in found:
            self._cursor.chains.setdefault(name.chain, self._tally(name))
        names, chains = set(map(str, found)), {name.chain for name in found}
        cursor = CursorFile(
            {name: position for name, position in self._cursor.segments.items() if name in names},
            {chain: tally for chain, tally in self._cursor.chains.items() if chain in chains},
        )
        return Unsettled(found, cursor.encode(), [source.name for source in finished if source.name not in found])

    async def spooled(self, copied: Unsettled, heads: Mapping[str, Head]) -> int:
        """Removes what is safe in the spool; returns how many records. `heads`: by chain, when it was copied. Raises OSError.

        From the moment the cursor is saved these segments are done with, also after a crash.
        """
        count = 0
        for name in copied.segments:
            head = heads[name.chain]
            tally = self._cursor.chains[name.chain]
            if not tally.spooled:
                waiting = head.records - tally.settled
                count += waiting
                self._cursor.chains[name.chain] = msgspec.structs.replace(tally, spooled=waiting, head=head.head)
            reader = self._sources[name].reader
            reader.position = Position(reader.position.offset + reader.rest(), head.records)
            self._cursor.segments[str(name)] = reader.position
            self._unsaved = True
        self._condemn(copied.segments)
        await self.save()
        self._remove((*copied.segments, *copied.done))
        return count

    def _save(self, content: bytes) -> None:
        with self._saving:
            save_cursor(self._directory, content)

    async def _fill(self, batch: Batch, source: _Source, max_records: int) -> bool:
        """Adds the segment's next records. True: it has no more; False: the batch is to be sent as it is."""
        while (room := max_records - len(batch.spans)) > 0:
            place = source.reader.position
            entries = source.reader.read(room)
            if not entries:
                return True
            for count, entry in enumerate(entries):
                if batch.size >= _MAX_BATCH_BYTES or batch.unreadable or not self._add(batch, source.name, entry):
                    source.reader.position = place
                    return False
                place = entry.after
                if count % _SLICE_RECORDS == _SLICE_RECORDS - 1:
                    await asyncio.sleep(0)  # other tasks share the loop
        return False

    def _add(self, batch: Batch, name: SegmentName, entry: Entry) -> bool:
        """False: no span can be made of it, and there are others in the batch, which are to be sent first."""
        try:
            chain, record = self._record(name, entry)
            span = encode_span(record.payload, chain, record.sequence, record.hash)
        except UnreadableRecordError:
            if batch.spans:
                return False
            batch.unreadable = True
            chain, record = name.chain, entry
        else:
            batch.spans.append(span)
            batch.size += len(span)
        batch.entries.append((chain, record))
        reach = batch.reached.get(name)
        if reach is None:
            reach = batch.reached[name] = _Reach(entry.after)
        reach.position, reach.head = entry.after, entry.hash
        reach.count += 1
        spend = spend_of(entry.payload)
        if spend is not None:
            reach.spends.append((entry.sequence, spend, entry.payload))
        return True

    def _record(self, name: SegmentName, entry: Entry) -> tuple[str, Entry]:
        """The chain a record belongs to, and the record. Raises UnreadableRecordError."""
        return name.chain, entry

    def _account(self, name: SegmentName, reach: _Reach, fate: Fate) -> int:
        """Tallies what was settled in one segment; returns how many records turned out to be lost."""
        before = self._tally(name)
        settled = max(before.settled, reach.position.sequence)
        if before.spooled or settled == before.settled:
            self._cursor.chains.setdefault(name.chain, before)
            return 0
        self.recent.begin(name.chain, before.settled)
        for sequence, spend, record in reach.spends:
            if sequence >= before.settled:
                self.recent.add(name.chain, record)
                self._cursor.spent.setdefault(spend.holder, Spent(name.chain, {})).add(spend)
        fresh = min(reach.count, settled - before.settled)
        lost = settled - before.settled - fresh
        self._cursor.chains[name.chain] = msgspec.structs.replace(
            before,
            settled=settled,
            head=reach.head or self._sources[name].reader.previous,
            quarantined=before.quarantined + (fresh if fate is Fate.QUARANTINED else 0),
            discarded=before.discarded + (fresh if fate is Fate.DISCARDED else 0),
            lost=before.lost + lost,
        )
        return lost

    def _tally(self, name: SegmentName) -> Tally:
        """That of a segment's chain, before anything of the segment is settled."""
        tally = self._cursor.chains.get(name.chain)
        if tally is not None:
            return tally
        reader = self._sources[name].reader
        return Tally(reader.first.sequence, reader.previous) if name.chain in self._presumed else Tally()

    def _segments(self) -> list[SegmentName]:
        return [name for name in list_segments(self._directory) if name.kind == self.kind]

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
            # Kept for people; the next segment's first number tells how many records are gone with it.
            _log.error("journal: %s", error)
            self._slot.add(AgentWord.JOURNAL_TORN)
            path.rename(path.with_suffix(DAMAGED))
            return None
        source = self._sources[name] = _Source(name, reader)
        return source

    def _doubt(self) -> None:
        """Without a cursor, whatever records are gone may have spent something."""
        for chain in self._holders.open_chains():
            if begins_at(self._directory, chain) != 0:
                self._holders.condemn(chain)

    def _condemn(self, names: Iterable[SegmentName]) -> None:
        for chain in {name.chain for name in names}:
            self._holders.condemn(chain)

    def _remove(self, names: Iterable[SegmentName]) -> None:
        for name in names:
            (self._directory / str(name)).unlink(missing_ok=True)
            self._close(name)

    def _close(self, name: SegmentName) -> None:
        source = self._sources.pop(name, None)
        if source is not None:
            source.reader.close()
        if self._cursor.segments.pop(str(name), None) is not None:
            self._unsaved = True

    def _settled(self, source: _Source) -> Position:
        return self._cursor.segments.get(str(source.name), source.reader.first)


def file_size(path: Path) -> int:
    """Bytes; 0 if there is no such file."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
