"""gRPC server reflection: off by default, since it tells a stranger what there is to call."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
from grpc_reflection.v1alpha import reflection

# Each open reflection stream holds a thread.
_MAX_STREAMS = 4


class ReflectionServer:
    """A server of its own on a private Unix socket, for a transport that passes on what it does not serve itself."""

    def __init__(self, services: Sequence[str]) -> None:
        self._directory = tempfile.mkdtemp(prefix="sidestep-reflection-")  # mode 0700
        self.path = str(Path(self._directory, "reflection.sock"))
        self._server = grpc.server(ThreadPoolExecutor(_MAX_STREAMS), maximum_concurrent_rpcs=_MAX_STREAMS)
        reflection.enable_server_reflection((*services, reflection.SERVICE_NAME), self._server)
        self._server.add_insecure_port(f"unix:{self.path}")
        self._server.start()

    def stop(self) -> None:
        """Ends it and removes the socket."""
        self._server.stop(0).wait()
        shutil.rmtree(self._directory, ignore_errors=True)
