"""The collector that is harmed, as its tests see it: it comes back on the port it had, and what it acknowledged can be read."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.chaos.pod import Pod, quiet_port
from tests.fakes.collector import LENGTH_BYTES, Behaviour
from tests.fakes.exported import decision_ids
from tests.fakes.otlp_json import write_lines
from tests.processes import Program, until

WITHIN_S = 60.0
NOBODY = "127.0.0.1:1"
GRPC, HTTP = "grpc", "http/protobuf"
_UNRECORDED = "sidestep.journal.unrecorded"


class Collector:
    """`with Collector(folder, protocol) as collector` leaves nothing running; it is not started by that.

    Each life writes a file of its own.
    """

    def __init__(self, folder: Path, protocol: str = GRPC) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._protocol = protocol
        self._port = quiet_port()
        self._lives = 0
        self._program: Program | None = None
        self._requests: list[ExportTraceServiceRequest] = []
        # How far each file has been read.
        self._read: dict[Path, int] = {}
        self._ids: set[str] = set()
        self._spans: set[bytes] = set()
        # How many spans came that it had already, and what those that tell of decisions without a record say in sum.
        self.duplicates = self.unrecorded = 0

    @property
    def settings(self) -> dict[str, str]:
        """Of a sidecar that ships to it, or of the command line."""
        return {
            "OTEL_EXPORTER_OTLP_PROTOCOL": self._protocol,
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self._port}",
        }

    def start(self, behaviour: Behaviour | None = None) -> None:
        """Starts it and waits until it listens."""
        self._lives += 1
        file, log = self._folder / f"spans-{self._lives:03}", self._folder / "log"
        command = [sys.executable, "-m", "tests.fakes.collector", self._protocol, str(self._port), str(file)]
        self._program = Program([*command, json.dumps(asdict(behaviour or Behaviour()))], {}, log)
        self._program.wait_until_ready()
        self._read[file] = 0

    def kill(self) -> None:
        """SIGKILL."""
        if self._program is not None:
            self._program.end()
            self._program = None

    def ids(self) -> set[str]:
        """Of the decisions it has by now."""
        for file, offset in self._read.items():
            with file.open("rb") as stream:
                stream.seek(offset)
                data = stream.read()
            end = 0
            while (begin := end + LENGTH_BYTES) <= len(data):
                behind = begin + int.from_bytes(data[end:begin], "big")
                if behind > len(data):  # still being written, or cut by a kill: not acknowledged
                    break
                self._take(ExportTraceServiceRequest.FromString(data[begin:behind]))
                end = behind
            self._read[file] += end
        return self._ids

    def wait_for(self, ids: Iterable[str]) -> None:
        """Waits until it has all these decisions."""
        wanted = set(ids)
        until(lambda: wanted <= self.ids(), "every decision to arrive", WITHIN_S)

    def wait_for_more(self) -> None:
        """Waits until it has more decisions than now."""
        before = len(self.ids())
        until(lambda: len(self.ids()) > before, "more decisions to arrive", WITHIN_S)

    def export(self) -> Path:
        """All it has, as OTLP JSON."""
        self.ids()
        path = self._folder / "export.json"
        write_lines(path, self._requests)
        return path

    def __enter__(self) -> Collector:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def _take(self, request: ExportTraceServiceRequest) -> None:
        spans = [span for group in request.resource_spans for scope in group.scope_spans for span in scope.spans]
        self._requests.append(request)
        self._ids |= decision_ids(spans)
        for span in spans:
            if span.span_id in self._spans:
                self.duplicates += 1
            else:
                self.unrecorded += sum(pair.value.int_value for pair in span.attributes if pair.key == _UNRECORDED)
            self._spans.add(span.span_id)


def shipping_pod(data: Path, collector: Collector, control_plane: str = NOBODY, **settings: str) -> Pod:
    """A sidecar that ships to the collector."""
    usual = {
        "SIDESTEP_SIDECAR_NAME": "pod-7",
        "SIDESTEP_JOURNAL_SINK": "otlp",
        "SIDESTEP_JOURNAL_REPORT_INTERVAL": "100ms",
        "SIDESTEP_READY_REQUIRES_SYNC": "true",
        "SIDESTEP_SHUTDOWN_GRACE": "3s",
        "OTEL_METRICS_EXPORTER": "none",
    }
    return Pod(data, control_plane, **(usual | collector.settings | settings))
