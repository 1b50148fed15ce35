"""The way out: what was collected, to Prometheus by `/metrics`, and to a collector by OTLP if OpenTelemetry's variables ask so.

Observations are taken in the event loop and handed to the SDK whole: its exporter has a thread of its own, in which no part
of the program may be asked.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final

from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as HttpExporter
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExporter, MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from controlplane.errors import SettingsError
from controlplane.metrics.catalogue import CATALOGUE, CODES, METHODS, RPC_DURATION, RPCS, Kind, Metric
from controlplane.metrics.collect import Samples
from controlplane.metrics.tally import Tally

_LOG = logging.getLogger(__name__)

DURATION_BOUNDS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_REFRESH_S: Final = 5.0
_SERVICE: Final = "sidestep-controlplane"


class Meters:
    """Everything that leaves the process as a metric. `rpcs` and `record_call` are for the interceptor."""

    def __init__(self, version: str, environment: Mapping[str, str]) -> None:
        """Raises SettingsError if OpenTelemetry's variables cannot be followed."""
        self.rpcs = Tally((method, code) for method in METHODS for code in CODES)
        self._samples: Samples = {}
        self._registry = CollectorRegistry()
        readers: list[MetricReader] = [
            PrometheusMetricReader(disable_target_info=True, scope_info_enabled=False, registry=self._registry)
        ]
        if (exporter := _exporter(environment)) is not None:
            readers.append(PeriodicExportingMetricReader(exporter))
        # The SDK adds what OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME say.
        resource = Resource.create({"service.version": version})
        if str(resource.attributes.get("service.name", "unknown_service")).startswith("unknown_service"):
            resource = resource.merge(Resource({"service.name": _SERVICE}))
        self._provider = MeterProvider(metric_readers=readers, resource=resource, shutdown_on_exit=False)
        meter = self._provider.get_meter("sidestep", version)
        self._duration = meter.create_histogram(
            RPC_DURATION.name,
            unit=RPC_DURATION.unit,
            description=RPC_DURATION.help,
            explicit_bucket_boundaries_advisory=DURATION_BOUNDS_S,
        )
        for metric in CATALOGUE:
            if metric.kind is Kind.HISTOGRAM:
                continue
            create = meter.create_observable_counter if metric.kind is Kind.COUNTER else meter.create_observable_gauge
            create(metric.name, [self._observer(metric)], unit=metric.unit, description=metric.help)

    def record_call(self, method: str, code: str, took_s: float | None) -> None:
        """Counts a call that ended."""
        self.rpcs.add(method, code)
        if took_s is not None:
            self._duration.record(took_s, {"method": method})

    def update(self, samples: Samples) -> None:
        """Takes over what was collected."""
        self._samples = samples

    async def run(self, collect: Callable[[], Awaitable[Samples]]) -> None:
        """Keeps what is exported fresh, until cancelled."""
        while True:
            try:
                self.update(await collect())
            except Exception:
                # A bug in here must not end the metrics in silence, nor anything else.
                _LOG.exception("metrics cannot be collected")
            await asyncio.sleep(_REFRESH_S)

    def render(self, accept: str) -> tuple[str, bytes]:
        """Content type and content for Prometheus, in the format it prefers."""
        encode, content_type = choose_encoder(accept)
        return content_type, encode(self._registry)

    def close(self) -> None:
        """Sends the last to the collector and ends. Blocks, a few seconds at most."""
        self._provider.shutdown(timeout_millis=3_000)

    def _observer(self, metric: Metric) -> Callable[[CallbackOptions], Iterable[Observation]]:
        names = [label.name for label in metric.labels]

        def observe(_options: CallbackOptions) -> Iterable[Observation]:
            for labels, value in self._samples.get(metric, ()):
                # Calls that never happened are left out: there would be hundreds.
                if value or metric is not RPCS:
                    yield Observation(value, dict(zip(names, labels, strict=True)))

        return observe


def _exporter(environment: Mapping[str, str]) -> MetricExporter | None:
    """As OpenTelemetry's variables say. Without an endpoint nothing is sent: most fetch `/metrics`."""

    def value(*names: str) -> str:
        return next((text for name in names if (text := environment.get(name, "").strip())), "")

    chosen = value("OTEL_METRICS_EXPORTER")
    if chosen not in ("", "otlp", "none"):
        raise SettingsError(f"OTEL_METRICS_EXPORTER: {chosen!r} is neither otlp nor none")
    endpoint = value("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    if chosen == "none" or value("OTEL_SDK_DISABLED").lower() == "true" or not (chosen or endpoint):
        return None
    protocol = value("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL") or "grpc"
    kinds: dict[str, Any] = {"grpc": GrpcExporter, "http/protobuf": HttpExporter}
    if protocol not in kinds:
        raise SettingsError(f"OTEL_EXPORTER_OTLP_PROTOCOL: {protocol!r} is neither grpc nor http/protobuf")
    try:
        exporter: MetricExporter = kinds[protocol]()
    except (ValueError, OSError) as error:
        raise SettingsError(f"OTEL_EXPORTER_OTLP_...: {error}") from None
    return exporter
