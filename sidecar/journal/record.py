"""The journal's record of one decision: what was known, what was answered, and for whom to find it again."""

from __future__ import annotations

import msgspec

from engine.decision import Decision
from engine.facts import Facts
from sidecar.journal.segment import MAX_RECORD_BYTES, JournalError

VERSION = 1


class Record(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One decision, complete enough to replay it.

    Fields are only ever added, with defaults; readers ignore unknown ones.
    """

    # 16 bytes, UUIDv7 (RFC 9562).
    decision_id: bytes
    # When the decision was begun, and how long it took.
    at: float
    duration_us: int
    facts: Facts
    decision: Decision
    # As the caller gave them; empty: absent.
    request_id: str = ""
    traceparent: str = ""
    # The asking service's name; empty while callers are not identified.
    caller: str = ""
    # Keyed hash of the subject id, and the client address cut to its network: see DESIGN section 12.
    user_hash: str = ""
    client_address: str = ""
    v: int = VERSION


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Record)


def encode_record(record: Record) -> bytes:
    """The record as MessagePack. Raises JournalError if it is larger than MAX_RECORD_BYTES: appended with others it would
    keep all of them out of the journal."""
    encoded = _ENCODER.encode(record)
    if len(encoded) > MAX_RECORD_BYTES:
        raise JournalError(f"the record of a decision has {len(encoded)} bytes, {MAX_RECORD_BYTES} are possible")
    return encoded


def decode_record(data: bytes) -> Record:
    """Reads a record back. Raises msgspec.MsgspecError for bytes that are none."""
    return _DECODER.decode(data)
