"""Proofs of finished authentications: signed JWTs (RFC 7519) that are verified here once more, with the control plane's own keys.

The sidecar that sends one has verified it already, by code of its own. This is not that code, on purpose: what is written down
for the whole fleet should not hang on one reader of tokens. Both keep the same rules: one issuer, its keys, its algorithms, its
audiences, and no more assurance than it may claim.
"""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from sidestep.v1 import resources_pb2 as pb

from engine.acr import AcrOrder
from engine.cooloff import DEFAULT_COOL_OFF_S
from engine.errors import InvalidInputError, SidestepError
from engine.facts import Authentication, Evidence, Subject
from engine.names import check_id
from engine.registration import DEFAULT_REGISTER_WITHIN_S, strong
from engine.rules import DEFAULT_CLOCK_SKEW_S, DEFAULT_TOP, MAX_CLOCK_SKEW_S

MAX_TOKEN_BYTES = 8 * 1024
MAX_JTI_BYTES = 256
MAX_ACR_BYTES = 128
MAX_AMR = 16
MAX_LATE_S = 7 * 86400.0
"""How long after its report a proof may arrive: an outage of the control plane must not lose it."""

_TYPES = frozenset({"", "jwt", "at+jwt", "application/jwt", "application/at+jwt"})  # RFC 8725 section 3.11
_ALGORITHMS = {"EC": ("ES256",), "OKP": ("EdDSA",), "RSA": ("RS256", "PS256")}
_ALL = frozenset(name for names in _ALGORITHMS.values() for name in names)
_COORDINATE = 32
T = TypeVar("T")


class ProofError(SidestepError):
    """The proof does not hold. The message says why and quotes nothing of it."""


class Proof(NamedTuple):
    """What a proof shows. Times are Unix seconds.

    `acr`: empty if it is more than its issuer may claim. `jkt`: the key the proof is bound to (`cnf.jkt`), empty: to none.
    """

    subject: str
    issuer: str
    jti: str
    acr: str
    amr: tuple[str, ...]
    authenticated_at: float
    expires_at: float
    jkt: str


class _Header(msgspec.Struct):
    alg: str
    kid: str = ""
    typ: str = ""
    crit: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Confirmation(msgspec.Struct):
    jkt: str = ""


class _Claims(msgspec.Struct):
    iss: str
    sub: str
    aud: str | tuple[str, ...]
    exp: float
    jti: str = ""
    auth_time: float | None = None
    acr: str = ""
    amr: tuple[str, ...] = ()
    nbf: float | None = None
    iat: float | None = None
    cnf: _Confirmation | None = None


class Verifier:
    """Verifies proofs for one tenant, by its settings and ISSUER keys as they are now."""

    def __init__(self, settings: pb.Settings, keys: Mapping[str, pb.Key]) -> None:
        self._issuers = {issuer.issuer: issuer for issuer in settings.issuers}
        self._keys = {key_id: key for key_id, key in keys.items() if key.kind == pb.KEY_KIND_ISSUER}
        self._order = AcrOrder((edge.higher, edge.lower) for edge in settings.acr_edges)
        self._top = settings.top_requirement.acr or DEFAULT_TOP.acr or ""
        self._cool_off_s = DEFAULT_COOL_OFF_S
        if settings.HasField("cool_off"):
            self._cool_off_s = max(settings.cool_off.seconds + settings.cool_off.nanos / 1e9, 0.0)
        self.register_within_s = DEFAULT_REGISTER_WITHIN_S
        if settings.HasField("device_register_within"):
            self.register_within_s = settings.device_register_within.ToNanoseconds() / 1e9
        self.clock_skew_s = DEFAULT_CLOCK_SKEW_S
        if settings.HasField("clock_skew"):
            stated = settings.clock_skew
            self.clock_skew_s = min(max(stated.seconds + stated.nanos / 1e9, 0.0), MAX_CLOCK_SKEW_S)

    def strong(self, proof: Proof, subject: Subject, now: float) -> bool:
        """Whether it was a strong authentication (`engine.registration`)."""
        event = Authentication(proof.acr, proof.authenticated_at, Evidence.VERIFIED, proof.amr, proof.issuer)
        return strong(event, subject, now, self._top, self._cool_off_s, self._order)

    def verify(self, token: str, reported_at: float, now: float) -> Proof:
        """What the token shows, if it was valid when it was reported. Raises ProofError."""
        if not now - MAX_LATE_S <= reported_at <= now + self.clock_skew_s:
            raise ProofError("was reported at an impossible time, or too long ago")
        header, claims, signed, signature = _read(token)
        issuer = self._issuers.get(claims.iss)
        if issuer is None:
            raise ProofError("its issuer is not one of the tenant's")
        permitted = frozenset(issuer.algorithms) & _ALL if issuer.algorithms else _ALL
        if header.alg not in permitted:
            raise ProofError("its algorithm is not one of its issuer's")
        key = self._key(claims.iss, header.kid, reported_at)
        if not _signed_by(key, header.alg, signed, signature):
            raise ProofError("its signature does not hold")
        # From here on the claims are the issuer's.
        self._check_times(claims, reported_at, now)
        audiences = {claims.aud} if isinstance(claims.aud, str) else set(claims.aud)
        if audiences.isdisjoint(issuer.audiences):
            raise ProofError("is for another audience")
        if not 0 < len(claims.jti.encode()) <= MAX_JTI_BYTES:
            raise ProofError(f"has no jti, or one longer than {MAX_JTI_BYTES} bytes")
        if claims.auth_time is None:
            raise ProofError("has no auth_time")
        if len(claims.acr.encode()) > MAX_ACR_BYTES or len(claims.amr) > MAX_AMR:
            raise ProofError("its acr or amr is too long")
        try:
            check_id(claims.sub, "sub")
        except InvalidInputError:
            raise ProofError("its subject is no subject's id") from None
        may_claim = bool(claims.acr) and any(self._order.implies(most, claims.acr) for most in issuer.max_acrs)
        return Proof(
            subject=claims.sub,
            issuer=claims.iss,
            jti=claims.jti,
            acr=claims.acr if may_claim else "",
            amr=tuple(dict.fromkeys(name for name in claims.amr if name and len(name) <= MAX_ACR_BYTES)),
            authenticated_at=claims.auth_time,
            expires_at=claims.exp,
            jkt="" if claims.cnf is None else claims.cnf.jkt,
        )

    def _check_times(self, claims: _Claims, at: float, now: float) -> None:
        skew_s = self.clock_skew_s
        if at >= claims.exp + skew_s:
            raise ProofError("had expired when it was reported")
        if any(begin is not None and at < begin - skew_s for begin in (claims.nbf, claims.iat)):
            raise ProofError("was not valid yet when it was reported")
        if claims.auth_time is not None and not 0 < claims.auth_time <= min(at, now) + skew_s:
            raise ProofError("its auth_time is impossible")

    def _key(self, issuer: str, kid: str, at: float) -> pb.Key:
        of_issuer = [key for key in self._keys.values() if key.issuer == issuer]
        if kid:
            key = self._keys.get(kid)
            found = [key] if key is not None and key.issuer == issuer else []
        else:
            found = of_issuer if len(of_issuer) == 1 else []
        for key in found:
            started = not key.HasField("start_time") or key.start_time.ToNanoseconds() / 1e9 <= at
            if started and not (key.HasField("expire_time") and at >= key.expire_time.ToNanoseconds() / 1e9):
                return key
        raise ProofError("was signed with a key that its issuer does not have")


def _read(token: str) -> tuple[_Header, _Claims, bytes, bytes]:
    """The parts of a compact JWS (RFC 7515), read strictly: canonical base64url, and no member twice."""
    if len(token) > MAX_TOKEN_BYTES:
        raise ProofError(f"is longer than {MAX_TOKEN_BYTES} bytes")
    try:
        raw = token.encode("ascii")
        head, body, signature = raw.split(b".")
        header = _object(_base64url(head), _Header)
        claims = _object(_base64url(body), _Claims)
        decoded = _base64url(signature)
    except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
        raise ProofError("is no signed JWT, or lacks iss, sub, aud or exp") from None
    if header.typ.lower() not in _TYPES:
        raise ProofError("is a JWT of another type")
    if header.crit is not msgspec.UNSET:
        raise ProofError("has a critical extension")
    return header, claims, raw[: len(head) + 1 + len(body)], decoded


def _object(data: bytes, into: type[T]) -> T:
    json.loads(data, object_pairs_hook=_unique)
    return msgspec.json.decode(data, type=into)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member occurs twice")
    return members


def _base64url(segment: bytes | str) -> bytes:
    encoded = segment.encode() if isinstance(segment, str) else segment
    data = urlsafe_b64decode(encoded + b"=" * (-len(encoded) % 4))
    if urlsafe_b64encode(data).rstrip(b"=") != encoded:
        raise ValueError("not canonical base64url")
    return data


def _signed_by(key: pb.Key, algorithm: str, signed: bytes, signature: bytes) -> bool:
    """Whether the key made the signature by this algorithm; False if they do not fit."""
    try:
        jwk = json.loads(key.jwk)
        operations = jwk.get("key_ops", ["verify"])
        if algorithm not in _ALGORITHMS.get(jwk["kty"], ()) or jwk.get("alg", algorithm) != algorithm:
            return False
        if jwk.get("use", "sig") != "sig" or "verify" not in operations:
            return False
        _verify(jwk, algorithm, signed, signature)
    except (InvalidSignature, ValueError, KeyError, TypeError):
        return False
    return True


def _verify(jwk: Mapping[str, str], algorithm: str, signed: bytes, signature: bytes) -> None:
    """Raises InvalidSignature, or ValueError for a key or signature of another form."""
    if algorithm == "ES256":
        if len(signature) != 2 * _COORDINATE:
            raise ValueError("not a P-256 signature")
        x, y = (int.from_bytes(_base64url(jwk[name]), "big") for name in ("x", "y"))
        r, s = (int.from_bytes(part, "big") for part in (signature[:_COORDINATE], signature[_COORDINATE:]))
        curve_key = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
        curve_key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(SHA256()))
    elif algorithm == "EdDSA":
        ed25519.Ed25519PublicKey.from_public_bytes(_base64url(jwk["x"])).verify(signature, signed)
    else:
        n, e = (int.from_bytes(_base64url(jwk[name]), "big") for name in ("n", "e"))
        scheme = padding.PKCS1v15() if algorithm == "RS256" else padding.PSS(padding.MGF1(SHA256()), SHA256.digest_size)
        rsa.RSAPublicNumbers(e, n).public_key().verify(signature, signed, scheme, SHA256())
