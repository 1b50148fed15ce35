"""A whole control plane in a thread of the test, behind TLS, with every file that says who is who; and clients of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import yaml
from sidestep.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    lease_pb2_grpc,
    report_pb2_grpc,
    sync_pb2,
    sync_pb2_grpc,
)
from sidestep.v1 import resources_pb2 as pb

from controlplane.app import Serving, control_plane
from controlplane.config import Settings
from controlplane.counters import Counters
from tests.fakes.certificates import Authority, Identity
from tests.fakes.operators import OperatorFiles, bearer

WITHIN_S = 30.0
OPTIONS = [("grpc.use_local_subchannel_pool", 1)]
PAYMENTS = "spiffe://example.org/ns/acme/sa/payments"
MAPPING: list[dict[str, Any]] = [
    {"match": "spiffe://example.org/ns/{namespace}/sa/{account}", "tenants": ["{namespace}"]},
    {"match": "spiffe://example.org/ns/{namespace}/pod/{pod}", "tenants": ["{namespace}"]},
    {"match": "dns:{pod}.sidecars.example.org", "tenants": "*"},
]


class Guarded:
    """`with Guarded(tmp_path) as plane`: `plane.grpc` demands a certificate, `plane.admin` a token. `plane.authority` signs."""

    counters: Counters

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.authority = Authority(folder)
        self.server = self.authority.issue("server")
        self.operators = OperatorFiles(folder / "operators")
        self.mapping = folder / "sidecars.yaml"
        self.revoked = folder / "revoked.yaml"
        self.write(self.mapping, sidecars=MAPPING)
        self.write(self.revoked, revoked=[])
        self.settings = {
            "listen": "127.0.0.1:0",
            "admin_listen": "127.0.0.1:0",
            "http_listen": "127.0.0.1:0",
            "database_url": f"sqlite+aiosqlite:///{folder}/cp.db",
            "tls_cert": str(self.server.certificate),
            "tls_key": str(self.server.key),
            "tls_client_ca": str(self.authority.certificate),
            "sidecars": str(self.mapping),
            "revoked": str(self.revoked),
            "operators": self.operators.path,
            "heartbeat": 0.2,
            "drain": 0.5,
        } | settings
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Guarded:
        self._thread.start()
        self._plane = control_plane(Settings(**self.settings))
        self.serving: Serving = self._run(self._plane.__aenter__())
        self.grpc, self.admin, self.counters = self.serving.grpc, self.serving.admin, self.serving.counters
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._plane.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(WITHIN_S)
        self._loop.close()

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(WITHIN_S)

    def write(self, path: Path, **document: Any) -> None:
        """Replaces a file as a whole."""
        staged = path.with_name(f".{path.name}")
        staged.write_text(yaml.safe_dump(document))
        staged.replace(path)

    @contextmanager
    def channel(self, identity: Identity | None, address: str = "", ca: Path | None = None) -> Iterator[grpc.Channel]:
        """A channel of one with this certificate; none: to where operators call."""
        address = address or (self.grpc if identity else self.admin)
        pair = (identity.key.read_bytes(), identity.certificate.read_bytes()) if identity else (None, None)
        credentials = grpc.ssl_channel_credentials((ca or self.authority.certificate).read_bytes(), *pair)
        with grpc.secure_channel(address, credentials, OPTIONS) as channel:
            yield channel

    def put(self, *subjects: str, tenant: str = "acme", operator: str = "alice") -> None:
        """Puts subjects, as an operator."""
        with self.channel(None) as channel:
            stub = admin_pb2_grpc.AdminServiceStub(channel)  # type: ignore[no-untyped-call]
            for subject in subjects:
                request = admin_pb2.PutResourceRequest()
                request.resource.subject.name = f"tenants/{tenant}/subjects/{subject}"
                request.resource.subject.state = pb.SUBJECT_STATE_ACTIVE
                stub.PutResource(request, metadata=bearer(operator), timeout=WITHIN_S)

    def listed(self) -> dict[str, admin_pb2.SidecarStatus]:
        """The sidecars, by name."""
        with self.channel(None) as channel:
            stub = admin_pb2_grpc.AdminServiceStub(channel)  # type: ignore[no-untyped-call]
            response = stub.ListSidecars(admin_pb2.ListSidecarsRequest(), metadata=bearer("carol"), timeout=WITHIN_S)
        return {status.sidecar: status for status in response.sidecars}


class Follower:
    """A stream of one who says Hello and reads. Ends with the test."""

    def __init__(self, channel: grpc.Channel, name: str = "pod-1", *, hello: bool = True) -> None:
        self._over = threading.Event()
        self._hello = sync_pb2.SyncRequest(hello=sync_pb2.Hello(sidecar=name, instance="i", version="1"))
        self._say_hello = hello
        stub = sync_pb2_grpc.SyncServiceStub(channel)  # type: ignore[no-untyped-call]
        self._called = threading.Event()
        self.call = stub.Sync(self._requests(), timeout=WITHIN_S)
        self._called.set()

    def _requests(self) -> Iterator[sync_pb2.SyncRequest]:
        # A sidecar speaks once it was admitted.
        self._called.wait(WITHIN_S)
        with suppress(grpc.RpcError):
            self.call.initial_metadata()
        if self._say_hello:
            yield self._hello
        self._over.wait(WITHIN_S)

    def tenants(self) -> list[str]:
        """The tenants of the first Scope."""
        for response in self.call:
            if response.WhichOneof("message") == "scope":
                return list(response.scope.tenants)
        raise AssertionError("the stream ended")

    def end(self) -> grpc.RpcError:
        """Reads until the stream is ended from the other side."""
        try:
            for _ in self.call:
                pass
        except grpc.RpcError as error:
            return error
        raise AssertionError("the stream was not refused")

    def close(self) -> None:
        """Leaves."""
        self._over.set()
        self.call.cancel()


@contextmanager
def following(channel: grpc.Channel, name: str = "pod-1", *, hello: bool = True) -> Iterator[Follower]:
    follower = Follower(channel, name, hello=hello)
    try:
        yield follower
    finally:
        follower.close()


def refusal(call: Any) -> grpc.RpcError:
    """The error that a call ends with."""
    try:
        call()
    except grpc.RpcError as error:
        return error
    raise AssertionError("was not refused")


def stubs(channel: grpc.Channel) -> tuple[Any, Any]:
    """Of reports and leases."""
    return report_pb2_grpc.ReportServiceStub(channel), lease_pb2_grpc.LeaseServiceStub(channel)  # type: ignore[no-untyped-call]


def secrets_of(identities: Iterable[Identity]) -> list[str]:
    """Lines of private keys, which no log may hold."""
    return [line for each in identities for line in each.key.read_text().splitlines() if not line.startswith("-")]
