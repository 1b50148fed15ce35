"""A decision as `EvaluateResponse`.

Most answers differ from earlier ones only in their id and in the data they rest on, so the rest is kept serialised:
messages put end to end are one message in protobuf's wire format (each field as if set by the last that has it).
"""

from __future__ import annotations

from typing import Final

from cachetools import LRUCache
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from sidestep.v1 import decision_pb2, resources_pb2

from engine.challenge import www_authenticate
from engine.decision import Basis, Challenge, Decision, Outcome, Requirement, Spend
from engine.explain import Explanation
from engine.facts import Data, Evidence, Facts
from engine.money import from_nanos
from engine.rules import TenantRules
from sidecar.front.decision_id import id_text

OUTCOMES: Final = {
    Outcome.ALLOW: decision_pb2.OUTCOME_ALLOW,
    Outcome.STEP_UP: decision_pb2.OUTCOME_STEP_UP,
    Outcome.DENY: decision_pb2.OUTCOME_DENY,
}
"""Numbers of the API."""
BASES: Final = {
    Basis.NOT_REQUIRED: decision_pb2.BASIS_NOT_REQUIRED,
    Basis.ASSURANCE_SATISFIED: decision_pb2.BASIS_ASSURANCE_SATISFIED,
    Basis.EXEMPTION_GRANT: decision_pb2.BASIS_EXEMPTION_GRANT,
    Basis.CHALLENGE: decision_pb2.BASIS_CHALLENGE,
    Basis.BLOCKED: decision_pb2.BASIS_BLOCKED,
    Basis.FAIL_SAFE: decision_pb2.BASIS_FAIL_SAFE,
}
"""Numbers of the API."""
_EVIDENCE: Final = {
    Evidence.ASSERTED: resources_pb2.EVIDENCE_ASSERTED,
    Evidence.VERIFIED: resources_pb2.EVIDENCE_VERIFIED,
}
_REASONS: Final = {
    Basis.NOT_REQUIRED: decision_pb2.COARSE_REASON_NOTHING_REQUIRED,
    Basis.ASSURANCE_SATISFIED: decision_pb2.COARSE_REASON_REQUIREMENT_MET,
    Basis.EXEMPTION_GRANT: decision_pb2.COARSE_REASON_EXEMPTED,
    Basis.CHALLENGE: decision_pb2.COARSE_REASON_AUTHENTICATION_NEEDED,
    Basis.BLOCKED: decision_pb2.COARSE_REASON_BLOCKED,
    Basis.FAIL_SAFE: decision_pb2.COARSE_REASON_DATA_UNAVAILABLE,
}
_MAX_KEPT: Final = 2048
_LENGTH_DELIMITED: Final = 2


def _tag(message: type[Message], field: str) -> bytes:
    return bytes([message.DESCRIPTOR.fields_by_name[field].number << 3 | _LENGTH_DELIMITED])


_ID_TAG: Final = _tag(decision_pb2.EvaluateResponse, "decision_id") + bytes([36])
_RESULTS_TAG: Final = _tag(decision_pb2.EvaluateBatchResponse, "results")
_RESPONSE_TAG: Final = _tag(decision_pb2.EvaluateBatchResult, "response")


class Answers:
    """Serialises decisions. One per worker loop; not thread-safe."""

    def __init__(self) -> None:
        self._kept: LRUCache[object, tuple[TenantRules, bytes]] = LRUCache(_MAX_KEPT)
        self._last_key: tuple[int, int, int, int, int | None] | None = None
        self._last_version = b""

    def encode(
        self, decision_id: bytes, facts: Facts, rules: TenantRules, decision: Decision, explanation: Explanation | None
    ) -> bytes:
        """The serialised EvaluateResponse."""
        proved = facts.session.proved
        # All of the decision that the answer tells of, and what else it depends on.
        key = (
            facts.tenant,
            decision.outcome,
            decision.basis,
            decision.requirement,
            decision.achieved_acr,
            decision.waived_acrs,
            decision.challenge,
            decision.grant,
            proved,
        )
        kept = self._kept.get(key)
        # Which methods there are is up to the rules.
        if kept is None or kept[0] is not rules:
            kept = self._kept[key] = rules, _message(facts.tenant, rules, decision, proved).SerializeToString()
        parts = [_ID_TAG, id_text(decision_id).encode(), kept[1], self._version(facts.data)]
        if decision.spend is not None:
            parts.append(_remaining(decision.spend))
        if explanation is not None:
            extra = decision_pb2.EvaluateResponse(explanation=_explanation(explanation))
            parts.append(extra.SerializeToString())
        return b"".join(parts)

    def _version(self, data: Data) -> bytes:
        """The field `data`, its age in whole milliseconds; nothing if the decision rests on none."""
        if not data.epoch:
            return b""
        age_ms = None if data.age_s is None else int(data.age_s * 1000)
        key = (data.epoch, data.revision, data.bulk_epoch, data.bulk_revision, age_ms)
        # Calls of one batch mostly agree in this.
        if key != self._last_key:
            self._last_key, self._last_version = key, _data_field(data, age_ms)
        return self._last_version


def _data_field(data: Data, age_ms: int | None) -> bytes:
    version = decision_pb2.DataVersion(
        urgent=resources_pb2.Revision(epoch=data.epoch, revision=data.revision),
        bulk=resources_pb2.Revision(epoch=data.bulk_epoch, revision=data.bulk_revision),
    )
    if age_ms is not None:
        version.age.FromMilliseconds(age_ms)
    return decision_pb2.EvaluateResponse(data=version).SerializeToString()


def _message(tenant: str, rules: TenantRules, decision: Decision, proved: bool) -> decision_pb2.EvaluateResponse:
    """All of the answer but its id, its data and its explanation."""
    challenge = decision.challenge
    reason = _REASONS[decision.basis]
    if challenge is not None and challenge.invalid_token:
        reason = decision_pb2.COARSE_REASON_SESSION_INVALID
    message = decision_pb2.EvaluateResponse(
        outcome=OUTCOMES[decision.outcome],
        basis=BASES[decision.basis],
        reason=reason,
        requirement=_requirement(decision.requirement),
        achieved_acr=decision.achieved_acr,
        waived_acrs=decision.waived_acrs,
        grant=f"tenants/{tenant}/grants/{decision.grant}" if decision.grant else "",
    )
    if challenge is not None:
        message.challenge.CopyFrom(_challenge(challenge, rules, "DPoP" if proved else "Bearer"))
    return message


def _remaining(spend: Spend) -> bytes:
    """The field `remaining`, which differs from decision to decision."""
    remaining = decision_pb2.GrantRemaining(count=None if spend.left_uses is None else max(0, spend.left_uses))
    if spend.left_nanos is not None:
        units, nanos = from_nanos(max(0, spend.left_nanos))
        remaining.amount.CopyFrom(resources_pb2.Amount(currency=spend.currency, units=units, nanos=nanos))
    if spend.expires_at is not None:
        remaining.expire_time.FromNanoseconds(int(spend.expires_at * 1e9))
    return decision_pb2.EvaluateResponse(remaining=remaining).SerializeToString()


def _requirement(requirement: Requirement) -> decision_pb2.EffectiveRequirement | None:
    if requirement == Requirement():
        return None
    message = decision_pb2.EffectiveRequirement(acrs=requirement.acrs)
    if requirement.max_age_s is not None:
        seconds, fraction = divmod(requirement.max_age_s, 1.0)
        message.max_age.CopyFrom(Duration(seconds=int(seconds), nanos=round(fraction * 1e9)))
    if requirement.authenticated_after is not None:
        seconds, fraction = divmod(requirement.authenticated_after, 1.0)
        message.authenticated_after.CopyFrom(Timestamp(seconds=int(seconds), nanos=int(fraction * 1e9)))
    if requirement.evidence is not None:
        message.evidence = _EVIDENCE[requirement.evidence]
    return message


def _challenge(challenge: Challenge, rules: TenantRules, scheme: str) -> decision_pb2.Challenge:
    known = [rules.methods[method] for method in challenge.methods if method in rules.methods]
    return decision_pb2.Challenge(
        methods=[decision_pb2.ChallengeMethod(id=method.id, acr=method.acr, amr=method.amr) for method in known],
        acr_values=" ".join(challenge.acr_values),
        max_age_s=challenge.max_age_s,
        www_authenticate=www_authenticate(challenge, scheme=scheme),
    )


def _explanation(explanation: Explanation) -> decision_pb2.Explanation:
    return decision_pb2.Explanation(
        steps=[
            decision_pb2.ExplainStep(step=step.step, title=step.title, detail=step.detail) for step in explanation.steps
        ],
        factors=[
            decision_pb2.FactorReport(
                factor=report.factor,
                passed=report.passed,
                checks=[
                    decision_pb2.FactorCheck(
                        name=check.name, measured=check.measured, threshold=check.threshold, passed=check.passed
                    )
                    for check in report.checks
                ],
            )
            for report in explanation.factors
        ],
        reasons=explanation.reasons,
        smallest_change=explanation.smallest_change,
        policies=explanation.policies,
        shadows=[
            decision_pb2.ShadowDecision(
                policy=shadow.policy, outcome=OUTCOMES[shadow.outcome], basis=BASES[shadow.basis]
            )
            for shadow in explanation.shadows
        ],
    )


def batch_result(response: bytes) -> bytes:
    """One answered place of an EvaluateBatchResponse; put end to end with the others it is the message."""
    return _field(_RESULTS_TAG, _field(_RESPONSE_TAG, response))


def batch_error(code: int, message: str) -> bytes:
    """One place of an EvaluateBatchResponse that got no answer, likewise."""
    result = decision_pb2.EvaluateBatchResult(error=decision_pb2.BatchError(code=code, message=message))
    return _field(_RESULTS_TAG, result.SerializeToString())


def _field(tag: bytes, value: bytes) -> bytes:
    length, rest = len(value), bytearray(tag)
    while length > 0x7F:
        rest.append(length & 0x7F | 0x80)
        length >>= 7
    rest.append(length)
    return bytes(rest) + value
