from __future__ import annotations

import grpc
import pytest

from engine.errors import InvalidInputError, SidestepError
from sidecar.front.errors import OverloadedError, TooLargeError, UnknownServiceError, UnrecordedError, status_of
from sidecar.front.transport import StatusCode
from sidecar.gather.gatherer import ScopeError
from sidecar.guard.buckets import RateLimitedError
from sidecar.journal.segment import JournalError
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
