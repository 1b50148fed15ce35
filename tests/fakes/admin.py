"""Real admin and report services over a real store, in a thread, for tests that want no event loop, such as the CLI's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import grpc
from sidestep.v1 import access_pb2_grpc, admin_pb2_grpc, audit_pb2_grpc, lease_pb2_grpc, report_pb2_grpc, usage_pb2_grpc

from controlplane.api.admin import AdminService
from controlplane.api.audit import AuditService
from controlplane.api.errors import ErrorInterceptor
from controlplane.api.grants import AccessService
from controlplane.api.identity import IdentityInterceptor
from controlplane.api.leases import LeaseService
from controlplane.api.proposals import ProposalService
from controlplane.api.quotas import MAX_IMPORTS, ImportQuotas
from controlplane.api.refusals import Refusals
from controlplane.api.reports import ReportService
from controlplane.api.usage import UsageService
from controlplane.api.writing import Writer
from controlplane.operators import Operators
from controlplane.review.access import Reviewer
from controlplane.store import Store

T = TypeVar("T")
DEADLINE_S = 20.0


class AdminServer:
    """`with AdminServer(tmp_path) as server`; it listens at `server.address`.

    `server.stub`, `server.access`, `server.audit`, `server.proposals`, `server.reports` and `server.leases` are blocking
    stubs. `operators`: path of an operators' file; without it, development mode.
    """

    store: Store
    address: str
    stub: Any
    access: Any
    audit: Any
    proposals: Any
    reports: Any
    usage: Any
    leases: Any

    def __init__(self, folder: Path, operators: str = "") -> None:
        self._operators_path = operators
        # Grant id -> when it was last used, for AccessService.
        self.last_used: dict[str, float] = {}
        self._url = f"sqlite+aiosqlite:///{folder}/admin.db"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> AdminServer:
        self._thread.start()
        self.run(self._start())
        self._channel = grpc.insecure_channel(self.address)
        self.stub = admin_pb2_grpc.AdminServiceStub(self._channel)
        self.access = access_pb2_grpc.AccessServiceStub(self._channel)
        self.proposals = audit_pb2_grpc.ProposalServiceStub(self._channel)
        self.audit = audit_pb2_grpc.AuditServiceStub(self._channel)
        self.usage = usage_pb2_grpc.UsageServiceStub(self._channel)
        self.reports = report_pb2_grpc.ReportServiceStub(self._channel)
        self.leases = lease_pb2_grpc.LeaseServiceStub(self._channel)
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()
        self.run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE_S)
        self._loop.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs something in the server's loop, for instance on its store."""
        future: Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return future.result(DEADLINE_S)

    def down(self) -> None:
        """As when the process has died: connections break, the port refuses."""
        self.run(self._server.stop(0))

    def up(self) -> None:
        """Serves again, on the same port."""
        self.run(self._serve(self.address))

    async def _last_used(self, tenant: str) -> dict[str, float]:
        return self.last_used

    async def _start(self) -> None:
        self.store = await Store.open(self._url)
        self.operators = Operators(self._operators_path) if self._operators_path else None
        self.refusals = Refusals(self.store)
        self.quotas = ImportQuotas(per_tenant=MAX_IMPORTS, records_per_minute=10_000_000)
        await self._serve("127.0.0.1:0")

    async def _serve(self, listen: str) -> None:
        interceptors = [ErrorInterceptor(), IdentityInterceptor(self.operators, self.refusals)]
        self._server = grpc.aio.server(interceptors=interceptors, options=(("grpc.so_reuseport", 0),))
        access = AccessService(self.store, Reviewer(self.store, self._last_used))
        access_pb2_grpc.add_AccessServiceServicer_to_server(access, self._server)
        audit_pb2_grpc.add_AuditServiceServicer_to_server(AuditService(self.store), self._server)
        report_pb2_grpc.add_ReportServiceServicer_to_server(ReportService(self.store, self.refusals), self._server)
        writer = Writer(self.store)
        admin_pb2_grpc.add_AdminServiceServicer_to_server(AdminService(self.store, writer, self.quotas), self._server)
        audit_pb2_grpc.add_ProposalServiceServicer_to_server(ProposalService(self.store, writer), self._server)
        usage_pb2_grpc.add_UsageServiceServicer_to_server(UsageService(self.store), self._server)
        leases = LeaseService(self.store, lambda _context: frozenset({"acme", "globex"}))
        lease_pb2_grpc.add_LeaseServiceServicer_to_server(leases, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port(listen)}"
        await self._server.start()

    async def _stop(self) -> None:
        await self._server.stop(0)
        await self.refusals.close()
        await self.store.close()
