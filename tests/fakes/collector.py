"""A collector as a process of its own, so that it can be killed: what it acknowledged is in its file.

    python -m tests.fakes.collector PROTOCOL PORT FILE [BEHAVIOUR]

PROTOCOL is `grpc` or `http/protobuf`. FILE gets what is kept of each request before that is acknowledged, in wire format behind
its length (4 bytes, big-endian), as the `proto` format of the official collector's file exporter has it. BEHAVIOUR is a
`Behaviour` as JSON.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import signal
import sys
import threading
from pathlib import Path

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from tests.fakes.otlp import OtlpReceiver, Receiver, Refusal
from tests.fakes.otlp_http import OtlpHttpReceiver

LENGTH_BYTES = 4


@dataclasses.dataclass(frozen=True)
class Behaviour:
    """How requests are treated; every `fair_every`-th of them is treated well whatever else is set."""

    fair_every: int = 0
    # How long an answer takes. The spans are kept at once.
    delay_s: float = 0.0
    # Refuse with RESOURCE_EXHAUSTED, and ask to come back after so long.
    retry_after_s: float | None = None
    # Accept a request but for so many of its spans.
    reject: int = 0


class _Filing(Receiver):
    """Keeps spans in a file instead of in memory."""

    def __init__(self, port: int, path: Path, behaviour: Behaviour) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._behaviour = behaviour
        self._numbers = itertools.count(1)
        self._filing = threading.Lock()
        super().__init__(port=port)

    def _keep(self, request: ExportTraceServiceRequest) -> ExportTraceServiceResponse:
        unfair = self._behaviour
        if unfair.fair_every and next(self._numbers) % unfair.fair_every == 0:
            unfair = Behaviour()
        if unfair.retry_after_s is not None:
            raise Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "come back later", unfair.retry_after_s)
        rejected = _take_out(request, unfair.reject)
        self._write(request.SerializeToString())
        self._dying.wait(unfair.delay_s)
        response = ExportTraceServiceResponse()
        if rejected:
            response.partial_success.rejected_spans = rejected
            response.partial_success.error_message = "told to"
        return response

    def _write(self, data: bytes) -> None:
        left = len(data).to_bytes(LENGTH_BYTES, "big") + data
        with self._filing:
            while left:
                left = left[os.write(self._file, left) :]


class _Grpc(_Filing, OtlpReceiver):
    """Over gRPC."""


class _Http(_Filing, OtlpHttpReceiver):
    """Over HTTP."""


def _take_out(request: ExportTraceServiceRequest, count: int) -> int:
    """Removes so many spans, if there are; returns how many."""
    taken = 0
    for scope in (scope for group in request.resource_spans for scope in group.scope_spans):
        part = min(count - taken, len(scope.spans))
        del scope.spans[:part]
        taken += part
    return taken


def main(protocol: str, port: str, file: str, behaviour: str = "{}") -> None:
    receiver = (_Grpc if protocol == "grpc" else _Http)(int(port), Path(file), Behaviour(**json.loads(behaviour)))
    sys.stdout.write(f"ready grpc={receiver.endpoint} http={receiver.endpoint}\n")
    sys.stdout.flush()
    while True:
        signal.pause()


if __name__ == "__main__":
    main(*sys.argv[1:])
