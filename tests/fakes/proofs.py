"""Reports of finished step-ups about the stock's subjects, and what they then may do."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sidestep.v1 import decision_pb2

from tests.conformance import tokens
from tests.fakes.stock import request

# Takes a fresh verified authentication, which no grant waives.
VAULT: dict[str, Any] = {
    "policies/vault": {"match": {"actions": ["vault.*"]}, "require": {"acr": "phr", "maxAge": "5m"}}
}
LAPTOP = {"os": "macOS", "browser": "Firefox", "canvas": "c1"}


def token(**claims: Any) -> str:
    """A proof of Alice's step-up in session s1; None removes a claim."""
    members = {
        "iss": "https://idp.acme.example",
        "aud": "https://api.acme.example",
        "sub": "alice",
        "sid": "s1",
        "iat": "now-5s",
        "exp": "now+5m",
        "acr": "phr",
        "amr": ["hwk"],
        "auth_time": "now-10s",
        "jti": "j-1",
        **claims,
    }
    members = {name: value for name, value in members.items() if value is not None}
    return tokens.token({"key": "idp-1", "claims": members}, datetime.now(UTC))


def report(proof: str | None = None, **fields: Any) -> decision_pb2.ReportAuthenticationRequest:
    """A report of it."""
    fields.setdefault("subject", decision_pb2.SubjectRef(id="alice"))
    return decision_pb2.ReportAuthenticationRequest(token=token() if proof is None else proof, **fields)


def vault(session: str = "s1", **claims: Any) -> decision_pb2.EvaluateRequest:
    """Alice, in a session that proved only a password, wants into the vault."""
    weak = token(**{"acr": "nist-aal1", "amr": ["pwd"], "jti": None, "sid": session, "auth_time": "now-1h", **claims})
    return request("alice", "vault.open", session=decision_pb2.SessionEvidence(token=weak))
