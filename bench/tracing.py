"""What tracing costs, all in, beside OpenTelemetry's SDK doing the same job.

`python -m bench.tracing [--rounds N] [--decisions N]` writes bench/results/tracing.json and tracing.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import grpc
from sidestep.v1 import decision_pb2_grpc

from bench import collector, pipelines, questions
from bench.verdict import Ratio, of_rounds
from examples.stack import Program, Stack
from examples.world import Admin
from sidecar.journal.reader import SegmentReader
from sidecar.journal.segment import list_segments

RESULTS = Path(__file__).resolve().parent / "results"
BUDGET, STRETCH = 1 / 3, 1 / 5
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
# Decisions in one write of the worker: one by one, a usual batch under load, the largest.
WRITES = (1, 8, 64)
PACE = 1000


def main() -> int:
    """Runs it; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--decisions", type=int, default=20_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sidestep-") as folder:
        result = _measure(Path(folder), arguments.rounds, arguments.decisions)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "tracing.json").write_text(json.dumps(result, indent=2) + "\n")
    table = _table(result)
    (RESULTS / "tracing.md").write_text(table)
    print(table)
    return 0


def _measure(folder: Path, rounds: int, decisions: int) -> dict[str, Any]:
    samples = _samples()
    receiver = Program("collector", [sys.executable, "-m", "bench.collector"], {}, folder / "collector.log")
    try:
        bench = _Bench(folder, receiver.wait_ready(), samples)
        print("  as fast as it goes", flush=True)
        burst = [bench.round(decisions, 0, WRITES) for _ in range(rounds)]
        print(f"  at {PACE} decisions a second", flush=True)
        paced = [bench.round(4 * PACE, PACE, (1,)) for _ in range(max(3, rounds // 2))]
    finally:
        receiver.stop()
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "decisions": decisions,
        "record_bytes": statistics.mean(map(len, samples)),
        "burst": burst,
        "paced": paced,
    }


def _samples() -> list[bytes]:
    """Records of a real sidecar: what its journal holds while no collector takes them."""
    settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "SIDESTEP_SHUTDOWN_GRACE": "1s"}
    with Stack(settings=settings) as stack:
        admin = Admin(stack.admin_address)
        world = questions.build(admin)
        admin.close()
        with grpc.insecure_channel(stack.sidecar_address) as channel:
            stub = decision_pb2_grpc.DecisionServiceStub(channel)  # type: ignore[no-untyped-call]
            for question in questions.mixed(world):
                stub.Evaluate(question, timeout=10, metadata=(("traceparent", TRACEPARENT),))
        directory = stack.folder / "sidecar" / "journal"
        (name,) = list_segments(directory)
        reader = SegmentReader(directory / str(name))
        try:
            return [entry.payload for entry in reader.read(100)]
        finally:
            reader.close()


class _Bench:
    """Runs the contenders, each in processes of its own, and checks that the collector got every span."""

    def __init__(self, folder: Path, address: str, samples: list[bytes]) -> None:
        self._folder = folder
        self._address = address
        self._samples = samples

    def round(self, decisions: int, pace: int, writes: tuple[int, ...]) -> dict[str, Any]:
        """CPU per decision in microseconds: of the SDK, and of ours by decisions per write, worker and agent apart."""
        before = collector.spans(self._address)
        idle = self._idle(decisions, pace) if pace else 0.0
        result: dict[str, Any] = {"stock": self._stock(decisions, pace) - idle}
        for batch in writes:
            worker, agent = self._journal(decisions, batch, pace)
            worker -= idle
            result[f"journal_{batch}"] = {"worker": worker, "agent": agent, "all": worker + agent}
        parts = ", ".join(f"{result[f'journal_{batch}']['all']:.1f} in writes of {batch}" for batch in writes)
        print(f"  SDK {result['stock']:6.1f} us, journal {parts}", flush=True)
        came = collector.spans(self._address) - before
        if came != decisions * (1 + len(writes)):
            raise RuntimeError(f"{came} spans, {decisions} expected of each contender")
        return result

    @staticmethod
    def _idle(decisions: int, pace: int) -> float:
        with _process() as pool:
            return 1e6 * pool.submit(pipelines.idle, decisions, pace).result() / decisions

    def _stock(self, decisions: int, pace: int) -> float:
        with _process() as pool:
            cpu_s = pool.submit(pipelines.stock, self._address, self._samples, decisions, pace).result()
        return 1e6 * cpu_s / decisions

    def _journal(self, decisions: int, batch: int, pace: int) -> tuple[float, float]:
        with tempfile.TemporaryDirectory(dir=self._folder) as name, _process() as workers, _process() as agents:
            folder = Path(name)
            written = workers.submit(pipelines.worker, folder, self._samples, decisions, batch, pace)
            if not pace:  # one after the other, so that the two do not compete
                written.result()
            shipped = agents.submit(pipelines.agent, folder, self._address, decisions)
            return 1e6 * written.result() / decisions, 1e6 * shipped.result() / decisions


def _process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


def _table(result: dict[str, Any]) -> str:
    rows = [
        *(_row(result["burst"], batch, f"as fast as it goes, writes of {batch}") for batch in WRITES),
        _row(result["paced"], 1, f"{PACE} decisions a second"),
    ]
    return "\n".join(
        [
            "# What tracing costs",
            "",
            "CPU per decision, microseconds. Ours: make the record, encode it, chain and append it (worker); read it, make the "
            "span, export it over OTLP/gRPC (agent). The SDK: a span with the same attributes (not the record and its hash), "
            "BatchSpanProcessor, OTLP/gRPC exporter. What is decided, the parent's context and the SDK's dictionary of "
            "attributes are there beforehand; what keeping a pace costs by itself is deducted. "
            f"{len(result['burst'])} alternating rounds of {result['decisions']:,} decisions, each contender in processes of its "
            "own; the collector is another process, counts the spans and is not measured. "
            f"A record has {result['record_bytes']:.0f} bytes on average.",
            "",
            "| | SDK | worker | agent | together | ratio, median (middle half) | budget 1/3 | stretch 1/5 |",
            "|---|---|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


def _row(rounds: list[dict[str, Any]], batch: int, what: str) -> str:
    stock = [r["stock"] for r in rounds]
    ours = [r[f"journal_{batch}"] for r in rounds]
    ratio: Ratio = of_rounds([r["all"] for r in ours], stock)
    parts = " | ".join(f"{statistics.median(r[part] for r in ours):.1f}" for part in ("worker", "agent", "all"))
    return (
        f"| {what} | {statistics.median(stock):.1f} | {parts} | {ratio} "
        f"| {ratio.verdict(BUDGET)} | {ratio.verdict(STRETCH)} |"
    )


if __name__ == "__main__":
    sys.exit(main())
