"""The one table from our errors to gRPC status codes."""

from __future__ import annotations

from typing import Final

from engine.errors import InvalidInputError, SidestepError
from sidecar.front.transport import StatusCode
from sidecar.gather.gatherer import ScopeError
from sidecar.guard.buckets import RateLimitedError
from sidecar.journal.segment import JournalError
from sidecar.lease.reservations import AlreadySettledError, ReservationsError, UnknownDecisionError
from sidecar.local.store import LocalStoreError, StaleProofError, UsedProofError
from sidecar.retryinfo import retry_status
from sidecar.store.errors import NotLoadedError, UnreadableError
from sidecar.usage.checks import AlreadyReportedError, ChecksError, UnknownCheckError


class TooLargeError(SidestepError):
    """A message, or an entry of a batch, over the size limit."""


class OverloadedError(SidestepError):
    """A bound on work in progress is reached. Trying again a little later may succeed."""


class UnrecordedError(SidestepError):
    """The decision could not be recorded, and in strict mode what is not recorded is not answered."""


class UnderWayError(SidestepError):
    """Another call with the same request_id is being decided and did not end in time. Trying again with it is safe."""

    def __init__(self) -> None:
        super().__init__("another request with this request_id is being decided")


class UnauthenticatedError(SidestepError):
    """The call does not show the token of a caller. What is wrong with what it shows, a guesser need not know."""

    def __init__(self) -> None:
        super().__init__("a caller's token is needed: authorization: Bearer TOKEN")


class ForbiddenError(SidestepError):
    """The caller may not call this, or not about this action."""


class CallersUnreadError(SidestepError):
    """Nobody knows who may call."""


class UnknownServiceError(SidestepError):
    """A health check names a service that is not served here."""


_CODES: Final[tuple[tuple[type[SidestepError], StatusCode], ...]] = (
    (InvalidInputError, StatusCode.INVALID_ARGUMENT),
    (TooLargeError, StatusCode.RESOURCE_EXHAUSTED),
    (OverloadedError, StatusCode.RESOURCE_EXHAUSTED),
    (RateLimitedError, StatusCode.RESOURCE_EXHAUSTED),
    (UnauthenticatedError, StatusCode.UNAUTHENTICATED),
    (ForbiddenError, StatusCode.PERMISSION_DENIED),
    (ScopeError, StatusCode.PERMISSION_DENIED),
    (UnknownServiceError, StatusCode.NOT_FOUND),
    (NotLoadedError, StatusCode.UNAVAILABLE),
    (UnreadableError, StatusCode.UNAVAILABLE),
    (JournalError, StatusCode.UNAVAILABLE),
    (UnrecordedError, StatusCode.UNAVAILABLE),
    (UnderWayError, StatusCode.UNAVAILABLE),
    (UnknownDecisionError, StatusCode.NOT_FOUND),
    (AlreadySettledError, StatusCode.FAILED_PRECONDITION),
    (ReservationsError, StatusCode.UNAVAILABLE),
    (UsedProofError, StatusCode.ALREADY_EXISTS),
    (StaleProofError, StatusCode.FAILED_PRECONDITION),
    (LocalStoreError, StatusCode.UNAVAILABLE),
    (UnknownCheckError, StatusCode.NOT_FOUND),
    (AlreadyReportedError, StatusCode.FAILED_PRECONDITION),
    (ChecksError, StatusCode.UNAVAILABLE),
    (CallersUnreadError, StatusCode.UNAVAILABLE),
)


def status_of(error: BaseException) -> tuple[StatusCode, str]:
    """Status code and message for a caller. What is not in the table is INTERNAL, and its text stays here."""
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code, str(error)
    return StatusCode.INTERNAL, "internal error"


def details_of(error: BaseException) -> bytes:
    """The google.rpc.Status for a caller that may try again after a while it can be told; empty for any other error."""
    if not isinstance(error, RateLimitedError):
        return b""
    code, message = status_of(error)
    return retry_status(code, message, error.retry_after_s)
