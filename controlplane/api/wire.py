"""The one piece of protobuf's encoding that is written by hand."""

from __future__ import annotations


def delimited(field: int, value: bytes) -> bytes:
    """A length-delimited field (number 1-15): an embedded message that is encoded already, a string or bytes."""
    length = len(value)
    encoded = bytearray((field << 3 | 2,))
    while length > 0x7F:
        encoded.append(length & 0x7F | 0x80)
        length >>= 7
    encoded.append(length)
    return bytes(encoded) + value
