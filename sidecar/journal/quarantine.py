"""The quarantine: records the collector refuses for good, or of batches it accepted only partly.

They are kept in chains of their own, `q-...`, beside the journal's segments, each in an envelope that says whose record it
is: shipped later, it has the chain, the number and the hash it always had. The quarantine counts towards the journal's bound.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import msgspec

from sidecar.journal.segment import JournalError, SegmentWriter, list_segments

WRITER = "q"
"""Name of the quarantine's writer."""

# With more files than this, one is filled up before the next is begun: whoever lists the directory pays for each.
_FEW_FILES = 100

_log = logging.getLogger(__name__)


class Quarantined(msgspec.Struct, frozen=True, gc=False):
    """One record that was set aside, as MessagePack the payload of a record in the quarantine's own chain."""

    # Where it was, and its chain hash there.
    chain: str
    sequence: int
    hash: bytes
    # The record, as it was written.
    payload: bytes


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Quarantined)


def decode_quarantined(data: bytes) -> Quarantined:
    """Reads an envelope back. Raises msgspec.MsgspecError for bytes that are none."""
    return _DECODER.decode(data)


class Quarantine:
    """The quarantine of one journal directory; one of them writes at a time.

    `max_bytes`: bound on all its files, those of earlier starts included.
    """

    def __init__(self, directory: Path, max_bytes: int) -> None:
        """Raises JournalError if the directory cannot be used."""
        self._directory = directory
        # On the disk before the record leaves the segment it was in.
        self._writer = SegmentWriter(directory, WRITER, max_bytes, durable=True)

    def put(self, records: Sequence[Quarantined]) -> bool:
        """Sets records aside, durably. False: there is no room, or it cannot be written; the log says why.

        The file is finished afterwards, so that it can be shipped while the sidecar runs, unless there are many already.
        """
        if not self._writer.has_room():
            _log.error("journal: the quarantine is full; shipping waits")
            return False
        try:
            self._writer.append([_ENCODER.encode(record) for record in records])
        except JournalError as error:
            _log.error("journal: %s", error)
            return False
        self.finish()
        return True

    def finish(self) -> None:
        """Finishes the last file, unless there are many: also when there are few again, because they were shipped."""
        if len(quarantine_segments(self._directory)) < _FEW_FILES:
            self._writer.close()

    def close(self) -> None:
        """Finishes the last file."""
        self._writer.close()


def quarantine_segments(directory: Path) -> list[str]:
    """File names, oldest first."""
    return [str(name) for name in list_segments(directory) if name.writer == WRITER]
