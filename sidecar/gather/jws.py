"""Compact JWS (RFC 7515) and public JWKs (RFC 7517), read strictly: what all signed text of a request has in common.

Strict means: canonical base64url, no member twice, and asymmetric signatures only, each with the key type that
belongs to it. The signature arithmetic is PyJWT's and cryptography's.
"""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, NamedTuple, TypeVar

import msgspec
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt.algorithms import Algorithm, get_default_algorithms
from jwt.exceptions import PyJWTError

from engine.errors import SidestepError

MAX_JWS_BYTES = 8 * 1024
"""Longest compact serialisation read."""

_ALL_ALGORITHMS = get_default_algorithms()
ALGORITHMS: Mapping[str, Algorithm] = {name: _ALL_ALGORITHMS[name] for name in ("ES256", "EdDSA", "RS256", "PS256")}
"""All signature algorithms (RFC 7518, RFC 8037) there are; `none` and HMAC cannot be configured."""

_PRIVATE_MEMBERS = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
_RSA_MIN_BITS, _RSA_MAX_BITS = 2048, 4096

T = TypeVar("T")


class JwsError(SidestepError):
    """Not a compact JWS, or not one this version reads. The message never contains the text."""


class JwkError(SidestepError):
    """Not a usable public key. The message names the reason, never key material."""


class Header(msgspec.Struct):
    """The members of a protected header that are read. Others, an embedded `jku` or `x5c` among them, are ignored."""

    alg: str
    kid: str = ""
    typ: str = ""
    crit: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    jwk: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class Jws(NamedTuple):
    """A compact JWS in its parts; nothing about it is verified yet."""

    header: Header
    payload: bytes
    signed: bytes
    signature: bytes


class PublicKey(NamedTuple):
    """A public key, the algorithms its type fits, and its RFC 7638 SHA-256 thumbprint (base64url, no padding)."""

    key: Any
    algorithms: frozenset[str]
    thumbprint: str


class _KeyType(NamedTuple):
    """How one kind of JWK is read: its defining members (RFC 7638 section 3.2) and the algorithms it serves."""

    members: tuple[str, ...]
    algorithms: tuple[str, ...]


_KEY_TYPES = {
    ("EC", "P-256"): _KeyType(("crv", "kty", "x", "y"), ("ES256",)),
    ("OKP", "Ed25519"): _KeyType(("crv", "kty", "x"), ("EdDSA",)),
    ("RSA", None): _KeyType(("e", "kty", "n"), ("RS256", "PS256")),
}


def split(text: str) -> Jws:
    """Takes a compact JWS apart. Raises JwsError; a critical extension (`crit`) is one, since none is understood."""
    if len(text) > MAX_JWS_BYTES:
        raise JwsError("longer than 8 KiB")
    try:
        raw = text.encode("ascii")
        head, body, signature = raw.split(b".")
        header = decode_object(_base64url(head), Header)
        jws = Jws(header, _base64url(body), raw[: len(head) + 1 + len(body)], _base64url(signature))
    except ValueError:
        raise JwsError("not a compact JWS") from None
    if header.crit is not msgspec.UNSET:
        raise JwsError("has a critical extension")
    return jws


def decode_object(data: bytes, into: type[T]) -> T:
    """Decodes a JSON object. Raises JwsError: not JSON, a member twice (RFC 7519 section 4), wrong types, too deep."""
    try:
        json.loads(data, object_pairs_hook=_unique)
        return msgspec.json.decode(data, type=into)
    except (ValueError, RecursionError):
        raise JwsError("not the expected JSON object") from None


def verify(jws: Jws, key: PublicKey) -> bool:
    """Whether the signature is the key's, by the algorithm the header names; False if that does not fit the key."""
    algorithm = ALGORITHMS.get(jws.header.alg)
    if algorithm is None or jws.header.alg not in key.algorithms:
        return False
    return algorithm.verify(jws.signed, key.key, jws.signature)


def read_jwk(data: bytes) -> PublicKey:
    """Reads a public JWK: EC P-256, OKP Ed25519, or RSA of 2048 to 4096 bits. Raises JwkError."""
    try:
        jwk = decode_object(data, dict[str, Any])
    except JwsError:
        raise JwkError("not a JSON object") from None
    if not _PRIVATE_MEMBERS.isdisjoint(jwk):
        raise JwkError("has private members")
    kind, curve = jwk.get("kty"), jwk.get("crv")
    key_type = _KEY_TYPES.get((kind, curve)) if isinstance(kind, str) and isinstance(curve, str | None) else None
    if key_type is None:
        raise JwkError("neither EC P-256 nor OKP Ed25519 nor RSA")
    if not all(isinstance(jwk.get(member), str) for member in key_type.members):
        raise JwkError(f"needs the text members {', '.join(key_type.members)}")
    algorithms = _permitted_algorithms(jwk, key_type)
    algorithm = ALGORITHMS[key_type.algorithms[0]]
    try:
        key = algorithm.from_jwk(jwk)
        canonical = algorithm.to_jwk(key, as_dict=True)
    except (PyJWTError, ValueError, TypeError, OverflowError):
        raise JwkError("not a valid key of its type") from None
    if kind == "RSA":
        _check_rsa(key)
    text = json.dumps({member: canonical[member] for member in key_type.members}, separators=(",", ":"))
    return PublicKey(key, algorithms, base64url(sha256(text.encode()).digest()))


def base64url(data: bytes) -> str:
    """Base64url without padding (RFC 7515 section 2)."""
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def _permitted_algorithms(jwk: dict[str, Any], key_type: _KeyType) -> frozenset[str]:
    """What the key may verify once its own `use`, `key_ops` and `alg` have their say."""
    operations = jwk.get("key_ops", ["verify"])
    if jwk.get("use", "sig") != "sig" or not isinstance(operations, list) or "verify" not in operations:
        raise JwkError("not meant for verifying signatures")
    named = jwk.get("alg")
    if named is None:
        return frozenset(key_type.algorithms)
    if named not in key_type.algorithms:
        raise JwkError("its alg does not fit its type")
    return frozenset({named})


def _check_rsa(key: RSAPublicKey) -> None:
    # Larger ones would cost the verifier, not the sender.
    if not _RSA_MIN_BITS <= key.key_size <= _RSA_MAX_BITS:
        raise JwkError(f"RSA keys have {_RSA_MIN_BITS} to {_RSA_MAX_BITS} bits")
    if key.public_numbers().e >= 1 << 32:
        raise JwkError("RSA exponent over 32 bits")


def _base64url(segment: bytes) -> bytes:
    """Decodes; raises ValueError for anything but the one canonical spelling."""
    data = urlsafe_b64decode(segment + b"=" * (-len(segment) % 4))
    if urlsafe_b64encode(data).rstrip(b"=") != segment:
        raise ValueError("not canonical base64url")
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member occurs twice")
    return members
