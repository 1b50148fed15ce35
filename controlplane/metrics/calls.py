"""Counts every call, whatever becomes of it: the outermost interceptor."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from controlplane.metrics.catalogue import METHODS, OTHER

_STREAMS = frozenset({"SyncService/Sync"})
_KNOWN = frozenset(METHODS)
_CODES = {code.value[0]: code.name.lower() for code in grpc.StatusCode}


class CallsInterceptor(grpc.aio.ServerInterceptor):
    """Tells `on_end(method, code, seconds)` of each call that ended; no seconds for the streams of sidecars."""

    def __init__(self, on_end: Callable[[str, str, float | None], None]) -> None:
        self._on_end = on_end

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wraps handlers that are coroutine functions; those of libraries that are not are left alone."""
        handler = await continuation(handler_call_details)
        method = str(handler_call_details.method).removeprefix("/sidestep.v1.")
        if handler is None:
            self._on_end(OTHER, "unimplemented", None)
            return None
        name = method if method in _KNOWN else OTHER
        wrapped = {
            kind: self._counted(name, behaviour)
            for kind in ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
            if inspect.iscoroutinefunction(behaviour := getattr(handler, kind))
        }
        return handler._replace(**wrapped) if hasattr(handler, "_replace") else handler

    def _counted(self, method: str, behaviour: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Any]:
        async def counted(request: Any, context: Any) -> Any:
            began = time.perf_counter()
            code = "unknown"
            try:
                answer = await behaviour(request, context)
                code = _code(context)
                return answer
            except asyncio.CancelledError:
                code = "cancelled"
                raise
            except BaseException:
                code = _code(context) if _code(context) != "ok" else "unknown"
                raise
            finally:
                took_s = None if method in _STREAMS else time.perf_counter() - began
                self._on_end(method, code, took_s)

        return counted


def _code(context: Any) -> str:
    code = context.code()
    if isinstance(code, grpc.StatusCode):
        return code.name.lower()
    return _CODES.get(code or 0, "unknown")
