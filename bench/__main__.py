"""`python -m bench [NAME ...]`: the benchmarks, all of them or those named, each in a process of its own.

Each writes bench/results/NAME.json and NAME.md. Its own options: `python -m bench.NAME --help`.
"""

from __future__ import annotations

import subprocess
import sys

BENCHMARKS = {
    "tracing": "CPU per decision of everything from the record to the collector, beside OpenTelemetry's SDK",
    "outage": "Evaluate's p99 with the collector down or the agent stopped, and without",
    "guards": "what guards and rate limits add to a decision",
    "million": "a million devices: import, sync, memory, and Evaluate beside a no-op RPC",
    "fleet": "a thousand streams on one control plane: commit to enforced, CPU and memory per stream, a restart",
    "mimicry": "honest life with six styles of attack: what guards catch, how soon, and whom they disturb",
}


def main(names: list[str]) -> int:
    """Runs them; returns the first exit code that is not 0."""
    unknown = sorted(set(names) - set(BENCHMARKS))
    if unknown:
        print(f"bench: no {', '.join(unknown)}; there are", file=sys.stderr)
        for name, what in BENCHMARKS.items():
            print(f"  {name:8} {what}", file=sys.stderr)
        return 2
    worst = 0
    for name in names or BENCHMARKS:
        print(f"{name}: {BENCHMARKS[name]}", flush=True)
        worst = worst or subprocess.run([sys.executable, "-m", f"bench.{name}"], check=False).returncode
    return worst


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
