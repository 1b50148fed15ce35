"""What a holder spent, by the journal: what the shipper counted of records it is done with, and the records that are left.

The shipper's cursor says up to which record a chain is settled and, saved with it as one, what the records before that spent.
From there on the segments are read. A segment is removed only once the cursor behind it is safe; where that cannot be done, the
holder is condemned before (see journal/backlog.py). So at any instant, whatever was killed, the sum is exact, or it is known
not to be.
"""

from __future__ import annotations

from pathlib import Path

from sidecar.journal.cursor import Spent
from sidecar.journal.reader import SegmentReader
from sidecar.journal.record import spend_of
from sidecar.journal.segment import JournalError, SegmentName, list_segments

_SLICE_RECORDS = 512


def spent_in_all(directory: Path, chain: str, settled: int, spent: Spent, holder: str) -> Spent | None:
    """What the holder spent in all, its chain being `settled` up to a record, with `spent` before it.

    None if that cannot be told exactly: a record is damaged or missing, or may be. The chain must have ended. Raises OSError, and
    FileNotFoundError if a segment is removed meanwhile: then ask again with what is settled then.
    """
    total = Spent(chain, dict(spent.slices))
    names = [name for name in list_segments(directory) if name.chain == chain]
    expected = settled
    for name in names:
        try:
            reader = SegmentReader(directory / str(name))
        except JournalError:
            return None
        try:
            reached = _read(reader, expected, total, holder)
            # A tail that was torn by a death was never answered. In the last file, it might as well be a record gone bad.
            if reached is None or (name == names[-1] and reader.rest()):
                return None
            expected = reached
        finally:
            reader.close()
    return total


def _read(reader: SegmentReader, expected: int, total: Spent, holder: str) -> int | None:
    """Adds the spends of a segment's records from `expected` on. The number of the record behind it; None: some are missing."""
    if reader.first.sequence > expected:
        return None
    while entries := reader.read(_SLICE_RECORDS):
        for entry in entries:
            if entry.sequence < expected:
                continue
            if entry.sequence != expected:
                return None
            expected += 1
            spend = spend_of(entry.payload)
            if spend is not None and spend.holder == holder:
                total.add(spend)
    return expected


def begins_at(directory: Path, chain: str) -> int | None:
    """The number of the first record that a chain's segments still have; None if there are none, or it cannot be read."""
    names: list[SegmentName] = [name for name in list_segments(directory) if name.chain == chain]
    if not names:
        return None
    try:
        reader = SegmentReader(directory / str(names[0]))
    except (JournalError, FileNotFoundError):
        return None
    try:
        return reader.first.sequence
    finally:
        reader.close()
