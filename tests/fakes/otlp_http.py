"""A small OTLP receiver over HTTP with binary protobuf: the twin of `OtlpReceiver`, and what proxies make of one.

with OtlpHttpReceiver() as receiver:
    receiver.url("traces")     # http://127.0.0.1:port/v1/traces
    receiver.answer = Answer(200, b"<html>", {"content-type": "text/html"})   # instead of receiving anything
"""

from __future__ import annotations

import gzip
import math
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import DecodeError, Message
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.fakes.otlp import Died, Receiver, Refusal, Tls, status

PROTOBUF = "application/x-protobuf"
# As the OpenTelemetry Collector's receiver maps them.
_STATUSES = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.UNIMPLEMENTED: 404,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 503,
}


class Answer(NamedTuple):
    """An HTTP answer to send as it is. `cut`: close the connection after so many bytes of the body."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = MappingProxyType({})
    cut: int | None = None


class OtlpHttpReceiver(Receiver):
    """OTLP over HTTP/1.1, with keep-alive."""

    def __init__(self, tls: Tls | None = None, port: int = 0) -> None:
        self._server: _Server | None = None
        # Sent instead of receiving anything.
        self.answer: Answer | None = None
        # Path and headers of every request.
        self.paths: list[str] = []
        super().__init__(tls, port)

    def url(self, signal: str = "traces") -> str:
        """Where to post that signal to."""
        return f"{'http' if self.tls is None else 'https'}://{self.endpoint}/v1/{signal}"

    @property
    def connections(self) -> int:
        """How many were opened since the last start."""
        return 0 if self._server is None else self._server.opened

    def start(self) -> None:
        assert self._server is None
        self._dying.clear()
        self._server = _Server(self._port, self)
        self._port = self._server.server_address[1]

    def stop(self) -> None:
        self._dying.set()
        if self._server is not None:
            self._server.die()
            self._server = None

    def receive(self, path: str, headers: dict[str, str], body: bytes) -> Answer:
        """The answer to one request. Raises Died."""
        self.paths.append(path)
        self._arrived(headers)
        if self.answer is not None:
            return self.answer
        try:
            if headers.get("content-type") != PROTOBUF:
                return Answer(415)
            body = gzip.decompress(body) if headers.get("content-encoding") == "gzip" else body
            message: Message
            if path == "/v1/traces":
                message = self._keep(ExportTraceServiceRequest.FromString(body))
            elif path == "/v1/metrics":
                message = self._keep_metrics(ExportMetricsServiceRequest.FromString(body))
            else:
                return Answer(404, b"404 page not found", {"content-type": "text/plain; charset=utf-8"})
        except (DecodeError, OSError, EOFError) as error:
            return Answer(400, str(error).encode(), {"content-type": "text/plain"})
        except Refusal as refusal:
            wait = {} if refusal.retry_after_s is None else {"retry-after": str(math.ceil(refusal.retry_after_s))}
            return Answer(_STATUSES.get(refusal.code, 500), status(refusal), {"content-type": PROTOBUF} | wait)
        return Answer(200, message.SerializeToString(), {"content-type": PROTOBUF})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = {key.lower(): value for key, value in self.headers.items()}
        try:
            answer = self.server.receiver.receive(self.path, headers, body)
        except Died:
            self.close_connection = True
            return
        self.send_response_only(answer.status)
        usual = {"date": self.date_time_string(), "content-length": str(len(answer.body))}
        for name, value in (usual | dict(answer.headers)).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.body[: answer.cut])
        if answer.cut is not None:
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Tests speak for themselves."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # A port that was just left is taken again, as the tests' restarts need it.
    allow_reuse_address = True

    def __init__(self, port: int, receiver: OtlpHttpReceiver) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.receiver = receiver
        self.opened = 0
        self._open: set[socket.socket] = set()
        self._guard = threading.Lock()
        if receiver.tls is not None:
            identity, clients = receiver.tls
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=clients)
            context.load_cert_chain(identity.certificate, identity.key)
            if clients is not None:
                context.verify_mode = ssl.CERT_REQUIRED
            # The handshake takes place in the connection's own thread, with its first read.
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), name="otlp-http", daemon=True)
        self._thread.start()

    def die(self) -> None:
        """Cuts all connections and frees the port."""
        self.shutdown()
        self._thread.join()
        with self._guard:
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self.server_close()

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        with self._tracked(request), suppress(OSError, ValueError):
            super().process_request_thread(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away, or whose certificate is not taken, is part of the tests."""

    @contextmanager
    def _tracked(self, connection: socket.socket) -> Iterator[None]:
        with self._guard:
            self._open.add(connection)
            self.opened += 1
        try:
            yield
        finally:
            with self._guard:
                self._open.discard(connection)
