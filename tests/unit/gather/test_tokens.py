from __future__ import annotations

import hashlib
import hmac
import json
import math
import time
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.gather.tokens import (
    DpopInput,
    IssuerKey,
    IssuerRule,
    KeyRing,
    TokenAuthentication,
    TokenFault,
    TokenResult,
    TokenVerifier,
)
from tests.fakes.issuer import AUDIENCE, SigningKey, b64, encode_parts

NOW = 1_800_000_000.0
SKEW = 30.0
ISS = "https://id.acme.example"
OTHER_ISS = "https://id.other.example"

KEYS = {alg: SigningKey(alg, kid=alg) for alg in ("ES256", "EdDSA", "RS256")}
KEYS["PS256"] = SigningKey("PS256", kid="PS256", key=KEYS["RS256"].key)
KEY = KEYS["ES256"]
OTHER = SigningKey(kid="other")
LEVELS = {"phrh": {"phr"}, "nist-aal3": {"nist-aal2", "nist-aal1"}, "nist-aal2": {"nist-aal1"}}


def implies(higher: str, lower: str) -> bool:
    return higher == lower or lower in LEVELS.get(higher, ())


def rule(**changes: Any) -> IssuerRule:
    return IssuerRule(ISS, frozenset({AUDIENCE}), ("phr", "nist-aal2"), frozenset())._replace(**changes)


def record(key: SigningKey, **changes: Any) -> IssuerKey:
    return IssuerKey(key.kid, ISS, json.dumps(key.jwk), None, None)._replace(**changes)


def ring(*keys: IssuerKey, rules: tuple[IssuerRule, ...] = (rule(),), skew: float = SKEW) -> KeyRing:
    return KeyRing(rules, keys or (record(KEY),), skew, implies)


def claims(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "iss": ISS,
        "sub": "alice",
        "aud": AUDIENCE,
        "exp": NOW + 300,
        "iat": NOW - 10,
        "sid": "s1",
        "acr": "phr",
        "amr": ["hwk", "user"],
        "auth_time": NOW - 60,
    }
    values.update(changes)
    return {name: value for name, value in values.items() if value is not None}


def check(
    token: str,
    keys: KeyRing | None = None,
    *,
    now: float = NOW,
    subject: str = "alice",
    session: str = "s1",
    dpop: DpopInput | None = None,
    verifier: TokenVerifier | None = None,
) -> TokenResult:
    return (verifier or TokenVerifier()).verify(keys or ring(), token, now, subject=subject, session=session, dpop=dpop)


def refusal(token: str, keys: KeyRing | None = None, **options: Any) -> str:
    result = check(token, keys, **options)
    assert result.token is None
    assert result.fault is not None
    return result.detail


# What a good token proves


def test_good_token_proves_its_claims() -> None:
    result = check(KEY.token(claims(roles=["vip", "ops", "vip"])))
    assert (result.fault, result.detail, result.proof_jkt) == (None, "", "")
    token = result.token
    assert token is not None
    assert (token.subject, token.session, token.issuer, token.jkt) == ("alice", "s1", ISS, "")
    assert token.authentications == (TokenAuthentication("phr", ("hwk", "user"), NOW - 60, ISS),)
    assert token.roles == ("vip", "ops")
    assert (token.started_at, token.issued_at, token.expires_at) == (NOW - 60, NOW - 10, NOW + 300)


@pytest.mark.parametrize("alg", list(KEYS))
def test_every_supported_algorithm_verifies(alg: str) -> None:
    keys = ring(record(KEYS[alg]))
    assert check(KEYS[alg].token(claims()), keys).fault is None
    forged = KEYS[alg].token(claims())[:-8] + "AAAAAAAA"
    assert refusal(forged, keys) in {"signature", "malformed"}


def test_further_authentications_stay_separate_events() -> None:
    token = KEY.token(
        claims(acr="nist-aal1", auth_time=NOW - 5, authentications=[{"acr": "phr", "auth_time": NOW - 4000}, {}])
    )
    result = check(token)
    assert result.token is not None
    assert [(event.acr, event.at) for event in result.token.authentications] == [
        ("nist-aal1", NOW - 5),
        ("phr", NOW - 4000),
    ]
    assert result.token.started_at == NOW - 4000


def test_token_without_authentication_proves_none() -> None:
    result = check(KEY.token(claims(acr=None, amr=None, auth_time=None)))
    assert result.token is not None
    assert result.token.authentications == ()
    assert result.token.started_at is None


def test_session_start_claim_comes_before_auth_time() -> None:
    result = check(KEY.token(claims(session_started_at=NOW - 9000)))
    assert result.token is not None
    assert result.token.started_at == NOW - 9000


def test_session_start_in_the_future_is_unknown() -> None:
    result = check(KEY.token(claims(session_started_at=NOW + SKEW + 1)))
    assert result.token is not None
    assert result.token.started_at is None


@pytest.mark.parametrize(
    ("acr", "counted"),
    [
        ("phr", "phr"),
        ("nist-aal2", "nist-aal2"),
        ("nist-aal1", "nist-aal1"),
        ("phrh", ""),
        ("nist-aal3", ""),
        ("x", ""),
    ],
)
def test_acr_counts_only_up_to_the_issuers_maximum(acr: str, counted: str) -> None:
    result = check(KEY.token(claims(acr=acr, authentications=[{"acr": acr, "auth_time": NOW - 70}])))
    assert result.token is not None
    assert [event.acr for event in result.token.authentications] == [counted, counted]


def test_issuer_without_maximum_proves_no_acr() -> None:
    result = check(KEY.token(claims()), ring(rules=(rule(max_acrs=()),)))
    assert result.token is not None
    assert result.token.authentications[0].acr == ""


def test_future_auth_time_is_no_evidence() -> None:
    late = {"acr": "phr", "auth_time": NOW + SKEW + 0.001}
    just = {"acr": "phr", "auth_time": NOW + SKEW}
    result = check(KEY.token(claims(acr="phr", auth_time=late["auth_time"], authentications=[just, late])))
    assert result.token is not None
    assert [event.at for event in result.token.authentications] == [just["auth_time"]]


def test_roles_that_can_name_no_grant_are_left_out_and_the_rest_is_bounded() -> None:
    result = check(KEY.token(claims(roles=["a/b", "", "x" * 129, "vip"])))
    assert result.token is not None
    assert result.token.roles == ("vip",)
    result = check(KEY.token(claims(roles=[f"r{n}" for n in range(100)])))
    assert result.token is not None
    assert len(result.token.roles) == 64


# Algorithms and keys


def test_alg_none_is_refused() -> None:
    for alg in ("none", "None", "NONE", ""):
        header = json.dumps({"alg": alg, "kid": KEY.kid}).encode()
        assert refusal(encode_parts(header, json.dumps(claims()).encode(), b"")) == "algorithm"


@pytest.mark.parametrize("form", [PublicFormat.SubjectPublicKeyInfo])
def test_hmac_with_the_public_key_as_secret_is_refused(form: PublicFormat) -> None:
    secrets = [
        KEY.key.public_key().public_bytes(Encoding.PEM, form),
        KEY.key.public_key().public_bytes(Encoding.DER, form),
        json.dumps(KEY.jwk).encode(),
    ]
    for secret in secrets:
        signed = f"{b64(json.dumps({'alg': 'HS256', 'kid': KEY.kid}).encode())}.{b64(json.dumps(claims()).encode())}"
        token = f"{signed}.{b64(hmac.new(secret, signed.encode(), hashlib.sha256).digest())}"
        assert refusal(token) == "algorithm"
        keys = ring(rules=(rule(algorithms=frozenset({"HS256", "ES256"})),))
        assert refusal(token, keys) == "algorithm"
        assert any("HS256" in problem for problem in keys.problems)


def test_issuer_listing_only_unsupported_algorithms_gets_none() -> None:
    keys = ring(rules=(rule(algorithms=frozenset({"HS256"})),))
    assert refusal(KEY.token(claims()), keys) == "algorithm"


def test_algorithm_outside_the_issuers_set_is_refused() -> None:
    keys = ring(record(KEYS["RS256"]), rules=(rule(algorithms=frozenset({"PS256"})),))
    assert refusal(KEYS["RS256"].token(claims()), keys) == "algorithm"
    assert check(KEYS["PS256"].token(claims(), kid="RS256"), keys).fault is None


def test_algorithm_that_does_not_fit_the_key_is_refused() -> None:
    keys = ring(record(KEY), record(KEYS["RS256"]))
    assert refusal(KEY.token(claims(), kid="RS256"), keys) == "algorithm"


def test_key_bound_to_one_algorithm_serves_only_that() -> None:
    jwk = json.dumps({**KEYS["RS256"].jwk, "alg": "PS256"})
    keys = ring(record(KEYS["RS256"], jwk=jwk))
    assert refusal(KEYS["RS256"].token(claims()), keys) == "algorithm"
    assert check(KEYS["PS256"].token(claims(), kid="RS256"), keys).fault is None


def test_signature_of_another_key_is_refused() -> None:
    assert refusal(OTHER.token(claims(), kid=KEY.kid)) == "signature"


def test_changed_payload_is_refused() -> None:
    head, _, signature = KEY.token(claims()).split(".")
    assert (
        refusal(f"{head}.{b64(json.dumps(claims(sub='mallory')).encode())}.{signature}", subject="mallory")
        == "signature"
    )


def test_unknown_kid_is_refused() -> None:
    assert refusal(KEY.token(claims(), kid="nobody")) == "unknown_key"


def test_key_of_another_issuer_is_a_mismatch() -> None:
    keys = ring(record(KEY), record(OTHER, issuer=OTHER_ISS), rules=(rule(), rule(issuer=OTHER_ISS)))
    result = check(OTHER.token(claims()), keys)
    assert (result.fault, result.detail) == (TokenFault.MISMATCH, "issuer_mismatch")


def test_same_kid_of_two_issuers_is_told_apart_by_issuer() -> None:
    twin = SigningKey(kid=KEY.kid)
    keys = ring(record(KEY), record(twin, issuer=OTHER_ISS), rules=(rule(), rule(issuer=OTHER_ISS)))
    assert check(KEY.token(claims()), keys).fault is None
    assert check(twin.token(claims(iss=OTHER_ISS)), keys).fault is None
    assert refusal(twin.token(claims()), keys) == "signature"


def test_without_kid_the_only_key_is_used_and_several_are_ambiguous() -> None:
    token = KEY.token(claims(), kid=None)
    assert check(token).fault is None
    assert refusal(token, ring(record(KEY), record(OTHER))) == "unknown_key"


def test_embedded_key_is_ignored() -> None:
    token = OTHER.token(claims(), kid=KEY.kid, jwk=OTHER.jwk, jku="https://evil.example/jwks", x5c=["AAAA"])
    assert refusal(token) == "signature"


def test_unknown_issuer_is_refused() -> None:
    assert refusal(KEY.token(claims(iss=OTHER_ISS))) == "issuer"


def test_key_validity_start_is_inclusive_and_end_exclusive() -> None:
    keys = ring(record(KEY, start_at=NOW, expire_at=NOW + 10))
    token = KEY.token(claims())
    verifier = TokenVerifier()
    for now, detail in [
        (NOW - 0.001, "unknown_key"),
        (NOW, ""),
        (NOW + 9.999, ""),
        (NOW + 10, "unknown_key"),
        (NOW, ""),
    ]:
        assert check(token, keys, now=now, verifier=verifier).detail == detail


@pytest.mark.parametrize(
    ("jwk", "reason"),
    [
        ("not json", "JSON"),
        ("[]", "JSON"),
        ('{"kty":"oct","k":"c2VjcmV0"}', "private"),
        ('{"kty":["EC"],"crv":{}}', "neither"),
        ('{"kty":"EC","crv":"P-256","x":1,"y":2}', "text members"),
        ('{"kty":"EC","crv":"P-256","x":"AAAA","y":"AAAA"}', "valid"),
        (json.dumps({**KEY.jwk, "y": KEY.jwk["x"]}), "valid"),  # not a point of the curve
        (json.dumps({**KEY.jwk, "use": "enc"}), "verifying"),
        (json.dumps({**KEY.jwk, "key_ops": ["sign"]}), "verifying"),
        (json.dumps({**KEY.jwk, "alg": "RS256"}), "alg"),
        (json.dumps(KEY.private_jwk), "private"),
        (json.dumps(SigningKey("RS256", key=rsa.generate_private_key(65537, 1024)).jwk), "bits"),
        (json.dumps({**KEYS["RS256"].jwk, "e": b64((2**64 + 1).to_bytes(9, "big"))}), "exponent"),
        (
            json.dumps(
                {"kty": "EC", "crv": "P-384", "x": b64(bytes(48)), "y": b64(bytes(48))},
            ),
            "neither",
        ),
        ("\ud800", "not text"),
    ],
)
def test_unusable_key_is_reported_and_the_others_work(jwk: str, reason: str) -> None:
    keys = ring(record(KEY), record(OTHER, jwk=jwk))
    assert len(keys.problems) == 1
    assert reason in keys.problems[0]
    assert check(KEY.token(claims()), keys).fault is None
    assert refusal(OTHER.token(claims()), keys) == "unknown_key"
    assert KEY.private_jwk["d"] not in keys.problems[0]


def test_unusable_key_does_not_count_as_the_only_one() -> None:
    keys = ring(record(KEY), record(OTHER, jwk="{}"))
    assert check(KEY.token(claims(), kid=None), keys).fault is None


def test_issuer_or_key_listed_twice_is_reported_and_the_first_counts() -> None:
    keys = ring(record(KEY), record(OTHER, kid=KEY.kid), rules=(rule(), rule(audiences=frozenset({"x"}))))
    assert len(keys.problems) == 2
    assert check(KEY.token(claims()), keys).fault is None


# Claims


@pytest.mark.parametrize(
    ("now", "detail"),
    [(NOW + SKEW - 0.001, ""), (NOW + SKEW, "expired"), (NOW + SKEW + 1, "expired"), (NOW - 1, "")],
)
def test_token_expires_exactly_at_exp_plus_skew(now: float, detail: str) -> None:
    assert check(KEY.token(claims(exp=NOW)), now=now).detail == detail


@pytest.mark.parametrize("claim", ["nbf", "iat"])
def test_token_begins_exactly_at_nbf_or_iat_minus_skew(claim: str) -> None:
    token = KEY.token(claims(**{claim: NOW}))
    assert check(token, now=NOW - SKEW).fault is None
    assert refusal(token, now=NOW - SKEW - 0.001) == "not_yet_valid"


@pytest.mark.parametrize("claim", ["exp", "sub", "aud", "iss"])
def test_required_claim_missing(claim: str) -> None:
    assert refusal(KEY.token(claims(**{claim: None}))) == "missing_claim"


def test_empty_required_claim_is_missing() -> None:
    assert refusal(KEY.token(claims(sub="")), subject="") == "missing_claim"
    assert refusal(KEY.token(claims(aud=[]))) == "missing_claim"


def test_audience_must_intersect() -> None:
    assert check(KEY.token(claims(aud=["x", AUDIENCE]))).fault is None
    for audience in ("x", ["x", "y"], "", AUDIENCE + "/"):
        result = check(KEY.token(claims(aud=audience)))
        assert (result.fault, result.detail) == (TokenFault.MISMATCH, "audience")


def test_issuer_without_audiences_accepts_none() -> None:
    assert refusal(KEY.token(claims()), ring(rules=(rule(audiences=frozenset()),))) == "audience"


def test_another_subject_is_a_mismatch() -> None:
    for subject in ("bob", "", "ALICE", "alice "):
        result = check(KEY.token(claims()), subject=subject)
        assert (result.fault, result.detail) == (TokenFault.MISMATCH, "subject_mismatch")


def test_another_session_is_a_mismatch_and_an_unnamed_one_is_not() -> None:
    result = check(KEY.token(claims()), session="s2")
    assert (result.fault, result.detail) == (TokenFault.MISMATCH, "session_mismatch")
    assert check(KEY.token(claims()), session="").fault is None
    assert check(KEY.token(claims(sid=None)), session="s2").fault is None


@pytest.mark.parametrize("sid", ["", "a/b", "a~b", "a\x00b", "x" * 129])
def test_session_id_that_could_never_be_revoked_is_refused(sid: str) -> None:
    assert refusal(KEY.token(claims(sid=sid)), session="") == "malformed"


@pytest.mark.parametrize(
    "changes",
    [
        {"exp": "1800000300"},
        {"exp": True},
        {"exp": [1]},
        {"sub": 7},
        {"aud": {"a": 1}},
        {"roles": "admin"},
        {"amr": [1]},
        {"authentications": {"acr": "phr"}},
        {"authentications": [{"auth_time": "yesterday"}]},
        {"authentications": [{"acr": "phr", "auth_time": NOW}] * 16},
        {"cnf": "x"},
        {"cnf": {"jkt": ""}},
        {"cnf": {"jkt": 1}},
    ],
)
def test_claim_of_a_wrong_shape_is_malformed(changes: dict[str, Any]) -> None:
    assert refusal(KEY.token(claims(**changes))) == "malformed"


@pytest.mark.parametrize("literal", [b"NaN", b"Infinity", b"1e999", b"-1e999", b"1" * 5000])
def test_impossible_number_is_malformed(literal: bytes) -> None:
    payload = json.dumps(claims()).encode().replace(str(NOW + 300).encode(), literal)
    assert literal in payload
    assert refusal(KEY.sign({"alg": "ES256", "kid": KEY.kid}, payload)) == "malformed"


def test_member_that_occurs_twice_is_malformed() -> None:
    body = json.dumps(claims())
    twice = body[:-1] + ', "sub": "alice"}'
    nested = body[:-1] + ', "x": [{"a": 1, "a": 1}]}'
    for payload in (twice, nested):
        assert refusal(KEY.sign({"alg": "ES256", "kid": KEY.kid}, payload.encode())) == "malformed"
    header = b'{"alg": "none", "alg": "ES256", "kid": "ES256"}'
    assert refusal(KEY.sign(header, claims())) == "malformed"


def test_deeply_nested_json_is_malformed() -> None:
    for opening, closing in (("[", "]"), ('{"":', "}")):
        depth = 5500 // len(opening + closing)
        payload = '{"exp": 1, "x": ' + opening * depth + "0" + closing * depth + "}"
        token = KEY.sign({"alg": "ES256", "kid": KEY.kid}, payload.encode())
        assert len(token) < 8192
        assert refusal(token) == "malformed"


def test_lone_surrogate_is_malformed() -> None:
    payload = json.dumps(claims(roles=["\ud800"])).encode()
    assert refusal(KEY.sign({"alg": "ES256", "kid": KEY.kid}, payload)) == "malformed"


@pytest.mark.parametrize("crit", [["exp"], [], ["b64"], None, "exp"])
def test_critical_header_is_refused(crit: Any) -> None:
    header = {"alg": "ES256", "kid": KEY.kid, "crit": crit, "b64": True}
    assert refusal(KEY.sign(header, claims())) == "malformed"


@pytest.mark.parametrize("typ", ["dpop+jwt", "logout+jwt", "secevent+jwt"])
def test_another_kind_of_jwt_is_refused(typ: str) -> None:
    assert refusal(KEY.token(claims(), typ=typ)) == "malformed"


@pytest.mark.parametrize("typ", [None, "JWT", "jwt", "at+jwt", "application/at+jwt"])
def test_session_token_types_are_accepted(typ: str | None) -> None:
    assert check(KEY.token(claims(), typ=typ)).fault is None


def test_size_limit_is_8_kib() -> None:
    token = KEY.token(claims(pad=""))
    room = 8192 - len(token)
    pad = "x" * (room * 3 // 4 - 3)
    longest = KEY.token(claims(pad=pad))
    assert 8180 <= len(longest) <= 8192
    assert check(longest).fault is None
    assert refusal(KEY.token(claims(pad=pad + "x" * 12))) == "too_large"


@pytest.mark.parametrize(
    "token",
    [
        "",
        ".",
        "..",
        "...",
        "a.b",
        "a.b.c.d",
        "é.b.c",
        "\ud800",
        "\x00",
        "a b.c.d",
        "====.====.====",
        "{}",
        "null.null.null",
    ],
)
def test_garbage_is_malformed(token: str) -> None:
    assert refusal(token) == "malformed"


def test_only_the_canonical_spelling_of_a_token_is_read() -> None:
    token = KEY.token(claims())
    assert check(token).fault is None
    head, body, signature = token.split(".")
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    last = alphabet[alphabet.index(signature[-1]) ^ 1]  # an 86-character signature has four unused bits
    for changed in (f"{head}.{body}.{signature}==", f"{head}.{body}.{signature[:-1]}{last}", token + "\n", " " + token):
        assert refusal(changed) == "malformed"


# What is remembered


def test_remembered_token_expires_on_time() -> None:
    verifier, token, keys = TokenVerifier(), KEY.token(claims(exp=NOW + 5)), ring()
    assert check(token, keys, verifier=verifier).fault is None
    assert check(token, keys, now=NOW + 5 + SKEW - 0.001, verifier=verifier).fault is None
    assert refusal(token, keys, now=NOW + 5 + SKEW, verifier=verifier) == "expired"
    assert check(token, keys, now=NOW, verifier=verifier).fault is None


def test_expired_token_is_remembered_as_refused_only() -> None:
    verifier, token, keys = TokenVerifier(), KEY.token(claims()), ring()
    assert check(token, keys, verifier=verifier).fault is None
    assert refusal(token, keys, now=NOW + 1000, verifier=verifier) == "expired"
    assert (verifier._verified.currsize, len(verifier._refused)) == (0, 1)
    assert check(token, keys, verifier=verifier).fault is None
    assert (len(verifier._verified), verifier._refused.currsize) == (1, 0)


def test_remembered_token_is_checked_against_every_request() -> None:
    verifier, token, keys = TokenVerifier(), KEY.token(claims()), ring()
    assert check(token, keys, verifier=verifier).fault is None
    assert refusal(token, keys, subject="bob", verifier=verifier) == "subject_mismatch"
    assert refusal(token, keys, session="s2", verifier=verifier) == "session_mismatch"
    assert check(token, keys, verifier=verifier).fault is None


def test_remembered_token_fails_with_a_ring_without_its_key() -> None:
    verifier, token = TokenVerifier(), KEY.token(claims())
    assert check(token, ring(), verifier=verifier).fault is None
    assert refusal(token, ring(record(OTHER)), verifier=verifier) == "unknown_key"
    assert refusal(token, ring(record(OTHER, kid=KEY.kid)), verifier=verifier) == "signature"


def test_remembered_refusal_ends_with_a_new_ring_or_when_the_token_begins() -> None:
    verifier, token = TokenVerifier(), KEY.token(claims(nbf=NOW + 60))
    assert refusal(token, ring(record(OTHER)), verifier=verifier) == "unknown_key"
    keys = ring()
    assert refusal(token, keys, verifier=verifier) == "not_yet_valid"
    assert check(token, keys, now=NOW + 60 - SKEW, verifier=verifier).fault is None


def test_remembered_token_gains_an_authentication_when_its_time_comes() -> None:
    at = NOW + SKEW + 5
    verifier, token, keys = (
        TokenVerifier(),
        KEY.token(claims(authentications=[{"acr": "phr", "auth_time": at}])),
        ring(),
    )
    counts = []
    for now in (NOW, at - SKEW - 0.001, at - SKEW, NOW):
        result = check(token, keys, now=now, verifier=verifier)
        assert result.token is not None
        counts.append(len(result.token.authentications))
    assert counts == [1, 1, 2, 1]


def test_verifier_never_keeps_more_than_its_bound() -> None:
    verifier, keys = TokenVerifier(cache_bytes=64 << 10), ring()
    tokens = [KEY.token(claims(jti=str(n))) for n in range(100)]
    for token in tokens:
        assert check(token, keys, verifier=verifier).fault is None
        assert refusal(token[:-4] + "AAAA", keys, verifier=verifier) in {"signature", "malformed"}
    assert verifier._verified.currsize <= 64 << 10
    assert verifier._refused.currsize <= 4 << 10
    assert check(tokens[0], keys, verifier=verifier).fault is None


@settings(max_examples=100, deadline=None)
@given(
    exp=st.integers(-90, 90),
    nbf=st.integers(-90, 90),
    key_start=st.integers(-90, 90),
    key_end=st.integers(-90, 90),
    audience=st.sampled_from([AUDIENCE, "x"]),
    events=st.lists(st.integers(-90, 90), max_size=3),
    start=st.none() | st.integers(-90, 90),
    times=st.lists(st.integers(-150, 150), min_size=2, max_size=6),
)
def test_remembering_never_changes_a_result(
    exp: int,
    nbf: int,
    key_start: int,
    key_end: int,
    audience: str,
    events: list[int],
    start: int | None,
    times: list[int],
) -> None:
    keys = ring(record(KEY, start_at=NOW + key_start, expire_at=NOW + key_end))
    token = KEY.token(
        claims(
            exp=NOW + exp,
            nbf=NOW + nbf,
            aud=audience,
            authentications=[{"acr": "phr", "auth_time": NOW + at} for at in events],
            session_started_at=None if start is None else NOW + start,
        )
    )
    remembering = TokenVerifier()
    for offset in times:
        assert check(token, keys, now=NOW + offset, verifier=remembering) == check(token, keys, now=NOW + offset)


def test_remembered_token_costs_little() -> None:
    verifier, keys, token = TokenVerifier(), ring(), KEY.token(claims())
    cold = min(_seconds(lambda: check(token, keys, verifier=TokenVerifier()), 20) for _ in range(3))
    warm = min(_seconds(lambda: check(token, keys, verifier=verifier), 2000) for _ in range(3))
    assert warm < cold / 5


def _seconds(call: Any, times: int) -> float:
    begin = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - begin) / times


# Sender-constrained tokens

URI = "https://pay.acme.example/transfer"


def bound(key: SigningKey) -> str:
    return KEY.token(claims(cnf={"jkt": key.thumbprint}))


def test_bound_token_needs_a_proof() -> None:
    token = bound(OTHER)
    assert refusal(token) == "proof_missing"
    assert refusal(token, dpop=DpopInput("", "POST", URI)) == "proof_missing"
    good = DpopInput(OTHER.proof(token, "POST", URI, NOW), "POST", URI)
    result = check(token, dpop=good)
    assert result.token is not None
    assert (result.token.jkt, result.proof_jkt) == (OTHER.thumbprint, OTHER.thumbprint)


def test_proof_of_another_key_or_for_another_token_is_refused() -> None:
    token = bound(OTHER)
    thief = SigningKey()
    assert refusal(token, dpop=DpopInput(thief.proof(token, "POST", URI, NOW), "POST", URI)) == "proof_invalid"
    elsewhere = OTHER.proof(KEY.token(claims()), "POST", URI, NOW)
    assert refusal(token, dpop=DpopInput(elsewhere, "POST", URI)) == "proof_invalid"


def test_remembered_token_still_needs_its_proof() -> None:
    token, verifier, keys = bound(OTHER), TokenVerifier(), ring()
    good = DpopInput(OTHER.proof(token, "POST", URI, NOW), "POST", URI)
    assert check(token, keys, dpop=good, verifier=verifier).fault is None
    assert refusal(token, keys, verifier=verifier) == "proof_missing"
    assert refusal(token, keys, dpop=good._replace(http_method="GET"), verifier=verifier) == "proof_invalid"
    assert refusal(token, keys, dpop=good, now=NOW + 61, verifier=verifier) == "proof_invalid"
    assert check(token, keys, dpop=good, verifier=verifier).fault is None


def test_unbound_token_reports_what_a_proof_showed() -> None:
    token = KEY.token(claims())
    good = DpopInput(OTHER.proof(token, "POST", URI, NOW), "POST", URI)
    assert check(token, dpop=good).proof_jkt == OTHER.thumbprint
    result = check(token, dpop=good._replace(http_method="GET"))
    assert (result.fault, result.proof_jkt) == (None, "")


def test_token_bound_by_other_means_needs_no_dpop_proof() -> None:
    assert check(KEY.token(claims(cnf={"x5t#S256": "abc"}))).fault is None


# Anything at all

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
)
CLAIM_NAMES = st.sampled_from(
    ["iss", "sub", "aud", "exp", "nbf", "iat", "sid", "acr", "amr", "auth_time", "authentications", "roles", "cnf"]
)


@settings(max_examples=150, deadline=None)
@given(token=st.text(max_size=60) | st.lists(st.binary(max_size=40).map(b64), min_size=1, max_size=4).map(".".join))
def test_no_text_makes_verify_raise(token: str) -> None:
    assert refusal(token) == "malformed"


@settings(max_examples=150, deadline=None)
@given(changes=st.dictionaries(CLAIM_NAMES, JSON, max_size=3))
def test_no_signed_claims_make_verify_raise(changes: dict[str, Any]) -> None:
    result = check(KEY.sign({"alg": "ES256", "kid": KEY.kid}, {**claims(), **changes}))
    if result.token is not None:
        assert result.token.subject == "alice"
        assert math.isfinite(result.token.expires_at)


@settings(max_examples=100, deadline=None)
@given(header=st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit", "jwk", "b64"]), JSON, max_size=4) | JSON)
def test_no_header_makes_verify_raise(header: Any) -> None:
    check(KEY.sign(json.dumps(header).encode(), claims()))


@settings(max_examples=100, deadline=None)
@given(proof=st.text(max_size=40), method=st.text(max_size=8), uri=st.text(max_size=30))
def test_no_proof_makes_verify_raise(proof: str, method: str, uri: str) -> None:
    token = bound(OTHER)
    expected = "proof_invalid" if proof else "proof_missing"
    assert refusal(token, dpop=DpopInput(proof, method, uri)) == expected
    signed = OTHER.proof(token, "POST", URI, NOW)
    assert refusal(token, dpop=DpopInput(signed, method, uri)) == "proof_invalid"


@settings(max_examples=100, deadline=None)
@given(jwk=st.dictionaries(st.sampled_from(["kty", "crv", "x", "y", "n", "e", "alg", "use", "key_ops"]), JSON) | JSON)
def test_no_jwk_makes_a_ring_raise(jwk: Any) -> None:
    base = dict(KEY.jwk)
    candidate = {**base, **jwk} if isinstance(jwk, dict) else jwk
    ring(record(KEY), record(OTHER, jwk=json.dumps(candidate)))


def test_p256_key_with_point_at_another_curve_is_unusable() -> None:
    other = ec.generate_private_key(ec.SECP256K1()).public_key().public_numbers()
    jwk = {"kty": "EC", "crv": "P-256", "x": b64(other.x.to_bytes(32, "big")), "y": b64(other.y.to_bytes(32, "big"))}
    assert ring(record(OTHER, jwk=json.dumps(jwk))).problems
