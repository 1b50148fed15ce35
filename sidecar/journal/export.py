"""Sends spans to a collector over OTLP/gRPC (OpenTelemetry protocol specification 1.x), without the SDK.

The SDK's pipeline drops spans when its queue is full; here nothing is dropped, so the answer of the collector matters
more than usual and is told in four ways.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple

import grpc
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from sidecar.retryinfo import retry_after_s

_METHOD = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5000),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.use_local_subchannel_pool", 1),
)
# What says "this data is wrong" rather than "not now" or "not you". The specification calls more codes final; but
# there the alternative is to drop, and an expired credential or a wrong address must not cost records.
_REFUSING = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
    }
)


class Verdict(Enum):
    """What became of a batch."""

    ACCEPTED = "accepted"
    # Try again later.
    RETRY = "retry"
    # Try again later with less.
    TOO_MUCH = "too_much"
    # The same data will be refused again.
    REFUSED = "refused"


class ExportResult(NamedTuple):
    """`rejected`: spans of an accepted batch the collector did not keep. `retry_after_s`: as it asked (RetryInfo)."""

    verdict: Verdict
    rejected: int = 0
    retry_after_s: float | None = None
    # gRPC status and message, for the log.
    detail: str = ""


class OtlpExporter:
    """One channel to one collector.

    `endpoint`: host:port. `certificate`: PEM of the roots to trust; None: the usual ones. `timeout_s`: per attempt.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        insecure: bool,
        headers: Mapping[str, str],
        timeout_s: float,
        certificate: bytes | None = None,
        client_key: bytes | None = None,
        client_certificate: bytes | None = None,
        gzip: bool = False,
    ) -> None:
        compression = grpc.Compression.Gzip if gzip else grpc.Compression.NoCompression
        if insecure:
            self._channel = grpc.aio.insecure_channel(endpoint, options=_OPTIONS, compression=compression)
        else:
            credentials = grpc.ssl_channel_credentials(certificate, client_key, client_certificate)
            self._channel = grpc.aio.secure_channel(endpoint, credentials, options=_OPTIONS, compression=compression)
        self._export: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(_METHOD)
        self._metadata = tuple(headers.items())
        self._timeout_s = timeout_s

    async def export(self, request: bytes, timeout_s: float | None = None) -> ExportResult:
        """Sends one encoded ExportTraceServiceRequest. Does not raise for what the collector or the network does."""
        timeout_s = self._timeout_s if timeout_s is None else min(timeout_s, self._timeout_s)
        try:
            answer = await self._export(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            return _failure(error)
        try:
            partial = ExportTraceServiceResponse.FromString(answer).partial_success
        except DecodeError:
            return ExportResult(Verdict.RETRY, detail="the answer is no ExportTraceServiceResponse")
        return ExportResult(Verdict.ACCEPTED, max(0, partial.rejected_spans), detail=partial.error_message)

    async def close(self) -> None:
        """Closes the channel; a call in flight is cancelled."""
        await self._channel.close()


def _failure(error: grpc.aio.AioRpcError) -> ExportResult:
    code = error.code()
    detail = f"{code.name}: {(error.details() or '')[:200]}"
    wait_s = retry_after_s(error)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and wait_s is None:
        # Without RetryInfo it may as well mean that the message is too large for the receiver.
        return ExportResult(Verdict.TOO_MUCH, detail=detail)
    if code in _REFUSING and wait_s is None:
        return ExportResult(Verdict.REFUSED, detail=detail)
    return ExportResult(Verdict.RETRY, retry_after_s=wait_s, detail=detail)
