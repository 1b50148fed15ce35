"""Program `sidestep-healthcheck`: asks a health endpoint and says by its exit code what it answered. Standard library only.

It ships in the images of sidecar and control plane, which have no curl, for HEALTHCHECK and exec probes.
"""

from __future__ import annotations

import argparse
import http.client
import sys
from typing import Final

_TIMEOUT_S: Final = 3.0
_ANY: Final = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]", "": "127.0.0.1"}  # noqa: S104 (it connects, it does not listen)


def main() -> None:
    """Exit code 0: the endpoint answers 200; 1: it answers otherwise, or not at all; 2: wrong arguments."""
    parser = argparse.ArgumentParser(prog="sidestep-healthcheck", description="Asks a health endpoint of Sidestep.")
    parser.add_argument("address", help="where it listens, as in SIDESTEP_HTTP_LISTEN: HOST:PORT")
    parser.add_argument("path", nargs="?", default="/healthz", help="/startz, /healthz or /readyz (default: /healthz)")
    arguments = parser.parse_args()
    host, colon, port = arguments.address.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65_536:
        parser.error(f"{arguments.address!r} is not HOST:PORT")
    if not arguments.path.startswith("/"):
        parser.error(f"the path {arguments.path!r} does not begin with /")
    sys.exit(check(_ANY.get(host, host).strip("[]"), int(port), arguments.path))


def check(host: str, port: int, path: str) -> int:
    """Asks once; writes what is wrong, if anything, to standard error. Returns the exit code."""
    connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        text = response.read(4096).decode("utf-8", "replace").strip()
    except (OSError, http.client.HTTPException) as error:
        sys.stderr.write(f"sidestep-healthcheck: {host}:{port}{path}: {error or type(error).__name__}\n")
        return 1
    finally:
        connection.close()
    if response.status == http.client.OK:
        return 0
    sys.stderr.write(f"sidestep-healthcheck: {host}:{port}{path}: {response.status} {text}\n")
    return 1


if __name__ == "__main__":
    main()
