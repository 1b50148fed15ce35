"""OTLP over gRPC (OTLP specification 1.x, "OTLP/gRPC").

Proxies of the environment (`http_proxy` and the like) are not used: see docs/operations.md.
"""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path
from typing import Final

import grpc

from sidecar.journal.export import (
    MAX_ANSWER_BYTES,
    ExporterError,
    ExportResult,
    Verdict,
    bounded_wait_s,
    printable,
    read_answer,
)
from sidecar.otel import Otlp, Signal
from sidecar.retryinfo import retry_after_s

_METHODS: Final = {
    "traces": "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
    "metrics": "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
}
_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    # Despite its name, how long one attempt to connect may take: a busy node, or TLS, takes its time.
    ("grpc.min_reconnect_backoff_ms", 5000),
    ("grpc.max_reconnect_backoff_ms", 5000),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", MAX_ANSWER_BYTES),
)
# The collector looked at the data and does not want it.
_REFUSING = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
    }
)
# Not you, or not here.
_DENYING = frozenset(
    {
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.NOT_FOUND,
    }
)
# In the words of the gRPC library when something that does not speak gRPC answered, and when the stream ended without a status.
_HTTP_STATUS = re.compile(r"Received http2 header with status: (\d{3})")
_STREAM_REMOVED = "Stream removed"
_ANSWER_TOO_LONG = "CLIENT: Received message larger than max"


class GrpcExporter:
    """One channel to one collector. The contract is `Exporter`'s."""

    def __init__(self, otlp: Otlp, signal: Signal) -> None:
        """Raises ExporterError when a TLS file cannot be read."""
        compression = grpc.Compression.Gzip if otlp.gzip else grpc.Compression.NoCompression
        options = (*_OPTIONS, ("grpc.primary_user_agent", f"sidestep/{version('sidestep')}"))
        if otlp.insecure:
            self._channel = grpc.aio.insecure_channel(otlp.endpoint, options=options, compression=compression)
        else:
            credentials = grpc.ssl_channel_credentials(
                _pem(otlp.certificate), _pem(otlp.client_key), _pem(otlp.client_certificate)
            )
            self._channel = grpc.aio.secure_channel(
                otlp.endpoint, credentials, options=options, compression=compression
            )
        self._export: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(_METHODS[signal])
        self._metadata = otlp.headers
        self._timeout_s = otlp.timeout_s

    async def export(self, request: bytes, timeout_s: float | None = None) -> ExportResult:
        """Sends one encoded request. Does not raise for what the collector or the network does."""
        timeout_s = self._timeout_s if timeout_s is None else min(timeout_s, self._timeout_s)
        try:
            answer = await self._export(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            return _failure(error)
        return read_answer(answer)

    async def close(self) -> None:
        """Closes the channel."""
        await self._channel.close()


def _pem(path: Path | None) -> bytes | None:
    try:
        return None if path is None else path.read_bytes()
    except OSError as error:
        raise ExporterError(f"{path}: {error.strerror}") from None


def _failure(error: grpc.aio.AioRpcError) -> ExportResult:
    wait_s = bounded_wait_s(retry_after_s(error))
    verdict = _verdict(error.code(), error.details() or "", wait_s)
    return ExportResult(
        verdict, retry_after_s=wait_s, detail=f"{error.code().name}: {printable(error.details() or '')}"
    )


def _verdict(code: grpc.StatusCode, details: str, wait_s: float | None) -> Verdict:
    if http := _HTTP_STATUS.search(details):  # a proxy's answer says nothing about the data, but for its size
        if http[1] == "413":
            return Verdict.TOO_MUCH
        return Verdict.RETRY if code is grpc.StatusCode.UNAVAILABLE or http[1] >= "500" else Verdict.DENIED
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and _ANSWER_TOO_LONG in details:
        return Verdict.DENIED
    if code in _DENYING:
        return Verdict.DENIED
    if wait_s is not None:  # the collector expects to recover
        return Verdict.RETRY
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        # Without RetryInfo it may as well mean that the message is too large for the receiver.
        return Verdict.TOO_MUCH
    if code in _REFUSING and not details.startswith(_STREAM_REMOVED):
        return Verdict.REFUSED
    return Verdict.RETRY
