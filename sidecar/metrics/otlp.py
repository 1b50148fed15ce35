"""Metrics as OTLP (opentelemetry/proto/metrics/v1): cumulative sums, gauges, one explicit-bucket histogram with exemplars."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.metrics.v1 import metrics_pb2 as pb
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from sidecar.metrics.catalogue import Kind, Metric
from sidecar.metrics.collect import Histogram, Point, Sample
from sidecar.page import LATENCY_BOUNDS_S

_SCOPE = "sidestep"
_CUMULATIVE = pb.AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE


def encode(samples: Iterable[Sample], resource: Mapping[str, str], version: str, *, begun_ns: int, at_ns: int) -> bytes:
    """An ExportMetricsServiceRequest in wire format.

    `begun_ns`: since when the counters count; `at_ns`: now; both in Unix nanoseconds. `version`: of Sidestep.
    """
    metrics = [_metric(sample, begun_ns, at_ns) for sample in samples]
    group = pb.ResourceMetrics(
        resource=Resource(attributes=_attributes(resource)),
        scope_metrics=[pb.ScopeMetrics(scope=InstrumentationScope(name=_SCOPE, version=version), metrics=metrics)],
    )
    return ExportMetricsServiceRequest(resource_metrics=[group]).SerializeToString()


def _metric(sample: Sample, begun_ns: int, at_ns: int) -> pb.Metric:
    metric = sample.metric
    made = pb.Metric(name=metric.name, unit=metric.unit, description=metric.help)
    if sample.histogram is not None:
        point = _histogram(sample.histogram, begun_ns, at_ns)
        made.histogram.CopyFrom(pb.Histogram(aggregation_temporality=_CUMULATIVE, data_points=[point]))
    elif metric.kind is Kind.COUNTER:
        points = [_point(metric, point, at_ns, begun_ns) for point in sample.points]
        made.sum.CopyFrom(pb.Sum(aggregation_temporality=_CUMULATIVE, is_monotonic=True, data_points=points))
    else:
        made.gauge.CopyFrom(pb.Gauge(data_points=[_point(metric, point, at_ns) for point in sample.points]))
    return made


def _point(metric: Metric, point: Point, at_ns: int, begun_ns: int = 0) -> pb.NumberDataPoint:
    labels = {label.name: value for label, value in zip(metric.labels, point.labels, strict=True)}
    made = pb.NumberDataPoint(attributes=_attributes(labels), time_unix_nano=at_ns, start_time_unix_nano=begun_ns)
    if isinstance(point.value, int):
        made.as_int = point.value
    else:
        made.as_double = point.value
    return made


def _histogram(histogram: Histogram, begun_ns: int, at_ns: int) -> pb.HistogramDataPoint:
    return pb.HistogramDataPoint(
        start_time_unix_nano=begun_ns,
        time_unix_nano=at_ns,
        count=sum(histogram.counts),
        sum=histogram.sum_s,
        bucket_counts=histogram.counts,
        explicit_bounds=LATENCY_BOUNDS_S,
        exemplars=[
            pb.Exemplar(
                time_unix_nano=exemplar.at_ns,
                as_double=exemplar.duration_s,
                trace_id=bytes.fromhex(exemplar.trace_id),
                span_id=bytes.fromhex(exemplar.span_id),
            )
            for exemplar in histogram.exemplars
            if exemplar is not None
        ],
    )


def _attributes(values: Mapping[str, str]) -> list[KeyValue]:
    return [KeyValue(key=key, value=AnyValue(string_value=value)) for key, value in values.items()]
