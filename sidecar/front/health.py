"""grpc.health.v1.Health: `""` is liveness, the decision service is SERVING once data is loaded."""

from __future__ import annotations

from typing import Final

from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from engine.errors import InvalidInputError
from sidecar.front.errors import OverloadedError, UnknownServiceError
from sidecar.front.servicer import SERVICE
from sidecar.front.transport import Call, StatusCode, Transport

HEALTH_SERVICE: Final = "grpc.health.v1.Health"
MAX_WATCHERS: Final = 64
"""Open Watch streams of one loop."""

_SERVING: Final[int] = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING: Final[int] = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN: Final[int] = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Health:
    """What the worker says of itself. Set by its main thread, read by its loops."""

    def __init__(self) -> None:
        # The default tenant's data is there to decide on.
        self.loaded = False
        self.draining = False

    def status(self, service: str) -> int | None:
        """Of a service; None if there is no such service here."""
        if service == "":
            return _NOT_SERVING if self.draining else _SERVING
        if service == SERVICE:
            return _SERVING if self.loaded and not self.draining else _NOT_SERVING
        return None

    def check(self, payload: bytes) -> bytes:
        """Answers Check. Raises InvalidInputError, UnknownServiceError."""
        service = _service(payload)
        status = self.status(service)
        if status is None:
            raise UnknownServiceError(f"no service {service[:128]!r} here")
        return _response(status)

    def list(self) -> bytes:
        """Answers List."""
        statuses = {name: health_pb2.HealthCheckResponse(status=self.status(name)) for name in ("", SERVICE)}
        return bytes(health_pb2.HealthListResponse(statuses=statuses).SerializeToString())


class Watchers:
    """The open Watch streams of one loop."""

    def __init__(self, health: Health, transport: Transport) -> None:
        self._health = health
        self._transport = transport
        # Each call with its service and the status it was told last.
        self._watchers: list[tuple[Call, str, int | None]] = []

    def add(self, call: Call) -> None:
        """Begins a Watch. Raises InvalidInputError, OverloadedError."""
        service = _service(call.payload)
        if len(self._watchers) >= MAX_WATCHERS:
            raise OverloadedError(f"more than {MAX_WATCHERS} Watch streams")
        self._watchers.append((call, service, None))
        self.tell()

    def tell(self) -> None:
        """Sends what changed, and forgets who has gone. Cheap if nothing did."""
        if not self._watchers:
            return
        left = []
        for call, service, told in self._watchers:
            if call.cancelled:
                continue
            status = self._health.status(service)
            now = _UNKNOWN if status is None else status
            sent = now != told and self._transport.send(call, _response(now))
            left.append((call, service, now if sent else told))
        self._watchers = left

    def end(self) -> None:
        """Ends all streams, once each has been told of the drain if it can be."""
        self.tell()
        for call, _, _ in self._watchers:
            self._transport.fail(call, StatusCode.UNAVAILABLE, "draining")
        self._watchers = []


def _service(payload: bytes) -> str:
    try:
        return str(health_pb2.HealthCheckRequest.FromString(payload).service)
    except DecodeError:
        raise InvalidInputError("request", "is not a HealthCheckRequest message") from None


def _response(status: int) -> bytes:
    return bytes(health_pb2.HealthCheckResponse(status=status).SerializeToString())
