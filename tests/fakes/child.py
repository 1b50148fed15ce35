"""A child process for the supervisor's tests: beats, answers, and misbehaves when told to.

    python -m tests.fakes.child ROLE INDEX PARENT PAGE DIARY [TRAIT...]

Writes what happens to it into the file DIARY, a line each. Traits: `stubborn` ignores SIGTERM; `silent` stops beating once it
serves; `broken` exits with 7 at once; `unloaded` serves without data; `fragile` is killed by its first SIGTERM, once.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from pathlib import Path

from sidecar.app import die_with_parent
from sidecar.page import Page, Slot, State


def main(role: str, index: int, parent: int, page_path: Path, diary: Path, *traits: str) -> int:
    die_with_parent(parent)

    def write(line: str) -> None:
        with diary.open("a") as file:
            file.write(f"{role}-{index} {line}\n")

    write(f"start {os.getpid()}")
    if "broken" in traits:
        return 7
    page = Page(page_path)
    slot: Slot = page.agent if role == "agent" else page.worker(index)
    ports = page.worker(0).ports(1)
    slot.attach()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: None if "stubborn" in traits else stop.set())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    listener = socket.socket()
    if role == "worker":
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("127.0.0.1", ports[0]))
        page.worker(index).set_ports([listener.getsockname()[1]])
        write(f"port {listener.getsockname()[1]}")
    slot.set_state(State.NOT_LOADED if "unloaded" in traits else State.SERVING)
    while not stop.wait(0.05):
        if "silent" not in traits:
            slot.beat()
    if "fragile" in traits and f"{role}-{index} killed" not in diary.read_text():
        write("killed")
        os.kill(os.getpid(), signal.SIGKILL)
    slot.set_state(State.DRAINING)
    write(f"end deadline={page.drain_deadline_ms > 0}")
    listener.close()
    return 0


if __name__ == "__main__":
    role, index, parent, page, diary, *traits = sys.argv[1:]
    sys.exit(main(role, int(index), int(parent), Path(page), Path(diary), *traits))
