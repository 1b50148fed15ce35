"""The official OpenTelemetry Collector as the sidecar's collector: what it wrote to its file is what was decided."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sidecar.page import Page, State
from tests.chaos import world
from tests.chaos.pod import Plane, Pod
from tests.e2e.official import Collector, build
from tests.fakes.exported import altered, broken, decision_ids
from tests.fakes.load import Load
from tests.fakes.stock import Stock
from tests.processes import until

pytestmark = pytest.mark.e2e
NOBODY = "127.0.0.1:1"
NOT_WHOLE = 13
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


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[Plane]:
    with Plane(tmp_path / "plane") as plane:
        for resource in world.resources():
            plane.put(resource)
        plane.put(world.grant(1, active=True))
        yield plane


def test_its_file_is_verified_and_replayed(tmp_path: Path, program: Path, plane: Plane) -> None:
    with Collector(program, tmp_path / "collector") as collector:
        settings = {
            "SIDESTEP_JOURNAL_SINK": "otlp",
            "SIDESTEP_SIDECAR_NAME": "pod-7",
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint("grpc"),
            "OTEL_METRIC_EXPORT_INTERVAL": "500",
        }
        with Pod(tmp_path / "data", plane.address, **settings) as pod:
            until(lambda: state(pod) is State.SERVING, "the sidecar to have its data")
            with Load(pod.address) as load:
                load.wait_for_answers(300)
            until(lambda: counted(collector) == len(load.ids), "the metrics to tell of every decision", WITHIN_S)
            assert pod.stop() == 0
        assert load.failures == []
        assert decision_ids(collector.spans()) == set(load.ids)
        kept = collector.files[0].read_text()

    def verify(text: str) -> int:
        export = tmp_path / "export.json"
        export.write_text(text)
        return sidestep(plane, "journal", "verify", str(export), "--sidecar", "pod-7").returncode

    assert verify(kept) == 0
    lines = kept.splitlines(keepends=True)
    assert verify("".join(lines[:-1])) == NOT_WHOLE, "a cut end"
    assert verify("".join(lines[1:])) == NOT_WHOLE, "a cut beginning"
    assert verify(with_another_outcome(kept)) == NOT_WHOLE, "an edited record"
    audited = sidestep(plane, "sidecars", "audit", "--sidecar", "pod-7", "--lost-after", "1ms", "-o", "json")
    assert audited.returncode == 0, audited.stdout
    replayed = sidestep(plane, "decisions", "replay", "--from", str(collector.files[0]), "-o", "json")
    assert replayed.returncode == 0, replayed.stdout
    assert json.loads(replayed.stdout)["identical"] == len(load.ids)


def state(pod: Pod) -> State:
    page = Page(pod.data_dir / "page")
    try:
        return page.worker(0).state
    finally:
        page.close()


def counted(collector: Collector) -> int:
    """Decisions, by the latest of the metrics that came."""
    latest: dict[str, int] = {}
    for metric in collector.metrics():
        if metric["name"] == "sidestep.decisions":
            for point in metric["sum"]["dataPoints"]:
                latest[json.dumps(point["attributes"], sort_keys=True)] = int(point["asInt"])
    return sum(latest.values())


def with_another_outcome(text: str) -> str:
    """An export in which one DENY has become an ALLOW, in the span and in the record."""
    lines = text.splitlines(keepends=True)
    for number, line in enumerate(lines):
        export = json.loads(line)
        for span in export["resourceSpans"][0]["scopeSpans"][0]["spans"]:
            found = {pair["key"]: pair["value"] for pair in span["attributes"]}
            if found.get("sidestep.outcome") == {"stringValue": "DENY"}:
                record = base64.b64decode(found["sidestep.record"]["bytesValue"])
                # MessagePack: a text of four characters, and one of five.
                assert b"\xa4DENY" in record
                edited = record.replace(b"\xa4DENY", b"\xa5ALLOW")
                found["sidestep.record"]["bytesValue"] = base64.b64encode(edited).decode()
                found["sidestep.outcome"]["stringValue"] = "ALLOW"
                return "".join([*lines[:number], json.dumps(export) + "\n", *lines[number + 1 :]])
    raise AssertionError("no DENY in the export")


def sidestep(plane: Plane, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the command line against this control plane."""
    command: list[Any] = [Path(sys.executable).with_name("sidestep"), *arguments, "--server", plane.address]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
