"""DecisionService: a request's bytes to a verdict, and a verdict to its journal record and its answer's bytes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

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
from sidecar.callers import Caller
from sidecar.clock import Clock
from sidecar.front.answer import Answers
from sidecar.front.budgets import Budgets, Decided, Spent, credited
from sidecar.front.decision_id import DecisionIds
from sidecar.front.disclosure import Disclosure
from sidecar.front.errors import UnderWayError
from sidecar.front.repeats import Kept, Repeats, content_of, repeat_key, same
from sidecar.front.traceparent import kept_traceparent
from sidecar.gather.gatherer import GatherConfig, Gathered, Gatherer
from sidecar.gather.reported import ReportedLately
from sidecar.guard.guards import Examined, Guards
from sidecar.journal.record import Record, encode_record
from sidecar.lease.leases import Taken, Wait
from sidecar.lease.reservations import ReservationsError
from sidecar.store.view import ReadView
from sidecar.usage.collector import Collector, Recorded

SERVICE: Final = "sidestep.v1.DecisionService"
MAX_ENTRIES: Final = 100
"""Requests in one EvaluateBatch."""


class Verdict(msgspec.Struct, eq=False, gc=False):
    """A decision with all that is needed to record and answer it."""

    request: decision_pb2.EvaluateRequest
    traceparent: str
    caller: Caller | None
    # Of the EvaluateBatch it belongs to; empty: of none.
    batch: bytes
    gathered: Gathered
    decision: Decision
    duration_s: float
    record: bytes
    answer: bytes
    # What is remembered for repeats of the request, if it has an id.
    kept: Kept | None = None
    # What it takes of a budget, until its record is in the journal; and whether its request was claimed for that.
    taken: Taken | None = None
    claimed: bool = False
    decision_id: bytes = b""
    # The answer is an earlier one's, whose record is in the journal; there is none to be written.
    repeated: bool = False


class Waiting(NamedTuple):
    """A request that has to wait. `examined`: what is known of it, so that it is not counted again when it is decided."""

    over: Wait
    examined: Examined | None = None


class DecisionServicer:
    """Decides requests. One per worker loop: it holds caches, and is not thread-safe.

    `diagnose`: whether callers that are not identified get an explanation if they ask. `disclosure`: what records may say of a
    person. `repeats`, `guards`, `budgets`, `usage`: shared by the loops of a worker; without `budgets`, no grant with a budget
    applies. `reported`: what was reported in this pod lately.
    """

    def __init__(
        self,
        config: GatherConfig,
        clock: Clock,
        *,
        diagnose: bool,
        disclosure: Disclosure | None = None,
        repeats: Repeats | None = None,
        guards: Guards | None = None,
        budgets: Budgets | None = None,
        usage: Collector | None = None,
        reported: ReportedLately | None = None,
    ) -> None:
        self._usage = usage
        self._gatherer = Gatherer(config, None if budgets is None else budgets.held, reported)
        self._budgets = budgets
        self._clock = clock
        self._diagnose = diagnose
        self._disclosure = disclosure or Disclosure()
        self.repeats = Repeats() if repeats is None else repeats
        self._guards = Guards() if guards is None else guards
        self._ids = DecisionIds()
        self._answers = Answers()

    def evaluate(
        self,
        request: decision_pb2.EvaluateRequest,
        traceparent: str,
        view: ReadView,
        now: float,
        *,
        caller: Caller | None = None,
        batch: bytes = b"",
        journal_full: bool = False,
        behind: bool = False,
        patient: bool = False,
        waited: Examined | None = None,
    ) -> Verdict | Waiting:
        """Decides one request at `now`. `caller`: None if callers are not identified. `patient`: it can wait, and what it has to
        wait for is returned if there is such a thing; not patient, it gets a verdict. `waited`: what is known of it, if it has
        waited; then only what is held of budgets is looked up again. Raises as `Gatherer.gather`, and UnderWayError if another
        with its request_id must be waited for."""
        begun = time.perf_counter()
        if waited is None:
            gathered = self._gatherer.gather(
                request, view, now, clock=self._clock, journal_full=journal_full, behind=behind
            )
        else:
            gathered = waited.gathered
            if self._budgets is not None:
                facts = self._budgets.renewed(gathered.facts, request.subject.id)
                gathered = gathered._replace(facts=msgspec.structs.replace(facts, journal_full=journal_full))
            waited = msgspec.structs.replace(waited, gathered=gathered)
        if request.request_id:
            return self._evaluate_once(request, traceparent, caller, batch, gathered, begun, patient, waited)
        examined = waited or self._guards.examine(gathered, _name(caller))
        found = self._decide(examined.gathered.facts, gathered.rules, request, patient)
        if not isinstance(found, Decided):
            return Waiting(found, examined)
        return self._taken(request, traceparent, caller, batch, examined, found, begun)

    def _evaluate_once(
        self,
        request: decision_pb2.EvaluateRequest,
        traceparent: str,
        caller: Caller | None,
        batch: bytes,
        gathered: Gathered,
        begun: float,
        patient: bool,
        waited: Examined | None,
    ) -> Verdict | Waiting:
        """Decides a request that may be a repeat: then it gets the first one's answer, if it would be decided the same."""
        facts, rules = gathered.facts, gathered.rules
        key = repeat_key(_name(caller), facts.tenant, request.subject.id, request.request_id)
        content = content_of(request)
        first = self.repeats.find(key, content, time.monotonic())
        if first is not None and first.answer is None:
            return _patiently(first.settled, patient, waited)
        known = None if self._budgets is None else self._budgets.first(key, content, facts)
        if self._budgets is not None and first is None and known is not None and known.answer is None:
            return _patiently(self._budgets.another(key), patient, waited)
        examined = waited or self._guards.examine(gathered, _name(caller))
        gathered = examined.gathered
        for earlier, answer in _earlier(first, known):
            decision = decide(credited(gathered.facts, earlier.spend), rules)
            if same(earlier, decision) and (self._budgets is None or not self._budgets.lacking(facts, rules, decision)):
                took_s = time.perf_counter() - begun
                if not answer and known is not None:
                    answer = self._answers.encode(known.decision_id, gathered.facts, rules, earlier, None)
                return Verdict(
                    request, traceparent, caller, batch, gathered, decision, took_s, b"", answer, repeated=True
                )
        found = self._decide(gathered.facts, rules, request, patient)
        if not isinstance(found, Decided):
            return Waiting(found, examined)
        verdict = self._taken(request, traceparent, caller, batch, examined, found, begun)
        verdict.kept = self.repeats.begin(key, content, found.decision, time.monotonic())
        if verdict.kept is None:
            self._undo(verdict)
            other = self.repeats.find(key, content, time.monotonic())
            return Waiting(lambda: True, examined) if other is None else _patiently(other.settled, patient, examined)
        if verdict.taken is not None and self._budgets is not None:
            instead_of = known.decision_id if known is not None else b""
            try:
                verdict.claimed = self._budgets.claim(key, content, instead_of, verdict.decision_id, verdict.taken)
            except ReservationsError:
                # It cannot be told whether it was spent for: it is decided again, without budgets.
                self.unrecorded(verdict)
                return self._evaluate_once(request, traceparent, caller, batch, gathered, begun, patient, examined)
            if not verdict.claimed:
                self.unrecorded(verdict)
                return _patiently(self._budgets.another(key), patient, examined)
        return verdict

    def _decide(
        self, facts: Facts, rules: TenantRules, request: decision_pb2.EvaluateRequest, patient: bool
    ) -> Decided | Wait:
        if self._budgets is None:
            return Decided(facts, decide(facts, rules), None)
        return self._budgets.decide(facts, rules, request.subject.id, patient=patient)

    def _taken(
        self,
        request: decision_pb2.EvaluateRequest,
        traceparent: str,
        caller: Caller | None,
        batch: bytes,
        examined: Examined,
        found: Decided,
        begun: float,
    ) -> Verdict:
        """The verdict of a decision that may have taken something of a budget."""
        try:
            self._guards.learn(examined, found.decision)
            gathered = examined.gathered._replace(facts=found.facts)
            verdict = self._verdict(request, traceparent, caller, batch, gathered, found.decision, begun)
        except BaseException:
            if found.taken is not None and self._budgets is not None:
                self._budgets.undo(found.taken)
            raise
        verdict.taken = found.taken
        return verdict

    def recorded(self, verdicts: Sequence[Verdict]) -> None:
        """Their records are in the journal, and they are about to be answered."""
        spent = []
        for verdict in verdicts:
            kept, taken = verdict.kept, verdict.taken
            if kept is not None:
                kept.answer = verdict.answer
            if taken is not None:
                key, content = (kept.key, kept.content) if kept is not None else (b"", b"")
                spent.append(
                    Spent(
                        taken,
                        verdict.decision_id,
                        verdict.decision,
                        _name(verdict.caller),
                        verdict.answer,
                        key,
                        content,
                    )
                )
        if spent and self._budgets is not None:
            self._budgets.commit(spent)
        if self._usage is not None:
            self._usage.note(_noted(verdict) for verdict in verdicts if not verdict.repeated)

    def unrecorded(self, verdict: Verdict) -> None:
        """It has no record in the journal; it is answered otherwise, or not at all."""
        self._undo(verdict)
        if verdict.kept is not None:
            self.repeats.drop(verdict.kept)

    def _undo(self, verdict: Verdict) -> None:
        if verdict.taken is not None and self._budgets is not None:
            key = verdict.kept.key if verdict.kept is not None and verdict.claimed else b""
            self._budgets.undo(verdict.taken, key)
            verdict.taken = None

    def give_up(
        self,
        request: decision_pb2.EvaluateRequest,
        traceparent: str,
        view: ReadView,
        now: float,
        code: Code,
        *,
        caller: Caller | None = None,
        batch: bytes = b"",
    ) -> Verdict:
        """The fail-safe verdict, for want of time to look anything up. Raises as `Gatherer.gather`."""
        begun = time.perf_counter()
        gathered = self._gatherer.outline(request, view, now)
        decision = fail_safe(gathered.facts.action, gathered.rules, code)
        return self._verdict(request, traceparent, caller, batch, gathered, decision, begun)

    def without_exemption(self, verdict: Verdict) -> Verdict:
        """The verdict as it has to be if it cannot be recorded: nobody is exempted off the record."""
        if verdict.decision.basis is not Basis.EXEMPTION_GRANT:
            return verdict
        begun = time.perf_counter()
        facts = msgspec.structs.replace(verdict.gathered.facts, journal_full=True)
        gathered = verdict.gathered._replace(facts=facts)
        decision = decide(facts, gathered.rules)
        return self._verdict(
            verdict.request, verdict.traceparent, verdict.caller, verdict.batch, gathered, decision, begun
        )

    def new_batch(self) -> bytes:
        """An id for an EvaluateBatch (16 bytes, UUIDv7), which sorts before those of its decisions."""
        return self._ids.next()

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
        caller: Caller | None,
        batch: bytes,
        gathered: Gathered,
        decision: Decision,
        begun: float,
    ) -> Verdict:
        duration_s = time.perf_counter() - begun
        facts, rules, secret = gathered.facts, gathered.rules, gathered.secret
        decision_id = self._ids.next()
        explanation = None
        may_diagnose = self._diagnose if caller is None else caller.diagnose
        # A fail-safe answer was not derived from facts.
        if request.explain and may_diagnose and decision.reasons[0].code is not Code.DEADLINE:
            explanation = explain(facts, rules, decision)
        shown, withheld = self._disclosure.facts(facts)
        hashed, user_id = self._disclosure.user(secret, request.subject.id)
        record = Record(
            decision_id=decision_id,
            at=facts.now,
            duration_us=round(duration_s * 1e6),
            facts=shown,
            decision=decision,
            request_id=request.request_id,
            traceparent=kept_traceparent(traceparent),
            caller=_name(caller),
            user_hash=hashed,
            user_id=user_id,
            client_address=self._disclosure.address(request.context.ip),
            withheld=withheld,
            batch=batch,
        )
        return Verdict(
            request,
            traceparent,
            caller,
            batch,
            gathered,
            decision,
            duration_s,
            encode_record(record),
            self._answers.encode(decision_id, facts, rules, decision, explanation),
            decision_id=decision_id,
        )


def _noted(verdict: Verdict) -> Recorded:
    gathered = verdict.gathered
    return Recorded(
        verdict.decision_id,
        gathered.facts,
        verdict.decision,
        verdict.request.subject.id,
        _name(verdict.caller),
        gathered.secret,
        gathered.fingerprint,
        gathered.device_evidence,
    )


def _earlier(first: Kept | None, known: Kept | None) -> Iterator[tuple[Decision, bytes]]:
    """What a repeat may be answered with: what this worker remembers, and what the pod does of requests that spent. A spend the
    pod no longer knows of may have been given back, or another may stand in its place."""
    if first is not None and first.decision is not None and first.answer is not None:
        undecided = known is not None and known.answer is None
        if undecided or first.decision.spend is None:
            yield first.decision, first.answer
    if known is not None and known.decision is not None and known.answer is not None:
        yield known.decision, known.answer


def _patiently(wait: Wait, patient: bool, examined: Examined | None) -> Waiting:
    if not patient:
        raise UnderWayError
    return Waiting(wait, examined)


def _name(caller: Caller | None) -> str:
    return "" if caller is None else caller.name


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
