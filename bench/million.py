"""A million devices and a whole threat feed: import, sync, memory, and what Evaluate costs then beside a no-op RPC.

`python -m bench.million [--devices N] [--rounds N]` writes bench/results/million.json and million.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
from sidestep.v1 import admin_pb2, admin_pb2_grpc, decision_pb2, resources_pb2

from bench import load, noop, questions
from bench.processes import command, cpu_s, descendants, memory
from examples.stack import Program, Stack
from examples.story import REAL_FEED, SAMPLE_FEED, Story
from examples.world import TENANT, Admin, World, at

RESULTS = Path(__file__).resolve().parent / "results"
BATCH = 1000


def main() -> int:
    """Runs it; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=40_000)
    arguments = parser.parse_args()
    if not load.available():
        print("bench: h2load is missing (Debian: nghttp2-client)", file=sys.stderr)
        return 2
    with Stack() as stack:
        result = _measure(stack, arguments.devices, arguments.rounds, arguments.calls)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "million.json").write_text(json.dumps(result, indent=2) + "\n")
    table = _table(result)
    (RESULTS / "million.md").write_text(table)
    print(table)
    return 0


def _measure(stack: Stack, devices: int, rounds: int, calls: int) -> dict[str, Any]:
    admin = Admin(stack.admin_address)
    world = World(admin)
    story = Story(stack, world, admin)
    world.build()
    result: dict[str, Any] = {"devices": devices, "python": platform.python_version(), "machine": platform.machine()}

    started = time.monotonic()
    story.load()
    result["feed_lines"] = sum(1 for _ in (REAL_FEED if REAL_FEED.exists() else SAMPLE_FEED).open())
    result["feed_import_to_sidecar_s"] = time.monotonic() - started

    started = time.monotonic()
    _import_devices(stack.admin_address, devices)
    result["device_import_s"] = time.monotonic() - started
    admin.wait_until_everywhere(timeout_s=600)
    result["device_import_to_sidecar_s"] = time.monotonic() - started

    stack.stop_sidecar()
    stack.forget_sidecar_data()
    started = time.monotonic()
    stack.start_sidecar()
    admin.wait_until_everywhere(timeout_s=600)
    result["fresh_sidecar_connect_to_current_s"] = time.monotonic() - started
    stack.stop_sidecar()
    started = time.monotonic()
    stack.start_sidecar()
    _wait_allow(stack, world)
    result["restart_to_first_allow_s"] = time.monotonic() - started

    result["rounds"] = _compare(stack, world, rounds, calls)
    result["memory"] = _memory(stack)
    story.client.close()
    admin.close()
    return result


def _import_devices(address: str, count: int) -> None:
    channel = grpc.insecure_channel(address)
    stub = admin_pb2_grpc.AdminServiceStub(channel)  # type: ignore[no-untyped-call]
    try:
        stub.ImportResources(_messages(count), timeout=3600)
    finally:
        channel.close()


def _messages(count: int) -> Iterator[admin_pb2.ImportResourcesRequest]:
    start = admin_pb2.ImportStart(parent=f"tenants/{TENANT}", collection="COLLECTION_DEVICES")
    yield admin_pb2.ImportResourcesRequest(start=start)
    stamp, login = at(timedelta(days=1)), resources_pb2.Authentication(acr="phr", auth_time=at(timedelta(days=1)))
    for first in range(0, count, BATCH):
        batch = admin_pb2.ImportBatch()
        for number in range(first, min(first + BATCH, count)):
            device = batch.resources.add().device
            device.name = f"tenants/{TENANT}/devices/d{number:08}"
            device.subject = f"u{number:08}"
            device.key_id = "devices-1"
            for index, component in enumerate(
                ("os", "platform", "browser", "canvas", "webgl", "audio", "fonts", "screen")
            ):
                device.components[component] = (number * 16 + index).to_bytes(16, "big")
            device.versions["browser_version"] = 140
            device.create_time.CopyFrom(stamp)
            device.validate_time.CopyFrom(stamp)
            device.authentications.append(login)
        yield admin_pb2.ImportResourcesRequest(batch=batch)
    yield admin_pb2.ImportResourcesRequest(commit=admin_pb2.ImportCommit(count=count))


def _wait_allow(stack: Stack, world: World) -> None:
    request = questions.transfer(world)
    with grpc.insecure_channel(stack.sidecar_address) as channel:
        ask = channel.unary_unary(
            noop.PATH,
            request_serializer=decision_pb2.EvaluateRequest.SerializeToString,
            response_deserializer=decision_pb2.EvaluateResponse.FromString,
        )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                if ask(request, timeout=1).outcome == decision_pb2.OUTCOME_ALLOW:
                    return
            except grpc.RpcError:
                time.sleep(0.01)
    raise TimeoutError("the sidecar does not answer ALLOW")


def _compare(stack: Stack, world: World, rounds: int, calls: int) -> list[dict[str, Any]]:
    floor = Program("no-op", [sys.executable, "-m", "bench.noop"], {}, stack.folder / "noop.log")
    message = questions.transfer(world).SerializeToString()
    try:
        address = floor.wait_ready()
        contenders = {
            "noop": (address, floor.pid),
            "evaluate": (stack.sidecar_address, _worker(stack)),
        }
        for name, (target, pid) in contenders.items():
            _round(name, target, pid, message, calls // 4)
        return [
            {name: _round(name, target, pid, message, calls) for name, (target, pid) in contenders.items()}
            for _ in range(rounds)
        ]
    finally:
        floor.stop()


def _round(name: str, address: str, pid: int, message: bytes, calls: int) -> dict[str, float]:
    before = cpu_s(pid)
    busy = load.run(address, noop.PATH, message, calls=calls, clients=4, streams=8)
    cpu = (cpu_s(pid) - before) / busy.calls
    alone = load.run(address, noop.PATH, message, calls=max(1000, calls // 10), clients=1, streams=1)
    print(
        f"  {name:9} {busy.rate:9.0f}/s  {cpu * 1e6:6.1f} us CPU  mean alone {alone.mean_s * 1e6:6.0f} us", flush=True
    )
    return {"rate": busy.rate, "cpu_us": cpu * 1e6, "alone_mean_us": alone.mean_s * 1e6}


def _worker(stack: Stack) -> int:
    assert stack.sidecar is not None
    return next(pid for pid in descendants(stack.sidecar.pid) if "worker" in command(pid))


def _memory(stack: Stack) -> dict[str, Any]:
    assert stack.sidecar is not None
    pids = descendants(stack.sidecar.pid)
    whole = memory(pids)
    disk = sum(path.stat().st_blocks * 512 for path in (stack.folder / "sidecar").rglob("*") if path.is_file())
    return {
        "pod_pss": whole.pss,
        "pod_pss_without_files": whole.pss_without_files,
        "processes": len(pids),
        "disk": disk,
    }


def _table(result: dict[str, Any]) -> str:
    rounds = result["rounds"]

    def row(field: str) -> str:
        floor = [r["noop"][field] for r in rounds]
        ours = [r["evaluate"][field] for r in rounds]
        ratios = sorted(mine / base for mine, base in zip(ours, floor, strict=True))
        return (
            f"| {field} | {statistics.median(floor):.1f} | {statistics.median(ours):.1f} "
            f"| {statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f}) |"
        )

    mib = 1 << 20
    kept = result["memory"]
    return "\n".join(
        [
            f"# {result['devices']:,} devices and a feed of {result['feed_lines']:,} lines",
            "",
            "| what | measured |",
            "|---|---|",
            f"| policies and feed: import until the sidecar has them | {result['feed_import_to_sidecar_s']:.1f} s |",
            f"| devices: import through the admin API | {result['device_import_s']:.1f} s |",
            f"| ... until the sidecar has them too | {result['device_import_to_sidecar_s']:.1f} s |",
            f"| a fresh sidecar: start until current | {result['fresh_sidecar_connect_to_current_s']:.1f} s |",
            f"| restart on the same boot: start until the first ALLOW | {result['restart_to_first_allow_s']:.2f} s |",
            f"| memory of the pod's {kept['processes']} processes (PSS) | {kept['pod_pss'] / mib:.0f} MiB |",
            f"| ... without file pages | {kept['pod_pss_without_files'] / mib:.0f} MiB |",
            f"| disk | {kept['disk'] / mib:.0f} MiB |",
            "",
            f"Evaluate (verified token, 13 fingerprint components, address lookup) beside a no-op RPC on the same transport, "
            f"{len(rounds)} alternating rounds, one process each, h2load with 4 connections of 8 streams; `alone`: one call at a "
            "time. Every call asks the same question.",
            "",
            "| | no-op | Evaluate | ratio, median (spread) |",
            "|---|---|---|---|",
            row("rate"),
            row("cpu_us"),
            row("alone_mean_us"),
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
