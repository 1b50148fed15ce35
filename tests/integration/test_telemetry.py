"""Metrics and logs of a whole sidecar: what Prometheus fetches, what the collector is sent, and what stands on standard error."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from pathlib import Path
from typing import Any

import grpc
from opentelemetry.proto.metrics.v1 import metrics_pb2
from sidestep.v1 import decision_pb2, decision_pb2_grpc, resources_pb2

from engine.names import Collection, Lane
from sidecar.metrics.catalogue import CATALOGUE
from sidecar.metrics.text import Format
from sidecar.page import Page
from tests.fakes.controlplane import ControlPlane
from tests.fakes.history import History
from tests.fakes.otlp import OtlpReceiver, plain
from tests.fakes.records import TRACEPARENT
from tests.golden import openmetrics
from tests.processes import Program, controlplane, sidecar, until

SUBJECT = "someone-nobody-may-read-about"


def feed(plane: ControlPlane) -> None:
    urgent, bulk = History(lane=Lane.URGENT), History(lane=Lane.BULK)
    subject = resources_pb2.Subject(name=f"tenants/acme/subjects/{SUBJECT}", state=resources_pb2.SUBJECT_STATE_ACTIVE)
    urgent.commit({(int(Collection.SUBJECTS), SUBJECT): subject.SerializeToString()})
    stream = plane.accept()
    stream.scope("acme")
    stream.snapshot(urgent)
    stream.snapshot(bulk)
    stream.follow(urgent, bulk)


def fetch(program: Program) -> dict[str, openmetrics.Family]:
    request = urllib.request.Request(
        f"http://{program.http}/metrics", headers={"Accept": Format.OPENMETRICS.value.replace(" ", "")}
    )
    with urllib.request.urlopen(request, timeout=5) as answer:
        assert answer.headers["Content-Type"] == Format.OPENMETRICS.value
        return openmetrics.parse(answer.read().decode())


def value(families: dict[str, openmetrics.Family], family: str, **labels: str) -> float:
    return sum(s.value for s in families[family].samples if s.labels.items() >= labels.items())


def exemplars_of(families: dict[str, openmetrics.Family]) -> list[tuple[str, str]]:
    samples = families["sidestep_decision_duration_seconds"].samples
    return [(s.exemplar.labels["trace_id"], s.exemplar.labels["span_id"]) for s in samples if s.exemplar is not None]


def evaluate(program: Program, times: int) -> None:
    request = decision_pb2.EvaluateRequest(
        subject=decision_pb2.SubjectRef(id=SUBJECT), action=decision_pb2.Action(name="payments.transfer")
    )
    with grpc.insecure_channel(program.grpc) as channel:
        stub: Any = decision_pb2_grpc.DecisionServiceStub(channel)  # type: ignore[no-untyped-call]
        for _ in range(times):
            stub.Evaluate(request, timeout=10, metadata=(("traceparent", TRACEPARENT),))


def sent(receiver: OtlpReceiver, name: str) -> list[metrics_pb2.NumberDataPoint]:
    """The points of a counter in the last push."""
    metrics = receiver.metrics[-1].resource_metrics[0].scope_metrics[0].metrics
    assert [metric.name for metric in metrics] == [metric.name for metric in CATALOGUE]
    (found,) = [metric for metric in metrics if metric.name == name]
    return list(found.sum.data_points)


def test_metrics_reach_prometheus_and_the_collector_and_logs_are_json(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with ControlPlane() as plane, OtlpReceiver() as receiver:
        settings = {
            "SIDESTEP_CONTROL_PLANE": plane.address,
            "SIDESTEP_SIDECAR_NAME": "pod-1",
            "SIDESTEP_JOURNAL_SINK": "otlp",
            "SIDESTEP_LOG_LEVEL": "debug",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{receiver.endpoint}",
            # The last one, at the end, comes without waiting for it.
            "OTEL_METRIC_EXPORT_INTERVAL": "200",
        }
        with sidecar(data, **settings) as program:
            feed(plane)
            until(lambda: value(fetch(program), "sidestep_process_state", state="serving") == 2, "data")
            evaluate(program, 20)
            receiver.wait_for_spans(20)
            until(lambda: value(fetch(program), "sidestep_journal_shipped") >= 20, "the last acknowledgement")

            families = fetch(program)
            assert value(families, "sidestep_decisions", outcome="step_up") == 20
            assert value(families, "sidestep_decision_duration_seconds", le="+Inf") == 20
            assert value(families, "sidestep_journal_lost") == 0
            spans = {(span.trace_id.hex(), span.span_id.hex()) for span in receiver.spans}
            exemplars = until(lambda: exemplars_of(fetch(program)), "exemplars")
            assert set(exemplars) <= spans, "an exemplar leads to a decision the collector has"
            assert value(families, "sidestep_journal_max_bytes") == 256 << 20
            assert value(families, "sidestep_data_hard_stale_seconds") == 3600
            assert value(families, "sidestep_sync_connected") == 1
            assert value(families, "sidestep_sync_snapshots") == 2
            until(lambda: value(fetch(program), "sidestep_metric_exports") > 1, "metrics to be pushed")
            assert value(fetch(program), "sidestep_metric_export_failures") == 0

            # A collector that dies in the middle of a call makes gRPC's own core speak up; not on standard error.
            receiver.delay_s = 60.0
            calls = len(receiver.calls)
            evaluate(program, 1)
            until(lambda: len(receiver.calls) > calls, "a call in flight")
            receiver.stop()
            until(lambda: value(fetch(program), "sidestep_journal_export_failures") > 0, "the failure")
            receiver.delay_s = 0.0
            receiver.start()

            # What no push has told yet is told by the last one.
            evaluate(program, 4)
            assert program.stop() == 0
        decisions = sum(point.as_int for point in sent(receiver, "sidestep.decisions"))
        shipped = sum(point.as_int for point in sent(receiver, "sidestep.journal.shipped"))
        assert (decisions, shipped) == (25, 25)
        resource = {p.key: plain(p.value) for p in receiver.metrics[-1].resource_metrics[0].resource.attributes}
        assert resource in receiver.resources, "metrics and spans tell the same of where they come from"
        assert resource["service.instance.id"] == "pod-1"

    lines = [json.loads(line) for line in (data / "sidecar.log").read_text(encoding="utf-8").splitlines()]
    assert {"supervisor", "agent"} <= {line["process"] for line in lines}
    assert all(line["time"].endswith("Z") and line["level"] and line["message"] for line in lines)
    assert SUBJECT not in json.dumps(lines)


def test_counters_go_on_when_the_agent_is_killed(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with (
        ControlPlane() as plane,
        OtlpReceiver() as receiver,
        sidecar(
            data,
            SIDESTEP_CONTROL_PLANE=plane.address,
            SIDESTEP_JOURNAL_SINK="otlp",
            OTEL_EXPORTER_OTLP_ENDPOINT=f"http://{receiver.endpoint}",
            OTEL_METRIC_EXPORT_INTERVAL="200",
        ) as program,
    ):
        feed(plane)
        until(lambda: value(fetch(program), "sidestep_process_state", state="serving") == 2, "data")
        evaluate(program, 3)
        until(lambda: value(fetch(program), "sidestep_journal_shipped") == 3, "shipping")
        began = sent_since(receiver)
        kill_agent(data)
        until(lambda: value(fetch(program), "sidestep_process_restarts", process="agent") == 1, "the restart")
        before = len(receiver.metrics)
        until(lambda: len(receiver.metrics) > before + 1, "metrics from the new agent")
        # What was acknowledged just before may be sent, and counted, a second time.
        assert sum(point.as_int for point in sent(receiver, "sidestep.journal.shipped")) >= 3
        assert sum(point.as_int for point in sent(receiver, "sidestep.sync.snapshots")) >= 2
        assert sent_since(receiver) == began, "the counters' beginning is that of the page, not of the agent"


def test_the_control_plane_logs_in_the_same_form(tmp_path: Path) -> None:
    with controlplane(tmp_path, SIDESTEP_CP_LOG_LEVEL="DEBUG") as program:
        assert program.stop() == 0
    lines = [json.loads(line) for line in program.errors().splitlines()]
    assert {line["process"] for line in lines} == {"controlplane"}
    assert lines[-1]["message"] == "stopping"


def sent_since(receiver: OtlpReceiver) -> int:
    until(lambda: receiver.metrics, "a push")
    return sent(receiver, "sidestep.decisions")[0].start_time_unix_nano


def kill_agent(data: Path) -> None:
    page = Page(data / "page")
    try:
        os.kill(page.agent.pid, signal.SIGKILL)
    finally:
        page.close()
