"""Reporting a step-up through both clients."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from sidestep.client import AsyncClient, Client, ClosedClientError, Dpop, ReportedAuthentication, ReportError
from sidestep.v1 import decision_pb2

from tests.fakes.decision import Refuse, ScriptedSidecar

Report = Callable[..., ReportedAuthentication]


def _sync(address: str, *args: Any, **fields: Any) -> ReportedAuthentication:
    with Client(address) as client:
        return client.report_authentication(*args, **fields)


def _async(address: str, *args: Any, **fields: Any) -> ReportedAuthentication:
    async def report() -> ReportedAuthentication:
        async with AsyncClient(address) as client:
            return await client.report_authentication(*args, **fields)

    return asyncio.run(report())


both = pytest.mark.parametrize("report", [_sync, _async], ids=["sync", "async"])


def answer(_: Any) -> decision_pb2.ReportAuthenticationResponse:
    response = decision_pb2.ReportAuthenticationResponse(session="s1", device="laptop", registering=True)
    response.authentication.acr = "phr"
    response.authentication.auth_time.FromSeconds(1_700_000_000)
    return response


@both
def test_all_that_is_given_is_sent_and_what_counts_is_returned(report: Report) -> None:
    with ScriptedSidecar(answer) as sidecar:
        reported = report(
            sidecar.address,
            "alice",
            "a.b.c",
            tenant="acme",
            session_id="s1",
            dpop=Dpop("proof", "POST", "https://x.example/y"),
            device_id="laptop",
            fingerprint={"os": "macOS"},
            register_device=True,
        )
        (request,) = sidecar.requests
    assert reported == ReportedAuthentication(
        acr="phr", authenticated_at=1_700_000_000.0, session="s1", device="laptop", registering=True
    )
    assert (request.tenant, request.subject.id, request.token) == ("acme", "alice", "a.b.c")
    assert (request.session_id, request.register, request.device.id) == ("s1", True, "laptop")
    assert dict(request.device.fingerprint) == {"os": "macOS"}
    assert (request.dpop.proof, request.dpop.http_method, request.dpop.http_uri) == (
        "proof",
        "POST",
        "https://x.example/y",
    )


@both
def test_what_is_not_given_is_not_sent(report: Report) -> None:
    with ScriptedSidecar(answer) as sidecar:
        report(sidecar.address, "alice", "a.b.c")
        (request,) = sidecar.requests
    expected = decision_pb2.ReportAuthenticationRequest(token="a.b.c")
    expected.subject.id = "alice"
    assert request == expected


@both
@pytest.mark.parametrize(
    ("code", "retryable", "already_used"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, False, False),
        (grpc.StatusCode.ALREADY_EXISTS, False, True),
        (grpc.StatusCode.FAILED_PRECONDITION, False, False),
        (grpc.StatusCode.UNAVAILABLE, True, False),
    ],
    ids=["invalid", "used", "stale", "unavailable"],
)
def test_a_refusal_says_whether_to_try_again(
    report: Report, code: grpc.StatusCode, retryable: bool, already_used: bool
) -> None:
    def refuse(_: Any) -> Any:
        raise Refuse(code, "token: audience")

    with ScriptedSidecar(refuse) as sidecar, pytest.raises(ReportError, match="token: audience") as error:
        report(sidecar.address, "alice", "a.b.c")
    assert (error.value.retryable, error.value.already_used) == (retryable, already_used)
    assert code.name in str(error.value)


@both
def test_wrong_types_and_unknown_fields_are_refused_before_anything_is_sent(report: Report) -> None:
    with ScriptedSidecar(answer) as sidecar:
        for args, fields in (((7, "t"), {}), (("alice", b"t"), {}), (("alice", "t"), {"divice_id": "x"})):
            with pytest.raises(TypeError):
                report(sidecar.address, *args, **fields)
        assert sidecar.requests == []


def test_a_closed_client_reports_nothing() -> None:
    client = Client("127.0.0.1:1")
    client.close()
    with pytest.raises(ClosedClientError):
        client.report_authentication("alice", "a.b.c")
