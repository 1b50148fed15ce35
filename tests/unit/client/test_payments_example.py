from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

import grpc
import pytest
from sidestep.client import Client
from sidestep.v1 import decision_pb2

from examples.payments_service import PaymentsServer
from tests.fakes.decision import Refuse, ScriptedSidecar
from tests.fakes.issuer import SigningKey

TOKEN = SigningKey().token({"sub": "alice"})
BODY = json.dumps({"to": "DE02", "currency": "EUR", "amount": "120.50"})


@pytest.fixture
def sidecar() -> Iterator[ScriptedSidecar]:
    with ScriptedSidecar(lambda request: decision_pb2.EvaluateResponse(outcome=decision_pb2.OUTCOME_ALLOW)) as scripted:
        yield scripted


@pytest.fixture
def service(sidecar: ScriptedSidecar) -> Iterator[PaymentsServer]:
    yield from serve(sidecar.address)


def serve(address: str) -> Iterator[PaymentsServer]:
    with (
        Client(address, timeout_s=5) as client,
        PaymentsServer(("127.0.0.1", 0), client, "https://pay.acme.example/") as server,
    ):
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(5)


def post(
    service: PaymentsServer, body: str = BODY, token: str = TOKEN, **headers: str
) -> tuple[int, str | None, dict[str, Any]]:
    connection = HTTPConnection("127.0.0.1", service.server_address[1], timeout=10)
    try:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("POST", "/transfer", body, {"Authorization": f"Bearer {token}", **sent})
        response = connection.getresponse()
        return response.status, response.getheader("WWW-Authenticate"), json.loads(response.read())
    finally:
        connection.close()


def test_allowed_transfer_is_done(service: PaymentsServer, sidecar: ScriptedSidecar) -> None:
    status, challenge, body = post(service, DPoP="p.p.p", Idempotency_Key="r1", X_Device_Id="d1")
    assert (status, challenge, body["status"]) == (200, None, "done")
    asked = sidecar.requests[0]
    assert (asked.subject.id, asked.action.name, asked.session.token) == ("alice", "payments.transfer", TOKEN)
    assert (asked.context.amount.currency, asked.context.amount.units) == ("EUR", 120)
    assert (asked.context.ip, asked.request_id, asked.device.id) == ("127.0.0.1", "r1", "d1")
    assert asked.session.dpop.http_uri == "https://pay.acme.example/transfer"


def test_step_up_is_the_challenge(service: PaymentsServer, sidecar: ScriptedSidecar) -> None:
    answer = decision_pb2.EvaluateResponse(outcome=decision_pb2.OUTCOME_STEP_UP)
    answer.challenge.www_authenticate = 'Bearer error="insufficient_user_authentication", acr_values="phr"'
    answer.challenge.methods.add(id="webauthn")
    sidecar.answer = lambda request: answer
    status, challenge, body = post(service)
    assert (status, challenge) == (401, answer.challenge.www_authenticate)
    assert (body["error"], body["methods"]) == ("step_up", ["webauthn"])


def test_block_is_forbidden_and_a_broken_token_is_a_login(service: PaymentsServer, sidecar: ScriptedSidecar) -> None:
    answer = decision_pb2.EvaluateResponse(outcome=decision_pb2.OUTCOME_DENY)
    sidecar.answer = lambda request: answer
    assert post(service)[0] == 403
    answer.challenge.www_authenticate = 'Bearer error="invalid_token"'
    assert post(service)[:2] == (401, 'Bearer error="invalid_token"')


def test_without_sidecar_the_user_is_challenged() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        for service in serve(f"127.0.0.1:{unused.getsockname()[1]}"):
            status, challenge, _ = post(service)
    assert status == 401
    assert "insufficient_user_authentication" in (challenge or "")


@pytest.mark.parametrize(
    ("body", "token"),
    [
        ("", TOKEN),
        ("[]", TOKEN),
        ("{", TOKEN),
        ('{"currency": "EUR", "amount": 1e400}', TOKEN),
        ('{"currency": "EUR", "amount": null}', TOKEN),
        ('{"amount": "1"}', TOKEN),
        (BODY, "not-a-token"),
        (BODY, "a.b.c"),
        (BODY, SigningKey().token({"sub": 5})),
    ],
)
def test_bad_request_is_refused_unasked(
    service: PaymentsServer, sidecar: ScriptedSidecar, body: str, token: str
) -> None:
    assert post(service, body, token)[0] == 400
    assert sidecar.requests == []


@pytest.mark.parametrize("length", ["16385", "99999999999999999999", "-1", "x", "²"])
def test_body_of_unacceptable_length_is_refused_unread(
    service: PaymentsServer, sidecar: ScriptedSidecar, length: str
) -> None:
    assert post(service, "", Content_Length=length)[0] == 400
    assert sidecar.requests == []


def test_question_the_sidecar_refuses_is_a_bad_request(service: PaymentsServer, sidecar: ScriptedSidecar) -> None:
    def refuse(request: Any) -> Any:
        raise Refuse(grpc.StatusCode.INVALID_ARGUMENT, "device.id: longer than 128 bytes")

    sidecar.answer = refuse
    status, _, body = post(service)
    assert (status, body["error"]) == (400, "device.id: longer than 128 bytes")


def test_nobody_logged_in_is_a_401(service: PaymentsServer, sidecar: ScriptedSidecar) -> None:
    assert post(service, token="")[:2] == (401, "Bearer")
    assert sidecar.requests == []
