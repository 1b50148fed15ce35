"""Health: over gRPC (grpc.health.v1) and over HTTP (/healthz, /readyz), where /metrics is served, too.

Liveness is that the event loop answers. Readiness is made of named components, each a question asked anew every time.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping

from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health_aio

_CHECK_EVERY_S = 0.5
_REQUEST_WITHIN_S = 5.0
_MAX_REQUEST_BYTES = 8 * 1024
_MAX_CONNECTIONS = 64

Status = health_pb2.HealthCheckResponse.ServingStatus


class Health:
    """Answers for the whole process. `components` maps a name to whether that part is ready; `notes` gives what ought to be known
    besides, and takes no readiness away; `metrics` gives content type and content for an Accept header.
    """

    def __init__(
        self,
        services: Iterable[str],
        components: Mapping[str, Callable[[], bool]],
        notes: Callable[[], Mapping[str, object]] = dict,
        metrics: Callable[[str], Awaitable[tuple[str, bytes]]] | None = None,
    ) -> None:
        self.servicer = health_aio.HealthServicer()
        self._services = tuple(services)
        self._components = components
        self._notes = notes
        self._metrics = metrics
        self._server: asyncio.Server | None = None
        self._connections = 0
        self._draining = False

    def state(self) -> dict[str, bool]:
        """Readiness by component."""
        return {**{name: ready() for name, ready in self._components.items()}, "serving": not self._draining}

    async def listen(self, host: str, port: int) -> int:
        """Serves HTTP; returns the port."""
        self._server = await asyncio.start_server(self._answer, host, port, limit=_MAX_REQUEST_BYTES)
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def run(self) -> None:
        """Tells readiness to gRPC's health service until cancelled."""
        while True:
            ready = all(self.state().values())
            status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
            for service in self._services:
                await self.servicer.set(service, status)
            await asyncio.sleep(_CHECK_EVERY_S)

    async def drain(self) -> None:
        """From here on not ready."""
        self._draining = True
        await self.servicer.enter_graceful_shutdown()

    async def close(self) -> None:
        """Stops serving HTTP."""
        if self._server is not None:
            self._server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            if self._connections > _MAX_CONNECTIONS:
                return
            async with asyncio.timeout(_REQUEST_WITHIN_S):
                request = await reader.readuntil(b"\r\n\r\n")
                writer.write(await self._response(request))
                await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError, OSError):
            # Whoever asked has gone, or does not speak HTTP; there is nobody to tell.
            pass
        finally:
            self._connections -= 1
            writer.close()

    async def _response(self, request: bytes) -> bytes:
        parts = request.split(b"\r\n", 1)[0].split(b" ")
        method, path = (parts[0], parts[1].split(b"?")[0]) if len(parts) == 3 else (b"", b"")
        if method not in (b"GET", b"HEAD"):
            return _http("405 Method Not Allowed", {}, with_body=True)
        with_body = method == b"GET"
        if path == b"/healthz":
            return _http("200 OK", {"alive": True}, with_body=with_body)
        if path == b"/readyz":
            state = self.state()
            status = "200 OK" if all(state.values()) else "503 Service Unavailable"
            return _http(status, {**state, **self._notes()}, with_body=with_body)
        if path == b"/metrics" and self._metrics is not None:
            content_type, content = await self._metrics(_header(request, b"accept"))
            return _answer("200 OK", content_type, content, with_body=with_body)
        return _http("404 Not Found", {}, with_body=with_body)


def _header(request: bytes, name: bytes) -> str:
    """The value of a header; several of one name are one list (RFC 9110, 5.3)."""
    lines = (line.partition(b":") for line in request.split(b"\r\n")[1:])
    return ", ".join(value.strip().decode("latin-1") for key, _, value in lines if key.strip().lower() == name)


def _http(status: str, body: Mapping[str, object], *, with_body: bool) -> bytes:
    return _answer(status, "application/json", json.dumps(body).encode() + b"\n", with_body=with_body)


def _answer(status: str, content_type: str, content: bytes, *, with_body: bool) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(content)}\r\n"
        "Cache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (content if with_body else b"")
