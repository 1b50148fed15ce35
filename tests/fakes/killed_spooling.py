"""Spools a journal again and again, killed one step later each time.

    python -m tests.fakes.killed_spooling TEMPLATE OUT

TEMPLATE is a journal folder. OUT/0, OUT/1, ... each get a copy of it (`journal`) and a spool, and a process of their own that
kills itself with SIGKILL at its 0th, 1st, ... change of the file system. Prints how many there were; the last one got through.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sidecar.journal.ship import Shipper
from sidecar.page import AgentSlot

_CHANGES = ("fsync", "mkdir", "rename", "replace", "unlink")


def main(template: Path, out: Path) -> None:
    for step in range(1000):
        place = out / str(step)
        shutil.copytree(template, place / "journal")
        (place / "spool").mkdir()
        child = os.fork()
        if child == 0:
            _spool(place, step)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            sys.stdout.write(f"{step + 1}\n")
            return


def _spool(place: Path, step: int) -> None:
    left = step

    def deadly(change: Callable[..., Any]) -> Callable[..., Any]:
        def changed(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return change(*args, **kwargs)

        return changed

    for name in _CHANGES:
        setattr(os, name, deadly(getattr(os, name)))
    shutil.copyfile = deadly(shutil.copyfile)
    shipper = Shipper(place / "journal", None, AgentSlot.detached(), resource=b"", quarantine_bytes=1 << 20)
    asyncio.run(shipper.spool(place / "spool", "pod-1"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
