"""What a caller notices of the collector being down, and of the agent standing still: Evaluate's p99 with and without.

`python -m bench.outage [--rounds N] [--rate N]` writes bench/results/outage.json and outage.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import load, noop, questions
from bench.processes import command, descendants
from bench.verdict import Ratio, middle_half
from examples.stack import Program, Stack
from examples.world import Admin
from sidecar.page import AgentWord, Page, WorkerWord

RESULTS = Path(__file__).resolve().parent / "results"
BUDGET = 1.2
CLIENTS = 4
RUN_S = 4.0
STOPPED_S = 10.0
WARM_UP_S = 2.0
_RESAMPLES = 400
_SHIPPED_S = 120.0

Pair = dict[str, list[float]]
"""Latencies in microseconds of two runs: `without` the harm, and `with` it."""


def main() -> int:
    """Runs it; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=24, help="pairs of runs with the collector up and down")
    parser.add_argument("--stopped-rounds", type=int, default=10, help="pairs of runs with the agent going and stopped")
    parser.add_argument("--rate", type=int, default=500, help="calls a second")
    arguments = parser.parse_args()
    if not load.available():
        print("bench: h2load is missing (Debian: nghttp2-client)", file=sys.stderr)
        return 2
    result = _measure(arguments.rounds, arguments.stopped_rounds, arguments.rate)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "outage.json").write_text(json.dumps(result, indent=2) + "\n")
    table = _table(result)
    (RESULTS / "outage.md").write_text(table)
    print(table)
    return 0


def _measure(rounds: int, stopped_rounds: int, rate: int) -> dict[str, Any]:
    others = os.getloadavg()[0]
    with Stack() as stack:
        admin = Admin(stack.admin_address)
        world = questions.build(admin)
        admin.close()
        stack.stop_sidecar()
        with _Collector(stack.folder) as collector:
            # From here on the sidecar's collector is a process that can be killed.
            stack.settings["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://{collector.address}"
            stack.start_sidecar()
            bench = _Bench(stack, rate, questions.transfer(world).SerializeToString())
            bench.run(WARM_UP_S)
            outage = bench.pairs(rounds, RUN_S, collector.kill, collector.start)
            stop = bench.pairs(stopped_rounds, STOPPED_S, bench.stop_agent, bench.continue_agent)
            bench.close()
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "rate": rate,
        "load_before": others,
        "outage": _summary(outage),
        "stopped": _summary(stop),
    }


class _Collector:
    """A collector that can be killed, and comes back at the same address."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "collector.log"
        self._program: Program | None = None
        self.address = ""
        self.start()

    def start(self) -> None:
        """Starts it and waits until it serves."""
        port = self.address.rpartition(":")[2] or "0"
        self._program = Program("collector", [sys.executable, "-m", "bench.collector", port], {}, self._log)
        self.address = self._program.wait_ready()

    def kill(self) -> None:
        """SIGKILL."""
        if self._program is not None:
            os.kill(self._program.pid, signal.SIGKILL)
            self._program.stop()
            self._program = None

    def __enter__(self) -> _Collector:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class _Bench:
    """One sidecar under a fixed load."""

    def __init__(self, stack: Stack, rate: int, message: bytes) -> None:
        assert stack.sidecar is not None
        self._address = stack.sidecar_address
        self._rate = rate
        self._message = message
        self._supervisor = stack.sidecar.pid
        self._agent = next(pid for pid in descendants(self._supervisor) if "sidecar.app agent" in command(pid))
        self._page = Page(stack.folder / "sidecar" / "page")

    def run(self, seconds: float) -> list[float]:
        """Latencies in seconds. Raises RuntimeError unless every call was decided and recorded."""
        before = self._recorded()
        found = load.latencies(
            self._address, noop.PATH, self._message, rate=self._rate, seconds=seconds, clients=CLIENTS
        )
        if self._recorded() - before != len(found) or self._page.worker(0).get(WorkerWord.UNRECORDED):
            raise RuntimeError(f"{self._recorded() - before} records of {len(found)} calls")
        return found

    def pairs(self, rounds: int, seconds: float, harm: Callable[[], None], mend: Callable[[], None]) -> list[Pair]:
        """Latencies in microseconds, without and with the harm, one after the other and in turns first."""
        found: list[Pair] = []
        for number in range(rounds):
            pair: Pair = {}
            for harmed in (False, True) if number % 2 else (True, False):
                if harmed:
                    harm()
                pair["with" if harmed else "without"] = [1e6 * taken for taken in self.run(seconds)]
                if harmed:
                    mend()
                self._wait_until_shipped()
            found.append(pair)
            both = {name: _p99(taken) for name, taken in pair.items()}
            print(f"  p99 without {both['without']:7.0f} us, with {both['with']:7.0f} us", flush=True)
        return found

    def stop_agent(self) -> None:
        """SIGSTOP. To the supervisor first: it would replace an agent that stands still."""
        for pid in (self._supervisor, self._agent):
            os.kill(pid, signal.SIGSTOP)

    def continue_agent(self) -> None:
        """SIGCONT, to both."""
        for pid in (self._agent, self._supervisor):
            os.kill(pid, signal.SIGCONT)

    def close(self) -> None:
        """Lets go of the page."""
        self._page.close()

    def _recorded(self) -> int:
        return self._page.worker(0).get(WorkerWord.JOURNAL_RECORDS)

    def _wait_until_shipped(self) -> None:
        deadline = time.monotonic() + _SHIPPED_S
        while self._page.agent.get(AgentWord.JOURNAL_SHIPPED) < self._recorded():
            if time.monotonic() > deadline:
                raise TimeoutError("the journal is not shipped")
            time.sleep(0.05)


def _p99(taken: list[float]) -> float:
    return statistics.quantiles(taken, n=100)[98]


def pooled(pairs: list[Pair]) -> Ratio:
    """The p99 of all runs with the harm to that of all without; its spread by drawing the pairs anew."""
    draw = random.Random(1)

    def ratio(chosen: list[Pair]) -> float:
        harmed, sound = ([t for pair in chosen for t in pair[name]] for name in ("with", "without"))
        return _p99(harmed) / _p99(sound)

    drawn = [ratio(draw.choices(pairs, k=len(pairs))) for _ in range(_RESAMPLES)]
    return Ratio(ratio(pairs), *middle_half(drawn))


def _summary(pairs: list[Pair]) -> dict[str, Any]:
    """Latencies in microseconds: pooled, and of every run."""
    sides = ("without", "with")
    whole = {side: [taken for pair in pairs for taken in pair[side]] for side in sides}
    return {
        "p50_us": {side: statistics.median(whole[side]) for side in sides},
        "p99_us": {side: _p99(whole[side]) for side in sides},
        "ratio": pooled(pairs)._asdict(),
        "runs_p99_us": [{side: _p99(pair[side]) for side in sides} for pair in pairs],
    }


def _table(result: dict[str, Any]) -> str:
    return "\n".join(
        [
            "# What a caller notices",
            "",
            f"Evaluate's latency at {result['rate']} calls a second from h2load (open loop, {CLIENTS} connections), one worker, "
            f"{result['cores']} cores shared by client, sidecar, control plane and collector. Runs alternate, and take turns at "
            "being first; between them everything is shipped. All latencies of all runs are pooled; the ratio's middle half "
            "comes from drawing the pairs of runs anew. Every call was decided and recorded. Load average of the machine before: "
            f"{result['load_before']:.1f}; much above 0, other work decides what the tail looks like.",
            "",
            "| | runs | p50 without, us | p50 with, us | p99 without, us | p99 with, us | p99 ratio (middle half) "
            f"| of single pairs | budget {BUDGET} |",
            "|---|---|---|---|---|---|---|---|---|",
            _row(result["outage"], f"collector down, {RUN_S:.0f} s each"),
            _row(result["stopped"], f"agent stopped (SIGSTOP), {STOPPED_S:.0f} s each"),
            "",
        ]
    )


def _row(summary: dict[str, Any], what: str) -> str:
    ratio = Ratio(**summary["ratio"])
    each = sorted(run["with"] / run["without"] for run in summary["runs_p99_us"])
    cells = [f"{summary[name][side]:.0f}" for name in ("p50_us", "p99_us") for side in ("without", "with")]
    return (
        f"| {what} | 2 x {len(each)} | {' | '.join(cells)} | {ratio} | {each[0]:.2f}-{each[-1]:.2f} "
        f"| {ratio.verdict(BUDGET)} |"
    )


if __name__ == "__main__":
    sys.exit(main())
