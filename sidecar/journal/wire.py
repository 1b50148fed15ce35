"""Parts of OTLP messages in protobuf's wire format.

Field numbers are those of opentelemetry/proto/common/v1/common.proto and trace/v1/trace.proto. What comes again and again
is encoded once; the caches are bounded, because a tenant may have any number of names.
"""

from __future__ import annotations

from functools import lru_cache
from struct import Struct

DOUBLE = Struct("<d")
_ONE_BYTE = tuple(bytes((value,)) for value in range(128))


def varint(value: int) -> bytes:
    """A non-negative number, seven bits per byte."""
    if value < 128:
        return _ONE_BYTE[value]
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(number: int, data: bytes) -> bytes:
    """A length-delimited field with a number below 16."""
    return prefix(number, len(data)) + data


def prefix(number: int, size: int) -> bytes:
    """The beginning of such a field, up to its data of so many bytes."""
    return _ONE_BYTE[number << 3 | 2] + varint(size)


def text(value: str) -> bytes:
    """An AnyValue."""
    return field(1, value.encode("utf-8", "replace"))


def pair(key: str, value: bytes) -> bytes:
    """A KeyValue."""
    return field(1, key.encode()) + field(2, value)


def attribute(key: str, value: bytes) -> bytes:
    """A KeyValue, as a field of Span."""
    return field(9, pair(key, value))


def fresh_string(key: str, value: str) -> bytes:
    """A text attribute, encoded anew: for values that hardly ever come again."""
    data = value.encode("utf-8", "replace")
    return _text_prefix(key, len(data)) + data


@lru_cache(maxsize=1024)
def _text_prefix(key: str, size: int) -> bytes:
    """An attribute up to its text of so many bytes."""
    return attribute(key, field(1, bytes(size)))[: -size or None]


# A text attribute.
string = lru_cache(maxsize=4096)(fresh_string)


@lru_cache(maxsize=4096)
def strings(key: str, values: tuple[str, ...]) -> bytes:
    """An attribute that is a list of texts."""
    return attribute(key, field(5, b"".join(field(1, text(value)) for value in values)))


@lru_cache(maxsize=1024)
def integer(key: str, value: int) -> bytes:
    """An integer attribute."""
    return fresh_integer(key, value)


def fresh_integer(key: str, value: int) -> bytes:
    """An integer attribute, encoded anew."""
    data = varint(value & 0xFFFFFFFFFFFFFFFF)
    return _integer_prefix(key, len(data)) + data


@lru_cache(maxsize=64)
def _integer_prefix(key: str, size: int) -> bytes:
    return attribute(key, b"\x18" + bytes(size))[:-size]


def double(key: str, value: float) -> bytes:
    """A floating-point attribute; it ends in the value, DOUBLE.size bytes."""
    return attribute(key, b"\x21" + DOUBLE.pack(value))
