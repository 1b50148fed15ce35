"""Session tokens: what a signed JWT (RFC 7519, RFC 9068) proves about the session, and what is wrong with it.

Times, with skew the ring's `clock_skew_s`. Expired: `now >= exp + skew`. Not yet valid: `now < nbf - skew` or
`now < iat - skew`. An authentication with `now < auth_time - skew` is no evidence and is left out.
"""

from __future__ import annotations

from enum import StrEnum
from math import inf
from typing import Literal, NamedTuple, get_args

import msgspec
from cachetools import LRUCache

from engine.errors import InvalidInputError, SidestepError
from engine.names import check_id
from sidecar.gather.dpop import DpopInput, DpopVerifier
from sidecar.gather.jws import MAX_JWS_BYTES, Header, JwsError, decode_object, split, verify
from sidecar.gather.keyring import IssuerKey, IssuerRule, KeyRing, RingKey

__all__ = [
    "DpopInput",
    "IssuerKey",
    "IssuerRule",
    "KeyRing",
    "TokenAuthentication",
    "TokenDetail",
    "TokenFault",
    "TokenResult",
    "TokenVerifier",
    "VerifiedToken",
]

MAX_AUTHENTICATIONS = 16
MAX_ROLES = 64

_TYPES = frozenset({"", "jwt", "at+jwt", "application/jwt", "application/at+jwt"})  # RFC 8725 section 3.11
_ENTRY_BYTES = 2048  # of an entry's objects, beside the token text


class TokenFault(StrEnum):
    """What kind of thing is wrong with a token."""

    INVALID = "invalid"
    """It proves nothing: RFC 6750 `invalid_token`."""
    MISMATCH = "mismatch"
    """It is about someone or something else than the request says."""


TokenDetail = Literal[
    "",
    "expired",
    "not_yet_valid",
    "signature",
    "algorithm",
    "unknown_key",
    "issuer",
    "audience",
    "malformed",
    "too_large",
    "missing_claim",
    "subject_mismatch",
    "session_mismatch",
    "issuer_mismatch",
    "proof_missing",
    "proof_invalid",
]
_MISMATCHES = frozenset({"audience", "subject_mismatch", "session_mismatch", "issuer_mismatch"})


class TokenAuthentication(NamedTuple):
    """One authentication event a token vouches for. `acr` is empty if absent or more than its issuer may claim."""

    acr: str
    amr: tuple[str, ...]
    at: float | None
    issuer: str


class VerifiedToken(NamedTuple):
    """What a token proves.

    `session` is `sid`, empty if there is none. `started_at`: when the session began (`session_started_at`, else the
    earliest authentication). `roles`: those that can name a grant's role, at most 64; `roles_cut`: there are others. `jkt`:
    RFC 7638 thumbprint of the key the token is bound to (RFC 9449 `cnf.jkt`), empty: not sender-constrained.
    """

    subject: str
    session: str
    issuer: str
    authentications: tuple[TokenAuthentication, ...]
    roles: tuple[str, ...]
    started_at: float | None
    issued_at: float | None
    expires_at: float
    jkt: str
    roles_cut: bool


class TokenResult(NamedTuple):
    """A verified token, or a fault with its detail.

    `proof_jkt`: thumbprint of the key whose possession a DPoP proof showed with this request, whether the token is
    bound to it or to none; else empty.
    """

    token: VerifiedToken | None
    fault: TokenFault | None
    detail: TokenDetail
    proof_jkt: str = ""


_FAULTS: dict[TokenDetail, TokenResult] = {
    detail: TokenResult(None, TokenFault.MISMATCH if detail in _MISMATCHES else TokenFault.INVALID, detail)
    for detail in get_args(TokenDetail)
    if detail
}


class _RefusedError(SidestepError):
    """The token is refused for `detail`, as long as `since <= now < until`."""

    def __init__(self, detail: TokenDetail, since: float = -inf, until: float = inf) -> None:
        super().__init__(detail)
        self.detail: TokenDetail = detail
        self.since = since
        self.until = until

    def within(self, since: float, until: float) -> _RefusedError:
        """The same refusal, for no time outside this span."""
        return _RefusedError(self.detail, max(self.since, since), min(self.until, until))


class _Outcome(NamedTuple):
    """A result that depends on token and ring only, and on the time just by `since <= now < until`."""

    result: TokenResult
    since: float
    until: float
    size: int


class _Confirmation(msgspec.Struct):
    jkt: str | msgspec.UnsetType = msgspec.UNSET


class _Event(msgspec.Struct):
    acr: str = ""
    amr: tuple[str, ...] = ()
    auth_time: float | None = None


class _Claims(_Event):
    iss: str = ""
    sub: str = ""
    aud: str | tuple[str, ...] = ()
    exp: float | None = None
    nbf: float | None = None
    iat: float | None = None
    sid: str | None = None
    authentications: tuple[_Event, ...] = ()
    roles: tuple[str, ...] = ()
    session_started_at: float | None = None
    cnf: _Confirmation | None = None

    def authentication(self) -> _Event:
        """The event the token's own claims describe."""
        return _Event(self.acr, self.amr, self.auth_time)


class TokenVerifier:
    """Verifies the tokens of requests, for one worker. Not thread-safe.

    Results are remembered by (ring generation, token) together with the span of time they hold for, so a remembered
    token is still refused the moment it expires, its key does, or a new ring no longer has that key. What is
    remembered is bounded by `cache_bytes`; refusals have a small share of their own, so that garbage does not push
    good tokens out.
    """

    def __init__(self, cache_bytes: int = 16 << 20) -> None:
        self._verified: LRUCache[tuple[int, str], _Outcome] = LRUCache(cache_bytes, lambda outcome: outcome.size)
        self._refused: LRUCache[tuple[int, str], _Outcome] = LRUCache(cache_bytes // 16, lambda outcome: outcome.size)
        self._proofs = DpopVerifier()

    def verify(
        self, ring: KeyRing, token: str, now: float, *, subject: str, session: str, dpop: DpopInput | None
    ) -> TokenResult:
        """What `token` proves at `now` to a request about `subject` and `session` (empty: the request names none).

        Never raises for anything a token or proof may contain. A token bound to a key (`cnf.jkt`) needs a proof of that
        key; for an unbound one a proof that does not hold counts as none.
        """
        if len(token) > MAX_JWS_BYTES:
            return _FAULTS["too_large"]
        key = (ring.generation, token)
        outcome = self._verified.get(key) or self._refused.get(key)
        if outcome is None or not outcome.since <= now < outcome.until:
            outcome = _examine(ring, token, now)
            self._remember(key, outcome)
        result = outcome.result
        verified = result.token
        if verified is None:
            return result
        if verified.subject != subject:
            return _FAULTS["subject_mismatch"]
        if session and verified.session and verified.session != session:
            return _FAULTS["session_mismatch"]
        if dpop is None or not dpop.proof:
            return _FAULTS["proof_missing"] if verified.jkt else result
        jkt = self._proofs.verify(dpop, token, now, ring.clock_skew_s)
        if verified.jkt and jkt != verified.jkt:
            return _FAULTS["proof_invalid"]
        return result._replace(proof_jkt=jkt) if jkt else result

    def _remember(self, key: tuple[int, str], outcome: _Outcome) -> None:
        cache, other = self._verified, self._refused
        if outcome.result.token is None:
            cache, other = other, cache
        other.pop(key, None)
        if outcome.size <= cache.maxsize:
            cache[key] = outcome


def _examine(ring: KeyRing, token: str, now: float) -> _Outcome:
    size = _ENTRY_BYTES + len(token)
    try:
        verified, since, until = _read_token(ring, token, now)
    except JwsError:
        return _Outcome(_FAULTS["malformed"], -inf, inf, size)
    except _RefusedError as error:
        return _Outcome(_FAULTS[error.detail], error.since, error.until, size)
    return _Outcome(TokenResult(verified, None, ""), since, until, size)


def _read_token(ring: KeyRing, token: str, now: float) -> tuple[VerifiedToken, float, float]:
    """The verified token and the span of time it is exactly this one for. Raises _RefusedError or JwsError."""
    # 1. Form. Claims are read before they are trusted, to find the key; nothing else is done with them.
    jws = split(token)
    if jws.header.typ.lower() not in _TYPES:
        raise _RefusedError("malformed")
    claims = decode_object(jws.payload, _Claims)
    # 2. Issuer, algorithm and key belong together; the key is usable now.
    rule = ring.rule(claims.iss)
    if rule is None:
        raise _RefusedError("issuer" if claims.iss else "missing_claim")
    if jws.header.alg not in rule.algorithms:
        raise _RefusedError("algorithm")
    key = _find_key(ring, claims.iss, jws.header, now)
    try:
        # 3. Signature. From here on the claims are the issuer's.
        if not verify(jws, key.public):
            raise _RefusedError("signature")
        verified, since, until = _read_claims(ring, rule, claims, now)
    except _RefusedError as error:
        raise error.within(key.start_at, key.expire_at) from None
    return verified, max(since, key.start_at), min(until, key.expire_at)


def _read_claims(ring: KeyRing, rule: IssuerRule, claims: _Claims, now: float) -> tuple[VerifiedToken, float, float]:
    """Steps 4 and 5; result as _read_token's but for the key's validity. Raises _RefusedError."""
    skew_s = ring.clock_skew_s
    # 4. Audience, times, and what must be there.
    audiences = {claims.aud} if isinstance(claims.aud, str) else set(claims.aud)
    if not claims.sub or not audiences or claims.exp is None:
        raise _RefusedError("missing_claim")
    if audiences.isdisjoint(rule.audiences):
        raise _RefusedError("audience")
    begins = max((time - skew_s for time in (claims.nbf, claims.iat) if time is not None), default=-inf)
    ends = claims.exp + skew_s
    if now >= ends:
        raise _RefusedError("expired", since=ends)
    if now < begins:
        raise _RefusedError("not_yet_valid", until=min(begins, ends))
    # 5. What it proves. A time still to come enters the picture when it is reached: the result holds only until then.
    events = [event for event in (claims.authentication(), *claims.authentications) if event != _Event()]
    if len(events) > MAX_AUTHENTICATIONS:
        raise _RefusedError("malformed")
    past = [event for event in events if event.auth_time is None or now >= event.auth_time - skew_s]
    earliest = min((event.auth_time for event in past if event.auth_time is not None), default=None)
    started_at = claims.session_started_at
    roles = _roles(claims.roles)
    verified = VerifiedToken(
        subject=claims.sub,
        session=_session(claims.sid),
        issuer=claims.iss,
        authentications=tuple(
            TokenAuthentication(ring.capped(rule, event.acr), event.amr, event.auth_time, claims.iss) for event in past
        ),
        roles=roles,
        started_at=earliest if started_at is None else started_at if now >= started_at - skew_s else None,
        issued_at=claims.iat,
        expires_at=claims.exp,
        jkt=_bound_key(claims.cnf),
        roles_cut=len(roles) < len(set(claims.roles)),
    )
    turns = [time - skew_s for time in (started_at, *(event.auth_time for event in events)) if time is not None]
    since = max([begins, *(turn for turn in turns if now >= turn)])
    until = min([ends, *(turn for turn in turns if now < turn)])
    return verified, since, until


def _find_key(ring: KeyRing, issuer: str, header: Header, now: float) -> RingKey:
    key = ring.key(issuer, header.kid)
    if key is None:
        raise _RefusedError("issuer_mismatch" if ring.knows_kid(header.kid) else "unknown_key")
    if now < key.start_at:
        raise _RefusedError("unknown_key", until=key.start_at)
    if now >= key.expire_at:
        raise _RefusedError("unknown_key", since=key.expire_at)
    if header.alg not in key.public.algorithms:
        raise _RefusedError("algorithm")
    return key


def _session(sid: str | None) -> str:
    if sid is None:
        return ""
    try:
        return check_id(sid, "sid")
    except InvalidInputError:
        # Such a session could never be named to be revoked.
        raise _RefusedError("malformed") from None


def _roles(roles: tuple[str, ...]) -> tuple[str, ...]:
    usable: dict[str, None] = {}
    for role in roles:
        try:
            usable[check_id(role, "roles")] = None
        except InvalidInputError:
            continue
        if len(usable) == MAX_ROLES:
            break
    return tuple(usable)


def _bound_key(cnf: _Confirmation | None) -> str:
    if cnf is None or cnf.jkt is msgspec.UNSET:
        return ""
    if not cnf.jkt:
        raise _RefusedError("malformed")
    return cnf.jkt
