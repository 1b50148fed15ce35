"""A real worker whose clock stands where the test puts it: `python -m tests.conformance.worker_process worker ...`.

Takes the arguments of `python -m sidecar.app`. The time is read from the file `clock` in the data directory, at every use;
so is the number of the vector: with each, the guards begin anew.
"""

from __future__ import annotations

import argparse
import mmap
import sys
from pathlib import Path
from struct import Struct

from sidecar.app import die_with_parent
from sidecar.clock import Clock
from sidecar.config import load
from sidecar.front import worker
from sidecar.gather.gatherer import Gathered
from sidecar.guard.guards import Examined, Guards
from sidecar.page import Page
from tests.conformance.replica import BOOT

_TIMES = Struct("<ddq")


def clock_file(data_dir: Path) -> Path:
    """Where the worker of a data directory reads the time."""
    return data_dir / "clock"


def set_clock(path: Path, wall: float, boottime: float, vector: int) -> None:
    """Sets the time and the number of the vector, for workers running and to come."""
    with path.open("r+b" if path.exists() else "wb") as file:
        file.write(_TIMES.pack(wall, boottime, vector))


class FileClock(Clock):
    """Reads both times from a mapped file."""

    __slots__ = ("_times",)

    def __init__(self, path: Path) -> None:
        super().__init__(BOOT)
        with path.open("rb") as file:
            self._times = mmap.mmap(file.fileno(), _TIMES.size, access=mmap.ACCESS_READ)

    def wall(self) -> float:
        return float(_TIMES.unpack_from(self._times)[0])

    def boottime(self) -> float:
        return float(_TIMES.unpack_from(self._times)[1])

    def vector(self) -> int:
        """The number of the vector."""
        return int(_TIMES.unpack_from(self._times)[2])


class ForgetfulGuards(Guards):
    """Guards that know nothing of earlier vectors."""

    def __init__(self, clock: FileClock) -> None:
        super().__init__()
        self._clock = clock
        self._vector = -1

    def examine(self, gathered: Gathered, caller: str = "") -> Examined:
        vector = self._clock.vector()
        if vector != self._vector:
            self._vector = vector
            self.reset()
        return super().examine(gathered, caller)


def main() -> int:
    """Runs the worker until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=("worker",))
    parser.add_argument("--index", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    options = parser.parse_args()
    die_with_parent(options.parent)
    config = load()
    slot = Page(config.page_path).worker(options.index)
    slot.attach()
    clock = FileClock(clock_file(config.data_dir))
    return worker.run(config, options.index, slot, clock=clock, guards=ForgetfulGuards(clock))


if __name__ == "__main__":
    sys.exit(main())
