"""The quarantined records of a directory as a backlog of their own, to be shipped when somebody asks for it."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from sidecar.journal.backlog import Backlog, Batch, Fate
from sidecar.journal.cursor import CursorFile
from sidecar.journal.quarantine import WRITER, decode_quarantined
from sidecar.journal.reader import Entry
from sidecar.journal.segment import SegmentName, list_segments
from sidecar.journal.span import UnreadableRecordError
from sidecar.page import AgentSlot

_log = logging.getLogger(__name__)


class QuarantineBacklog(Backlog):
    """The quarantined records of one directory: in the finished files that are there when it is opened.

    A file is removed when all its records were delivered, and kept, all of it, if some are refused again. It has no cursor
    and leaves that of the directory alone, so it may be used beside a running sidecar.
    """

    kind = WRITER

    def __init__(self, directory: Path, slot: AgentSlot) -> None:
        self._names: list[SegmentName] = []
        self._kept: set[SegmentName] = set()
        super().__init__(directory, slot)
        self._cursor = CursorFile()
        for name in list_segments(directory):
            source = self._open(name) if name.kind == self.kind else None
            if source is not None and source.reader.finished():
                self._names.append(name)

    async def settle(self, batch: Batch, fate: Fate) -> None:
        """As for any backlog; with another fate than delivered, the records stay where they are."""
        for name, reach in batch.reached.items():
            self._sources[name].reader.position = reach.position
            self._cursor.segments[str(name)] = reach.position
            if fate is not Fate.DELIVERED:
                self._kept.add(name)
        self._names = [name for name in self._names if name not in batch.done]
        self._remove(name for name in batch.done if name not in self._kept)

    async def save(self) -> None:
        """There is nothing to save."""

    def close(self) -> None:
        """Closes the files."""
        self._unsaved = False
        super().close()

    def _segments(self) -> list[SegmentName]:
        return self._names

    def _record(self, name: SegmentName, entry: Entry) -> tuple[str, Entry]:
        if entry.skipped:
            _log.error("journal: %s: %d records are damaged; the file is kept", name, entry.skipped)
            self._kept.add(name)
        try:
            was = decode_quarantined(entry.payload)
        except msgspec.MsgspecError as error:
            raise UnreadableRecordError(str(error)) from None
        return was.chain, Entry(was.sequence, was.payload, was.hash, entry.after, entry.skipped)
