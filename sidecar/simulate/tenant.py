"""The tenant that simulated logins belong to: settings, keys, one grant; and who and what becomes known as people log in."""

from __future__ import annotations

import hashlib
import json
import re
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from sidestep.v1 import resources_pb2 as pb

from engine.fingerprint import hash_component, parse_version
from engine.names import SINGLETON_ID, Collection
from engine.policy import parse_policy
from sidecar.simulate.places import CENTRES
from sidecar.simulate.rba import Login
from sidecar.simulate.store import RecordKey, Records

ROLE: Final = "member"
STRONG_ACR: Final = "phr"
WEAK_ACR: Final = "nist-aal1"
_ISSUER: Final = "https://login.simulation.example"
_AUDIENCE: Final = "https://api.simulation.example"
_KEY_ID: Final = "simulation"
_FINGERPRINT_KEY: Final = "fingerprint"
_SESSION_S: Final = 43200.0
# What a row tells of a browser. A version may rise between two strong authentications, but not fall.
_EXACT: Final = (("os", 25, True), ("platform", 15, True), ("browser", 20, False), ("agent", 15, False))
_VERSIONS: Final = (("browser_version", 20, 4), ("os_version", 5, 1))
_KNOWN_FROM: Final = 0.75
_MAX_COMPONENT: Final = 500
# Of a user agent: what changes with every update, versions and builds; the rest says what kind of machine it is.
_VERSION_TEXT = re.compile(r"\bBuild/[^\s;)]+|(?<![A-Za-z])\d+(?:[._]\d+)*")


class Identity:
    """The identity provider: signs what a login proved. Its key, and the tenant's, are made of the seed."""

    def __init__(self, seed: int) -> None:
        self._secret = hashlib.sha256(f"sidestep simulation {seed}".encode()).digest()
        self._key = Ed25519PrivateKey.from_private_bytes(self._secret)
        header = {"alg": "EdDSA", "kid": _KEY_ID, "typ": "at+jwt"}
        self._head = _b64(json.dumps(header, separators=(",", ":")).encode())

    def token(self, user: str, session: str, acr: str, at: float, started_at: float) -> str:
        """A session token (RFC 9068) for an authentication at `at` in a session that began at `started_at`."""
        claims = {
            "iss": _ISSUER,
            "aud": _AUDIENCE,
            "sub": user,
            "sid": session,
            "iat": int(at),
            "exp": int(at + _SESSION_S),
            "acr": acr,
            "amr": ["pwd"] if acr == WEAK_ACR else ["pwd", "hwk"],
            "auth_time": int(at),
            "session_started_at": int(started_at),
        }
        signed = f"{self._head}.{_b64(json.dumps(claims, separators=(',', ':')).encode())}"
        return f"{signed}.{_b64(self._key.sign(signed.encode()))}"

    def records(self, tenant: str, documents: Mapping[str, str]) -> Records:
        """What the tenant starts with. `documents`: its policies as YAML, by name. Raises PolicyError."""
        prefix = f"tenants/{tenant}"
        public = self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        jwk = json.dumps({"kty": "OKP", "crv": "Ed25519", "x": _b64(public)})
        records: dict[RecordKey, pb.Settings | pb.Key | pb.Grant | pb.Policy] = {
            (Collection.SETTINGS, SINGLETON_ID): _settings(f"{prefix}/settings/{SINGLETON_ID}"),
            (Collection.KEYS, _KEY_ID): pb.Key(
                name=f"{prefix}/keys/{_KEY_ID}", kind=pb.KEY_KIND_ISSUER, issuer=_ISSUER, jwk=jwk
            ),
            (Collection.GRANTS, "known-browsers"): pb.Grant(
                name=f"{prefix}/grants/known-browsers",
                state=pb.GRANT_STATE_ACTIVE,
                role=ROLE,
                actions=["*"],
                expire_time=Timestamp(seconds=4102444800),
                ceiling=pb.Requirement(acr="nist-aal2", max_age=Duration(seconds=3600)),
                reason="A second factor is not asked for on a browser that was proved.",
                owner="simulation",
            ),
        }
        for name, kind in ((_FINGERPRINT_KEY, pb.KEY_KIND_FINGERPRINT), ("tenant", pb.KEY_KIND_TENANT)):
            secret = hashlib.sha256(self._secret + name.encode()).digest()
            records[Collection.KEYS, name] = pb.Key(name=f"{prefix}/keys/{name}", kind=kind, secret=secret)
        for name, source in documents.items():
            records[Collection.POLICIES, name] = pb.Policy(
                name=f"{prefix}/policies/{name}", document=parse_policy(source).document, version=1
            )
        return records

    def device(self, name: str, user: str, shown: Mapping[str, str], at: float, before: pb.Device | None) -> pb.Device:
        """The device as a strong authentication at `at` leaves it: registered, or registered before and confirmed."""
        device = pb.Device(name=name, subject=user, key_id=_FINGERPRINT_KEY)
        secret = hashlib.sha256(self._secret + _FINGERPRINT_KEY.encode()).digest()
        for component, _, _ in _EXACT:
            if component in shown:
                device.components[component] = hash_component(secret, component, shown[component])
        for component, _, _ in _VERSIONS:
            if (ordinal := parse_version(shown.get(component, ""))) is not None:
                device.versions[component] = ordinal
        when = Timestamp(seconds=int(at))
        device.create_time.CopyFrom(before.create_time if before is not None else when)
        device.validate_time.CopyFrom(when)
        device.authentications.add(acr=STRONG_ACR, amr=["hwk"], auth_time=when, issuer=_ISSUER)
        if before is not None:
            device.authentications.extend(before.authentications[:1])
        return device


def subject(tenant: str, user: str) -> pb.Subject:
    """Someone with an account and a passkey."""
    return pb.Subject(
        name=f"tenants/{tenant}/subjects/{user}",
        state=pb.SUBJECT_STATE_ACTIVE,
        roles=[ROLE],
        methods=["password", "totp", "webauthn"],
    )


def fingerprint(login: Login) -> dict[str, str]:
    """What a row shows of the browser, as components. What it does not tell is left out."""
    browser, _, browser_version = login.browser.rpartition(" ")
    system, _, system_version = login.os.rpartition(" ")
    components = {
        "os": system or system_version,
        "platform": login.device,
        "browser": browser or browser_version,
        "agent": _VERSION_TEXT.sub("#", login.agent),
        "browser_version": browser_version,
        "os_version": system_version,
    }
    return {name: value[:_MAX_COMPONENT] for name, value in components.items() if value}


def coordinates(login: Login) -> tuple[float, float] | None:
    """Latitude and longitude in degrees of the country the address is in, as nearer places are guesses; None: unknown."""
    return CENTRES.get(login.country)


def _settings(name: str) -> pb.Settings:
    settings = pb.Settings(name=name, min_similarity=_KNOWN_FROM)
    settings.acr_edges.add(higher=STRONG_ACR, lower="nist-aal2")
    settings.issuers.add(issuer=_ISSUER, audiences=[_AUDIENCE], max_acrs=["phrh", "nist-aal3"])
    for component, weight, must_match in _EXACT:
        settings.fingerprint.add(
            id=component, kind=pb.FingerprintComponent.KIND_EXACT, weight=weight, must_match=must_match
        )
    for component, weight, max_rise in _VERSIONS:
        settings.fingerprint.add(
            id=component, kind=pb.FingerprintComponent.KIND_VERSION, weight=weight, max_rise=max_rise
        )
    return settings


def _b64(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()
