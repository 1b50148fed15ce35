"""A collector that acknowledges every span and keeps none, as a process: it costs the machine as little as it can."""

from __future__ import annotations

import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

_EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
_COUNT = "/bench.Collector/Count"


def spans(address: str) -> int:
    """How many spans the collector at this address has acknowledged."""
    with grpc.insecure_channel(address) as channel:
        count: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(_COUNT)
        return int(count(b"", timeout=30, wait_for_ready=True))


class _Handler(grpc.GenericRpcHandler):
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spans = 0

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        return grpc.unary_unary_rpc_method_handler(
            {_EXPORT: self._export, _COUNT: lambda _request, _context: str(self._spans).encode()}.get(
                details.method, lambda _request, _context: b""
            )
        )

    def _export(self, request: bytes, _context: grpc.ServicerContext) -> bytes:
        groups = ExportTraceServiceRequest.FromString(request).resource_spans
        count = sum(len(scope.spans) for group in groups for scope in group.scope_spans)
        with self._lock:
            self._spans += count
        return b""


def main() -> int:
    """Serves on the port given as argument (none: any) until SIGTERM."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    server = grpc.server(ThreadPoolExecutor(2), options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((_Handler(),))
    port = server.add_insecure_port(f"127.0.0.1:{sys.argv[1] if len(sys.argv) > 1 else 0}")
    server.start()
    print(f"ready grpc=127.0.0.1:{port}", flush=True)
    while not stop.wait(3600):
        pass
    server.stop(grace=None).wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
