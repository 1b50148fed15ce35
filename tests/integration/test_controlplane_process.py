"""The program itself: started, asked over HTTP and gRPC, stopped, killed."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sidestep.v1 import admin_pb2, admin_pb2_grpc, resources_pb2, sync_pb2, sync_pb2_grpc

from engine.digest import EMPTY, Digest

PROGRAM = Path(sys.executable).with_name("sidestep-controlplane")
WITHIN_S = 15.0
DEVELOPMENT = {
    "operators": "development mode: anyone may administer",
    "signing_key": "development mode: nothing is signed",
    "approvals": "by asserted names: that the second person is another one is only said",
    "sidecars": "not authenticated",
}


class Program:
    def __init__(self, process: subprocess.Popen[str], grpc_address: str, http_address: str) -> None:
        self.process = process
        self.grpc = grpc_address
        self.http = http_address

    def get(self, path: str) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(f"http://{self.http}{path}", timeout=WITHIN_S) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)


def environment(folder: Path, **settings: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SIDESTEP_")}
    own = {
        "LISTEN": "127.0.0.1:0",
        "HTTP_LISTEN": "127.0.0.1:0",
        "DATABASE_URL": f"sqlite+aiosqlite:///{folder}/cp.db",
        "LOG_LEVEL": "WARNING",
        **settings,
    }
    return kept | {f"SIDESTEP_CP_{name}": value for name, value in own.items()}


@contextmanager
def program(folder: Path, **settings: str) -> Iterator[Program]:
    process = subprocess.Popen([PROGRAM], env=environment(folder, **settings), stdout=subprocess.PIPE, text=True)
    killer = threading.Timer(WITHIN_S, process.kill)
    killer.start()
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        killer.cancel()
        ready = re.fullmatch(r"ready grpc=(\S+:\d+) http=(\S+:\d+)\n", line)
        assert ready, line
        yield Program(process, ready[1], ready[2])
    finally:
        killer.cancel()
        process.kill()
        process.communicate()


def put(address: str, subject: str) -> int:
    with grpc.insecure_channel(address) as channel:
        stub = admin_pb2_grpc.AdminServiceStub(channel)  # type: ignore[no-untyped-call]
        request = admin_pb2.PutResourceRequest()
        request.resource.subject.name = f"tenants/acme/subjects/{subject}"
        request.resource.subject.state = resources_pb2.SUBJECT_STATE_ACTIVE
        return int(stub.PutResource(request, timeout=WITHIN_S).revision.revision)


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_it_serves_and_says_so_and_stops_on_sigterm(tmp_path: Path) -> None:
    with program(tmp_path) as running, grpc.insecure_channel(running.grpc) as channel:
        assert running.get("/healthz") == (200, {"alive": True})
        assert running.get("/readyz") == (
            200,
            {"database": True, "serving": True, **DEVELOPMENT},
        )
        assert running.get("/other")[0] == 404
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "sidestep.v1.AdminService", "sidestep.v1.SyncService"):
            request = health_pb2.HealthCheckRequest(service=service)
            wait_for(lambda request=request: health.Check(request, timeout=5).status == 1)
        requests = iter(lambda: sync_pb2.SyncRequest(hello=sync_pb2.Hello(sidecar="pod")), None)
        said = [next(requests)]
        hold = threading.Event()

        def conversation() -> Iterator[sync_pb2.SyncRequest]:
            yield from said
            hold.wait(WITHIN_S)

        stream = sync_pb2_grpc.SyncServiceStub(channel).Sync(conversation())  # type: ignore[no-untyped-call]
        assert next(stream).HasField("scope")
        running.process.send_signal(signal.SIGTERM)
        with pytest.raises(grpc.RpcError) as raised:
            for _ in stream:
                pass
        hold.set()
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "shutting down" in (raised.value.details() or "")
        assert running.process.wait(WITHIN_S) == 0


def test_it_is_not_ready_and_confirms_nothing_while_the_database_is_out_of_reach(tmp_path: Path) -> None:
    with program(tmp_path, HEARTBEAT="100ms") as running, grpc.insecure_channel(running.grpc) as channel:
        put(running.grpc, "one")
        ping = threading.Event()

        def conversation() -> Iterator[sync_pb2.SyncRequest]:
            yield sync_pb2.SyncRequest(hello=sync_pb2.Hello(sidecar="pod"))
            ping.wait(WITHIN_S)
            yield sync_pb2.SyncRequest(ping=sync_pb2.Ping(nonce=7))
            ping.clear()
            ping.wait(2 * WITHIN_S)

        stream = sync_pb2_grpc.SyncServiceStub(channel).Sync(conversation())  # type: ignore[no-untyped-call]
        heard: list[tuple[float, sync_pb2.Heartbeat]] = []

        def listen() -> None:
            with suppress(grpc.RpcError):
                beats = (response.heartbeat for response in stream if response.HasField("heartbeat"))
                heard.extend((time.monotonic(), beat) for beat in beats)

        listener = threading.Thread(target=listen)
        listener.start()
        wait_for(lambda: len(heard) > 3 and heard[-1][1].heads)
        with sqlite3.connect(tmp_path / "cp.db") as connection:
            connection.execute("ALTER TABLE heads RENAME TO gone")
        wait_for(lambda: running.get("/readyz") == (503, {"database": False, "serving": True, **DEVELOPMENT}))
        assert running.get("/healthz")[0] == 200
        went_down = time.monotonic()
        ping.set()
        wait_for(lambda: not ping.is_set())
        # The sidecar hears that the control plane lives, but neither heads nor the answer to its ping.
        wait_for(lambda: heard[-1][0] > went_down + 0.5)
        mended = time.monotonic()
        assert [beat for at, beat in heard if went_down + 0.1 < at and (beat.heads or beat.nonce)] == []
        connection.execute("ALTER TABLE gone RENAME TO heads")
        connection.close()
        wait_for(lambda: running.get("/readyz")[0] == 200)
        wait_for(lambda: any(beat.nonce == 7 and beat.heads and at > mended for at, beat in heard))
        ping.set()
        stream.cancel()
        listener.join(WITHIN_S)


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 200 OK\r\n"),
        (b"HEAD /readyz?verbose HTTP/1.0\r\n\r\n", b"HTTP/1.1 200 OK\r\n"),
        (b"POST /healthz HTTP/1.1\r\n\r\n", b"HTTP/1.1 405 "),
        (b"\x16\x03\x01 nonsense\r\n\r\n", b"HTTP/1.1 405 "),
        (b"GET /" + b"a" * 100_000, b""),
    ],
)
def test_http_answers_or_hangs_up_and_goes_on(http_program: Program, sent: bytes, answer: bytes) -> None:
    host, port = http_program.http.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=WITHIN_S) as connection:
        received = b""
        with suppress(ConnectionError):
            connection.sendall(sent)
            while block := connection.recv(4096):
                received += block
    assert received.startswith(answer)
    assert answer or not received
    assert http_program.get("/healthz")[0] == 200


@pytest.fixture(scope="module")
def http_program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    with program(tmp_path_factory.mktemp("http")) as running:
        wait_for(lambda: running.get("/readyz")[0] == 200)
        yield running


@pytest.mark.parametrize(
    ("settings", "code", "message"),
    [
        ({"LISTEN": "nowhere"}, 2, "SIDESTEP_CP_LISTEN: 'nowhere' is not an address"),
        ({"LISTNE": "x"}, 2, "SIDESTEP_CP_LISTNE: unknown setting in environment; did you mean SIDESTEP_CP_LISTEN?"),
        ({"LISTEN": "192.0.2.1:1"}, 2, "SIDESTEP_CP_LISTEN: 192.0.2.1:1 can be reached from other hosts, and needs "),
        (
            {"LISTEN": "192.0.2.1:1", "INSECURE": "true"},
            2,
            "SIDESTEP_CP_LISTEN: cannot listen on 192.0.2.1:1",
        ),
        ({"HTTP_LISTEN": "192.0.2.1:1"}, 2, "SIDESTEP_CP_HTTP_LISTEN: cannot listen on 192.0.2.1:1"),
        ({"DATABASE_URL": "sqlite+aiosqlite:////dev/null/cp.db"}, 1, "/dev/null: "),
    ],
)
def test_it_refuses_to_start_with_one_clear_line(
    tmp_path: Path, settings: dict[str, str], code: int, message: str
) -> None:
    done = subprocess.run(
        [PROGRAM], env=environment(tmp_path, **settings), capture_output=True, text=True, timeout=WITHIN_S, check=False
    )
    assert (done.returncode, done.stdout) == (code, "")
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("sidestep-controlplane: ")]
    assert line.removeprefix("sidestep-controlplane: ").startswith(message)


def test_a_port_in_use_is_refused(tmp_path: Path) -> None:
    with program(tmp_path) as running:
        settings = environment(tmp_path / "other", LISTEN=running.grpc)
        done = subprocess.run([PROGRAM], env=settings, capture_output=True, text=True, timeout=WITHIN_S, check=False)
        assert done.returncode == 2
        assert f"SIDESTEP_CP_LISTEN: cannot listen on {running.grpc}" in done.stderr


def check_database(path: Path) -> dict[str, int]:
    """Every lane is whole: its digest is that of its records and its log runs without a gap to its head."""
    connection = sqlite3.connect(path)
    try:
        heads: dict[str, int] = {}
        rows = connection.execute("SELECT tenant, lane, revision, digest, digest_key FROM heads").fetchall()
        for tenant, lane, revision, digest, key in rows:
            recomputed = Digest(key)
            bounds = (1, 63) if lane == 1 else (64, 127)
            for record in connection.execute(
                "SELECT collection, id, value FROM records WHERE tenant = ? AND collection BETWEEN ? AND ?",
                (tenant, *bounds),
            ):
                recomputed.add(*record)
            assert recomputed.value() == digest
            log = connection.execute(
                "SELECT revision, delta FROM changes WHERE tenant = ? AND lane = ? ORDER BY revision", (tenant, lane)
            ).fetchall()
            assert [number for number, _ in log] == list(range(1, revision + 1))
            chain = EMPTY
            for number, encoded in log:
                delta = sync_pb2.Delta.FromString(encoded)
                assert (delta.revision, delta.previous_digest) == (number, chain)
                chain = delta.digest
            assert chain == digest
            heads[f"{tenant} {lane}"] = revision
        return heads
    finally:
        connection.close()


_WRITER = """
import asyncio, sys
from controlplane.store import Store, Write

async def main():
    store = await Store.open(sys.argv[1])
    n = int(sys.argv[2])
    while True:
        n += 1
        writes = [Write(64 if i % 2 else 2, f"r{(n * 37 + i) % 400}", b"%d" % n if (n + i) % 5 else None) for i in range(80)]
        committed = await store.commit("acme", writes)
        print(*(head.revision for head in committed.heads.values()), flush=True)

asyncio.run(main())
"""


def test_kill_9_during_commits_leaves_whole_revisions_and_loses_none_that_returned(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/cp.db"
    rng = random.Random(7)
    for round_number in range(8):
        process = subprocess.Popen(
            [sys.executable, "-c", _WRITER, url, str(round_number * 1_000)], stdout=subprocess.PIPE, text=True
        )
        try:
            assert process.stdout is not None
            returned = (0, 0)
            for _ in range(rng.randrange(5, 25)):
                urgent, bulk = process.stdout.readline().split()
                returned = (int(urgent), int(bulk))
            # At any instant of a commit, not only right after one.
            threading.Event().wait(rng.random() * 0.01)
            process.kill()
            rest, _ = process.communicate(timeout=WITHIN_S)
            complete = [line for line in rest.splitlines(keepends=True) if line.endswith("\\n")]
            if complete:
                urgent, bulk = complete[-1].split()
                returned = (int(urgent), int(bulk))
        finally:
            process.kill()
            process.communicate()
        heads = check_database(tmp_path / "cp.db")
        assert (heads["acme 1"], heads["acme 2"]) >= returned
        assert heads["acme 2"] >= returned[1]


def test_it_starts_again_after_kill_9_with_what_was_acknowledged(tmp_path: Path) -> None:
    with program(tmp_path) as running:
        assert put(running.grpc, "one") == 1
        running.process.kill()
        running.process.wait(WITHIN_S)
    with program(tmp_path) as running:
        assert put(running.grpc, "two") == 2
    assert check_database(tmp_path / "cp.db") == {"acme 1": 2, "acme 2": 0}
