"""Ten million distinct (subject, device, network, caller) thrown at all guards and limits: what it does to memory.

`python -m bench.guard_flood [--keys N] [--entries N]` prints the resident memory as it goes and returns 1 if the guards ever
took more than the bound that tests/unit/guard/flood.py states. It takes about ten minutes.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from sidecar.guard.guards import ENTRIES, Guards
from tests.unit.guard.flood import bound, flood

_STEPS = 20


def main() -> int:
    """Runs it; returns 1 if the bound is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=10_000_000)
    parser.add_argument("--entries", type=int, default=ENTRIES)
    arguments = parser.parse_args()
    guards = Guards(entries=arguments.entries)
    before, most, begun = _resident(), 0, time.monotonic()
    for step in range(_STEPS):
        begin, end = (arguments.keys * each // _STEPS for each in (step, step + 1))
        flood(guards, 2 * arguments.entries, begin, end)
        taken = _resident() - before
        most = max(most, taken)
        print(f"{end:>12,} keys  {taken / 2**20:7.1f} MiB  {time.monotonic() - begun:6.0f} s", flush=True)
    allowed = bound(arguments.entries)
    print(f"at most {most / 2**20:.1f} MiB of {allowed / 2**20:.1f}")
    return int(most > allowed)


def _resident() -> int:
    """Bytes of this process that are in memory."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmRSS in /proc/self/status")


if __name__ == "__main__":
    sys.exit(main())
