"""Metrics as Prometheus fetches them: its text format 0.0.4, or OpenMetrics 1.0 with exemplars. Standard library only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from typing import NamedTuple

from sidecar.metrics.catalogue import Kind, Metric
from sidecar.metrics.collect import Exemplar, Histogram, Point, Sample
from sidecar.page import LATENCY_BOUNDS_S

_OPENMETRICS = "application/openmetrics-text"
_OPENMETRICS_VERSIONS = ("1.0.0", "0.0.1")


class Format(Enum):
    """A text format; the value is its media type."""

    PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
    OPENMETRICS = f"{_OPENMETRICS}; version=1.0.0; charset=utf-8"


class Range(NamedTuple):
    """One media range of an Accept header (RFC 9110, 12.5.1)."""

    media: str
    version: str
    quality: float


def negotiate(accept: str) -> Format:
    """The format a client prefers. OpenMetrics only if it names it; whatever else it says, it gets the old format."""
    openmetrics = plain = 0.0
    for media, version, quality in _ranges(accept):
        if media == _OPENMETRICS and version in ("", *_OPENMETRICS_VERSIONS):
            openmetrics = max(openmetrics, quality)
        elif media in ("text/plain", "text/*"):
            plain = max(plain, quality)
    return Format.OPENMETRICS if openmetrics > 0 and openmetrics >= plain else Format.PROMETHEUS


def render(samples: Iterable[Sample], form: Format) -> str:
    """All samples as text, each metric with its kind and meaning."""
    openmetrics = form is Format.OPENMETRICS
    lines: list[str] = []
    for metric, points, histogram in samples:
        family = metric.family if openmetrics else metric.prometheus
        lines += (f"# TYPE {family} {metric.kind}", f"# HELP {family} {metric.help}")
        if openmetrics and metric.prometheus_unit:
            lines.append(f"# UNIT {family} {metric.prometheus_unit}")
        if histogram is not None:
            lines += _histogram(metric.family, histogram, exemplars=openmetrics)
        lines += _points(metric, points)
    if openmetrics:
        lines.append("# EOF")
    return "\n".join(lines) + "\n"


def _points(metric: Metric, points: Sequence[Point]) -> Iterator[str]:
    # The sample of a counter is called `..._total` in both formats.
    name = f"{metric.family}_total" if metric.kind is Kind.COUNTER else metric.family
    for labels, value in points:
        pairs = ",".join(f'{label.name}="{text}"' for label, text in zip(metric.labels, labels, strict=True))
        yield f"{name}{{{pairs}}} {_number(value)}" if pairs else f"{name} {_number(value)}"


def _histogram(name: str, histogram: Histogram, *, exemplars: bool) -> Iterator[str]:
    below = 0
    for bound, count, exemplar in zip(
        (*LATENCY_BOUNDS_S, float("inf")), histogram.counts, histogram.exemplars, strict=True
    ):
        below += count
        tail = _exemplar(exemplar) if exemplars and exemplar is not None else ""
        yield f'{name}_bucket{{le="{_number(bound)}"}} {below}{tail}'
    yield f"{name}_sum {_number(histogram.sum_s)}"
    yield f"{name}_count {below}"


def _exemplar(exemplar: Exemplar) -> str:
    labels = f'{{trace_id="{exemplar.trace_id}",span_id="{exemplar.span_id}"}}'
    seconds, rest_ns = divmod(exemplar.at_ns, 1_000_000_000)
    return f" # {labels} {_number(exemplar.duration_s)} {seconds}.{rest_ns // 1_000_000:03d}"


def _number(value: float) -> str:
    # Python writes numbers as Prometheus does, but for this one.
    return "+Inf" if value == float("inf") else repr(value)


def _ranges(accept: str) -> Iterator[Range]:
    """What can be read of the header; what cannot is passed over."""
    for part in accept.lower().split(","):
        media, *parameters = (piece.strip() for piece in part.split(";"))
        values = dict(parameter.split("=", 1) for parameter in parameters if "=" in parameter)
        try:
            quality = float(values.get("q", "1"))
        except ValueError:
            continue
        yield Range(media, values.get("version", ""), quality)
