"""A real AdminService over a real store, in a thread, for tests that are synchronous (the CLI's) or want no event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import grpc
from sidestep.v1 import admin_pb2_grpc

from controlplane.api.admin import AdminService
from controlplane.api.errors import ErrorInterceptor
from controlplane.store import Store

T = TypeVar("T")
DEADLINE_S = 20.0


class AdminServer:
    """`with AdminServer(tmp_path) as server`: `server.stub` is a blocking stub, `server.address` where it listens."""

    store: Store
    address: str
    stub: Any

    def __init__(self, folder: Path) -> None:
        self._url = f"sqlite+aiosqlite:///{folder}/admin.db"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> AdminServer:
        self._thread.start()
        self.run(self._start())
        self._channel = grpc.insecure_channel(self.address)
        self.stub = admin_pb2_grpc.AdminServiceStub(self._channel)
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

    async def _start(self) -> None:
        self.store = await Store.open(self._url)
        self._server = grpc.aio.server(interceptors=[ErrorInterceptor()])
        admin_pb2_grpc.add_AdminServiceServicer_to_server(AdminService(self.store), self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        await self._server.start()

    async def _stop(self) -> None:
        await self._server.stop(0)
        await self.store.close()
