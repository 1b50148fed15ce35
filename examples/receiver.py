"""A small OTLP/gRPC trace receiver: keeps the spans, for the demo to count and for a developer to see."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as otlp_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Receiver(otlp_grpc.TraceServiceServicer):
    """Listens on an ephemeral port of this host from construction to `stop()`."""

    def __init__(self, *, echo: bool = False) -> None:
        self._echo = echo
        self._lock = threading.Lock()
        self._spans: dict[str, dict[str, object]] = {}
        self._server = grpc.server(ThreadPoolExecutor(max_workers=2))
        otlp_grpc.add_TraceServiceServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def Export(  # noqa: N802
        self, request: otlp.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> otlp.ExportTraceServiceResponse:
        """Keeps the spans."""
        for group in request.resource_spans:
            for scope in group.scope_spans:
                for span in scope.spans:
                    self._keep(span)
        return otlp.ExportTraceServiceResponse()

    def spans(self) -> dict[str, dict[str, object]]:
        """Attributes of every decision's span so far, by decision id, with its ids as `trace_id` and `parent_id`."""
        with self._lock:
            return dict(self._spans)

    def wait_for(self, decision_ids: set[str], timeout_s: float) -> set[str]:
        """Waits until the spans of these decisions have come; returns those that have not."""
        deadline = time.monotonic() + timeout_s
        while missing := decision_ids - self.spans().keys():
            if time.monotonic() >= deadline:
                break
            threading.Event().wait(0.02)
        return missing

    def stop(self) -> None:
        """Stops listening."""
        self._server.stop(grace=None).wait()

    def _keep(self, span: Span) -> None:
        attributes: dict[str, object] = {}
        for pair in span.attributes:
            kind = pair.value.WhichOneof("value")
            attributes[pair.key] = getattr(pair.value, kind) if kind else None
        decision_id = str(attributes.get("sidestep.decision.id", ""))
        attributes |= {"trace_id": span.trace_id.hex(), "parent_id": span.parent_span_id.hex()}
        with self._lock:
            self._spans[decision_id] = attributes
        if self._echo:
            print(
                f"trace {span.trace_id.hex()} {span.name} {attributes.get('sidestep.outcome')} {decision_id}",
                flush=True,
            )
