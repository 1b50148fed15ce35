"""What is in a journal."""

from __future__ import annotations

from pathlib import Path

from sidecar.front.decision_id import id_text
from sidecar.journal.reader import SegmentReader
from sidecar.journal.record import Record, decode_record
from sidecar.journal.segment import list_segments


def read_journal(directory: Path) -> list[Record]:
    """All whole records of all segments, in order."""
    found: list[Record] = []
    for name in list_segments(directory):
        reader = SegmentReader(directory / str(name))
        try:
            while entries := reader.read(1000):
                found += [decode_record(entry.payload) for entry in entries]
        finally:
            reader.close()
    return found


def recorded_ids(directory: Path) -> set[str]:
    """Decision ids as answers spell them."""
    return {id_text(record.decision_id) for record in read_journal(directory)}
