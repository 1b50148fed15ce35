"""The installed programs: `sidestep` against `sidestep-controlplane`, both as processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
DEADLINE_S = 30


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    env = {
        **os.environ,
        "SIDESTEP_CP_LISTEN": "127.0.0.1:0",
        "SIDESTEP_CP_HTTP_LISTEN": "127.0.0.1:0",
        "SIDESTEP_CP_DATABASE_URL": f"sqlite+aiosqlite:///{tmp_path}/cp.db",
    }
    process = subprocess.Popen(
        [BIN / "sidestep-controlplane"], env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        # `ready grpc=HOST:PORT http=HOST:PORT`; end of file if it dies instead.
        ready = process.stdout.readline().split()
        assert ready[:1] == ["ready"], ready
        yield ready[1].removeprefix("grpc=")
    finally:
        process.terminate()
        process.wait(DEADLINE_S)


def sidestep(address: str, *args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "SIDESTEP_SERVER": address, "SIDESTEP_TENANT": "acme"}
    return subprocess.run(
        [BIN / "sidestep", *args], env=env, input=stdin, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )


def test_a_feed_a_policy_and_their_failures(address: str, tmp_path: Path) -> None:
    feed = tmp_path / "feed.txt"
    feed.write_text(
        "# IPsum\n" + "".join(f"198.18.{n // 250}.{n % 250}\t{n % 9 + 1}\n" for n in range(5000)) + "bad line\n"
    )
    result = sidestep(address, "signal", "import", str(feed), "--source", "ipsum", "-o", "json")
    assert result.returncode == 0, result.stderr
    counts = json.loads(result.stdout)
    assert (counts["received"], counts["added"], [item["line"] for item in counts["refused"]]) == (
        "5000",
        "5000",
        [5002],
    )
    assert "refused" in result.stderr

    bad = sidestep(address, "policy", "put", "-", stdin="apiVersion: sidestep.dev/v1\nkind: Policy\n")
    assert bad.returncode == 2
    assert "error: stdin:" in bad.stderr
    assert "Traceback" not in bad.stderr

    refused = sidestep(address, "grant", "put", "g1", "--subject", "alice")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert sidestep(address, "grant", "get", "g1").returncode == 4
    assert sidestep(address, "sidecar", "list").returncode == 0


def test_a_closed_pipe_ends_quietly(address: str) -> None:
    sidestep(address, "subject", "put", "alice")
    env = {**os.environ, "SIDESTEP_SERVER": address, "SIDESTEP_TENANT": "acme"}
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        [BIN / "sidestep", "subject", "list", "-o", "json"],
        env=env,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    os.close(writer)
    assert "Traceback" not in result.stderr
    assert result.returncode != 0
