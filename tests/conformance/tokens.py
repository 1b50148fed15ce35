"""Signing keys, tokens and DPoP proofs from their descriptions in the vectors."""

from __future__ import annotations

import hashlib
import json
import re
from base64 import standard_b64encode
from datetime import datetime
from functools import cache
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from tests.conformance.vectors import fixture, merge, resolve
from tests.fakes.issuer import SigningKey, b64

_TIMES = frozenset({"iat", "exp", "nbf", "auth_time", "session_started_at"})
_THUMBPRINT = re.compile(r"thumbprint\((\S+)\)")
_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


@cache
def signing_key(name: str) -> SigningKey:
    """The key of this name. Its private part is SHA-256 of the name: fixed, and good for nothing but tests."""
    algorithm = fixture()["signing_keys"][name]
    seed = hashlib.sha256(name.encode()).digest()
    if algorithm == "EdDSA":
        return SigningKey("EdDSA", kid=name, key=ed25519.Ed25519PrivateKey.from_private_bytes(seed))
    scalar = int.from_bytes(seed, "big") % (_P256_ORDER - 1) + 1
    return SigningKey("ES256", kid=name, key=ec.derive_private_key(scalar, ec.SECP256R1()))


def token(described: dict[str, Any], now: datetime) -> str:
    """A compact JWS. `tamper` changes claims after signing."""
    claims = _claims(described["claims"], now)
    signed = signing_key(described["key"]).token(claims, **described.get("header", {}))
    if "tamper" not in described:
        return signed
    head, _, signature = signed.split(".")
    forged = merge(claims, _claims(described["tamper"], now))
    return f"{head}.{b64(json.dumps(forged).encode())}.{signature}"


def dpop(described: dict[str, Any], signed_token: str, now: datetime) -> dict[str, str]:
    """A DPoP proof for the token, and the request it is made for unless `claims` say otherwise."""
    method, uri = described["http_method"], described["http_uri"]
    claims = _claims(described.get("claims", {}), now)
    proof = signing_key(described["key"]).proof(signed_token, method, uri, now.timestamp(), **claims)
    return {"proof": proof, "http_method": method, "http_uri": uri}


def base64(data: bytes) -> str:
    """Bytes as protojson writes them."""
    return standard_b64encode(data).decode()


def _claims(claims: dict[str, Any], now: datetime) -> dict[str, Any]:
    """Times as NumericDate (RFC 7519), `thumbprint(key)` as RFC 7638 says."""
    out: dict[str, Any] = {}
    for name, value in resolve(claims, now).items():
        if name in _TIMES and isinstance(value, str):
            out[name] = datetime.fromisoformat(value).timestamp()
        elif name == "authentications":
            out[name] = [_claims(event, now) for event in value]
        elif isinstance(value, dict):
            out[name] = _claims(value, now)
        elif isinstance(value, str) and (key := _THUMBPRINT.fullmatch(value)):
            out[name] = signing_key(key[1]).thumbprint
        else:
            out[name] = value
    return out
