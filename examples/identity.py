"""The examples' identity provider: signs session tokens, and plays the key in a user's device."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import time
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

ISSUER = "https://id.acme.example"
AUDIENCE = "payments"
PAYMENT_URI = "https://pay.acme.example/transfer"


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _public_jwk(key: ec.EllipticCurvePrivateKey) -> dict[str, Any]:
    return dict(json.loads(ECAlgorithm.to_jwk(key.public_key())))


class IdentityProvider:
    """Issues tokens signed with ES256."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.kid = f"idp-{secrets.token_hex(4)}"

    @property
    def jwk(self) -> str:
        """The public key, as JSON."""
        return json.dumps(_public_jwk(self._key))

    def token(
        self,
        subject: str,
        acr: str,
        *,
        age_s: float = 0.0,
        session: str = "",
        roles: tuple[str, ...] = (),
        jkt: str = "",
    ) -> str:
        """A session token: logged in at level `acr`, `age_s` seconds ago."""
        now = time.time()
        claims: dict[str, Any] = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": subject,
            "sid": session or f"{subject}-{secrets.token_hex(4)}",
            "acr": acr,
            "auth_time": int(now - age_s),
            "iat": int(now),
            "exp": int(now) + 3600,
        }
        if roles:
            claims["roles"] = list(roles)
        if jkt:
            claims["cnf"] = {"jkt": jkt}
        return jwt.encode(claims, self._key, algorithm="ES256", headers={"kid": self.kid, "typ": "at+jwt"})


class DeviceKey:
    """A key that never leaves the device; proves possession with DPoP (RFC 9449)."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())

    @property
    def jkt(self) -> str:
        """RFC 7638 thumbprint."""
        jwk = _public_jwk(self._key)
        members = {name: jwk[name] for name in ("crv", "kty", "x", "y")}
        return _b64(hashlib.sha256(json.dumps(members, sort_keys=True, separators=(",", ":")).encode()).digest())

    def proof(self, token: str, method: str, uri: str) -> str:
        """The `DPoP` header for one request."""
        claims = {
            "jti": secrets.token_hex(12),
            "htm": method,
            "htu": uri,
            "iat": int(time.time()),
            "ath": _b64(hashlib.sha256(token.encode()).digest()),
        }
        headers = {"typ": "dpop+jwt", "jwk": _public_jwk(self._key)}
        return jwt.encode(claims, self._key, algorithm="ES256", headers=headers)


def edited(token: str, **claims: object) -> str:
    """The token with other claims and the old signature, as a forger would try."""
    head, body, signature = token.split(".")
    stated = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    return f"{head}.{_b64(json.dumps(stated | claims).encode())}.{signature}"
