"""DPoP proofs (RFC 9449): that whoever sent the user's request holds a certain key."""

from __future__ import annotations

import re
from hashlib import sha256
from typing import NamedTuple
from urllib.parse import urlsplit

import msgspec
from cachetools import LRUCache

from engine.errors import SidestepError
from sidecar.gather.jws import MAX_JWS_BYTES, JwkError, JwsError, base64url, decode_object, read_jwk, split, verify

MAX_AGE_S = 60.0
"""A proof older than this is refused."""

_CACHE_BYTES = 1 << 20
_ENTRY_BYTES = 512  # of an entry's objects, beside its texts
_DEFAULT_PORTS = {"http": 80, "https": 443}
_BAD_IN_URI = re.compile(r"[\x00-\x20\x7f]")
_PERCENT = re.compile(r"%([0-9A-Fa-f]{2})")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


class DpopInput(NamedTuple):
    """A proof and the HTTP request it came with: `proof` is the `DPoP` header, `http_uri` the absolute URI."""

    proof: str
    http_method: str
    http_uri: str


class _ProofClaims(msgspec.Struct):
    jti: str
    htm: str
    htu: str
    iat: float
    ath: str


class _Entry(NamedTuple):
    """A proof whose signature and claims hold; its time is compared on every use."""

    issued_at: float
    thumbprint: str
    size: int


class _ProofError(SidestepError):
    """The proof does not hold."""


class DpopVerifier:
    """Checks proofs as RFC 9449 section 4.3 lists it, for one worker. Not thread-safe.

    `jti` must be there but a repeated one is accepted: one request of a user may lead to several questions, and the
    resource server that received the proof is the one that must refuse a replay.
    """

    def __init__(self) -> None:
        # One user request, a few questions: remembers the last proofs, bounded by size.
        self._proofs: LRUCache[tuple[str, str, str, str], _Entry] = LRUCache(_CACHE_BYTES, lambda entry: entry.size)

    def verify(self, dpop: DpopInput, token: str, now: float, clock_skew_s: float) -> str:
        """The RFC 7638 thumbprint of the key that made this proof for this request and token; empty: it does not hold.

        `iat` must lie within `[now - 60 s, now + clock_skew_s]`, both ends included.
        """
        key = (*dpop, token)
        entry = self._proofs.get(key)
        if entry is None:
            try:
                issued_at, thumbprint = _read_proof(dpop, token)
            except (_ProofError, JwsError, JwkError):
                return ""
            entry = _Entry(issued_at, thumbprint, _ENTRY_BYTES + sum(map(len, key)))
            self._proofs[key] = entry
        return entry.thumbprint if now - MAX_AGE_S <= entry.issued_at <= now + clock_skew_s else ""


def normalise_uri(uri: str) -> str:
    """An http(s) URI for comparison: without query and fragment; case, percent-encoding, port, empty path normalised.

    RFC 3986 sections 6.2.2.1, 6.2.2.2 and 6.2.3. Raises ValueError for what is not an absolute http(s) URI with a host.
    """
    if len(uri) > MAX_JWS_BYTES or _BAD_IN_URI.search(uri):
        raise ValueError("not a URI")
    parts = urlsplit(uri)
    host, port = parts.hostname, parts.port
    if parts.scheme not in _DEFAULT_PORTS or not host or "@" in parts.netloc:
        raise ValueError("not an absolute http(s) URI")
    if ":" in host:
        host = f"[{host}]"
    authority = host if port is None or port == _DEFAULT_PORTS[parts.scheme] else f"{host}:{port}"
    return f"{parts.scheme}://{authority}{_PERCENT.sub(_normalise_octet, parts.path) or '/'}"


def _read_proof(dpop: DpopInput, token: str) -> tuple[float, str]:
    """`iat` and thumbprint of a proof that holds but for its time. Numbers as in RFC 9449 section 4.3."""
    # 2, 3: a well-formed JWT with all required claims.
    proof = split(dpop.proof)
    claims = decode_object(proof.payload, _ProofClaims)
    # 4: of its own type, so that no other token passes as a proof.
    if proof.header.typ != "dpop+jwt" or not claims.jti:
        raise _ProofError("not a DPoP proof")
    # 5, 6, 7: signed by the public key it carries; `split`, `read_jwk` and `verify` accept asymmetric algorithms only.
    if proof.header.jwk is msgspec.UNSET:
        raise _ProofError("no key")
    key = read_jwk(bytes(proof.header.jwk))
    if not verify(proof, key):
        raise _ProofError("signature")
    # 8, 9: made for this request.
    if claims.htm != dpop.http_method or not _same_uri(claims.htu, dpop.http_uri):
        raise _ProofError("made for another request")
    # 12: made for this token. (10, the nonce, and replays of `jti` are the resource server's; 11 is the caller's.)
    if claims.ath != base64url(sha256(token.encode(errors="replace")).digest()):
        raise _ProofError("made for another token")
    return claims.iat, key.thumbprint


def _same_uri(left: str, right: str) -> bool:
    try:
        return normalise_uri(left) == normalise_uri(right)
    except ValueError:
        return False


def _normalise_octet(match: re.Match[str]) -> str:
    character = chr(int(match[1], 16))
    return character if character in _UNRESERVED else match[0].upper()
