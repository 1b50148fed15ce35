"""The control plane's own metrics, fetched as Prometheus does and received as a collector does."""

from __future__ import annotations

import asyncio
import re
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sidestep.v1 import admin_pb2, admin_pb2_grpc, sync_pb2

from controlplane.app import control_plane
from controlplane.config import Settings
from controlplane.errors import SettingsError
from controlplane.metrics.catalogue import CATALOGUE, MAX_TENANTS
from controlplane.metrics.meters import Meters
from controlplane.store import Store, Write
from engine.names import Collection
from tests.fakes.otlp import OtlpReceiver
from tests.fakes.replica import URGENT, WITHIN_S, Replica
from tests.integration.test_controlplane_sync import Rig, settings

Samples = dict[str, float]


def parse(text: str) -> Samples:
    """Samples by name with labels: `name{a=b,c=d}`."""
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sample.labels.items())
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def fetch(http: str, accept: str = "text/plain") -> str:
    request = urllib.request.Request(f"http://{http}/metrics", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=WITHIN_S) as response:
        return str(response.read().decode())


class Watched(Rig):
    """A control plane whose metrics are looked at."""

    def __init__(self, grpc_address: str, http: str, store: Store) -> None:
        super().__init__(grpc_address, store)
        self.http = http

    async def metrics(self) -> Samples:
        return parse(await asyncio.to_thread(fetch, self.http))

    async def until(self, condition: Callable[[Samples], bool]) -> Samples:
        found: Samples = {}
        try:
            async with asyncio.timeout(30):
                while True:
                    if condition(found := await self.metrics()):
                        return found
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(found) from None


def run(configured: Settings, scenario: Callable[[Watched], Awaitable[None]]) -> None:
    async def body() -> None:
        async with control_plane(configured) as serving:
            store = await Store.open(configured.database_url)
            rig = Watched(serving.grpc, serving.http, store)
            try:
                await scenario(rig)
            finally:
                await rig.channel.close()
                await store.close()

    asyncio.run(body())


def grant(n: int) -> Write:
    return Write(Collection.GRANTS, f"g{n}", b"v")


def test_calls_commits_streams_and_lag_are_counted(tmp_path: Path) -> None:
    async def scenario(rig: Watched) -> None:
        stub = admin_pb2_grpc.AdminServiceStub(rig.channel)  # type: ignore[no-untyped-call]
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.GetResource(admin_pb2.GetResourceRequest(name="tenants/acme/grants/none"))
        subject = admin_pb2.PutResourceRequest()
        subject.resource.subject.name = "tenants/acme/subjects/alice"
        subject.resource.subject.state = 1
        await stub.PutResource(subject)
        async with rig.sidecar() as sidecar:
            await sidecar.hello()
            await sidecar.at(("acme", URGENT, 1))
            seen = await rig.until(lambda at: at["sidestep_cp_sync_behind{lane=urgent}"] == 0)
            assert seen["sidestep_cp_rpcs_total{code=not_found,method=AdminService/GetResource}"] == 1
            assert seen["sidestep_cp_rpcs_total{code=ok,method=AdminService/PutResource}"] == 1
            assert seen["sidestep_cp_rpc_duration_seconds_count{method=AdminService/PutResource}"] == 1
            assert seen["sidestep_cp_commits_total{lane=urgent}"] == 1
            assert seen["sidestep_cp_revision{lane=urgent,tenant=acme}"] == 1
            assert (seen["sidestep_cp_tenants"], seen["sidestep_cp_streams"]) == (1, 1)
            assert seen["sidestep_cp_streams_admitted_total"] == 1
            assert seen["sidestep_cp_snapshots_built_total"] >= 1
            assert seen["sidestep_cp_sync_snapshot_sent_bytes_total"] > 0
            assert seen["sidestep_cp_sync_lag_seconds{lane=urgent}"] == 0

            # A commit of another process, that this sidecar is sent and does not acknowledge.
            await rig.store.commit("acme", [grant(1)])
            await rig.store.commit("acme", [grant(2)])
            seen = await rig.until(lambda at: at["sidestep_cp_sync_lag_revisions{lane=urgent}"] == 2)
            assert seen["sidestep_cp_sync_behind{lane=urgent}"] == 1
            assert seen["sidestep_cp_sync_lag_seconds{lane=urgent}"] > 0
            assert seen["sidestep_cp_commits_total{lane=urgent}"] == 1, "that was another process"
            await rig.until(lambda at: at["sidestep_cp_sync_deltas_total{lane=urgent}"] == 2)
            await sidecar.at(("acme", URGENT, 3))
            await refuse(sidecar)
            await rig.until(lambda at: at["sidestep_cp_sync_refusing"] == 1)
        ended = "sidestep_cp_rpcs_total{code=cancelled,method=SyncService/Sync}"
        seen = await rig.until(lambda at: at.get(ended) == 1)
        assert seen["sidestep_cp_streams"] == 0
        assert seen["sidestep_cp_streams_ended_total{reason=left}"] == 1
        assert not any("SyncService" in name and "duration" in name for name in seen)
        seen = await rig.until(lambda at: at.get("sidestep_cp_audit_entries") == 1)
        assert seen["sidestep_cp_process_memory_bytes"] > 1_000_000
        assert seen["sidestep_cp_loop_lag_seconds"] >= 0

    run(settings(tmp_path), scenario)


async def refuse(sidecar: Replica) -> None:
    lane = sidecar.lanes["acme", URGENT]
    await sidecar.send(refusal=sync_pb2.Refusal(cursor=lane.cursor, revision=4, code="policy_rejected", detail="no"))


def test_streams_refused_are_counted_by_reason(tmp_path: Path) -> None:
    async def scenario(rig: Watched) -> None:
        async with rig.sidecar() as first:
            await first.hello()
            await first.step()
            with pytest.raises(grpc.aio.AioRpcError):
                async with rig.sidecar() as second:
                    await second.step()
            await rig.until(lambda at: at["sidestep_cp_streams_refused_total{reason=full}"] == 1)
        await rig.until(lambda at: at["sidestep_cp_streams"] == 0)
        async with rig.sidecar() as nameless:
            await nameless.hello("")
            with pytest.raises(grpc.aio.AioRpcError):
                await nameless.step()
        await rig.until(lambda at: at["sidestep_cp_streams_refused_total{reason=hello}"] == 1)

    run(settings(tmp_path, max_streams=1), scenario)


def test_there_are_no_more_series_of_tenants_than_is_said(tmp_path: Path) -> None:
    async def scenario(rig: Watched) -> None:
        for number in range(MAX_TENANTS + 2):
            await rig.store.commit(f"t{number:03d}", [grant(1)])
        seen = await rig.until(lambda at: at["sidestep_cp_tenants"] == MAX_TENANTS + 2)
        shown = [name for name in seen if name.startswith("sidestep_cp_revision{")]
        assert len(shown) == 2 * MAX_TENANTS
        assert "sidestep_cp_revision{lane=urgent,tenant=t101}" not in seen

    run(settings(tmp_path), scenario)


def test_every_metric_is_served_as_the_catalogue_says_in_both_formats(tmp_path: Path) -> None:
    async def scenario(rig: Watched) -> None:
        await rig.store.commit("acme", [grant(1)])
        await rig.listed()
        await rig.until(
            lambda at: "sidestep_cp_audit_entries" in at and "sidestep_cp_revision{lane=bulk,tenant=acme}" in at
        )
        plain = await asyncio.to_thread(fetch, rig.http)
        families = {found[0]: found[1] for found in re.findall(r"^# TYPE (\S+) (\S+)$", plain, re.MULTILINE)}
        assert families == {metric.prometheus: metric.kind.value for metric in CATALOGUE}
        for metric in CATALOGUE:
            assert f"# HELP {metric.prometheus} {metric.help}" in plain
            closed = {label.name: label.values for label in metric.labels}
            for labels in re.findall(rf"^{metric.prometheus}(?:_count)?\{{(.*)\}} ", plain, re.MULTILINE):
                pairs = dict(re.findall(r'(\w+)="([^"]*)"', labels))
                assert pairs.keys() == closed.keys(), metric.name
                assert all(values is None or pairs[name] in values for name, values in closed.items())
        modern = await asyncio.to_thread(fetch, rig.http, "application/openmetrics-text;version=1.0.0")
        assert modern.endswith("# EOF\n")

    run(settings(tmp_path), scenario)


def test_a_collector_is_sent_the_same_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with OtlpReceiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", receiver.endpoint)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_INSECURE", "true")
        monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "200")

        async def scenario(rig: Watched) -> None:
            await rig.store.commit("acme", [grant(1)])
            await rig.listed()
            async with asyncio.timeout(30):
                while True:
                    if "sidestep.cp.revision" in sent():
                        return
                    await asyncio.sleep(0.05)

        def sent() -> dict[str, Any]:
            return {
                metric.name: metric
                for request in list(receiver.metrics)
                for group in request.resource_metrics
                for scope in group.scope_metrics
                for metric in scope.metrics
            }

        run(settings(tmp_path), scenario)
        found = sent()
        assert found.keys() <= {metric.name for metric in CATALOGUE}
        assert {"sidestep.cp.rpcs", "sidestep.cp.rpc.duration", "sidestep.cp.streams"} <= found.keys()
        assert found["sidestep.cp.rpcs"].sum.is_monotonic
        resource = receiver.metrics[-1].resource_metrics[0].resource
        assert {pair.key: pair.value.string_value for pair in resource.attributes}[
            "service.name"
        ] == "sidestep-controlplane"


@pytest.mark.parametrize(
    ("variable", "value"), [("OTEL_METRICS_EXPORTER", "statsd"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "carrier-pigeon")]
)
def test_an_exporter_that_does_not_exist_is_refused_by_name(variable: str, value: str) -> None:
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", variable: value}
    with pytest.raises(SettingsError, match=variable):
        Meters("1", environment)
