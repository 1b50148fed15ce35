"""Metrics over OTLP: what is encoded, and how pushing goes, against a real receiver."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsPartialSuccess,
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.metrics.v1 import metrics_pb2 as pb

from sidecar.config import load
from sidecar.journal.export import ExportResult, open_exporter, read_answer
from sidecar.metrics.catalogue import CATALOGUE, Kind
from sidecar.metrics.collect import collect
from sidecar.metrics.otlp import encode
from sidecar.metrics.push import MetricsPush, open_push
from sidecar.otel import parse_otlp
from sidecar.page import LATENCY_BOUNDS_S, AgentWord, Page, WorkerWord
from tests.fakes.certificates import Authority
from tests.fakes.counters import AT_NS, SPAN_ID, TRACE_ID, fill
from tests.fakes.otlp import OtlpReceiver, plain
from tests.fakes.otlp_http import OtlpHttpReceiver

BEGUN_NS, NOW_NS = 1_000, 2_000
RESOURCE = {"service.name": "sidestep", "service.instance.id": "pod-1"}


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    page = Page.create(tmp_path / "page", 2)
    fill(page)
    yield page
    page.close()


@pytest.fixture
def sent(page: Page) -> dict[str, pb.Metric]:
    encoded = encode(collect(page), RESOURCE, "1.2.3", begun_ns=BEGUN_NS, at_ns=NOW_NS)
    (group,) = ExportMetricsServiceRequest.FromString(encoded).resource_metrics
    (scope,) = group.scope_metrics
    assert {pair.key: plain(pair.value) for pair in group.resource.attributes} == RESOURCE
    assert (scope.scope.name, scope.scope.version) == ("sidestep", "1.2.3")
    return {metric.name: metric for metric in scope.metrics}


def test_every_metric_is_sent_with_unit_and_meaning(sent: dict[str, pb.Metric]) -> None:
    assert [(m.name, m.unit, m.description) for m in sent.values()] == [(m.name, m.unit, m.help) for m in CATALOGUE]
    data = {Kind.COUNTER: "sum", Kind.GAUGE: "gauge", Kind.HISTOGRAM: "histogram"}
    assert all(sent[metric.name].WhichOneof("data") == data[metric.kind] for metric in CATALOGUE)


def test_counters_are_cumulative_sums_since_the_page_was_made(sent: dict[str, pb.Metric]) -> None:
    decisions = sent["sidestep.decisions"].sum
    assert decisions.is_monotonic
    assert decisions.aggregation_temporality == pb.AGGREGATION_TEMPORALITY_CUMULATIVE
    points = {tuple(str(plain(pair.value)) for pair in point.attributes): point for point in decisions.data_points}
    assert points["allow", "assurance_satisfied"].as_int == 2
    assert {(point.start_time_unix_nano, point.time_unix_nano) for point in points.values()} == {(BEGUN_NS, NOW_NS)}
    assert {pair.key for pair in decisions.data_points[0].attributes} == {"outcome", "basis"}


def test_gauges_have_no_start(sent: dict[str, pb.Metric]) -> None:
    (age,) = sent["sidestep.data.age"].gauge.data_points
    assert (age.as_double, age.start_time_unix_nano, age.time_unix_nano) == (1.5, 0, NOW_NS)
    revisions = {plain(p.attributes[0].value): p.as_int for p in sent["sidestep.revision"].gauge.data_points}
    assert revisions == {"urgent": 40, "bulk": 7}


def test_the_histogram_counts_per_bucket_and_leads_to_traces(sent: dict[str, pb.Metric]) -> None:
    histogram = sent["sidestep.decision.duration"].histogram
    assert histogram.aggregation_temporality == pb.AGGREGATION_TEMPORALITY_CUMULATIVE
    (point,) = histogram.data_points
    assert (point.start_time_unix_nano, point.time_unix_nano) == (BEGUN_NS, NOW_NS)
    assert tuple(point.explicit_bounds) == LATENCY_BOUNDS_S
    assert len(point.bucket_counts) == len(LATENCY_BOUNDS_S) + 1
    assert {at: count for at, count in enumerate(point.bucket_counts) if count} == {2: 2, 15: 1, 16: 2}
    assert (point.count, point.sum) == (5, pytest.approx(7.00008))
    assert [(e.trace_id.hex(), e.span_id.hex(), e.as_double, e.time_unix_nano) for e in point.exemplars] == [
        (TRACE_ID, SPAN_ID, 40e-6, AT_NS),
        (TRACE_ID, SPAN_ID, 3.0, AT_NS),
    ]


def pusher(page: Page, endpoint: str, interval_s: float = 60.0) -> MetricsPush:
    exporter = open_exporter(parse_otlp({"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{endpoint}"}, "metrics"), "metrics")
    return MetricsPush(page, exporter, RESOURCE, interval_s)


def count(page: Page) -> tuple[int, int]:
    return page.agent.get(AgentWord.METRIC_EXPORTS), page.agent.get(AgentWord.METRIC_EXPORT_FAILURES)


def test_a_push_arrives_and_is_counted(page: Page) -> None:
    before = count(page)
    with OtlpReceiver() as receiver:

        async def push() -> bool:
            metrics = pusher(page, receiver.endpoint)
            try:
                return await metrics.push(10.0)
            finally:
                await metrics.close()

        assert asyncio.run(push())
        (request,) = receiver.metrics
    metric = request.resource_metrics[0].scope_metrics[0].metrics[0]
    assert metric.name == "sidestep.decisions"
    assert metric.sum.data_points[0].start_time_unix_nano == page.created_ns
    assert metric.sum.data_points[0].time_unix_nano > page.created_ns
    assert count(page) == (before[0] + 1, before[1])


def test_metrics_are_pushed_again_and_again_with_what_is_counted_meanwhile(page: Page) -> None:
    with OtlpReceiver() as receiver:

        async def run() -> None:
            metrics = pusher(page, receiver.endpoint, interval_s=0.02)
            task = asyncio.create_task(metrics.run())
            try:
                while len(receiver.metrics) < 3:
                    page.worker(0).add(WorkerWord.PARKED)
                    await asyncio.sleep(0.005)
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                await metrics.close()

        asyncio.run(asyncio.wait_for(run(), 30))
        requests = list(receiver.metrics)
    parked = [
        metric.sum.data_points[0].as_int
        for request in requests
        for metric in request.resource_metrics[0].scope_metrics[0].metrics
        if metric.name == "sidestep.parked_calls"
    ]
    assert parked == sorted(parked)
    assert parked[-1] > parked[0]


def test_an_outage_is_counted_each_time_and_logged_once(page: Page, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    before = count(page)
    receiver = OtlpReceiver()
    receiver.stop()

    async def outage() -> None:
        metrics = pusher(page, receiver.endpoint)
        try:
            for _ in range(3):
                assert not await metrics.push(5.0)
            receiver.start()
            for _ in range(100):  # until the channel has found it
                if await metrics.push(5.0):
                    return
                await asyncio.sleep(0.1)
            raise AssertionError("never sent again")
        finally:
            await metrics.close()

    try:
        asyncio.run(outage())
    finally:
        receiver.stop()
    exports, failures = count(page)
    assert exports == before[0] + 1
    assert failures >= before[1] + 3
    ours = [(record.levelname, record.getMessage()) for record in caplog.records if record.name.endswith("push")]
    assert [level for level, _ in ours] == ["WARNING", "INFO"]
    assert "metrics" in ours[0][1]


def test_points_the_collector_does_not_keep_are_a_failure(page: Page, caplog: pytest.LogCaptureFixture) -> None:
    class Partial:
        async def export(self, request: bytes, timeout_s: float | None = None) -> ExportResult:
            partial = ExportMetricsPartialSuccess(rejected_data_points=2, error_message="too many series")
            return read_answer(ExportMetricsServiceResponse(partial_success=partial).SerializeToString())

        async def close(self) -> None: ...

    before = count(page)
    metrics = MetricsPush(page, Partial(), RESOURCE, 60.0)
    assert not asyncio.run(metrics.push(1.0))
    assert count(page) == (before[0], before[1] + 1)
    assert "2 data points were rejected: too many series" in caplog.text


def test_metrics_are_pushed_over_http_too(page: Page) -> None:
    with OtlpHttpReceiver() as receiver:
        config = load(
            {
                "SIDESTEP_TENANT": "acme",
                "SIDESTEP_SIDECAR_NAME": "pod-7",
                "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
                "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{receiver.endpoint}",
            }
        )

        async def push() -> bool:
            metrics = open_push(config, page)
            assert metrics is not None
            try:
                return await metrics.push(10.0)
            finally:
                await metrics.close()

        assert asyncio.run(push())
        (request,) = receiver.metrics
    resource = {pair.key: plain(pair.value) for pair in request.resource_metrics[0].resource.attributes}
    assert resource.items() >= {"service.name": "sidestep", "service.instance.id": "pod-7"}.items()


@pytest.mark.parametrize("setting", [{"OTEL_METRICS_EXPORTER": "none"}, {"OTEL_SDK_DISABLED": "true"}])
def test_metrics_can_be_turned_off(page: Page, setting: dict[str, str]) -> None:
    assert open_push(load({"SIDESTEP_TENANT": "acme"} | setting), page) is None


def test_tls_files_that_cannot_be_used_stop_nothing_but_metrics(
    page: Page, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trusted = Authority(tmp_path).issue("collector").certificate
    config = load(
        {
            "SIDESTEP_TENANT": "acme",
            "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "https://127.0.0.1:4318/v1/metrics",
            "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "http/protobuf",
            "OTEL_EXPORTER_OTLP_METRICS_CERTIFICATE": str(trusted),
        }
    )
    trusted.write_text("not a certificate any more")

    async def opened() -> MetricsPush | None:
        return open_push(config, page)

    assert asyncio.run(opened()) is None
    assert "metrics: not sent" in caplog.text


def test_a_collector_without_metrics_is_named(page: Page, caplog: pytest.LogCaptureFixture) -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()

    async def push() -> bool:
        metrics = pusher(page, f"127.0.0.1:{port}")
        try:
            return await metrics.push(10.0)
        finally:
            await metrics.close()

    try:
        assert not asyncio.run(push())
    finally:
        server.stop(None).wait()
    assert "UNIMPLEMENTED" in caplog.text
