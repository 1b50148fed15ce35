"""What a google.rpc.Status says: when the server asks to be asked again, and its message."""

from __future__ import annotations

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet


def retry_after_s(error: grpc.aio.AioRpcError) -> float | None:
    """Seconds of google.rpc.RetryInfo, out of the google.rpc.Status in the trailing metadata; None if it says nothing."""
    for key, value in error.trailing_metadata() or ():
        if key != "grpc-status-details-bin" or not isinstance(value, bytes):
            continue
        try:
            for packed in _fields(value, 3):  # Status.details
                detail = Any.FromString(packed)
                if detail.type_url.endswith("/google.rpc.RetryInfo"):
                    delays = _fields(detail.value, 1)  # RetryInfo.retry_delay
                    return max(0.0, Duration.FromString(delays[0]).ToNanoseconds() / 1e9) if delays else None
        except DecodeError:
            return None
    return None


def retry_status(code: int, message: str, retry_after_s: float) -> bytes:
    """An encoded google.rpc.Status with google.rpc.RetryInfo: ask again after so many seconds."""
    delay = Duration()
    delay.FromNanoseconds(max(0, round(retry_after_s * 1e9)))
    info = Any(type_url="type.googleapis.com/google.rpc.RetryInfo", value=_field(1, delay.SerializeToString()))
    return bytes([1 << 3, code]) + _field(2, message.encode()) + _field(3, info.SerializeToString())


def _field(number: int, value: bytes) -> bytes:
    """A length-delimited field."""
    length, rest = len(value), bytearray([number << 3 | 2])
    while length > 0x7F:
        rest.append(length & 0x7F | 0x80)
        length >>= 7
    rest.append(length)
    return bytes(rest) + value


def status_message(status: bytes) -> str:
    """The message of an encoded google.rpc.Status. Raises DecodeError."""
    messages = _fields(status, 2)
    return messages[0].decode(errors="replace") if messages else ""


def _fields(data: bytes, number: int) -> list[bytes]:
    """The length-delimited fields with a number, of a message whose type is not at hand."""
    fields = UnknownFieldSet(Empty.FromString(data))
    found = [fields[at].data for at in range(len(fields)) if fields[at].field_number == number]
    return [value for value in found if isinstance(value, bytes)]
