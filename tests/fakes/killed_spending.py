"""A worker that kills itself with SIGKILL at a chosen point of a spend.

    python -m tests.fakes.killed_spending POINT NUMBER worker ...

POINT is `before` or `after`, a colon and a name of `POINTS`; it dies at that point's NUMBERth time. The rest are the arguments of
`python -m sidecar.app`.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from sidecar import app
from sidecar.front.recorder import Recorder
from sidecar.lease.client import LeaseClient
from sidecar.lease.holders import HolderFile
from sidecar.lease.leases import Leases
from sidecar.lease.reservations import Reservations

POINTS: dict[str, tuple[type, str]] = {
    "holder": (HolderFile, "__init__"),
    "message": (Leases, "message"),
    "number": (LeaseClient, "_number"),
    "absorb": (Leases, "absorb"),
    "claim": (Reservations, "claim"),
    "record": (Recorder, "record"),
    "commit": (Leases, "commit"),
    "keep": (Reservations, "keep"),
}


def _deadly(method: Callable[..., Any], when: str, number: int) -> Callable[..., Any]:
    left = number

    def called(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0 and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = method(*args, **kwargs)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return called


def main() -> int:
    """Returns the exit code, if it lives."""
    point, number = sys.argv[1], int(sys.argv[2])
    when, _, name = point.partition(":")
    owner, method = POINTS[name]
    setattr(owner, method, _deadly(getattr(owner, method), when, number))
    return app.main(sys.argv[3:])


if __name__ == "__main__":
    sys.exit(main())
