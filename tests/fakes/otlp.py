"""A small OTLP/gRPC trace receiver that keeps every span, and can be told to misbehave.

with OtlpReceiver() as receiver:
    receiver.endpoint          # host:port
    receiver.fail = always(grpc.StatusCode.UNAVAILABLE, retry_after_s=0.2)
    receiver.spans             # what was accepted
    receiver.stop(); receiver.start()   # dies (calls in flight included) and comes back on the same port
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

_SERVICE = "opentelemetry.proto.collector.trace.v1.TraceService"


class Refusal(Exception):  # noqa: N818
    """Raised by a receiver's `fail` to refuse a request. `retry_after_s`: sent as google.rpc.RetryInfo."""

    def __init__(self, code: grpc.StatusCode, detail: str = "told to", retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.retry_after_s = retry_after_s


def always(code: grpc.StatusCode, retry_after_s: float | None = None) -> Callable[[ExportTraceServiceRequest], None]:
    """A `fail` that refuses everything."""

    def fail(request: ExportTraceServiceRequest) -> None:
        raise Refusal(code, retry_after_s=retry_after_s)

    return fail


class OtlpReceiver:
    """Listens on an ephemeral loopback port as soon as it is made. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spans: list[Span] = []
        self._server: grpc.Server | None = None
        self._dying = threading.Event()
        self._pool: ThreadPoolExecutor | None = None
        self._port = 0
        self.resources: list[dict[str, object]] = []
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
        return f"127.0.0.1:{self._port}"

    @property
    def spans(self) -> list[Span]:
        with self._lock:
            return list(self._spans)

    def decision_ids(self) -> list[str]:
        """`sidestep.decision.id` of every span kept, duplicates included."""
        return [str(attributes(span)["sidestep.decision.id"]) for span in self.spans]

    def wait_for_spans(self, count: int, timeout_s: float = 15.0) -> list[Span]:
        """Waits until at least so many different spans have come. Raises AssertionError when they do not."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            spans = self.spans
            if len({span.span_id for span in spans}) >= count:
                return spans
            threading.Event().wait(0.01)
        raise AssertionError(f"{len({s.span_id for s in self.spans})} of {count} spans after {timeout_s} s")

    def start(self) -> None:
        """Listens again, on the same port."""
        assert self._server is None
        self._dying.clear()
        self._pool = ThreadPoolExecutor(max_workers=4)
        server = grpc.server(self._pool, options=(("grpc.so_reuseport", 0),))
        handler = grpc.unary_unary_rpc_method_handler(
            self._export,
            request_deserializer=ExportTraceServiceRequest.FromString,
            response_serializer=ExportTraceServiceResponse.SerializeToString,
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, {"Export": handler}),))
        self._port = server.add_insecure_port(f"127.0.0.1:{self._port}")
        server.start()
        self._server = server

    def stop(self) -> None:
        """Dies at once: calls in flight fail, the port refuses connections."""
        self._dying.set()
        if self._server is not None:
            self._server.stop(grace=None).wait()
            self._server = None
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def __enter__(self) -> OtlpReceiver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _export(self, request: ExportTraceServiceRequest, context: grpc.ServicerContext) -> ExportTraceServiceResponse:
        with self._lock:
            self.calls.append(time.monotonic())
            self.metadata.append({key: str(value) for key, value in context.invocation_metadata()})
        if self.delay_s and self._dying.wait(self.delay_s):
            context.abort(grpc.StatusCode.UNAVAILABLE, "died")
        with refusing(context):
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
    """Turns a Refusal into the call's status."""
    try:
        yield
    except Refusal as refusal:
        if refusal.retry_after_s is not None:
            details: Any = (("grpc-status-details-bin", _status(refusal)),)
            context.set_trailing_metadata(details)
        context.abort(refusal.code, refusal.detail)


def _status(refusal: Refusal) -> bytes:
    """google.rpc.Status with one RetryInfo, in wire format."""
    delay = Duration()
    delay.FromNanoseconds(int((refusal.retry_after_s or 0.0) * 1e9))
    value = _bytes_field(1, delay.SerializeToString())
    info = AnyMessage(type_url="type.googleapis.com/google.rpc.RetryInfo", value=value)
    code = bytes((1 << 3, int(refusal.code.value[0])))
    return code + _bytes_field(2, refusal.detail.encode()) + _bytes_field(3, info.SerializeToString())


def _bytes_field(number: int, data: bytes) -> bytes:
    assert len(data) < 128
    return bytes((number << 3 | 2, len(data))) + data
