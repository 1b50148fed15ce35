"""Journal records for tests: real facts and decisions, each with its own decision id."""

from __future__ import annotations

import os
import time
from typing import Any

from engine.decision import Basis, Code, Decision, Factor, Outcome, Reason, Requirement, Shadow
from engine.facts import Data, Facts, Staleness
from sidecar.journal.record import AnyRecord, BatchRecord, Record, UnrecordedRecord, encode_record

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def make_record(**changes: Any) -> Record:
    """A decision by exemption grant, with every optional part present."""
    facts = Facts(
        now=1_700_000_000.25,
        tenant="acme",
        action="payments.transfer",
        data=Data(epoch=1, revision=42, bulk_epoch=1, bulk_revision=7, age_s=1.5, staleness=Staleness.FRESH),
    )
    decision = Decision(
        outcome=Outcome.ALLOW,
        basis=Basis.EXEMPTION_GRANT,
        reasons=(Reason(Code.TRIGGER_FIRED, "payments/high-value"), Reason(Code.GRANT_APPLIED, "g1")),
        requirement=Requirement(acrs=("phr", "nist-aal2"), max_age_s=300.0),
        achieved_acr="nist-aal1",
        waived_acrs=("nist-aal2",),
        grant="g1",
        policies=("payments@3", "base@1"),
        factors=(Factor("identity", True, 0.75), Factor("risk", False)),
        shadows=(Shadow("next", Outcome.DENY, Basis.BLOCKED),),
    )
    fields: dict[str, Any] = {
        "decision_id": decision_id(),
        "at": facts.now,
        "duration_us": 37,
        "facts": facts,
        "decision": decision,
        "request_id": "r-1",
        "traceparent": TRACEPARENT,
        "caller": "payments",
        "user_hash": "5f1b",
        "client_address": "203.0.113.0",
    }
    return Record(**(fields | changes))


def make_batch(size: int = 2, **changes: Any) -> list[AnyRecord]:
    """The decisions of one EvaluateBatch, and the batch."""
    batch = decision_id()
    children: list[AnyRecord] = [make_record(batch=batch, **changes) for _ in range(size)]
    at = 1_700_000_000.25
    whole = BatchRecord(
        batch=batch,
        at=at,
        duration_us=90,
        size=size,
        traceparent=changes.get("traceparent", TRACEPARENT),
        caller="payments",
    )
    return [*children, whole]


def make_unrecorded(count: int = 3) -> UnrecordedRecord:
    """Decisions that could not be recorded."""
    return UnrecordedRecord(id=decision_id(), at=1_700_000_000.25, until=1_700_000_001.5, count=count)


def decision_id() -> bytes:
    """A UUIDv7 (RFC 9562)."""
    raw = bytearray(int(time.time() * 1000).to_bytes(6, "big") + os.urandom(10))
    raw[6] = raw[6] & 0x0F | 0x70
    raw[8] = raw[8] & 0x3F | 0x80
    return bytes(raw)


def encoded_records(count: int) -> list[bytes]:
    """So many different records, as the journal keeps them."""
    return [encode_record(make_record()) for _ in range(count)]
