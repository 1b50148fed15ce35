"""Load from h2load, a C client, so that the server is what is measured."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from typing import NamedTuple

_RATE = re.compile(r"finished in [\d.]+\w+, ([\d.]+) req/s")
_DONE = re.compile(r"(\d+) succeeded, (\d+) failed")
_HEADERS = ("-H", "content-type: application/grpc", "-H", "te: trailers")
_MEAN = re.compile(r"time for request:\s+\S+\s+\S+\s+(\S+)")


class Run(NamedTuple):
    """Calls per second, calls made, mean latency in seconds."""

    rate: float
    calls: int
    mean_s: float


def available() -> bool:
    """Whether h2load is installed (Debian package nghttp2-client)."""
    return shutil.which("h2load") is not None


def run(address: str, path: str, message: bytes, *, calls: int, clients: int, streams: int) -> Run:
    """Sends the same unary call `calls` times. Raises RuntimeError if any failed."""
    with tempfile.NamedTemporaryFile() as body:
        body.write(_framed(message))
        body.flush()
        done = subprocess.run(
            [
                *("h2load", f"http://{address}{path}", "-d", body.name, "-n", str(calls), "-c", str(clients)),
                *("-m", str(streams), "-t", "1", *_HEADERS),
            ],
            capture_output=True,
            text=True,
            timeout=600,
            check=True,
        )
    rate, counts, mean = _RATE.search(done.stdout), _DONE.search(done.stdout), _MEAN.search(done.stdout)
    if not rate or not counts or not mean or int(counts[2]) or int(counts[1]) != calls:
        raise RuntimeError(f"h2load: {done.stdout[-1500:]}")
    return Run(float(rate[1]), calls, _seconds(mean[1]))


def latencies(address: str, path: str, message: bytes, *, rate: int, seconds: float, clients: int) -> list[float]:
    """Sends the same unary call at a fixed rate, whether or not earlier ones were answered; how long each took, in seconds.

    Raises RuntimeError if any failed.
    """
    calls = round(rate * seconds)
    with tempfile.NamedTemporaryFile() as body, tempfile.NamedTemporaryFile() as log:
        body.write(_framed(message))
        body.flush()
        subprocess.run(
            [
                *(
                    "h2load",
                    f"http://{address}{path}",
                    "-d",
                    body.name,
                    "-n",
                    str(calls),
                    "-c",
                    str(clients),
                    "-t",
                    "1",
                ),
                *("-m", "100", "--rps", str(rate / clients), "--log-file", log.name, *_HEADERS),
            ],
            capture_output=True,
            timeout=60 + 10 * seconds,
            check=True,
        )
        rows = [line.split("\t") for line in log.read().decode().splitlines()]
    if len(rows) != calls or any(status != "200" for _, status, *_ in rows):
        raise RuntimeError(f"h2load: {len(rows)} answers to {calls} calls")
    return [int(taken) * 1e-6 for _, _, taken, *_ in rows]


def _framed(message: bytes) -> bytes:
    """As gRPC sends it: not compressed, with its length."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def _seconds(text: str) -> float:
    for unit, size in (("us", 1e-6), ("ms", 1e-3), ("s", 1.0)):
        if text.endswith(unit):
            return float(text.removesuffix(unit)) * size
    raise ValueError(text)
