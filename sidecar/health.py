"""Health and metrics over HTTP: `/startz`, `/healthz`, `/readyz` and `/metrics`. Standard library only."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

_CLIENT_TIMEOUT_S = 5.0
_MAX_CLIENTS = 32


class Probe(NamedTuple):
    """The answer to a probe: 200 if `ok`, else 503; `detail` is sent as JSON and must hold nothing secret."""

    ok: bool
    detail: dict[str, object]


class HealthServer:
    """Answers GET in threads of its own. `probes` by path; `metrics` makes content type and text of an Accept header."""

    def __init__(
        self,
        host: str,
        port: int,
        probes: dict[str, Callable[[], Probe]],
        metrics: Callable[[str], tuple[str, str]],
    ) -> None:
        """Binds and begins to answer. Raises OSError."""
        limit = threading.BoundedSemaphore(_MAX_CLIENTS)

        class Handler(BaseHTTPRequestHandler):
            timeout = _CLIENT_TIMEOUT_S
            server_version = "sidestep"
            sys_version = ""

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if path in probes:
                    probe = probes[path]()
                    status = HTTPStatus.OK if probe.ok else HTTPStatus.SERVICE_UNAVAILABLE
                    self._answer(status, "application/json", json.dumps({"ok": probe.ok} | probe.detail) + "\n")
                elif path == "/metrics":
                    accept = ",".join(self.headers.get_all("Accept", ()))
                    self._answer(HTTPStatus.OK, *metrics(accept))
                else:
                    self._answer(HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", "not found\n")

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                """Probes come every few seconds: not worth a line."""

            def _answer(self, status: HTTPStatus, content_type: str, text: str) -> None:
                body = text.encode()
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Cache-Control", "no-store")
                self.end_headers()
                self.wfile.write(body)

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 2 * _MAX_CLIENTS
            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

            def process_request(self, request: Any, client_address: Any) -> None:
                if limit.acquire(blocking=False):
                    super().process_request(request, client_address)
                else:
                    self.shutdown_request(request)

            def process_request_thread(self, request: Any, client_address: Any) -> None:
                try:
                    super().process_request_thread(request, client_address)
                finally:
                    limit.release()

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that went away is no error of ours."""

        self._server = Server((host, port), Handler)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops answering and frees the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
