"""DecisionService: a request's bytes to a verdict, and a verdict to its journal record and its answer's bytes."""

from __future__ import annotations

import socket
import time
from functools import lru_cache
from typing import Final

import msgspec
from google.protobuf.message import DecodeError
from sidestep.v1 import decision_pb2

from engine.decide import decide, fail_safe
from engine.decision import Basis, Code, Decision
from engine.errors import InvalidInputError
from engine.explain import explain
from engine.facts import Facts
from engine.names import check_tenant
from engine.rules import TenantRules
from sidecar.clock import Clock
from sidecar.front.answer import Answers
from sidecar.front.decision_id import DecisionIds
from sidecar.gather.gatherer import GatherConfig, Gatherer
from sidecar.journal.record import Record, encode_record
from sidecar.store.view import ReadView

SERVICE: Final = "sidestep.v1.DecisionService"
MAX_ENTRIES: Final = 100
"""Requests in one EvaluateBatch."""

# W3C Trace Context: 55 characters; later versions may add to it.
_MAX_TRACEPARENT: Final = 128


class Verdict(msgspec.Struct, eq=False, gc=False):
    """A decision with all that is needed to record and answer it."""

    request: decision_pb2.EvaluateRequest
    traceparent: str
    decision_id: bytes
    facts: Facts
    rules: TenantRules
    decision: Decision
    duration_s: float
    record: bytes
    answer: bytes


class DecisionServicer:
    """Decides requests. One per worker loop: it holds caches, and is not thread-safe.

    `diagnose`: whether callers that ask get an explanation.
    """

    def __init__(self, config: GatherConfig, clock: Clock, *, diagnose: bool) -> None:
        self._gatherer = Gatherer(config)
        self._default_tenant = config.default_tenant
        self._clock = clock
        self._diagnose = diagnose
        self._ids = DecisionIds()
        self._answers = Answers()

    def evaluate(
        self,
        request: decision_pb2.EvaluateRequest,
        traceparent: str,
        view: ReadView,
        now: float,
        *,
        journal_full: bool = False,
        behind: bool = False,
    ) -> Verdict:
        """Decides one request at `now`. Raises as `Gatherer.gather`."""
        begun = time.perf_counter()
        facts, rules = self._gatherer.gather(
            request, view, now, clock=self._clock, journal_full=journal_full, behind=behind
        )
        return self._verdict(request, traceparent, facts, rules, decide(facts, rules), begun)

    def give_up(
        self, request: decision_pb2.EvaluateRequest, traceparent: str, view: ReadView, now: float, code: Code
    ) -> Verdict:
        """The fail-safe verdict, for want of time to look anything up. Raises as `Gatherer.gather`."""
        begun = time.perf_counter()
        rules = self._gatherer.rules(request, view)
        facts = Facts(now, request.tenant or self._default_tenant, request.action.name)
        return self._verdict(request, traceparent, facts, rules, fail_safe(facts.action, rules, code), begun)

    def without_exemption(self, verdict: Verdict) -> Verdict:
        """The verdict as it has to be if it cannot be recorded: nobody is exempted off the record."""
        if verdict.decision.basis is not Basis.EXEMPTION_GRANT:
            return verdict
        begun = time.perf_counter()
        facts = msgspec.structs.replace(verdict.facts, journal_full=True)
        decision = decide(facts, verdict.rules)
        return self._verdict(verdict.request, verdict.traceparent, facts, verdict.rules, decision, begun)

    def min_revision_reached(self, request: decision_pb2.EvaluateRequest, view: ReadView) -> bool:
        """Whether the view is as new as the request demands. True of a request that names no possible tenant: evaluating it
        says so."""
        try:
            if request.tenant:
                check_tenant(request.tenant)
        except InvalidInputError:
            return True
        return self._gatherer.min_revision_reached(request, view)

    def _verdict(
        self,
        request: decision_pb2.EvaluateRequest,
        traceparent: str,
        facts: Facts,
        rules: TenantRules,
        decision: Decision,
        begun: float,
    ) -> Verdict:
        duration_s = time.perf_counter() - begun
        decision_id = self._ids.next()
        explanation = None
        # A fail-safe answer was not derived from facts.
        if request.explain and self._diagnose and decision.reasons[0].code is not Code.DEADLINE:
            explanation = explain(facts, rules, decision)
        record = Record(
            decision_id=decision_id,
            at=facts.now,
            duration_us=round(duration_s * 1e6),
            facts=facts,
            decision=decision,
            request_id=request.request_id,
            traceparent=traceparent if len(traceparent) <= _MAX_TRACEPARENT else "",
            client_address=network_of(request.context.ip) if request.context.ip else "",
        )
        return Verdict(
            request,
            traceparent,
            decision_id,
            facts,
            rules,
            decision,
            duration_s,
            encode_record(record),
            self._answers.encode(decision_id, facts, rules, decision, explanation),
        )


def parse_request(payload: bytes) -> decision_pb2.EvaluateRequest:
    """Raises InvalidInputError."""
    try:
        return decision_pb2.EvaluateRequest.FromString(payload)
    except DecodeError:
        raise InvalidInputError("request", "is not an EvaluateRequest message") from None


def parse_batch(payload: bytes) -> decision_pb2.EvaluateBatchRequest:
    """Raises InvalidInputError, also if it has no entry or too many."""
    try:
        batch = decision_pb2.EvaluateBatchRequest.FromString(payload)
    except DecodeError:
        raise InvalidInputError("request", "is not an EvaluateBatchRequest message") from None
    if not 1 <= len(batch.requests) <= MAX_ENTRIES:
        raise InvalidInputError("requests", f"has {len(batch.requests)} entries, 1 to {MAX_ENTRIES} are possible")
    return batch


@lru_cache(4096)
def network_of(address: str) -> str:
    """An address cut to what does not tell one household from another: /24 of IPv4, /48 of IPv6; empty if it is none."""
    for family, kept, mapped in ((socket.AF_INET, 3, b""), (socket.AF_INET6, 6, bytes(10) + b"\xff\xff")):
        try:
            packed = socket.inet_pton(family, address)
        except (OSError, ValueError):
            continue
        if mapped and packed.startswith(mapped):
            return socket.inet_ntop(socket.AF_INET, packed[12:15] + bytes(1))
        return socket.inet_ntop(family, packed[:kept] + bytes(len(packed) - kept))
    return ""
