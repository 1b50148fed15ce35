"""A small OTLP receiver over gRPC that keeps every span, and can be told to misbehave; `otlp_http` has its twin.

with OtlpReceiver() as receiver:
    receiver.endpoint          # host:port
    receiver.fail = always(grpc.StatusCode.UNAVAILABLE, retry_after_s=0.2)
    receiver.spans             # what was accepted
    receiver.stop(); receiver.start()   # dies (calls in flight included) and comes back on the same port
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.fakes.certificates import Identity

_TRACES = "opentelemetry.proto.collector.trace.v1.TraceService"
_METRICS = "opentelemetry.proto.collector.metrics.v1.MetricsService"


class Refusal(Exception):  # noqa: N818
    """Raised by a receiver's `fail` to refuse a request. `retry_after_s`: sent as google.rpc.RetryInfo, or Retry-After."""

    def __init__(self, code: grpc.StatusCode, detail: str = "told to", retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.retry_after_s = retry_after_s


class Died(Exception):  # noqa: N818
    """The receiver was stopped while it was answering."""


class Tls(NamedTuple):
    """The receiver's identity, and whose clients it takes (None: anybody's)."""

    identity: Identity
    clients: Path | None = None


def always(code: grpc.StatusCode, retry_after_s: float | None = None) -> Callable[[ExportTraceServiceRequest], None]:
    """A `fail` that refuses everything."""

    def fail(request: ExportTraceServiceRequest) -> None:
        raise Refusal(code, retry_after_s=retry_after_s)

    return fail


class Receiver(ABC):
    """What a receiver keeps and how it misbehaves, over any protocol. Thread-safe.

    Listens on a loopback port as soon as it is made; 0: an ephemeral one.
    """

    def __init__(self, tls: Tls | None = None, port: int = 0) -> None:
        self._lock = threading.Lock()
        self._spans: list[Span] = []
        self._dying = threading.Event()
        self.tls = tls
        self._port = port
        self.resources: list[dict[str, object]] = []
        self.metrics: list[ExportMetricsServiceRequest] = []
        # When calls came in (time.monotonic()), refused ones too.
        self.calls: list[float] = []
        self.metadata: list[dict[str, str]] = []
        # Looks at a request before anything is kept; raises Refusal to refuse it.
        self.fail: Callable[[ExportTraceServiceRequest], None] | None = None
        # Looks at a request after its spans were kept; raises Refusal to answer with an error all the same.
        self.fail_after: Callable[[ExportTraceServiceRequest], None] | None = None
        # How long each answer takes, seconds.
        self.delay_s = 0.0
        # Answer with a partial success that rejects so many spans.
        self.reject = 0
        self.start()

    @property
    def endpoint(self) -> str:
        """host:port"""
        return f"127.0.0.1:{self._port}"

    @property
    def spans(self) -> list[Span]:
        with self._lock:
            return list(self._spans)

    def decision_ids(self) -> list[str]:
        """`sidestep.decision.id` of every span kept that has one, duplicates included."""
        key = "sidestep.decision.id"
        return [str(found[key]) for span in self.spans if key in (found := attributes(span))]

    def wait_for_spans(self, count: int, timeout_s: float = 15.0) -> list[Span]:
        """Waits until at least so many different spans have come. Raises AssertionError when they do not."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            spans = self.spans
            if len({span.span_id for span in spans}) >= count:
                return spans
            threading.Event().wait(0.01)
        raise AssertionError(f"{len({s.span_id for s in self.spans})} of {count} spans after {timeout_s} s")

    @abstractmethod
    def start(self) -> None:
        """Listens again, on the same port."""

    @abstractmethod
    def stop(self) -> None:
        """Dies at once: calls in flight fail, the port refuses connections."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _arrived(self, metadata: dict[str, str]) -> None:
        """Notes a call and takes its time. Raises Died."""
        with self._lock:
            self.calls.append(time.monotonic())
            self.metadata.append(metadata)
        if self.delay_s and self._dying.wait(self.delay_s):
            raise Died

    def _keep(self, request: ExportTraceServiceRequest) -> ExportTraceServiceResponse:
        """Keeps the spans. Raises Refusal."""
        if self.fail is not None:
            self.fail(request)
        rejected = self.reject
        with self._lock:
            for group in request.resource_spans:
                self.resources.append({pair.key: plain(pair.value) for pair in group.resource.attributes})
                for scope in group.scope_spans:
                    self._spans.extend(scope.spans[rejected:])
        if self.fail_after is not None:
            self.fail_after(request)
        if rejected:
            partial = ExportTracePartialSuccess(rejected_spans=rejected, error_message="told to")
            return ExportTraceServiceResponse(partial_success=partial)
        return ExportTraceServiceResponse()

    def _keep_metrics(self, request: ExportMetricsServiceRequest) -> ExportMetricsServiceResponse:
        with self._lock:
            self.metrics.append(request)
        return ExportMetricsServiceResponse()


class OtlpReceiver(Receiver):
    """OTLP over gRPC."""

    _server: grpc.Server | None = None
    _pool: ThreadPoolExecutor | None = None

    def start(self) -> None:
        assert self._server is None
        self._dying.clear()
        self._pool = ThreadPoolExecutor(max_workers=4)
        server = grpc.server(self._pool, options=(("grpc.so_reuseport", 0),))
        traces = grpc.unary_unary_rpc_method_handler(
            self._export,
            request_deserializer=ExportTraceServiceRequest.FromString,
            response_serializer=ExportTraceServiceResponse.SerializeToString,
        )
        metrics = grpc.unary_unary_rpc_method_handler(
            self._export_metrics,
            request_deserializer=ExportMetricsServiceRequest.FromString,
            response_serializer=ExportMetricsServiceResponse.SerializeToString,
        )
        server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(_TRACES, {"Export": traces}),
                grpc.method_handlers_generic_handler(_METRICS, {"Export": metrics}),
            )
        )
        if self.tls is None:
            self._port = server.add_insecure_port(self.endpoint)
        else:
            identity, clients = self.tls
            credentials = grpc.ssl_server_credentials(
                [(identity.key.read_bytes(), identity.certificate.read_bytes())],
                None if clients is None else clients.read_bytes(),
                require_client_auth=clients is not None,
            )
            self._port = server.add_secure_port(self.endpoint, credentials)
        server.start()
        self._server = server

    def stop(self) -> None:
        self._dying.set()
        if self._server is not None:
            self._server.stop(grace=None).wait()
            self._server = None
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def _export(self, request: ExportTraceServiceRequest, context: grpc.ServicerContext) -> ExportTraceServiceResponse:
        with refusing(context):
            self._arrived(_metadata(context))
            return self._keep(request)
        raise AssertionError("unreachable: refusing() aborts the call")

    def _export_metrics(
        self, request: ExportMetricsServiceRequest, context: grpc.ServicerContext
    ) -> ExportMetricsServiceResponse:
        with refusing(context):
            self._arrived(_metadata(context))
            return self._keep_metrics(request)
        raise AssertionError("unreachable: refusing() aborts the call")


def _metadata(context: grpc.ServicerContext) -> dict[str, str]:
    return {key: str(value) for key, value in context.invocation_metadata()}


def attributes(span: Span) -> dict[str, object]:
    """A span's attributes as plain values."""
    return {pair.key: plain(pair.value) for pair in span.attributes}


def plain(value: AnyValue) -> object:
    """An AnyValue as a Python value."""
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return [plain(item) for item in value.array_value.values]
    return getattr(value, kind)


@contextmanager
def refusing(context: grpc.ServicerContext) -> Iterator[None]:
    """Turns a Refusal, and death, into the call's status."""
    try:
        yield
    except Refusal as refusal:
        if refusal.retry_after_s is not None:
            details: Any = (("grpc-status-details-bin", status(refusal)),)
            context.set_trailing_metadata(details)
        context.abort(refusal.code, refusal.detail)
    except Died:
        context.abort(grpc.StatusCode.UNAVAILABLE, "died")


def status(refusal: Refusal) -> bytes:
    """google.rpc.Status in wire format, with a RetryInfo if it asks for a wait."""
    found = bytes((1 << 3, int(refusal.code.value[0]))) + _bytes_field(2, refusal.detail.encode())
    if refusal.retry_after_s is None:
        return found
    delay = Duration()
    delay.FromNanoseconds(int(refusal.retry_after_s * 1e9))
    value = _bytes_field(1, delay.SerializeToString())
    info = AnyMessage(type_url="type.googleapis.com/google.rpc.RetryInfo", value=value)
    return found + _bytes_field(3, info.SerializeToString())


def _bytes_field(number: int, data: bytes) -> bytes:
    assert len(data) < 128
    return bytes((number << 3 | 2, len(data))) + data
