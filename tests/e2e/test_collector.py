"""The official OpenTelemetry Collector as the sidecar's collector: what it wrote to its file is what was decided."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.pod import Pod
from tests.e2e.official import Collector, build
from tests.fakes.exported import altered, broken, decision_ids
from tests.fakes.load import Load
from tests.fakes.stock import Stock
from tests.processes import until

pytestmark = pytest.mark.e2e
NOBODY = "127.0.0.1:1"
KILLS = 10
WITHIN_S = 60.0


@pytest.fixture(scope="session")
def program() -> Path:
    return build()


@pytest.mark.parametrize(("protocol", "compression"), [("grpc", "gzip"), ("http/protobuf", "none")])
def test_killed_and_restarted_under_load_it_misses_nothing(
    tmp_path: Path, program: Path, protocol: str, compression: str
) -> None:
    stock = Stock(tmp_path / "data")
    stock.load()
    stock.close()
    with Collector(program, tmp_path / "collector") as collector:
        settings = {
            "SIDESTEP_JOURNAL_SINK": "otlp",
            "SIDESTEP_SIDECAR_NAME": "pod-7",
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint(protocol),
            "OTEL_EXPORTER_OTLP_COMPRESSION": compression,
            "OTEL_METRIC_EXPORT_INTERVAL": "500",
        }
        with Pod(tmp_path / "data", NOBODY, **settings) as pod, Load(pod.address) as load:
            for _ in range(KILLS):
                kept = len(collector.spans())
                load.wait_for_answers(50)
                until(lambda kept=kept: len(collector.spans()) > kept, "more spans", WITHIN_S)
                collector.kill()
                load.wait_for_answers(50)
                collector.start()
            load.end()
            until(lambda: set(load.ids) <= decision_ids(collector.spans()), "every decision to arrive", WITHIN_S)
            lost = pod.metric("sidestep_journal_lost_total")
    spans = collector.spans()
    assert load.failures == []
    assert lost == 0
    assert (altered(spans), broken(spans)) == ([], [])
    assert decision_ids(spans) == set(load.ids)
    assert {resource["service.instance.id"] for resource in collector.resources()} == {"pod-7"}
