"""`make up`: the same three processes in the foreground, on the usual ports, for development. Ctrl-C stops all."""

from __future__ import annotations

import signal
import sys
import threading

from examples.stack import Stack


def main() -> int:
    """Runs until SIGINT or SIGTERM, or until one of them dies."""
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    with Stack(listen="127.0.0.1:9191", control_plane_listen="127.0.0.1:9190", echo_spans=True) as stack:
        print(f"control plane  {stack.admin_address}   (sidestep --server {stack.admin_address} ...)")
        print(f"sidecar        {stack.sidecar_address}   (tenant {stack.tenant})")
        print(f"OTLP receiver  127.0.0.1:{stack.receiver.port}   data in {stack.folder}")
        print("Ctrl-C stops all three and removes the data.", flush=True)
        while not stopping.wait(0.5):
            for program in (stack.control_plane, stack.sidecar):
                if program is not None and not program.running():
                    print(f"the {program.name} has ended:\n{stack.logs()}", file=sys.stderr)
                    return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
