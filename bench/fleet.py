"""A fleet on one control plane: from commit to enforced, CPU and memory per stream, a restart that all come back from.

`python -m bench.fleet [--streams N] [--crowds N] [--changes N] [--rounds N] [--import-records N]` writes
bench/results/fleet.json and fleet.md. The clients are lightweight (bench/crowd.py), three sidecars are real. Everything
shares this machine.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import grpc
from sidestep.v1 import decision_pb2

from bench import questions
from bench.million import RESULTS, _import_devices
from bench.noop import PATH
from bench.processes import cpu_s, memory
from bench.verdict import of_rounds
from examples.stack import Program, Stack, program
from examples.world import TENANT, Admin, World

MESSAGE_BYTES = 300
WITHIN_S = 600.0
REAL = 3
BUDGET = 3.0


class Crowds:
    """Processes of clients."""

    def __init__(self, address: str, streams: int, processes: int, *, bare: bool = False) -> None:
        counts = [streams // processes + (index < streams % processes) for index in range(processes)]
        bare_flag = ["--bare"] if bare else []
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", "bench.crowd", address, str(count), f"crowd{index}", *bare_flag],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for index, count in enumerate(counts)
        ]

    def ask(self, word: str) -> list[dict[str, Any]]:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(f"{word}\n")
            process.stdin.flush()
        answers = []
        for process in self._processes:
            assert process.stdout is not None
            answers.append(json.loads(process.stdout.readline()))
        failed = [error for answer in answers for error in answer["failed"]]
        if failed:
            raise RuntimeError(f"clients failed: {failed[:3]}")
        return answers

    def total(self, what: str) -> int:
        return sum(answer[what] for answer in self.ask("state"))

    def current(self) -> int:
        answers = self.ask("state")
        newest = max(answer["newest"] for answer in answers)
        return sum(answer["current"] for answer in answers if answer["newest"] == newest)

    def close(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait()


def main() -> int:
    """Runs it; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=1_000)
    parser.add_argument("--crowds", type=int, default=4, help="processes of clients")
    parser.add_argument("--changes", type=int, default=50, help="per measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--import-records", type=int, default=1_000_000)
    arguments = parser.parse_args()
    result = _measure(arguments)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "fleet.json").write_text(json.dumps(result, indent=2) + "\n")
    table = _table(result)
    (RESULTS / "fleet.md").write_text(table)
    print(table)
    return 0


def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    settings = {"SIDESTEP_CP_MAX_STREAMS": "100000", "SIDESTEP_CP_ACK_TIMEOUT": "10m"}
    result: dict[str, Any] = {
        "streams": arguments.streams,
        "real_sidecars": REAL,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    with ExitStack() as stack_of:
        stack = stack_of.enter_context(Stack(control_plane_settings=settings))
        addresses = [stack.sidecar_address, *(stack_of.enter_context(_sidecar(stack, n)) for n in range(1, REAL))]
        admin = Admin(stack.admin_address)
        world = questions.build(admin)
        empty = _memory(stack)
        began = time.monotonic()
        crowds = Crowds(stack.admin_address, arguments.streams, arguments.crowds)
        stack_of.callback(crowds.close)
        _until(lambda: crowds.current() == arguments.streams)
        result["connect_s"] = time.monotonic() - began
        result["memory_per_stream_bytes"] = (_memory(stack) - empty) / arguments.streams
        crowds.ask("report")
        with Watch(addresses, world) as watch:
            result["quiet"] = _flip(world, watch, crowds, arguments.changes)
            importing = threading.Thread(target=_import_devices, args=(stack.admin_address, arguments.import_records))
            importing.start()
            result["importing"] = _flip(world, watch, crowds, arguments.changes)
            result["import_still_running"] = importing.is_alive()
            importing.join()
        result["rounds"] = _compare(stack, world, crowds, arguments)
        result["restart"] = _restart(stack, crowds, arguments.streams)
        admin.close()
    return result


@contextmanager
def _sidecar(stack: Stack, number: int) -> Iterator[str]:
    environment = {
        "SIDESTEP_TENANT": TENANT,
        "SIDESTEP_LISTEN": "127.0.0.1:0",
        "SIDESTEP_HTTP_LISTEN": "127.0.0.1:0",
        "SIDESTEP_CONTROL_PLANE": stack.admin_address,
        "SIDESTEP_DATA_DIR": str(stack.folder / f"sidecar-{number}"),
        "SIDESTEP_SIDECAR_NAME": f"real-{number}",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{stack.receiver.port}",
    }
    log = stack.folder / f"sidecar-{number}.log"
    running = Program(f"sidecar {number}", [program("sidestep-sidecar")], environment, log)
    try:
        yield running.wait_ready()
    finally:
        running.stop()


class Watch:
    """Asks every real sidecar about one transfer, again and again, until each answers as it should."""

    def __init__(self, addresses: list[str], world: World) -> None:
        self._request = questions.transfer(world)
        self._channels = [grpc.insecure_channel(address) for address in addresses]
        self._asks = [
            channel.unary_unary(
                PATH,
                request_serializer=decision_pb2.EvaluateRequest.SerializeToString,
                response_deserializer=decision_pb2.EvaluateResponse.FromString,
            )
            for channel in self._channels
        ]

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        for channel in self._channels:
            channel.close()

    def enforced_at(self, outcome: int) -> list[float]:
        """When each first answered so, in seconds since the epoch."""
        found = [0.0] * len(self._asks)

        def ask(index: int) -> None:
            deadline = time.monotonic() + WITHIN_S
            while self._asks[index](self._request, timeout=10).outcome != outcome:
                if time.monotonic() > deadline:
                    return
            found[index] = time.time()

        threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(self._asks))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if 0.0 in found:
            raise TimeoutError("a sidecar does not enforce a change")
        return found


def _flip(world: World, watch: Watch, crowds: Crowds, changes: int) -> dict[str, Any]:
    """Revokes and restores a device; the time counts from before the call, so it has the commit in it."""
    enforced: list[float] = []
    sent: dict[int, float] = {}
    for number in range(changes):
        trust, outcome = (
            ("ACTIVE", decision_pb2.OUTCOME_ALLOW) if number % 2 else ("REVOKED", decision_pb2.OUTCOME_DENY)
        )
        began = time.time()
        sent[world.device_state("alice-laptop", "alice", trust).revision] = began
        enforced += [at - began for at in watch.enforced_at(outcome)]
    world.device_state("alice-laptop", "alice", "ACTIVE")
    watch.enforced_at(decision_pb2.OUTCOME_ALLOW)
    arrived: list[float] = []
    for answer in crowds.ask("report"):
        for revision, times in answer["arrivals"].items():
            if int(revision) in sent:
                arrived += [at - sent[int(revision)] for at in times]
    return {"enforced": _distribution(enforced), "arrived": _distribution(arrived)}


def _compare(stack: Stack, world: World, crowds: Crowds, arguments: argparse.Namespace) -> list[dict[str, float]]:
    """CPU of the control plane per delivered change, and of the bare fan-out per message, round by round."""
    floor = subprocess.Popen(
        [sys.executable, "-m", "bench.fanout"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert floor.stdin is not None
    assert floor.stdout is not None
    bare = Crowds(floor.stdout.readline().split("grpc=")[1].strip(), arguments.streams, arguments.crowds, bare=True)
    rounds = []
    try:
        _until(lambda: bare.total("connected") == arguments.streams)
        assert stack.control_plane is not None
        pid = stack.control_plane.pid
        delivered = arguments.changes * arguments.streams
        for _ in range(arguments.rounds):
            idle_began, idle_cpu = time.monotonic(), cpu_s(pid)
            time.sleep(3)
            idle = (cpu_s(pid) - idle_cpu) / (time.monotonic() - idle_began)
            began, cpu = time.monotonic(), cpu_s(pid)
            last = 0
            for number in range(arguments.changes):
                last = world.device_state("alice-laptop", "alice", "ACTIVE" if number % 2 else "QUARANTINED").revision
            _until(lambda last=last: all(answer["newest"] >= last for answer in crowds.ask("state")))
            _until(lambda: crowds.current() == arguments.streams)
            took = time.monotonic() - began
            ours = cpu_s(pid) - cpu
            cpu = cpu_s(floor.pid)
            floor.stdin.write(f"{arguments.changes} {MESSAGE_BYTES}\n")
            floor.stdin.flush()
            floor.stdout.readline()
            other = cpu_s(floor.pid) - cpu
            rounds.append(
                {
                    "idle_cores": idle,
                    "us_per_message": max(0.0, ours - idle * took) / delivered * 1e6,
                    "us_per_message_with_heartbeats": ours / delivered * 1e6,
                    "bare_us_per_message": other / delivered * 1e6,
                }
            )
    finally:
        bare.close()
        floor.stdin.close()
        floor.wait()
    return rounds


def _restart(stack: Stack, crowds: Crowds, streams: int) -> dict[str, float]:
    stack.stop_control_plane()
    _until(lambda: crowds.total("connected") == 0)
    crowds.ask("report")
    began = time.time()
    stack.start_control_plane()
    ready = time.time()
    _until(lambda: crowds.current() == streams)
    done = time.time()
    reports = crowds.ask("report")
    seconds = Counter(int(at) for answer in reports for at in answer["admissions"])
    return {
        "start_s": ready - began,
        "ready_to_all_current_s": done - ready,
        "peak_admissions_per_s": max(seconds.values(), default=0),
        "told_to_come_back": sum(answer["refused"] for answer in reports),
    }


def _memory(stack: Stack) -> int:
    assert stack.control_plane is not None
    return memory([stack.control_plane.pid]).pss


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the fleet does not get there")
        time.sleep(0.05)


def _distribution(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    at = {
        name: ordered[min(len(ordered) - 1, int(len(ordered) * part))] for name, part in (("p50", 0.5), ("p99", 0.99))
    }
    return {"count": len(ordered), **{name: 1000 * value for name, value in at.items()}, "max": 1000 * ordered[-1]}


def _table(result: dict[str, Any]) -> str:
    rounds = result["rounds"]
    ratio = of_rounds(
        [each["us_per_message"] for each in rounds], [max(0.01, each["bare_us_per_message"]) for each in rounds]
    )

    def middle(name: str) -> float:
        return statistics.median(each[name] for each in rounds)

    lines = [
        f"# Fleet: {result['streams']} streams and {result['real_sidecars']} real sidecars on one control plane process",
        "",
        f"Python {result['python']}, {result['machine']}; clients, sidecars and control plane share the machine.",
        "",
        "| what | p50 | p99 | max |",
        "|---|---|---|---|",
    ]
    for title, key in (("quiet", "quiet"), ("with an import running", "importing")):
        for what, name in (
            ("commit to enforced in a real sidecar's answer", "enforced"),
            ("commit to a client", "arrived"),
        ):
            found = result[key][name]
            lines.append(f"| {what}, {title} | {found['p50']:.0f} ms | {found['p99']:.0f} ms | {found['max']:.0f} ms |")
    restart = result["restart"]
    lines += [
        "",
        "| what | |",
        "|---|---|",
        f"| CPU per delivered change, the commit included | {middle('us_per_message'):.0f} µs |",
        f"| bare grpc.aio fan-out, CPU per message | {middle('bare_us_per_message'):.0f} µs |",
        f"| ratio, budget {BUDGET:g} | {ratio}: {ratio.verdict(BUDGET)} |",
        f"| CPU of heartbeats | {middle('idle_cores'):.2f} cores |",
        f"| memory per stream | {result['memory_per_stream_bytes'] / 1024:.0f} KiB |",
        f"| all connected at first | {result['connect_s']:.1f} s |",
        f"| after a restart: ready until all are current | {restart['ready_to_all_current_s']:.1f} s |",
        f"| most admissions in a second | {restart['peak_admissions_per_s']} |",
        f"| streams told to come back | {restart['told_to_come_back']} |",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
