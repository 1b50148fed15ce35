"""Public keys of token issuers as JWKs (RFC 7517, 7518, 8037): EC P-256, OKP Ed25519 and RSA from 2048 bits."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from cryptography.x509 import load_pem_x509_certificate

from engine.errors import InvalidInputError

PUBLIC_MEMBERS = frozenset(
    {"kty", "use", "key_ops", "alg", "kid", "crv", "x", "y", "n", "e", "x5u", "x5c", "x5t", "x5t#S256"}
)
PRIVATE_MEMBERS = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
MAX_JWK_BYTES = 16 * 1024
_COORDINATE_BYTES = 32
_RSA_BITS = (2048, 8192)


def check_jwk(text: str, kid: str, field: str) -> None:
    """Raises InvalidInputError unless `text` is a usable public JWK that does not name another key id than `kid`."""
    if not text:
        raise InvalidInputError(field, "must not be empty")
    if len(text.encode()) > MAX_JWK_BYTES:
        raise InvalidInputError(field, f"longer than {MAX_JWK_BYTES} bytes")
    try:
        jwk = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(field, f"not JSON: {error}") from None
    if not isinstance(jwk, dict):
        raise InvalidInputError(field, "not a JSON object")
    private = sorted(PRIVATE_MEMBERS & jwk.keys())
    if private:
        raise InvalidInputError(field, f"has private members ({', '.join(private)}); give the public key only")
    if jwk.get("kid", kid) != kid:
        raise InvalidInputError(f"{field}.kid", f"{jwk['kid']!r} is not the key's id {kid!r}")
    if jwk.get("use", "sig") != "sig":
        raise InvalidInputError(f"{field}.use", "must be 'sig' if given")
    _check_parameters(jwk, field)


def jwk_from_pem(data: bytes, field: str = "key") -> str:
    """The JWK of a PEM public key (SubjectPublicKeyInfo) or X.509 certificate, as JSON. Raises InvalidInputError."""
    if b"PRIVATE KEY" in data:
        raise InvalidInputError(field, "is a private key; give the public key only")
    try:
        certificate = b"BEGIN CERTIFICATE" in data
        key: object = load_pem_x509_certificate(data).public_key() if certificate else load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InvalidInputError(field, f"not a PEM public key: {error}") from None
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        point = key.public_numbers()
        members = {"kty": "EC", "crv": "P-256", "x": _encode(point.x, 32), "y": _encode(point.y, 32)}
    elif isinstance(key, ed25519.Ed25519PublicKey):
        members = {"kty": "OKP", "crv": "Ed25519", "x": _encode(int.from_bytes(key.public_bytes_raw(), "big"), 32)}
    elif isinstance(key, rsa.RSAPublicKey):
        numbers = key.public_numbers()
        members = {"kty": "RSA", "n": _encode(numbers.n), "e": _encode(numbers.e)}
    else:
        raise InvalidInputError(field, "is neither EC P-256, Ed25519 nor RSA")
    _check_parameters(members, field)
    return json.dumps(members)


def _check_parameters(jwk: Mapping[str, object], field: str) -> None:
    kind = (jwk.get("kty"), jwk.get("crv") if jwk.get("kty") != "RSA" else None)
    if kind == ("EC", "P-256"):
        x, y = (_integer(jwk, name, field, _COORDINATE_BYTES) for name in ("x", "y"))
        try:
            ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
        except ValueError:
            raise InvalidInputError(field, "x and y are not a point on P-256") from None
    elif kind == ("OKP", "Ed25519"):
        x = _integer(jwk, "x", field, _COORDINATE_BYTES)
        try:
            ed25519.Ed25519PublicKey.from_public_bytes(x.to_bytes(_COORDINATE_BYTES, "big"))
        except ValueError:
            raise InvalidInputError(field, "x is not an Ed25519 public key") from None
    elif kind == ("RSA", None):
        n, e = _integer(jwk, "n", field), _integer(jwk, "e", field)
        if not _RSA_BITS[0] <= n.bit_length() <= _RSA_BITS[1]:
            raise InvalidInputError(
                f"{field}.n", f"has {n.bit_length()} bits; {_RSA_BITS[0]} to {_RSA_BITS[1]} are accepted"
            )
        if e < 3 or e % 2 == 0 or e.bit_length() > 33:
            raise InvalidInputError(f"{field}.e", "is not a usable public exponent")
    else:
        raise InvalidInputError(field, "is neither EC P-256, OKP Ed25519 nor RSA (kty, crv)")


def _integer(jwk: Mapping[str, object], member: str, field: str, length: int | None = None) -> int:
    text = jwk.get(member)
    if not isinstance(text, str) or not text:
        raise InvalidInputError(f"{field}.{member}", "is required")
    try:
        if "=" in text:
            raise ValueError("padding")
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise InvalidInputError(f"{field}.{member}", "is not base64url without padding") from None
    if length is not None and len(raw) != length:
        raise InvalidInputError(f"{field}.{member}", f"has {len(raw)} bytes, not {length}")
    return int.from_bytes(raw, "big")


def _encode(value: int, length: int | None = None) -> str:
    raw = value.to_bytes(length or (value.bit_length() + 7) // 8, "big")
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
