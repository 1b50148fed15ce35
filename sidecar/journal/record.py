"""The journal's records: decisions first of all, and what else has to be known of a chain to account for every decision.

A record is a MessagePack map whose `kind` tells which of the three it is. Fields are only ever added, with defaults; readers
ignore unknown ones.
"""

from __future__ import annotations

import msgspec

from engine.decision import Decision, Spend
from engine.facts import Facts
from sidecar.journal.segment import MAX_RECORD_BYTES, JournalError

VERSION = 3
# With room for the envelope it gets if it is set aside (quarantine.py).
_MAX_BYTES = MAX_RECORD_BYTES - 256


class Record(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, tag_field="kind", tag="decision"):
    """One decision, complete enough to replay it."""

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
    # Keyed hash of the subject id; the id itself only if the settings say so; the client address, cut to its network unless
    # they say otherwise: see DESIGN section 12.
    user_hash: str = ""
    user_id: str = ""
    client_address: str = ""
    # Names of the values in `facts` that the settings do not let out; conditions that read them cannot be replayed.
    withheld: tuple[str, ...] = ()
    # Id of the EvaluateBatch it was part of (16 bytes, UUIDv7); empty: a single Evaluate.
    batch: bytes = b""
    v: int = VERSION


class BatchRecord(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, tag_field="kind", tag="batch"):
    """One EvaluateBatch, written once its last entry is decided."""

    # 16 bytes, UUIDv7: `Record.batch` of its decisions.
    batch: bytes
    at: float
    duration_us: int
    # How many entries it had, and how many of them got an error instead of a decision.
    size: int
    errors: int = 0
    traceparent: str = ""
    caller: str = ""
    v: int = VERSION


class UnrecordedRecord(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, tag_field="kind", tag="unrecorded"):
    """Decisions that were answered without a record, because the journal was at its bound or could not be written.

    The first record after they happened.
    """

    # 16 bytes, UUIDv7.
    id: bytes
    # When the first and the last of them were answered.
    at: float
    until: float
    count: int
    v: int = VERSION


AnyRecord = Record | BatchRecord | UnrecordedRecord

_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[AnyRecord] = msgspec.msgpack.Decoder(AnyRecord)


def encode_record(record: AnyRecord) -> bytes:
    """The record as MessagePack. Raises JournalError if it is too large for the journal: appended with others it would keep
    all of them out."""
    encoded = _ENCODER.encode(record)
    if len(encoded) > _MAX_BYTES:
        raise JournalError(f"the record of a decision has {len(encoded)} bytes, {_MAX_BYTES} are possible")
    return encoded


# Only what a spend was: everything else is skipped while decoding.


class _Decision(msgspec.Struct, frozen=True, gc=False):
    spend: Spend | None = None


class _Record(msgspec.Struct, frozen=True, gc=False):
    decision: _Decision = _Decision()
    decision_id: bytes = b""
    request_id: str = ""


_SPENDER: msgspec.msgpack.Decoder[_Record] = msgspec.msgpack.Decoder(_Record)
_SPEND_KEY = msgspec.msgpack.encode("spend")


def spend_of(data: bytes) -> Spend | None:
    """What an encoded record spent; None for one that spent nothing, and for bytes that are no record."""
    if _SPEND_KEY not in data:
        return None
    try:
        return _SPENDER.decode(data).decision.spend
    except msgspec.MsgspecError:
        return None


def spent_request(data: bytes) -> tuple[bytes, str]:
    """Decision id and request id of an encoded record that spent something; empty for any other."""
    if _SPEND_KEY in data:
        try:
            record = _SPENDER.decode(data)
        except msgspec.MsgspecError:
            return b"", ""
        if record.decision.spend is not None:
            return record.decision_id, record.request_id
    return b"", ""


def decode_record(data: bytes) -> AnyRecord:
    """Reads a record back. Raises msgspec.MsgspecError for bytes that are none."""
    return _DECODER.decode(data)
