"""Streams under control: admission, age, readers that do not read, and versions that do not fit."""

from __future__ import annotations

import asyncio
import contextlib
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpc
import pytest
from sidestep.v1 import admin_pb2, sync_pb2, sync_pb2_grpc

from controlplane.store import Write
from engine.names import Collection
from tests.fakes.replica import URGENT, WITHIN_S, Replica, ReplicaLane
from tests.integration.test_controlplane_metrics import Watched, run
from tests.integration.test_controlplane_sync import grant, settings

MAJOR, MINOR, _ = version("sidestep").split(".", 2)


def test_streams_beyond_the_rate_are_told_to_come_back_and_get_in_then(tmp_path: Path) -> None:
    async def scenario(rig: Watched) -> None:
        async with rig.sidecar() as first:
            await first.hello()
            await first.step()
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                async with rig.sidecar() as second:
                    await second.step()
            assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "connect at once" in str(raised.value.details())
            assert "grpc-status-details-bin" in dict(raised.value.trailing_metadata() or ())
            await rig.admitted("pod-2")
        seen = await rig.metrics()
        assert seen["sidestep_cp_streams_refused_total{reason=rate}"] >= 1

    run(settings(tmp_path, admission_rate=0.5), scenario)


def test_an_old_stream_ends_politely_and_the_next_goes_on_from_there(tmp_path: Path) -> None:
    async def scenario(rig: Watched) -> None:
        await rig.store.commit("acme", [grant(1)])
        lanes: dict[Any, ReplicaLane] = {}
        async with rig.sidecar(lanes) as sidecar:
            await sidecar.hello()
            await sidecar.at(("acme", URGENT, 1))
            await sidecar.until(lambda: len(lanes) == 2)
            with contextlib.suppress(AssertionError):
                while True:
                    await sidecar.step()
            assert await sidecar._call.code() is grpc.StatusCode.OK
        await rig.store.commit("acme", [grant(2)])
        async with rig.sidecar(lanes) as again:
            await again.hello()
            await again.at(("acme", URGENT, 2))
            assert "snapshot_offer" not in again.kinds()
        await rig.until(lambda at: at["sidestep_cp_streams_ended_total{reason=aged}"] >= 1)

    run(settings(tmp_path, max_stream_age=1), scenario)


def test_a_reader_that_does_not_read_is_ended_and_costs_bounded_memory(tmp_path: Path) -> None:
    async def scenario(rig: Watched) -> None:
        before = (await rig.metrics())["sidestep_cp_process_memory_bytes"]
        options = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_536)]
        async with grpc.aio.insecure_channel(rig.address, options=options) as channel:
            call = sync_pb2_grpc.SyncServiceStub(channel).Sync()  # type: ignore[no-untyped-call]
            reader = Replica(call, {})
            await reader.hello("deaf")
            await reader.step()
            # From here on it reads nothing, though it is connected and its connection lives.
            value = os.urandom(190_000)
            for number in range(200):
                await rig.store.commit("acme", [Write(Collection.GRANTS, f"g{number}", value)])
            seen = await rig.until(lambda at: at["sidestep_cp_streams_ended_total{reason=stalled}"] == 1)
            assert seen["sidestep_cp_streams"] == 0
            # 40 MB were committed. The ring of encoded changes, which all streams share, holds 16 MB of them.
            assert seen["sidestep_cp_process_memory_bytes"] - before < 80_000_000
            # Others are served as before.
            async with rig.sidecar() as other:
                await other.hello("other")
                await other.at(("acme", URGENT, 200))

    run(settings(tmp_path, ack_timeout=1, heartbeat=0.2), scenario)


def test_a_bulk_change_that_is_never_acknowledged_ends_the_stream(tmp_path: Path) -> None:
    async def scenario(rig: Watched) -> None:
        await rig.store.commit("acme", [grant(1)])
        async with rig.sidecar() as sidecar:
            await sidecar.hello()
            await sidecar.until(lambda: len(sidecar.lanes) == 2)
            sidecar.acknowledge_bulk = False
            await rig.store.commit("acme", [Write(Collection.DEVICES, "d1", b"v")])
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await sidecar.until(lambda: False)
            assert raised.value.code() is grpc.StatusCode.ABORTED
            assert "not acknowledged" in str(raised.value.details())

    run(settings(tmp_path, ack_timeout=1), scenario)


async def hello(rig: Watched, name: str, told: str) -> Any:
    """The first answer to a sidecar of this version, and what the list says of it."""
    call = sync_pb2_grpc.SyncServiceStub(rig.channel).Sync()  # type: ignore[no-untyped-call]
    try:
        await call.write(sync_pb2.SyncRequest(hello=sync_pb2.Hello(sidecar=name, instance="i", version=told)))
        async with asyncio.timeout(WITHIN_S):
            await call.read()
        return await rig.status_where(lambda status: status.sidecar == name)
    finally:
        call.cancel()


def test_a_version_outside_of_the_window_is_refused_and_listed_with_the_reason(tmp_path: Path) -> None:
    async def scenario(rig: Watched) -> None:
        await rig.store.commit("acme", [grant(1)])
        for name, told in (("far", f"{MAJOR}.{int(MINOR) + 3}.0"), ("other", f"{int(MAJOR) + 1}.{MINOR}.0")):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await hello(rig, name, told)
            assert raised.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert told in str(raised.value.details())
            status = await rig.status_where(lambda status, name=name: status.sidecar == name)
            assert not status.connected
            assert told in status.refusal
            assert status.version_skew == admin_pb2.VERSION_SKEW_OUTSIDE
        assert (await rig.metrics())["sidestep_cp_streams_refused_total{reason=version}"] == 2
        near = await hello(rig, "near", f"{MAJOR}.{int(MINOR) + 2}.0")
        assert (near.version_skew, near.refusal) == (admin_pb2.VERSION_SKEW_UNSPECIFIED, "")
        own = await hello(rig, "own", "our-build")
        assert own.version_skew == admin_pb2.VERSION_SKEW_UNKNOWN

    run(settings(tmp_path), scenario)


def test_a_version_outside_of_the_window_is_let_in_and_flagged_if_so_told(tmp_path: Path) -> None:
    async def scenario(rig: Watched) -> None:
        await rig.store.commit("acme", [grant(1)])
        far = await hello(rig, "far", f"{MAJOR}.{int(MINOR) + 3}.0")
        assert (far.version_skew, far.refusal) == (admin_pb2.VERSION_SKEW_OUTSIDE, "")

    run(settings(tmp_path, version_skew="flag"), scenario)


def test_what_a_newer_sidecar_says_beyond_this_version_is_passed_over(tmp_path: Path) -> None:
    async def scenario(rig: Watched) -> None:
        await rig.store.commit("acme", [grant(1)])
        async with rig.sidecar() as sidecar:
            # Fields that this version does not have (numbers 900 and 901): within Hello, and instead of a message.
            later = sync_pb2.Hello.FromString(
                sync_pb2.Hello(sidecar="newer", instance="i", version="1").SerializeToString() + b"\xa2\x38\x01x"
            )
            await sidecar.send(hello=later)
            await sidecar.at(("acme", URGENT, 1))
            await sidecar._call.write(sync_pb2.SyncRequest.FromString(b"\xaa\x38\x01x"))
            await rig.store.commit("acme", [grant(2)])
            await sidecar.at(("acme", URGENT, 2))

    run(settings(tmp_path), scenario)


def test_the_clock_a_sidecar_reports_is_listed(tmp_path: Path) -> None:
    async def scenario(rig: Watched) -> None:
        async with rig.sidecar() as sidecar:
            await sidecar.hello("late")
            await sidecar.send(ping=sync_pb2.Ping(nonce=1, clock_offset_ms=-42_000))
            status = await rig.status_where(lambda status: status.HasField("clock_offset_ms"))
            assert status.clock_offset_ms == -42_000

    run(settings(tmp_path), scenario)


@pytest.mark.e2e
def test_an_idle_pair_keeps_its_stream(tmp_path: Path) -> None:
    """With the sidecar's own channel options: its keepalive is not too often for the control plane."""
    from sidecar.sync.client import _OPTIONS

    async def scenario(rig: Watched) -> None:
        async with grpc.aio.insecure_channel(rig.address, options=_OPTIONS) as channel:
            call = sync_pb2_grpc.SyncServiceStub(channel).Sync()  # type: ignore[no-untyped-call]
            idle = Replica(call, {})
            await idle.hello("idle")
            await idle.step()
            # Three keepalives of the sidecar's and six of the control plane's.
            await asyncio.sleep(65)
            await idle.send(ping=sync_pb2.Ping(nonce=7))
            await idle.until(lambda: any(kind == "heartbeat" and beat.nonce == 7 for kind, beat in idle.log))

    run(settings(tmp_path, heartbeat=60), scenario)
