"""Every error of ours has a status code, chosen in one table."""

from __future__ import annotations

import grpc
import pytest

from controlplane import errors
from controlplane.api.errors import code_of, details_of
from controlplane.api.wire import delimited
from engine.errors import InvalidInputError, SidestepError


class NarrowerError(InvalidInputError):
    pass


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NarrowerError("field", "problem"), grpc.StatusCode.INVALID_ARGUMENT),
        (errors.NotFoundError("tenants/acme/grants/g"), grpc.StatusCode.NOT_FOUND),
        (errors.ConflictError("acme", 2, "g"), grpc.StatusCode.ABORTED),
        (errors.ShrinkError("shrinks"), grpc.StatusCode.FAILED_PRECONDITION),
        (errors.OverloadedError("busy", 2.0), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (errors.StoreError("locked"), grpc.StatusCode.UNAVAILABLE),
        (SidestepError("anything else"), grpc.StatusCode.INTERNAL),
    ],
)
def test_codes(error: SidestepError, code: grpc.StatusCode) -> None:
    assert code_of(error) is code


def test_only_errors_that_say_when_to_come_back_have_details() -> None:
    assert details_of(errors.StoreError("locked")) == ()
    assert [name for name, _ in details_of(errors.OverloadedError("busy", 2.0))] == ["grpc-status-details-bin"]


@pytest.mark.parametrize("length", [0, 1, 127, 128, 300, 16_384])
def test_a_field_written_by_hand_is_what_protobuf_writes(length: int) -> None:
    from sidestep.v1 import sync_pb2

    payload = bytes(length)
    assert sync_pb2.SyncResponse.FromString(delimited(2, payload)).delta == payload
