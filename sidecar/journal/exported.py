"""Reads records back from exported spans: OTLP JSON, as the collector's file exporter writes it.

One ExportTraceServiceRequest per line, or a single one over many lines; compressed with gzip or not. Encoded as the OTLP
specification says: ids are hexadecimal, 64-bit integers are strings, enums are numbers; bytes are base64. Spans of other
instrumentation are passed over. A span of ours carries its record; whether the rest of it says the same is compared with
the span that the record makes.
"""

from __future__ import annotations

import gzip
import zlib
from binascii import Error as Base64Error
from binascii import a2b_base64
from collections.abc import Iterator
from io import BufferedIOBase, BufferedReader

import msgspec
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans

from sidecar.journal.chain import HASH_BYTES
from sidecar.journal.origin import Damaged, SourceError, SourceRecord
from sidecar.journal.resource import INSTANCE
from sidecar.journal.span import SCOPE, UnreadableRecordError, encode_span

# Far more than a collector puts into one request; the most of a file that is in memory at once.
_MAX_DOCUMENT_BYTES = 128 << 20
_SEQUENCES = range(1 << 63)
_GZIP = b"\x1f\x8b"
_CHAIN, _SEQUENCE, _HASH, _RECORD = _NEEDED = (
    "sidestep.journal.chain",
    "sidestep.journal.seq",
    "sidestep.journal.hash",
    "sidestep.record",
)
# Attributes with other names may have been added on the way; with these, only by the sidecar.
_OURS = ("sidestep.", "rpc.", "user.", "client.")


class _Array(msgspec.Struct, frozen=True):
    values: list[_Value] = []


class _Value(msgspec.Struct, frozen=True, rename="camel"):
    string_value: str | None = None
    bool_value: bool | None = None
    int_value: int | str | None = None
    double_value: float | str | None = None
    bytes_value: str | None = None
    array_value: _Array | None = None


class _Attribute(msgspec.Struct, frozen=True):
    key: str
    value: _Value = _Value()


class _Status(msgspec.Struct, frozen=True):
    code: int = 0
    message: str = ""


class _Span(msgspec.Struct, frozen=True, rename="camel"):
    trace_id: str = ""
    span_id: str = ""
    parent_span_id: str = ""
    name: str = ""
    kind: int = 0
    start_time_unix_nano: int | str = 0
    end_time_unix_nano: int | str = 0
    attributes: list[_Attribute] = []
    status: _Status = _Status()


class _Scope(msgspec.Struct, frozen=True):
    name: str = ""


class _ScopeSpans(msgspec.Struct, frozen=True):
    scope: _Scope = _Scope()
    spans: list[_Span] = []


class _Resource(msgspec.Struct, frozen=True):
    attributes: list[_Attribute] = []


class _ResourceSpans(msgspec.Struct, frozen=True, rename="camel"):
    resource: _Resource = _Resource()
    scope_spans: list[_ScopeSpans] = []


class _Request(msgspec.Struct, frozen=True, rename="camel"):
    resource_spans: list[_ResourceSpans]


_DECODER = msgspec.json.Decoder(_Request)


def read_exported(stream: BufferedReader, name: str, damaged: Damaged) -> Iterator[SourceRecord]:
    """All records in a stream. `name`: of the file, for messages. What cannot be read is told to `damaged`.

    Raises SourceError where reading cannot go on: a line is too long to be an export.
    """
    for line, document in _documents(stream, name, damaged):
        origin = f"{name}:{line}"
        try:
            request = _DECODER.decode(document)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            damaged(SourceError(f"{origin}: no OTLP trace export in JSON: {error}"))
            continue
        del document
        for group in request.resource_spans:
            sidecar = _text(group.resource.attributes, INSTANCE)
            for scope in group.scope_spans:
                for span in scope.spans:
                    try:
                        record = _record(span, sidecar, scope.scope.name, origin)
                    except SourceError as error:
                        damaged(error)
                        continue
                    if record is not None:
                        yield record


def _documents(stream: BufferedReader, name: str, damaged: Damaged) -> Iterator[tuple[int, bytes]]:
    """Each JSON document with the number of its line, from 1."""
    lines: BufferedIOBase = gzip.GzipFile(fileobj=stream) if stream.peek(2)[:2] == _GZIP else stream
    number = 0
    try:
        while line := lines.readline(_MAX_DOCUMENT_BYTES + 1):
            number += 1
            if number == 1 and line.rstrip().endswith((b"{", b"[", b",")):  # one document, written for people
                line += lines.read(_MAX_DOCUMENT_BYTES + 1 - len(line))
            if len(line) > _MAX_DOCUMENT_BYTES:
                raise SourceError(f"{name}:{number}: more than {_MAX_DOCUMENT_BYTES >> 20} MiB in one request")
            if not line.isspace():
                yield number, line
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        damaged(SourceError(f"{name}:{number + 1}: {error}"))


def _record(span: _Span, sidecar: str, scope: str, origin: str) -> SourceRecord | None:
    """None for a span of other instrumentation. Raises SourceError if it is ours and not whole."""
    found = {attribute.key: attribute.value for attribute in span.attributes}
    missing = [key for key in _NEEDED if key not in found]
    if missing:
        if scope == SCOPE or len(missing) < len(_NEEDED):
            raise SourceError(f"{origin}: span {span.span_id or '?'} is Sidestep's and has no {', '.join(missing)}")
        return None
    chain, sequence = found[_CHAIN].string_value, _integer(found[_SEQUENCE].int_value)
    chain_hash, payload = _bytes(found[_HASH].bytes_value), _bytes(found[_RECORD].bytes_value)
    if not chain or sequence is None or sequence not in _SEQUENCES or chain_hash is None or payload is None:
        raise SourceError(f"{origin}: span {span.span_id or '?'}: its {', '.join(_NEEDED)} are not sound")
    if len(chain_hash) != HASH_BYTES:
        raise SourceError(f"{origin}: span {span.span_id or '?'}: its {_HASH} is not {HASH_BYTES} bytes long")
    altered = _altered(span, payload, chain, sequence, chain_hash)
    return SourceRecord(sidecar, chain, sequence, chain_hash, payload, origin, altered)


def _altered(span: _Span, payload: bytes, chain: str, sequence: int, chain_hash: bytes) -> tuple[str, ...]:
    """What of a span is not as its record says."""
    try:
        expected = ScopeSpans.FromString(encode_span(payload, chain, sequence, chain_hash)).spans[0]
    except UnreadableRecordError:
        return (_RECORD,)
    names = [
        name
        for name, found, due in (
            ("name", span.name, expected.name),
            ("kind", span.kind, expected.kind),
            ("trace_id", span.trace_id.lower(), expected.trace_id.hex()),
            ("span_id", span.span_id.lower(), expected.span_id.hex()),
            ("parent_span_id", span.parent_span_id.lower(), expected.parent_span_id.hex()),
            ("start_time", _integer(span.start_time_unix_nano), expected.start_time_unix_nano),
            ("end_time", _integer(span.end_time_unix_nano), expected.end_time_unix_nano),
            ("status", (span.status.code, span.status.message), (expected.status.code, expected.status.message)),
        )
        if found != due
    ]
    due_attributes = {pair.key: pair.value for pair in expected.attributes}
    seen: set[str] = set()
    for attribute in span.attributes:
        key = attribute.key
        due_value = due_attributes.get(key)
        if due_value is None:
            if key.startswith(_OURS):
                names.append(key)
        elif not _same(attribute.value, due_value):
            names.append(key)
        seen.add(key)
    names += due_attributes.keys() - seen
    return tuple(sorted(set(names)))


def _same(found: _Value, due: common_pb2.AnyValue) -> bool:
    match due.WhichOneof("value"):
        case "string_value":
            return found.string_value == due.string_value
        case "bool_value":
            return found.bool_value is due.bool_value
        case "int_value":
            return _integer(found.int_value) == due.int_value
        case "double_value":
            return _double(found.double_value) == repr(due.double_value)
        case "bytes_value":
            return _bytes(found.bytes_value) == due.bytes_value
        case _:  # the only other kind there is: a list of texts
            values = found.array_value.values if found.array_value is not None else []
            return [value.string_value for value in values] == [value.string_value for value in due.array_value.values]


def _text(attributes: list[_Attribute], key: str) -> str:
    return next((each.value.string_value or "" for each in attributes if each.key == key), "")


def _integer(value: int | str | None) -> int | None:
    try:
        return int(value) if value is not None else None
    except ValueError:
        return None


def _double(value: float | str | None) -> str | None:
    """Spelled so that equal values are equal; not-a-number too."""
    try:
        return repr(float(value)) if value is not None else None
    except ValueError:
        return None


def _bytes(value: str | None) -> bytes | None:
    """Base64, in either alphabet, padded or not."""
    if value is None:
        return None
    try:
        standard = value.rstrip("=").replace("-", "+").replace("_", "/")
        return a2b_base64(standard + "=" * (-len(standard) % 4), strict_mode=True)
    except (Base64Error, ValueError):
        return None
