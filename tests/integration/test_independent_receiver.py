"""OTLP through somebody else's implementation: sidecar -> rotel (Rust) -> the receiver of these tests.

Whatever of ours only our own receiver understands, rotel refuses, drops or changes.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
import rotel
from sidestep.v1 import decision_pb2, decision_pb2_grpc

from tests.chaos.pod import quiet_port
from tests.fakes.exported import altered, broken, decision_ids
from tests.fakes.otlp import OtlpReceiver, attributes
from tests.fakes.records import TRACEPARENT
from tests.fakes.stock import Stock, exempted, request, satisfied
from tests.processes import PATIENCE_S, sidecar, until

ROUNDS = 20


@contextmanager
def relay(folder: Path, onward: str) -> Iterator[dict[str, str]]:
    """A running rotel that passes everything on over gRPC; its endpoints by protocol."""
    ports = {"grpc": quiet_port(), "http/protobuf": quiet_port()}
    command = [
        str(Path(rotel.__file__).with_name("rotel-agent")),
        *("start", "--pid-file", str(folder / "rotel.pid"), "--batch-timeout", "50ms", "--exporter", "otlp"),
        *("--otlp-grpc-endpoint", f"127.0.0.1:{ports['grpc']}"),
        *("--otlp-http-endpoint", f"127.0.0.1:{ports['http/protobuf']}"),
        *("--otlp-exporter-endpoint", f"http://{onward}", "--otlp-exporter-retry-initial-backoff", "100ms"),
    ]
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("ROTEL_", "OTEL_"))}
    log = folder / "rotel.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=clean, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        for port in ports.values():
            until(lambda port=port: process.poll() is not None or _listens(port), f"rotel; {log.read_text()}")
        assert process.poll() is None, log.read_text()
        yield {protocol: f"http://127.0.0.1:{port}" for protocol, port in ports.items()}
    finally:
        process.kill()
        process.wait(PATIENCE_S)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize(("protocol", "compression"), [("grpc", "none"), ("grpc", "gzip"), ("http/protobuf", "gzip")])
def test_every_decision_arrives_unaltered(tmp_path: Path, protocol: str, compression: str) -> None:
    stock = Stock(tmp_path / "data")
    stock.load()
    stock.close()
    with OtlpReceiver() as receiver, relay(tmp_path, receiver.endpoint) as endpoints:
        settings = {
            "SIDESTEP_JOURNAL_SINK": "otlp",
            "SIDESTEP_SIDECAR_NAME": "pod-7",
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoints[protocol],
            "OTEL_EXPORTER_OTLP_COMPRESSION": compression,
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
            "OTEL_METRICS_EXPORTER": "none",
        }
        with sidecar(tmp_path / "data", **settings) as running:
            answered = ask(running.grpc)
            until(lambda: answered <= decision_ids(receiver.spans), "every decision to arrive")
        spans = receiver.spans
        resources = list(receiver.resources)
    assert altered(spans) == []
    assert broken(spans) == []
    assert decision_ids(spans) == answered
    decisions = [attributes(span) for span in spans if span.name.endswith("/Evaluate")]
    assert {decision["sidestep.outcome"] for decision in decisions} == {"ALLOW", "STEP_UP", "DENY"}
    assert sum(span.name.endswith("/EvaluateBatch") for span in spans) == ROUNDS
    for resource in resources:
        assert resource["service.instance.id"] == "pod-7"
        assert resource["service.name"] == "sidestep"
        assert resource["deployment.environment.name"] == "test"


def ask(target: str) -> set[str]:
    """Questions of every kind, single ones and batches, with and without a caller's trace; the ids of the decisions."""
    answered: set[str] = set()
    questions = [exempted(), satisfied(), request("mallory"), request("bob"), request("bob", "browse.items")]
    with grpc.insecure_channel(target) as channel:
        stub = decision_pb2_grpc.DecisionServiceStub(channel)  # type: ignore[no-untyped-call]
        for number in range(ROUNDS):
            metadata = (("traceparent", TRACEPARENT),) if number % 2 else ()
            for question in questions:
                answered.add(stub.Evaluate(question, timeout=PATIENCE_S, metadata=metadata).decision_id)
            batch = decision_pb2.EvaluateBatchRequest(requests=questions)
            results = stub.EvaluateBatch(batch, timeout=PATIENCE_S, metadata=metadata).results
            answered |= {result.response.decision_id for result in results}
    assert len(answered) == ROUNDS * 2 * len(questions)
    return answered
