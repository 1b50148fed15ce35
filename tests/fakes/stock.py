"""A sidecar's store with one tenant in it, and a request for each outcome.

`payments.*` wants nist-aal2 on the caller's word. Alice has a grant that waives it, Bob has none; `browse.*` wants
nothing; Mallory is disabled.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from sidestep.v1 import decision_pb2, resources_pb2

from engine.names import Collection, Lane
from sidecar.clock import Clock
from sidecar.store.keys import Cursor
from sidecar.store.writer import Writer
from tests.conformance import tokens
from tests.conformance.records import build
from tests.fakes.history import History
from tests.fakes.store import load

TENANT = "acme"
RECORDS: dict[str, Any] = {
    "policies/payments": {
        "match": {"actions": ["payments.*"]},
        "require": {"acr": "nist-aal2", "maxAge": "12h", "evidence": "asserted", "waivable": True},
        "exemptions": {
            "ceiling": {"acr": "nist-aal2", "maxAge": "1h"},
            "recognisedCeiling": {"acr": "nist-aal2", "maxAge": "1h"},
            "identity": {"minAcrWithin": {"acr": "phr", "within": "30d"}},
            "device": {"minTrust": 0.85, "revalidateEvery": "30d"},
            "session": {"maxAge": "24h", "maxIdle": "1h"},
            "risk": {"maxScore": 30},
        },
        "methods": ["webauthn", "totp"],
    },
    "policies/browse": {"match": {"actions": ["browse.*"]}},
    "settings/default": {
        "issuers": [
            {"issuer": "https://idp.acme.example", "audiences": ["https://api.acme.example"], "max_acrs": ["phrh"]}
        ]
    },
    "keys/idp-1": {"kind": "KEY_KIND_ISSUER", "issuer": "https://idp.acme.example"},
    "keys/fp-1": {"kind": "KEY_KIND_FINGERPRINT"},
    "keys/tenant-1": {"kind": "KEY_KIND_TENANT"},
    "subjects/alice": {"state": "SUBJECT_STATE_ACTIVE", "methods": ["webauthn"]},
    "subjects/bob": {"state": "SUBJECT_STATE_ACTIVE"},
    "subjects/mallory": {"state": "SUBJECT_STATE_DISABLED"},
    "grants/g1": {
        "subject": "alice",
        "actions": ["payments.*"],
        "ceiling": {"acr": "nist-aal2", "max_age": "3600s"},
        "state": "GRANT_STATE_ACTIVE",
        "expire_time": "2099-01-01T00:00:00Z",
    },
    "devices/laptop": {
        "subject": "alice",
        "fingerprint": {"os": "macOS", "browser": "Firefox", "canvas": "c1"},
        "validate_time": "now-1h",
        "authentications": [{"acr": "phr", "auth_time": "now-1d"}],
    },
}


class Stock:
    """Writes the store. Both lanes are confirmed once they are loaded; `close` gives the directory to others."""

    def __init__(self, data_dir: Path, *, clock: Clock | None = None) -> None:
        self.clock = clock or Clock()
        data_dir.mkdir(parents=True, exist_ok=True)
        self._writer = Writer(data_dir, clock=self.clock)
        self.urgent = History(TENANT, Lane.URGENT)
        self.bulk = History(TENANT, Lane.BULK)

    def load(self) -> None:
        """Puts both lanes in."""
        for collection_and_id, value in build(TENANT, RECORDS, datetime.now(UTC)).items():
            history = self.bulk if collection_and_id[0] >= Collection.DEVICES else self.urgent
            history.commit({collection_and_id: value})
        for history in (self.urgent, self.bulk):
            load(self._writer, history)
        self.confirm()

    def confirm(self, age_s: float = 0.0) -> None:
        """As a heartbeat does that came so long ago."""
        for lane in Lane:
            self._writer.confirm(TENANT, lane, boottime=self.clock.boottime() - age_s, wall=self.clock.wall() - age_s)

    def put(self, **bodies: Any) -> Cursor:
        """One commit to the urgent lane: `put(**{"subjects/bob": {...}})`. Returns where the lane then stands."""
        raw = self.urgent.commit(dict(build(TENANT, bodies, datetime.now(UTC)).items()))
        self._writer.apply_delta(raw)
        return self.urgent.cursor

    def close(self) -> None:
        """Gives the directory free."""
        self._writer.close()


def request(subject: str = "bob", action: str = "payments.transfer", **fields: Any) -> decision_pb2.EvaluateRequest:
    """A request that proves nothing."""
    return decision_pb2.EvaluateRequest(
        subject=decision_pb2.SubjectRef(id=subject), action=decision_pb2.Action(name=action), **fields
    )


def exempted(**fields: Any) -> decision_pb2.EvaluateRequest:
    """Alice on her laptop, in a session that reached aal1: exempted by her grant, and not without it."""
    claims = {
        "iss": "https://idp.acme.example",
        "aud": "https://api.acme.example",
        "sub": "alice",
        "sid": "s1",
        "iat": "now-1m",
        "exp": "now+1h",
        "acr": "nist-aal1",
        "amr": ["pwd"],
        "auth_time": "now-1m",
    }
    token = tokens.token({"key": "idp-1", "claims": claims}, datetime.now(UTC))
    return request(
        "alice",
        session=decision_pb2.SessionEvidence(id="s1", token=token),
        device=decision_pb2.DeviceEvidence(
            id="laptop", fingerprint={"os": "macOS", "browser": "Firefox", "canvas": "c1"}
        ),
        context=decision_pb2.Context(ip="203.0.113.77"),
        **fields,
    )


def satisfied(**fields: Any) -> decision_pb2.EvaluateRequest:
    """Bob, who has just logged in at aal2."""
    recent = Timestamp()
    recent.GetCurrentTime()
    return request(
        session=decision_pb2.SessionEvidence(
            id="s2", authentications=[resources_pb2.Authentication(acr="nist-aal2", auth_time=recent)]
        ),
        **fields,
    )
