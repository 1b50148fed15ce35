"""What is read back from a journal folder, a spool or an export, wherever it was found."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

from sidecar.journal.segment import JournalError


class SourceError(JournalError):
    """Something in a source cannot be read; the message begins with the file, and the line if it has lines."""


class SourceRecord(NamedTuple):
    """One record, with what says whose it is and where in its chain it belongs. The same record may come several times."""

    # The sidecar's name, `service.instance.id`; empty if the source does not say.
    sidecar: str
    chain: str
    sequence: int
    # Its chain hash, as the source has it; 32 bytes.
    hash: bytes
    payload: bytes
    # `journal/w0-0192f3c4a1b2-00000001.seg`, `export.json:17`.
    origin: str
    # Of an exported span: names of what is not as the record says, attributes (`sidestep.outcome`) and fields (`start_time`).
    altered: tuple[str, ...] = ()
    # Chain hash before this record, if the source says it; else empty.
    previous: bytes = b""
    # It was set aside, so what lies around it may be elsewhere.
    quarantined: bool = False


Damaged = Callable[[SourceError], None]
"""Told of what cannot be read; reading goes on behind it."""


class Coverage(Enum):
    """Which records sources ought to hold between them; see verify.py."""

    # Exported spans: every record that has been dealt with.
    DELIVERED = "delivered"
    # Folders: every record that has not.
    UNDELIVERED = "undelivered"
    # Both.
    EVERYTHING = "everything"
