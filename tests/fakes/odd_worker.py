"""A worker whose clock can be made to hang: `python -m tests.fakes.odd_worker` takes the arguments of `sidecar.app`.

While the file `hang` is in the data directory, whoever asks for the time waits.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from sidecar.clock import Clock
from sidecar.config import load
from sidecar.front import worker
from sidecar.page import Page


class HangingClock(Clock):
    __slots__ = ("_file",)

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = file

    def wall(self) -> float:
        while self._file.exists():
            threading.Event().wait(0.01)
        return super().wall()


if __name__ == "__main__":
    config = load()
    slot = Page(config.page_path).worker(0)
    slot.attach()
    sys.exit(worker.run(config, 0, slot, clock=HangingClock(config.data_dir / "hang")))
