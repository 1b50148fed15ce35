"""The programs that are killed: a control plane, and a sidecar under its supervisor. Both come back where they were."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from sidestep.v1 import admin_pb2, admin_pb2_grpc, resources_pb2

from tests.processes import PATIENCE_S, Program, until

# A killed server is tried again at once, not after gRPC's second.
CHANNEL_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 20),
    ("grpc.min_reconnect_backoff_ms", 20),
    ("grpc.max_reconnect_backoff_ms", 50),
)


def quiet_port() -> int:
    """A free port below the range from which the kernel gives ports away, so that it is still free after a kill."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(15_000, lowest)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def pass_time(rng: random.Random, most_s: float) -> None:
    """Lets a random time pass: the moment of a blow is drawn, not synchronised with anything."""
    threading.Event().wait(rng.random() * most_s)


class Plane:
    """A control plane over a SQLite file in `directory`, on one port for life. `with Plane(...) as plane` runs it."""

    def __init__(self, directory: Path, **settings: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.database = directory / "sidestep.db"
        self.address = f"127.0.0.1:{quiet_port()}"
        self._log = directory / "controlplane.log"
        self.settings = {
            "SIDESTEP_CP_LISTEN": self.address,
            "SIDESTEP_CP_HTTP_LISTEN": "127.0.0.1:0",
            "SIDESTEP_CP_DATABASE_URL": f"sqlite+aiosqlite:///{self.database}",
            "SIDESTEP_CP_HEARTBEAT": "200ms",
        } | settings
        self._program: Program | None = None
        self._channel = grpc.insecure_channel(self.address, options=CHANNEL_OPTIONS)
        self.admin: Any = admin_pb2_grpc.AdminServiceStub(self._channel)  # type: ignore[no-untyped-call]

    def start(self) -> None:
        """Starts it and waits until it serves."""
        program = str(Path(sys.executable).with_name("sidestep-controlplane"))
        self._program = Program([program], self.settings, self._log)
        self._program.wait_until_ready()

    def kill(self) -> None:
        """SIGKILL."""
        assert self._program is not None
        self._program.kill()
        self._program.end()

    def put(self, resource: resources_pb2.Resource) -> admin_pb2.PutResourceResponse:
        """Writes a record, again and again until it is acknowledged."""
        request = admin_pb2.PutResourceRequest(resource=resource)
        answer: admin_pb2.PutResourceResponse = self._insist(self.admin.PutResource, request)
        return answer

    def delete(self, name: str) -> None:
        """Deletes a record that exists; one that an unacknowledged attempt deleted is gone as well."""
        with suppress(KeyError):
            self._insist(self.admin.DeleteResource, admin_pb2.DeleteResourceRequest(name=name))

    def heads(self, tenant: str) -> dict[tuple[str, int], tuple[int, int, bytes]]:
        """(tenant, lane) -> (epoch, revision, digest), as the control plane says now."""
        asked = admin_pb2.GetRevisionsRequest(parent=f"tenants/{tenant}")
        heads = self._insist(self.admin.GetRevisions, asked).heads
        return {(head.tenant, int(head.lane)): (head.epoch, head.revision, head.digest) for head in heads}

    def load(self, tenant: str, devices: Sequence[resources_pb2.Device]) -> admin_pb2.ImportResourcesResponse:
        """One import of devices, added to those that are there. Raises grpc.RpcError if it is cut off."""

        def messages() -> Any:
            yield admin_pb2.ImportResourcesRequest(
                start=admin_pb2.ImportStart(parent=f"tenants/{tenant}", collection=resources_pb2.COLLECTION_DEVICES)
            )
            for at in range(0, len(devices), 1000):
                batch = admin_pb2.ImportBatch(
                    resources=[resources_pb2.Resource(device=device) for device in devices[at : at + 1000]]
                )
                yield admin_pb2.ImportResourcesRequest(batch=batch)
            yield admin_pb2.ImportResourcesRequest(commit=admin_pb2.ImportCommit(count=len(devices)))

        answer: admin_pb2.ImportResourcesResponse = self.admin.ImportResources(
            messages(), timeout=4 * PATIENCE_S, wait_for_ready=True
        )
        return answer

    def __enter__(self) -> Plane:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()
        if self._program is not None:
            self._program.end()

    @staticmethod
    def _insist(method: Any, request: Any) -> Any:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return method(request, timeout=5, wait_for_ready=True)
            except grpc.RpcError as error:
                code = error.code()
                if code is grpc.StatusCode.NOT_FOUND:
                    raise KeyError(request) from None
                # On a busy machine a restart takes longer than a call waits.
                again = code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
                if not again or time.monotonic() > deadline:
                    raise


class Pod:
    """A sidecar with its supervisor. `with Pod(...) as pod` starts it, and leaves nothing of it behind."""

    def __init__(self, data_dir: Path, control_plane: str, **settings: str) -> None:
        data_dir.mkdir(parents=True, exist_ok=True)
        self.data_dir = data_dir
        self._log = data_dir.with_name("sidecar.log")
        self._settings = {
            "SIDESTEP_TENANT": "acme",
            "SIDESTEP_DATA_DIR": str(data_dir),
            "SIDESTEP_LISTEN": f"127.0.0.1:{quiet_port()}",
            "SIDESTEP_HTTP_LISTEN": "127.0.0.1:0",
            "SIDESTEP_CONTROL_PLANE": control_plane,
            "SIDESTEP_JOURNAL_SINK": "none",
        } | settings
        self.address = self._settings["SIDESTEP_LISTEN"]
        self.http = ""
        self._program: Program | None = None

    def start(self) -> None:
        """Starts it and waits until the worker answers, if only that nothing is loaded yet."""
        self._program = Program([sys.executable, "-m", "sidecar.supervisor"], self._settings, self._log)
        self._program.wait_until_ready()
        self.http = self._program.http

    def change(self, **settings: str) -> None:
        """Settings for the next start."""
        self._settings |= settings

    @property
    def pid(self) -> int:
        """The supervisor's."""
        assert self._program is not None
        return self._program.process.pid

    def child(self, role: str) -> int | None:
        """Process id of the agent or a worker at this moment, whatever it is doing; None: there is none."""
        return next(iter(self.children(role)), None)

    def children(self, role: str) -> list[int]:
        """Process ids of the agent or the workers at this moment, whatever they are doing."""
        found = []
        with suppress(OSError):
            for pid in map(int, Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()):
                with suppress(OSError):
                    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                    # A process that was forked a moment ago still shows the supervisor's own.
                    if b"sidecar.app" in words and role.encode() in words:
                        found.append(pid)
        return found

    def kill(self, *roles: str) -> None:
        """SIGKILL to the agent, a worker or both, as soon as they exist."""
        for role in roles:
            os.kill(until(partial(self.child, role), f"the {role} to be started; {self.log()}"), signal.SIGKILL)

    def kill_supervisor(self) -> None:
        """SIGKILL; the kernel then kills the others."""
        assert self._program is not None
        orphans = [pid for role in ("agent", "worker") if (pid := self.child(role)) is not None]
        self._program.kill()
        self._program.end()
        until(lambda: not any(map(_runs, orphans)), "agent and worker to die with their supervisor")

    def terminate(self) -> None:
        """SIGTERM; `stop` waits for the end."""
        os.kill(self.pid, signal.SIGTERM)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self._program is not None
        return self._program.stop()

    def readyz(self) -> dict[str, Any]:
        """The body of /readyz."""
        try:
            with urllib.request.urlopen(f"http://{self.http}/readyz", timeout=5) as response:
                body = response.read()
        except urllib.error.HTTPError as error:
            body = error.read()
        found: dict[str, Any] = json.loads(body)
        return found

    def metrics(self) -> str:
        """All metrics, as text."""
        with urllib.request.urlopen(f"http://{self.http}/metrics", timeout=5) as response:
            return str(response.read().decode())

    def metric(self, name: str) -> float:
        """A metric without labels."""
        for line in self.metrics().splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
        raise AssertionError(f"no metric {name}")

    def log(self) -> str:
        """The end of what it wrote to standard error."""
        return self._log.read_text(errors="replace")[-4000:] if self._log.exists() else ""

    def generation(self) -> int:
        """The number of the live generation; 0: there is none."""
        with suppress(OSError, ValueError):
            return int((self.data_dir / "CURRENT").read_text().removeprefix("gen-"))
        return 0

    def staging(self) -> bool:
        """Whether a snapshot is being received: there is a newer generation than the live one."""
        numbers = [int(path.name.removeprefix("gen-")) for path in self.data_dir.glob("gen-*")]
        return max(numbers, default=0) > self.generation()

    def __enter__(self) -> Pod:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._program is not None:
            self._program.end()


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
