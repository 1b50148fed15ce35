"""Sends telemetry to a collector over OTLP (OpenTelemetry protocol specification 1.x), without the SDK.

The SDK's pipeline drops spans when its queue is full; here nothing is dropped, so the answer of the collector matters
more than usual and is told in five ways (`Verdict`). One `Exporter` sends one signal to one collector; which protocol it
speaks is the settings' matter (`open_exporter`): gRPC (`export_grpc.py`) or protobuf over HTTP (`export_http.py`).
"""

from __future__ import annotations

import logging
from enum import Enum
from pathlib import Path
from typing import NamedTuple, Protocol

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from engine.errors import SidestepError
from sidecar.otel import Otlp, Signal

MAX_ANSWER_BYTES = 64 << 10
"""An OTLP answer is a few bytes. What is longer is none."""

MAX_WAIT_S = 300.0
"""Longest wait a collector may ask for: a slip of it must not fill the journal."""

MAX_DETAIL = 300
"""Characters of the collector's own words that are kept."""

_log = logging.getLogger(__name__)


class ExporterError(SidestepError):
    """The exporter cannot be set up: a TLS file cannot be used."""


class Verdict(Enum):
    """What became of a batch."""

    ACCEPTED = "accepted"
    # Try again later.
    RETRY = "retry"
    # Try again later with less.
    TOO_MUCH = "too_much"
    # The same data will be refused again.
    REFUSED = "refused"
    # Not the data, but the connection: address, credentials, what stands between. Mended there, the same data may be taken.
    DENIED = "denied"


class ExportResult(NamedTuple):
    """`rejected`: spans (data points) of an accepted batch the collector did not keep."""

    verdict: Verdict
    rejected: int = 0
    # As the collector asked (RetryInfo, Retry-After), at most MAX_WAIT_S.
    retry_after_s: float | None = None
    # Status and the collector's words, for the log: printable, short.
    detail: str = ""


class Exporter(Protocol):
    """Where telemetry goes."""

    async def export(self, request: bytes, timeout_s: float | None = None) -> ExportResult:
        """Sends one encoded Export...ServiceRequest, within `timeout_s` if that is less than the setting.

        Does not raise for what the collector or the network does. May be cancelled, and then used again.
        """

    async def close(self) -> None:
        """Closes the connection; for when no export is under way."""


def open_exporter(otlp: Otlp, signal: Signal) -> Exporter:
    """An exporter of one signal, as the settings that `parse_otlp` found for it say; made inside the event loop it is used in.

    Raises ExporterError when a TLS file cannot be used. Connects only when there is something to send. TLS files that
    change later (certificates are renewed) are read again when sending fails.
    """
    exporter = _open(otlp, signal)
    return _Renewed(exporter, otlp, signal) if otlp.files else exporter


def read_answer(answer: bytes) -> ExportResult:
    """What a collector's Export...ServiceResponse says; those of all signals are the same on the wire.

    What is no such message counts as DENIED: something else answered.
    """
    try:
        partial = ExportTraceServiceResponse.FromString(answer).partial_success
    except DecodeError:
        return ExportResult(Verdict.DENIED, detail="the answer is not that of an OTLP receiver")
    return ExportResult(Verdict.ACCEPTED, max(0, partial.rejected_spans), detail=printable(partial.error_message))


def printable(text: str) -> str:
    """Someone else's words, made fit for a log line."""
    return "".join(char if char.isprintable() else " " for char in text[:MAX_DETAIL]).strip()


def bounded_wait_s(wait_s: float | None) -> float | None:
    """The wait a collector asks for, within reason."""
    return None if wait_s is None else min(max(0.0, wait_s), MAX_WAIT_S)


def _open(otlp: Otlp, signal: Signal) -> Exporter:
    # Imported here: most sidecars need one of the two.
    if otlp.protocol == "grpc":
        from sidecar.journal.export_grpc import GrpcExporter

        return GrpcExporter(otlp, signal)
    from sidecar.journal.export_http import HttpExporter

    return HttpExporter(otlp)


class _Renewed:
    """An exporter that is opened anew when its TLS files have changed and the collector does not accept."""

    def __init__(self, exporter: Exporter, otlp: Otlp, signal: Signal) -> None:
        self._exporter = exporter
        self._otlp = otlp
        self._signal: Signal = signal
        self._state = _state(otlp.files)
        self._in_flight = 0

    async def export(self, request: bytes, timeout_s: float | None = None) -> ExportResult:
        self._in_flight += 1
        try:
            result = await self._exporter.export(request, timeout_s)
        finally:
            self._in_flight -= 1
        if result.verdict in (Verdict.RETRY, Verdict.DENIED) and not self._in_flight:
            await self._renew()
        return result

    async def close(self) -> None:
        await self._exporter.close()

    async def _renew(self) -> None:
        state = _state(self._otlp.files)
        if state == self._state:
            return
        try:
            exporter = _open(self._otlp, self._signal)
        except ExporterError as error:  # perhaps half written: the next failure looks again
            _log.warning("export: the TLS files changed and cannot be used yet: %s", error)
            return
        _log.info("export: the TLS files changed and were read again")
        old, self._exporter, self._state = self._exporter, exporter, state
        await old.close()


def _state(files: tuple[Path, ...]) -> list[tuple[int, int, int] | None]:
    """What changes when a file does; a missing file has a state too."""
    return [_stamp(path) for path in files]


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
