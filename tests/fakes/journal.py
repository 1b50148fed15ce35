"""What is in a journal."""

from __future__ import annotations

from pathlib import Path

from sidecar.front.decision_id import id_text
from sidecar.journal.reader import Entry, SegmentReader
from sidecar.journal.record import AnyRecord, Record, decode_record
from sidecar.journal.segment import SegmentName, list_segments


def read_entries(directory: Path, kind: str = "w") -> list[tuple[SegmentName, Entry]]:
    """All whole records of all segments of writers of a kind, in order, as they are in the files."""
    found: list[tuple[SegmentName, Entry]] = []
    for name in list_segments(directory):
        if name.kind != kind:
            continue
        reader = SegmentReader(directory / str(name))
        try:
            while entries := reader.read(1000):
                found += [(name, entry) for entry in entries]
        finally:
            reader.close()
    return found


def read_all(directory: Path) -> list[AnyRecord]:
    """All whole records that workers wrote, of any kind, in order."""
    return [decode_record(entry.payload) for _, entry in read_entries(directory)]


def read_journal(directory: Path) -> list[Record]:
    """The decisions among them."""
    return [record for record in read_all(directory) if isinstance(record, Record)]


def recorded_ids(directory: Path) -> set[str]:
    """Decision ids as answers spell them."""
    return {id_text(record.decision_id) for record in read_journal(directory)}
