"""The issuers a tenant trusts and the keys they sign with, parsed once."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable
from typing import NamedTuple

from engine.rules import MAX_CLOCK_SKEW_S
from sidecar.gather.jws import ALGORITHMS, JwkError, PublicKey, read_jwk

_generations = itertools.count(1)


class IssuerRule(NamedTuple):
    """What tokens of an issuer may be and prove.

    `issuer` is compared with `iss` exactly. `audiences`: one of them must be in `aud`. `max_acrs`: the highest levels
    it may claim; empty: none counts. `algorithms`: accepted `alg` values; empty: ES256, EdDSA, RS256 and PS256.
    """

    issuer: str
    audiences: frozenset[str]
    max_acrs: tuple[str, ...]
    algorithms: frozenset[str]


class IssuerKey(NamedTuple):
    """A key record: `jwk` is the public JWK as JSON, usable from `start_at` (inclusive) to `expire_at` (exclusive)."""

    kid: str
    issuer: str
    jwk: str
    start_at: float | None
    expire_at: float | None


class RingKey(NamedTuple):
    """A usable key of the ring."""

    public: PublicKey
    start_at: float
    expire_at: float


class KeyRing:
    """The issuers and keys of one tenant at one state of its data. Immutable: a change of either means a new ring.

    `acr_implies(a, b)` tells whether a equals or implies b. `problems` lists, for the log, the keys and issuers that
    could not be used and why (no key material); they are left out, the others work. `generation` differs for every ring
    of the process, so that what was verified with one is never taken as verified with another.
    """

    def __init__(
        self,
        issuers: Iterable[IssuerRule],
        keys: Iterable[IssuerKey],
        clock_skew_s: float = 30.0,
        acr_implies: Callable[[str, str], bool] = operator.eq,
    ) -> None:
        self.generation = next(_generations)
        self.clock_skew_s = min(max(clock_skew_s, 0.0), MAX_CLOCK_SKEW_S)
        self._acr_implies = acr_implies
        self._rules: dict[str, IssuerRule] = {}
        self._keys: dict[str, dict[str, RingKey]] = {}
        self._kids: set[str] = set()
        problems: list[str] = []
        for rule in issuers:
            self._add_rule(rule, problems)
        for key in keys:
            self._add_key(key, problems)
        self.problems: tuple[str, ...] = tuple(problems)

    def rule(self, issuer: str) -> IssuerRule | None:
        """The rule of an issuer; its algorithms are the effective ones. None: not trusted."""
        return self._rules.get(issuer)

    def key(self, issuer: str, kid: str) -> RingKey | None:
        """The issuer's key with this id; without an id its only key, if it has just one."""
        keys = self._keys.get(issuer, {})
        if kid:
            return keys.get(kid)
        return next(iter(keys.values())) if len(keys) == 1 else None

    def knows_kid(self, kid: str) -> bool:
        """Whether some issuer has a key with this id."""
        return kid in self._kids

    def capped(self, rule: IssuerRule, acr: str) -> str:
        """The acr if the issuer may claim it, else empty: it proves nothing."""
        return acr if acr and any(self._acr_implies(most, acr) for most in rule.max_acrs) else ""

    def _add_rule(self, rule: IssuerRule, problems: list[str]) -> None:
        if not rule.issuer or rule.issuer in self._rules:
            problems.append(f"issuer {rule.issuer!r}: empty or listed twice")
            return
        unknown = rule.algorithms - ALGORITHMS.keys()
        if unknown:
            problems.append(f"issuer {rule.issuer!r}: algorithms not supported: {', '.join(sorted(unknown))}")
        # An issuer that lists only unsupported ones gets none, not the default.
        effective = rule.algorithms & ALGORITHMS.keys() if rule.algorithms else frozenset(ALGORITHMS)
        self._rules[rule.issuer] = rule._replace(algorithms=frozenset(effective))

    def _add_key(self, key: IssuerKey, problems: list[str]) -> None:
        try:
            public = read_jwk(key.jwk.encode())
        except (JwkError, UnicodeEncodeError) as error:
            problems.append(f"key {key.kid!r}: {error if isinstance(error, JwkError) else 'not text'}")
            return
        of_issuer = self._keys.setdefault(key.issuer, {})
        if not key.kid or key.kid in of_issuer:
            problems.append(f"key {key.kid!r}: id empty or listed twice")
            return
        self._kids.add(key.kid)
        of_issuer[key.kid] = RingKey(
            public,
            float("-inf") if key.start_at is None else key.start_at,
            float("inf") if key.expire_at is None else key.expire_at,
        )
