"""Decides recorded facts again: by the rules of their revision, or by what a candidate policy would have made of them.

Nothing is guessed. Where a value or the rules are not known, the decision is undetermined, for one of the causes below.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import Enum
from functools import lru_cache
from typing import NamedTuple

import msgspec
from sidestep.v1 import resources_pb2

from engine.candidate import Candidate
from engine.decide import block_reasons, decide, decide_by, fail_safe
from engine.decision import Basis, Code, Decision
from engine.facts import Facts
from engine.plan import Plan, Policy
from engine.policy import PolicyError
from engine.rules import TenantRules, compile_policy
from sidecar.gather.rules import tenant_rules
from sidecar.journal.record import VERSION, Record, decode_record

_FROM_REQUEST = ("context.", "resource.")
_RESOURCE_ID = "resource.id"


class Cause(Enum):
    """Why a recorded decision cannot be decided again."""

    RULES_UNKNOWN = "rules_unknown"
    RULES_UNREADABLE = "rules_unreadable"
    VALUE_WITHHELD = "value_withheld"
    VALUE_NOT_RECORDED = "value_not_recorded"
    NEWER_RECORD = "newer_record"
    UNREADABLE_RECORD = "unreadable_record"

    @property
    def meaning(self) -> str:
        """For people, after a number of decisions."""
        return _MEANINGS[self]


_MEANINGS = {
    Cause.RULES_UNKNOWN: "the rules of their revision are not known",
    Cause.RULES_UNREADABLE: "a policy of their revision cannot be read by this version",
    Cause.VALUE_WITHHELD: "a condition reads a value that the sidecar's settings kept out of the record",
    Cause.VALUE_NOT_RECORDED: "the candidate reads a value that no policy read then, so that it was not recorded",
    Cause.NEWER_RECORD: "they were recorded by a newer version",
    Cause.UNREADABLE_RECORD: "their record cannot be read",
}


class Difference(NamedTuple):
    """A field of a decision that does not come out as recorded; both values as JSON."""

    field: str
    recorded: str
    replayed: str


class _Mark(msgspec.Struct):
    """All that is understood of a record that cannot be decoded."""

    kind: str = ""
    v: int = 0


_MARKS = msgspec.msgpack.Decoder(_Mark)


def read_decision(payload: bytes) -> Record | Cause | None:
    """The decision a journal record holds; the cause if it cannot be read whole; None for a record that is no decision."""
    try:
        record = decode_record(payload)
    except msgspec.MsgspecError:
        try:
            mark = _MARKS.decode(payload)
        except msgspec.MsgspecError:
            return Cause.UNREADABLE_RECORD
        if mark.v <= VERSION:
            return Cause.UNREADABLE_RECORD
        return Cause.NEWER_RECORD if mark.kind == "decision" else None
    if not isinstance(record, Record):
        return None
    # What a newer version added to the facts may have decided.
    return record if record.v <= VERSION else Cause.NEWER_RECORD


def replay(record: Record, rules: TenantRules) -> Decision:
    """Decides the recorded facts again. Equal to `record.decision` if `rules` are those it was made by, every value they read
    is in the record (`Revision.again` sees to that), and the engine is the same."""
    if _gave_up(record.decision):
        return fail_safe(record.facts.action, rules, Code.DEADLINE)
    decision = decide(record.facts, rules)
    if record.v < 3:
        # Earlier versions did not tell whether a spot check alone kept an exemption back.
        return msgspec.structs.replace(decision, spot_check=None)
    return decision


def differences(recorded: Decision, replayed: Decision) -> tuple[Difference, ...]:
    """What of a decision came out otherwise, field by field; empty: identical."""
    if recorded == replayed:
        return ()
    return tuple(
        Difference(field, _json(before), _json(after))
        for field in Decision.__struct_fields__
        if (before := getattr(recorded, field)) != (after := getattr(replayed, field))
    )


class Revision:
    """The rules of one range of revisions, as stored, and with a candidate also those it would make of them."""

    def __init__(
        self,
        settings: resources_pb2.Settings,
        policies: Iterable[resources_pb2.Policy],
        candidate: Candidate | None = None,
    ) -> None:
        self._would_be: TenantRules | None = None
        try:
            compiled = tuple(_compiled(policy.document, policy.version) for policy in policies)
        except PolicyError:
            # What a sidecar that could not read them did, too. A newer one could, and that is not ours to guess.
            self._readable = False
            self._then = tenant_rules(settings, None)
            return
        self._readable = True
        self._then = tenant_rules(settings, compiled)
        if candidate is not None:
            self._would_be = candidate.among(self._then)

    def again(self, record: Record) -> Decision | Cause:
        """The decision by the rules of then, observed policies included."""
        decision = self._again(record)
        return decision if self._readable or decision == record.decision else Cause.RULES_UNREADABLE

    def otherwise(self, record: Record) -> Decision | Cause:
        """The decision with the candidate enforced, without observed policies."""
        rules = self._would_be
        if rules is None:
            return Cause.RULES_UNREADABLE
        facts = record.facts
        if _gave_up(record.decision):
            return fail_safe(facts.action, rules, Code.DEADLINE)
        plan = rules.plan(facts.action, facts.posture)
        cause = self._obstacle(record, rules, plan)
        return decide_by(facts, rules, plan) if cause is None else cause

    def _again(self, record: Record) -> Decision | Cause:
        plan = self._then.plan(record.facts.action, record.facts.posture)
        if not _gave_up(record.decision):
            for read in (plan, *(shadow.plan for shadow in plan.shadows)):
                if (cause := self._obstacle(record, self._then, read)) is not None:
                    return cause
        return replay(record, self._then)

    def _obstacle(self, record: Record, rules: TenantRules, plan: Plan) -> Cause | None:
        """Why a value that a condition of the plan or of a grant reads is not known; None if all are, or are known to be
        absent from the request."""
        facts = record.facts
        if block_reasons(facts):
            return None  # decided before any condition
        for name in _request_values(facts, rules, plan):
            if name in facts.values:
                continue
            if name in record.withheld:
                return Cause.VALUE_WITHHELD
            if not self._was_read(name, facts):
                return Cause.VALUE_NOT_RECORDED
        return None

    def _was_read(self, name: str, facts: Facts) -> bool:
        """Whether the value would be in the facts had it been in the request: as `sidecar.gather` chooses them."""
        if name == _RESOURCE_ID and not self._then.reads_resource_id:
            return any(_RESOURCE_ID in condition for condition in _grant_conditions(facts))
        return name in self._then.request_variables


def _request_values(facts: Facts, rules: TenantRules, plan: Plan) -> Iterator[str]:
    """Names of the request's values that deciding by the plan may read."""
    for triggers in plan.triggers:
        for name in triggers.folded.variables:
            if name.startswith(_FROM_REQUEST):
                yield name
    if plan.thresholds is not None:
        for source in _grant_conditions(facts):
            condition = rules.grant_condition(source)
            for name in condition.variables if condition is not None else ():
                if name.startswith(_FROM_REQUEST):
                    yield name


def _grant_conditions(facts: Facts) -> Iterator[str]:
    for grants in (facts.grants, *(candidate.grants for candidate in facts.candidates)):
        for grant in grants:
            if grant.condition:
                yield grant.condition


def _gave_up(decision: Decision) -> bool:
    """Whether the decision was given for want of time, without looking anything up."""
    return decision.basis is Basis.FAIL_SAFE and any(reason.code is Code.DEADLINE for reason in decision.reasons)


@lru_cache(maxsize=1024)
def _compiled(document: str, version: int) -> Policy:
    """Compiling takes milliseconds, and most policies stay the same from one revision to the next."""
    return compile_policy(document, version)


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
