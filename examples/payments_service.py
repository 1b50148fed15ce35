"""A payments service that asks its sidecar before it moves money. Standard library and `sidestep.client` only.

    python examples/payments_service.py --sidecar 127.0.0.1:9191 --token-file /run/secrets/sidestep/payments
    curl -i -H "Authorization: Bearer $TOKEN" -d '{"to": "DE02", "currency": "EUR", "amount": "120.50"}' \
        http://127.0.0.1:8080/transfer
"""

from __future__ import annotations

import argparse
import base64
import json
from decimal import Decimal
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from sidestep.client import DEFAULT_ADDRESS, Client, Decision, Dpop, InvalidQuestionError, Outcome

MAX_BODY_BYTES = 16 * 1024


class BadRequestError(Exception):
    """The HTTP request is not one this service understands."""


class PaymentsServer(ThreadingHTTPServer):
    """Serves `POST /transfer`. `public_url` is how clients reach it: DPoP proofs name it."""

    daemon_threads = True

    def __init__(self, listen: tuple[str, int], client: Client, public_url: str) -> None:
        super().__init__(listen, PaymentsHandler)
        self.client = client
        self.public_url = public_url.rstrip("/")


class PaymentsHandler(BaseHTTPRequestHandler):
    """One request: ask, then act."""

    server: PaymentsServer

    def do_POST(self) -> None:
        """Transfers money, if the sidecar says the user may without step-up."""
        if self.path != "/transfer":
            self._answer(HTTPStatus.NOT_FOUND, {"error": "not_found"})
            return
        token = self._token()
        if not token:
            self._answer(HTTPStatus.UNAUTHORIZED, {"error": "log_in"}, www_authenticate="Bearer")
            return
        try:
            transfer = self._read_body()
            decision = self._ask(token, transfer)
        except (BadRequestError, InvalidQuestionError, TypeError) as error:
            self._answer(HTTPStatus.BAD_REQUEST, {"error": str(error)})
            return
        if decision.allowed:
            self._answer(HTTPStatus.OK, {"status": "done", "decision": decision.decision_id})
        else:
            self._refuse(decision)

    def _ask(self, token: str, transfer: dict[str, Any]) -> Decision:
        proof = self.headers.get("DPoP")
        return self.server.client.evaluate(
            # Not trusted, just named: the sidecar verifies the token and refuses if it is about somebody else.
            subject=subject_of(token),
            action="payments.transfer",
            token=token,
            dpop=Dpop(proof, "POST", f"{self.server.public_url}/transfer") if proof else None,
            amount=(transfer.get("currency", ""), transfer.get("amount", "")),
            # Behind a proxy, take what your own proxy appended to X-Forwarded-For instead.
            ip=self.client_address[0],
            device_id=self.headers.get("X-Device-Id", ""),
            fingerprint={
                name: value
                for name, header in (("os", "Sec-CH-UA-Platform"), ("language", "Accept-Language"))
                if (value := self.headers.get(header))
            },
            request_id=self.headers.get("Idempotency-Key", ""),
            traceparent=self.headers.get("traceparent"),
        )

    def _refuse(self, decision: Decision) -> None:
        # RFC 9470 and RFC 6750: a challenge is a 401; a refusal that no login can change is a 403.
        status = HTTPStatus.UNAUTHORIZED if decision.www_authenticate else HTTPStatus.FORBIDDEN
        error = "step_up" if decision.outcome is Outcome.STEP_UP else "denied"
        body = {"error": error, "methods": [method.id for method in decision.methods], "decision": decision.decision_id}
        self._answer(status, body, www_authenticate=decision.www_authenticate)

    def _token(self) -> str:
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        return token.strip() if scheme.lower() in {"bearer", "dpop"} else ""

    def _read_body(self) -> dict[str, Any]:
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit() and int(length[:9]) <= MAX_BODY_BYTES):
            raise BadRequestError("Content-Length needed, at most 16 KiB")
        try:
            body = json.loads(self.rfile.read(int(length)), parse_float=Decimal)
        except (ValueError, RecursionError):
            raise BadRequestError("the body is not JSON") from None
        if not isinstance(body, dict):
            raise BadRequestError("the body is not a JSON object")
        return body

    def _answer(self, status: HTTPStatus, body: dict[str, Any], *, www_authenticate: str | None = None) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        # The next request is decided anew.
        self.send_header("Cache-Control", "no-store")
        if www_authenticate:
            self.send_header("WWW-Authenticate", www_authenticate)
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name http.server gives
        """Silent: every decision is traced by the sidecar."""


def subject_of(token: str) -> str:
    """The `sub` a JWT names, unverified. Raises BadRequestError."""
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        subject = claims["sub"]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise BadRequestError("the token is not a JWT with a subject") from None
    if not isinstance(subject, str) or not subject:
        raise BadRequestError("the token is not a JWT with a subject")
    return subject


def main() -> None:
    """Serves until interrupted."""
    parser = argparse.ArgumentParser(description="A payments service that asks its Sidestep sidecar.")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--sidecar", default=DEFAULT_ADDRESS, help="host:port or unix:///path of the sidecar")
    parser.add_argument("--token-file", help="holds this service's token; without it the sidecar must serve anyone")
    parser.add_argument("--public-url", default="http://127.0.0.1:8080", help="how clients reach this service")
    options = parser.parse_args()
    with (
        Client(options.sidecar, token_file=options.token_file) as client,
        PaymentsServer(("127.0.0.1", options.port), client, options.public_url) as server,
    ):
        print(f"payments service on http://127.0.0.1:{server.server_address[1]}, sidecar at {options.sidecar}")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("stopped")


if __name__ == "__main__":
    main()
