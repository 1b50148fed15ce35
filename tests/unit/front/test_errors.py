from __future__ import annotations

import grpc
import pytest

from engine.errors import InvalidInputError, SidestepError
from sidecar.front.errors import (
    OverloadedError,
    TooLargeError,
    UnknownServiceError,
    UnrecordedError,
    details_of,
    status_of,
)
from sidecar.front.transport import StatusCode
from sidecar.gather.gatherer import ScopeError
from sidecar.guard.buckets import RateLimitedError
from sidecar.journal.segment import JournalError
from sidecar.retryinfo import status_message
from sidecar.store.errors import NotLoadedError, UnreadableError


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidInputError("subject.id", "must not be empty"), StatusCode.INVALID_ARGUMENT),
        (TooLargeError("x"), StatusCode.RESOURCE_EXHAUSTED),
        (OverloadedError("x"), StatusCode.RESOURCE_EXHAUSTED),
        (RateLimitedError("subject", 1.0), StatusCode.RESOURCE_EXHAUSTED),
        (ScopeError("x"), StatusCode.PERMISSION_DENIED),
        (UnknownServiceError("x"), StatusCode.NOT_FOUND),
        (NotLoadedError("x"), StatusCode.UNAVAILABLE),
        (UnreadableError("x"), StatusCode.UNAVAILABLE),
        (JournalError("x"), StatusCode.UNAVAILABLE),
        (UnrecordedError("x"), StatusCode.UNAVAILABLE),
    ],
)
def test_error_has_its_code_and_keeps_its_text(error: SidestepError, code: StatusCode) -> None:
    assert status_of(error) == (code, str(error))


@pytest.mark.parametrize("error", [ValueError("alice"), SidestepError("alice"), MemoryError()])
def test_what_is_not_in_the_table_is_internal_and_says_nothing(error: Exception) -> None:
    assert status_of(error) == (StatusCode.INTERNAL, "internal error")


def test_codes_are_grpc_s() -> None:
    numbers = {code.name: code.value[0] for code in grpc.StatusCode}
    assert {code.name: int(code) for code in StatusCode} == {code.name: numbers[code.name] for code in StatusCode}


def test_only_who_may_try_again_is_told_when() -> None:
    assert details_of(TooLargeError("x")) == b""
    details = details_of(RateLimitedError("subject", 0.25))
    assert status_message(details) == "too many requests per subject; try again in 0.250 s"
    # google.rpc.RetryInfo with a retry_delay of 250,000,000 ns.
    assert b"type.googleapis.com/google.rpc.RetryInfo" in details
    assert b"\x10\x80\xe5\x9a\x77" in details
