"""A scripted sidecar: a real gRPC server for DecisionService whose every answer the test chooses.

`python -m tests.fakes.decision PORT` runs one that never answers, as a process to be killed.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import grpc
from sidestep.v1 import decision_pb2

_SERVICE = "sidestep.v1.DecisionService"


class Refuse(Exception):  # noqa: N818 - an instruction, not an error
    """Makes the server answer with this status."""

    def __init__(self, code: grpc.StatusCode, details: str = "") -> None:
        super().__init__(details)
        self.code = code
        self.details = details


class ScriptedSidecar:
    """Answers by `answer(request)`: a message, raw bytes sent as they are, or Refuse raised. Records what it was asked.

    `release` ends the handlers that wait on it; stopping the server sets it.
    """

    def __init__(self, answer: Callable[[Any], Any], address: str = "127.0.0.1:0") -> None:
        self.answer = answer
        self.requests: list[Any] = []
        self.metadata: list[dict[str, str | bytes]] = []
        self.arrived = threading.Event()
        self.release = threading.Event()
        self._server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
        handlers = {
            "Evaluate": self._handler(decision_pb2.EvaluateRequest),
            "EvaluateBatch": self._handler(decision_pb2.EvaluateBatchRequest),
            "ReportAuthentication": self._handler(decision_pb2.ReportAuthenticationRequest),
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))
        port = self._server.add_insecure_port(address)
        self.address = address if address.startswith("unix:") else f"127.0.0.1:{port}"
        self._server.start()

    def stop(self) -> None:
        """Cuts all connections and calls at once."""
        stopped = self._server.stop(0)
        self.release.set()
        stopped.wait(5)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _handler(self, request_type: Any) -> grpc.RpcMethodHandler[Any, bytes]:
        def handle(request: Any, context: grpc.ServicerContext) -> bytes:
            self.requests.append(request)
            self.metadata.append(dict(context.invocation_metadata()))
            self.arrived.set()
            try:
                answer = self.answer(request)
            except Refuse as refusal:
                context.abort(refusal.code, refusal.details)
            return answer if isinstance(answer, bytes) else bytes(answer.SerializeToString())

        return grpc.unary_unary_rpc_method_handler(handle, request_deserializer=request_type.FromString)


def _announce(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _announce_and_wait(sidecar: ScriptedSidecar) -> bytes:
    _announce("asked")
    sidecar.release.wait()
    return b""


if __name__ == "__main__":
    silent: ScriptedSidecar = ScriptedSidecar(lambda request: _announce_and_wait(silent), f"127.0.0.1:{sys.argv[1]}")
    _announce(silent.address)
    threading.Event().wait()
