"""An identity provider's signing side: real keys, tokens and DPoP proofs, and texts no honest issuer would sign."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import get_default_algorithms

_ALGORITHMS = get_default_algorithms()

AUDIENCE = "https://api.acme.example"


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def encode_parts(header: bytes, payload: bytes, signature: bytes) -> str:
    return ".".join((b64(header), b64(payload), b64(signature)))


class SigningKey:
    """A private key with the algorithm it signs with by default."""

    def __init__(self, alg: str = "ES256", kid: str = "k1", key: Any = None) -> None:
        self.alg = alg
        self.kid = kid
        if key is not None:
            self.key = key
        elif alg == "ES256":
            self.key = ec.generate_private_key(ec.SECP256R1())
        elif alg == "EdDSA":
            self.key = ed25519.Ed25519PrivateKey.generate()
        else:
            self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    @property
    def jwk(self) -> dict[str, Any]:
        """The public key."""
        return dict(_ALGORITHMS[self.alg].to_jwk(self.key.public_key(), as_dict=True))

    @property
    def private_jwk(self) -> dict[str, Any]:
        return dict(_ALGORITHMS[self.alg].to_jwk(self.key, as_dict=True))

    @property
    def thumbprint(self) -> str:
        """RFC 7638, computed independently of the code under test."""
        jwk = self.jwk
        members = {name: jwk[name] for name in ("crv", "e", "kty", "n", "x", "y") if name in jwk}
        return b64(hashlib.sha256(json.dumps(members, sort_keys=True, separators=(",", ":")).encode()).digest())

    def sign(self, header: dict[str, Any] | bytes, payload: dict[str, Any] | bytes) -> str:
        """A compact JWS over exactly this header and payload; the header need not tell the truth."""
        head = header if isinstance(header, bytes) else json.dumps(header).encode()
        body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        signed = f"{b64(head)}.{b64(body)}".encode()
        return f"{signed.decode()}.{b64(_ALGORITHMS[self.alg].sign(signed, self.key))}"

    def token(self, claims: dict[str, Any], **header: Any) -> str:
        """A token with the usual header; `header` adds or replaces members, None removes one."""
        members = {"alg": self.alg, "kid": self.kid, "typ": "at+jwt", **header}
        return self.sign({name: value for name, value in members.items() if value is not None}, claims)

    def proof(self, token: str, method: str, uri: str, now: float, **changes: Any) -> str:
        """A DPoP proof; `changes` replaces claims, or header members if named `header_*`; None removes one."""
        claims: dict[str, Any] = {
            "jti": "j1",
            "htm": method,
            "htu": uri,
            "iat": now,
            "ath": b64(hashlib.sha256(token.encode()).digest()),
        }
        header: dict[str, Any] = {"typ": "dpop+jwt", "alg": self.alg, "jwk": self.jwk}
        for name, value in changes.items():
            target = header if name.startswith("header_") else claims
            target[name.removeprefix("header_")] = value
        return self.sign(
            {name: value for name, value in header.items() if value is not None},
            {name: value for name, value in claims.items() if value is not None},
        )
