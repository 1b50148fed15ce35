"""The one table from our errors to gRPC status codes, and the interceptor that applies it to every service."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration

from controlplane import errors
from controlplane.api.wire import delimited
from engine.books import HolderClosedError
from engine.errors import InvalidInputError, SidestepError

_LOG = logging.getLogger(__name__)

_CODES: dict[type[SidestepError], grpc.StatusCode] = {
    HolderClosedError: grpc.StatusCode.FAILED_PRECONDITION,
    InvalidInputError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFoundError: grpc.StatusCode.NOT_FOUND,
    errors.ConflictError: grpc.StatusCode.ABORTED,
    errors.ShrinkError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.CompactedError: grpc.StatusCode.OUT_OF_RANGE,
    errors.OverloadedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.StalledError: grpc.StatusCode.ABORTED,
    errors.DrainingError: grpc.StatusCode.UNAVAILABLE,
    errors.ScopeError: grpc.StatusCode.PERMISSION_DENIED,
    errors.ForbiddenError: grpc.StatusCode.PERMISSION_DENIED,
    errors.UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
    errors.RefusedError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.StoreError: grpc.StatusCode.UNAVAILABLE,
    errors.DamagedError: grpc.StatusCode.DATA_LOSS,
    SidestepError: grpc.StatusCode.INTERNAL,
}

Metadata = tuple[tuple[str, bytes], ...]


def code_of(error: SidestepError) -> grpc.StatusCode:
    """The status code of an error: that of the nearest class in the table."""
    return next(_CODES[kind] for kind in type(error).__mro__ if kind in _CODES)


def details_of(error: SidestepError) -> Metadata:
    """Trailing metadata with a google.rpc.Status that carries RetryInfo, for errors that say when to come back."""
    if not isinstance(error, errors.OverloadedError):
        return ()
    delay = Duration()
    delay.FromNanoseconds(int(error.retry_after_s * 1e9))
    # google.rpc.RetryInfo has one field, `retry_delay = 1`; Status has `code = 1, message = 2, details = 3`. Four fields
    # are not worth a package.
    retry_info = AnyMessage(
        type_url="type.googleapis.com/google.rpc.RetryInfo", value=delimited(1, delay.SerializeToString())
    )
    code = code_of(error).value[0]
    status = bytes((0x08, code)) + delimited(2, str(error).encode()) + delimited(3, retry_info.SerializeToString())
    return (("grpc-status-details-bin", status),)


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Ends a call with the status of the error its handler raised; an unexpected error is logged and told as INTERNAL.

    `store_failures` counts the calls that ended because the database failed.
    """

    def __init__(self) -> None:
        self.store_failures = 0

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wraps handlers that are coroutine functions."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        wrapped = {
            kind: self._translating(behaviour)
            for kind in ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
            if inspect.iscoroutinefunction(behaviour := getattr(handler, kind))
        }
        return handler._replace(**wrapped) if hasattr(handler, "_replace") else handler

    def _translating(self, behaviour: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
        async def translated(request: Any, context: Any) -> Any:
            try:
                return await behaviour(request, context)
            except SidestepError as error:
                self.store_failures += isinstance(error, errors.StoreError)
                await context.abort(code_of(error), str(error), trailing_metadata=details_of(error))
            except grpc.aio.AbortError:
                raise
            except Exception:
                _LOG.exception("a call failed unexpectedly")
                await context.abort(grpc.StatusCode.INTERNAL, "internal error")

        return translated
