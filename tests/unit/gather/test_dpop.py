from __future__ import annotations

import json
from typing import Any

import pytest

from sidecar.gather.dpop import DpopInput, DpopVerifier, normalise_uri
from tests.fakes.issuer import SigningKey, b64

NOW = 1_800_000_000.0
SKEW = 30.0
URI = "https://pay.acme.example/transfer"
TOKEN = "header.payload.signature"
KEYS = {alg: SigningKey(alg) for alg in ("ES256", "EdDSA", "RS256")}
KEYS["PS256"] = SigningKey("PS256", key=KEYS["RS256"].key)
KEY = KEYS["ES256"]


def thumbprint(proof: str, *, method: str = "POST", uri: str = URI, token: str = TOKEN, now: float = NOW) -> str:
    return DpopVerifier().verify(DpopInput(proof, method, uri), token, now, SKEW)


@pytest.mark.parametrize("alg", list(KEYS))
def test_good_proof_gives_the_keys_thumbprint(alg: str) -> None:
    assert thumbprint(KEYS[alg].proof(TOKEN, "POST", URI, NOW)) == KEYS[alg].thumbprint


def test_thumbprint_is_that_of_rfc_7638() -> None:
    # RFC 7638 section 3.1.
    from sidecar.gather.jws import read_jwk

    modulus = (
        "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMs"
        "tn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajr"
        "n1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"
    )
    jwk = json.dumps({"kty": "RSA", "n": modulus, "e": "AQAB", "alg": "RS256", "kid": "2011-04-29"})
    assert read_jwk(jwk.encode()).thumbprint == "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"


@pytest.mark.parametrize(
    ("age", "holds"), [(60, True), (60.001, False), (0, True), (-SKEW, True), (-SKEW - 0.001, False), (1e300, False)]
)
def test_proof_is_good_for_a_minute_and_the_skew(age: float, holds: bool) -> None:
    assert bool(thumbprint(KEY.proof(TOKEN, "POST", URI, NOW, iat=NOW - age))) is holds


@pytest.mark.parametrize(
    "changes",
    [
        {"htm": "GET"},
        {"htm": "post"},
        {"htu": "https://pay.acme.example/other"},
        {"htu": "http://pay.acme.example/transfer"},
        {"htu": "https://evil.example/transfer"},
        {"htu": "https://pay.acme.example:8443/transfer"},
        {"htu": "/transfer"},
        {"htu": ""},
        {"ath": "AAAA"},
        {"ath": ""},
        {"ath": None},
        {"jti": None},
        {"jti": ""},
        {"jti": 5},
        {"iat": None},
        {"iat": "now"},
        {"htm": None},
        {"htu": None},
        {"header_typ": "JWT"},
        {"header_typ": None},
        {"header_jwk": None},
        {"header_jwk": "x"},
        {"header_jwk": {}},
        {"header_jwk": KEY.private_jwk},
        {"header_jwk": SigningKey().jwk},
        {"header_jwk": KEYS["RS256"].jwk},
        {"header_alg": "none"},
        {"header_alg": "HS256"},
        {"header_alg": "RS256"},
        {"header_alg": None},
        {"header_crit": ["jti"]},
    ],
)
def test_proof_that_does_not_hold_gives_nothing(changes: dict[str, Any]) -> None:
    assert thumbprint(KEY.proof(TOKEN, "POST", URI, NOW)) == KEY.thumbprint
    assert thumbprint(KEY.proof(TOKEN, "POST", URI, NOW, **changes)) == ""


def test_symmetric_key_in_a_proof_is_refused() -> None:
    jwk = {"kty": "oct", "k": b64(b"secret")}
    assert thumbprint(KEY.proof(TOKEN, "POST", URI, NOW, header_jwk=jwk, header_alg="HS256")) == ""


def test_proof_for_another_token_is_refused() -> None:
    assert thumbprint(KEY.proof(TOKEN, "POST", URI, NOW), token="another.token.x") == ""


def test_changed_proof_is_refused() -> None:
    head, body, signature = KEY.proof(TOKEN, "POST", URI, NOW).split(".")
    other = KEY.proof(TOKEN, "GET", URI, NOW).split(".")[1]
    assert thumbprint(f"{head}.{other}.{signature}", method="GET") == ""
    assert thumbprint(f"{head}.{body}.") == ""


def test_one_proof_may_accompany_several_questions_but_not_another_request() -> None:
    verifier, proof = DpopVerifier(), KEY.proof(TOKEN, "POST", URI, NOW)
    for _ in range(3):
        assert verifier.verify(DpopInput(proof, "POST", URI), TOKEN, NOW, SKEW) == KEY.thumbprint
    assert verifier.verify(DpopInput(proof, "GET", URI), TOKEN, NOW, SKEW) == ""
    assert verifier.verify(DpopInput(proof, "POST", URI + "/x"), TOKEN, NOW, SKEW) == ""
    assert verifier.verify(DpopInput(proof, "POST", URI), "another.token.x", NOW, SKEW) == ""
    assert verifier.verify(DpopInput(proof, "POST", URI), TOKEN, NOW + 61, SKEW) == ""
    assert verifier.verify(DpopInput(proof, "POST", URI), TOKEN, NOW, SKEW) == KEY.thumbprint


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (URI, URI + "?amount=5#top"),
        (URI, "HTTPS://PAY.acme.EXAMPLE/transfer"),
        (URI, "https://pay.acme.example:443/transfer"),
        (URI, "https://pay.acme.example/tr%61nsfer"),
        ("https://a.example", "https://a.example/"),
        ("http://a.example:80/x", "http://a.example/x"),
        ("http://[::1]:8080/a%2fb", "http://[::1]:8080/a%2Fb"),
    ],
)
def test_equal_uris_are_recognised(left: str, right: str) -> None:
    assert normalise_uri(left) == normalise_uri(right)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (URI, URI + "/"),
        (URI, "https://pay.acme.example/Transfer"),
        ("https://a.example/a%2Fb", "https://a.example/a/b"),
        ("https://a.example:444/", "https://a.example/"),
        ("http://a.example:443/", "https://a.example/"),
    ],
)
def test_different_uris_are_told_apart(left: str, right: str) -> None:
    assert normalise_uri(left) != normalise_uri(right)


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "/x",
        "ftp://a.example/",
        "https:///x",
        "https://u@a.example/",
        "https://a.example:x/",
        "https://a.example:99999/",
        "https://[::1/",
        "https://a.example/a\n",
        "https://a.exa\tmple/",
        "https://a.example/" + "x" * 9000,
    ],
)
def test_what_is_no_absolute_uri_is_refused(uri: str) -> None:
    with pytest.raises(ValueError, match=r"URI|Port|IPv6"):
        normalise_uri(uri)
    assert thumbprint(KEY.proof(TOKEN, "POST", uri, NOW), uri=uri) == ""
