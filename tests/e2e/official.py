"""The official OpenTelemetry Collector, built from its Go modules (see the folder `collector`), as a process."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.processes import PATIENCE_S, until

_SOURCE = Path(__file__).resolve().parent / "collector"
_BUILT = Path(__file__).resolve().parents[2] / ".tools"
# A cold build of some 500 packages takes two to three minutes on two cores.
_BUILD_S = 800
_PROBE_S = 120
_LISTENING = re.compile(r'"msg":"Starting (GRPC|HTTP) server".*"endpoint":"127\.0\.0\.1:(\d+)"')
_CONFIGURATION = """
receivers:
  otlp:
    protocols:
      grpc: {{endpoint: "127.0.0.1:{grpc}"}}
      http: {{endpoint: "127.0.0.1:{http}"}}
exporters:
  # With rotation the exporter does not buffer: what was acknowledged is in the file, also after SIGKILL.
  file/traces: {{path: "{traces}", rotation: {{max_megabytes: 10000}}}}
  file/metrics: {{path: "{metrics}", rotation: {{max_megabytes: 10000}}}}
service:
  pipelines:
    traces: {{receivers: [otlp], exporters: [file/traces]}}
    metrics: {{receivers: [otlp], exporters: [file/metrics]}}
"""


def build() -> Path:
    """The program, built unless it was before. Skips the test where there is no Go, or no Go modules are to be had."""
    go = shutil.which("go")
    if go is None:
        pytest.skip("the official collector is built with Go, and there is no `go` here")
    version = subprocess.run([go, "version"], capture_output=True, text=True, check=True).stdout
    source = b"".join((_SOURCE / name).read_bytes() for name in ("go.mod", "go.sum", "main.go"))
    built = _BUILT / f"collector-{hashlib.sha256(version.encode() + source).hexdigest()[:16]}"
    if built.exists():
        return built
    probe = ["mod", "download", "go.opentelemetry.io/collector/otelcol"]
    try:
        reached = subprocess.run([go, *probe], cwd=_SOURCE, capture_output=True, text=True, timeout=_PROBE_S)
    except subprocess.TimeoutExpired:
        pytest.skip("the official collector is built from Go modules, and none came in time")
    if reached.returncode:
        pytest.skip(f"the official collector is built from Go modules: {reached.stderr.strip()[-300:]}")
    _BUILT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_BUILT) as folder:
        fresh = Path(folder) / "collector"
        command = [go, "build", "-mod=readonly", "-trimpath", "-ldflags=-s -w", "-o", str(fresh), "."]
        environment = os.environ | {"CGO_ENABLED": "0"}
        done = subprocess.run(command, cwd=_SOURCE, env=environment, capture_output=True, text=True, timeout=_BUILD_S)
        assert done.returncode == 0, done.stderr[-4000:]
        fresh.rename(built)
    return built


class Collector:
    """`with Collector(program, folder)` runs it. It comes back on the ports it had; each life writes files of its own."""

    def __init__(self, program: Path, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._program = program
        self._folder = folder
        self._lives = 0
        self._process: subprocess.Popen[bytes] | None = None
        self.ports = {"grpc": 0, "http/protobuf": 0}

    def endpoint(self, protocol: str) -> str:
        """As in OTEL_EXPORTER_OTLP_ENDPOINT."""
        return f"http://127.0.0.1:{self.ports[protocol]}"

    def start(self) -> None:
        """Starts it and waits until it listens."""
        self._lives += 1
        log, configuration = self._folder / f"log-{self._lives}", self._folder / "collector.yaml"
        configuration.write_text(
            _CONFIGURATION.format(
                grpc=self.ports["grpc"],
                http=self.ports["http/protobuf"],
                traces=self._folder / f"traces-{self._lives:03}.json",
                metrics=self._folder / f"metrics-{self._lives:03}.json",
            )
        )
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [str(self._program), "--config", str(configuration)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

        def listening() -> dict[str, int] | None:
            assert self._process is not None
            assert self._process.poll() is None, log.read_text()
            found = dict(_LISTENING.findall(log.read_text()))
            ready = "Everything is ready" in log.read_text()
            return {"grpc": int(found["GRPC"]), "http/protobuf": int(found["HTTP"])} if ready else None

        self.ports = until(listening, "the collector to listen", 3 * PATIENCE_S)

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(PATIENCE_S)
            self._process = None

    def __enter__(self) -> Collector:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def files(self) -> list[Path]:
        """Its OTLP JSON files of spans, the oldest first."""
        return sorted(self._folder.glob("traces-*.json"))

    def spans(self) -> list[Span]:
        """All spans in its files."""
        return [
            ParseDict(_decoded(span), Span())
            for line in self._lines("traces")
            for group in line["resourceSpans"]
            for scope in group["scopeSpans"]
            for span in scope["spans"]
        ]

    def resources(self) -> list[dict[str, str]]:
        """The text attributes of every resource in its files of spans."""
        return [
            {pair["key"]: pair["value"].get("stringValue", "") for pair in group["resource"]["attributes"]}
            for line in self._lines("traces")
            for group in line["resourceSpans"]
        ]

    def metrics(self) -> list[dict[str, Any]]:
        """All metrics in its files, as OTLP JSON has them."""
        return [
            metric
            for line in self._lines("metrics")
            for group in line["resourceMetrics"]
            for scope in group["scopeMetrics"]
            for metric in scope["metrics"]
        ]

    def _lines(self, signal: str) -> Iterator[dict[str, Any]]:
        for path in sorted(self._folder.glob(f"{signal}-*.json")):
            # A line that was cut by a kill was never acknowledged.
            for line in path.read_bytes().splitlines(keepends=True):
                if line.endswith(b"\n"):
                    yield json.loads(line)


def _decoded(span: dict[str, Any]) -> dict[str, Any]:
    """As protobuf's JSON mapping has it: OTLP writes ids in hexadecimal digits instead."""
    ids = {
        key: base64.b64encode(bytes.fromhex(span[key])).decode()
        for key in ("traceId", "spanId", "parentSpanId")
        if key in span
    }
    return span | ids
