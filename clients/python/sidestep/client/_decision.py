"""The decision, and how it comes out of an answer or of the lack of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NoReturn

import grpc
from google.protobuf.duration_pb2 import Duration
from sidestep.client._errors import InvalidQuestionError
from sidestep.client._question import Revision
from sidestep.v1 import decision_pb2

_MAX_ERROR_CHARS = 200
_GENERIC_CHALLENGE = (
    'Bearer error="insufficient_user_authentication", error_description="A stronger authentication is required"'
)


class Outcome(StrEnum):
    """What to do with the user's request."""

    ALLOW = "ALLOW"
    """Go on."""
    STEP_UP = "STEP_UP"
    """Answer 401 with `www_authenticate` (RFC 9470)."""
    DENY = "DENY"
    """Refuse: 401 with `www_authenticate` if there is one (log in again), else 403."""


class Basis(StrEnum):
    """What the outcome rests on; UNSPECIFIED also for one this version does not know."""

    UNSPECIFIED = "UNSPECIFIED"
    NOT_REQUIRED = "NOT_REQUIRED"
    ASSURANCE_SATISFIED = "ASSURANCE_SATISFIED"
    EXEMPTION_GRANT = "EXEMPTION_GRANT"
    CHALLENGE = "CHALLENGE"
    BLOCKED = "BLOCKED"
    FAIL_SAFE = "FAIL_SAFE"


class Reason(StrEnum):
    """Why, coarsely; UNSPECIFIED also for one this version does not know."""

    UNSPECIFIED = "UNSPECIFIED"
    NOTHING_REQUIRED = "NOTHING_REQUIRED"
    REQUIREMENT_MET = "REQUIREMENT_MET"
    EXEMPTED = "EXEMPTED"
    AUTHENTICATION_NEEDED = "AUTHENTICATION_NEEDED"
    SESSION_INVALID = "SESSION_INVALID"
    BLOCKED = "BLOCKED"
    DATA_UNAVAILABLE = "DATA_UNAVAILABLE"


class FailMode(StrEnum):
    """The outcome when the sidecar gives no answer in time."""

    STEP_UP = "STEP_UP"
    """The default: ask the user to authenticate."""
    DENY = "DENY"
    """Refuse."""
    ALLOW = "ALLOW"
    """DANGEROUS: whoever can stop or slow down the sidecar skips step-up. Only for actions that need no protection.

    Applies to UNAVAILABLE and DEADLINE_EXCEEDED alone; any other failure is STEP_UP even so.
    """


@dataclass(frozen=True, slots=True)
class ChallengeMethod:
    """A way to authenticate that satisfies the requirement; `amr` are RFC 8176 values."""

    id: str
    acr: str
    amr: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The answer to a question. Never reuse one for another request.

    `methods`: strongest first. `www_authenticate`: complete header value; always there for STEP_UP. `acr_values`,
    `max_age_s`: for the authorization request (RFC 9470 section 4). `achieved_acr`: the best the session proved; a
    grant never raises it. `waived_acrs`, `grant`: set if an exemption grant applied. `revision`, `data_age_s`: the
    data it was decided on. `fail_mode_used`: no answer came; `error` says why. `explanation`: if asked for and
    permitted.
    """

    outcome: Outcome
    basis: Basis = Basis.UNSPECIFIED
    reason: Reason = Reason.UNSPECIFIED
    decision_id: str = ""
    required_acrs: tuple[str, ...] = ()
    required_max_age_s: float | None = None
    achieved_acr: str = ""
    waived_acrs: tuple[str, ...] = ()
    methods: tuple[ChallengeMethod, ...] = ()
    acr_values: str = ""
    max_age_s: int | None = None
    www_authenticate: str | None = None
    grant: str = ""
    revision: Revision | None = None
    data_age_s: float | None = None
    fail_mode_used: bool = False
    error: str | None = None
    explanation: decision_pb2.Explanation | None = None

    @property
    def allowed(self) -> bool:
        """Whether the action may go on."""
        return self.outcome is Outcome.ALLOW

    def __bool__(self) -> NoReturn:
        """Refused: `if decision:` would be true for a DENY as well."""
        raise TypeError("a Decision is neither true nor false; use decision.allowed")


_OUTCOMES = {
    decision_pb2.OUTCOME_ALLOW: Outcome.ALLOW,
    decision_pb2.OUTCOME_STEP_UP: Outcome.STEP_UP,
    decision_pb2.OUTCOME_DENY: Outcome.DENY,
}
_BASES = {decision_pb2.Basis.Value(f"BASIS_{basis}"): basis for basis in Basis}
_REASONS = {decision_pb2.CoarseReason.Value(f"COARSE_REASON_{reason}"): reason for reason in Reason}
_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}
_FAIL_OPEN_CODES = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})


def from_response(response: decision_pb2.EvaluateResponse) -> Decision:
    """The decision an answer carries. An outcome this version does not know is STEP_UP."""
    outcome = _OUTCOMES.get(response.outcome)
    challenge = response.challenge
    requirement = response.requirement
    urgent = response.data.urgent
    return Decision(
        outcome=outcome or Outcome.STEP_UP,
        basis=_BASES.get(response.basis, Basis.UNSPECIFIED),
        reason=_REASONS.get(response.reason, Reason.UNSPECIFIED),
        decision_id=response.decision_id,
        required_acrs=tuple(requirement.acrs),
        required_max_age_s=_seconds(requirement.max_age) if requirement.HasField("max_age") else None,
        achieved_acr=response.achieved_acr,
        waived_acrs=tuple(response.waived_acrs),
        methods=tuple(ChallengeMethod(method.id, method.acr, tuple(method.amr)) for method in challenge.methods),
        acr_values=challenge.acr_values,
        max_age_s=challenge.max_age_s if challenge.HasField("max_age_s") else None,
        www_authenticate=challenge.www_authenticate or _generic_challenge(outcome or Outcome.STEP_UP),
        grant=response.grant,
        revision=Revision(urgent.epoch, urgent.revision) if response.data.HasField("urgent") else None,
        data_age_s=_seconds(response.data.age) if response.data.HasField("age") else None,
        error=None if outcome else f"unknown outcome {response.outcome}",
        explanation=response.explanation if response.HasField("explanation") else None,
    )


def from_batch_response(
    response: decision_pb2.EvaluateBatchResponse, asked: int, fail_mode: FailMode
) -> Sequence[Decision]:
    """The decisions for `asked` questions, in order. Raises InvalidQuestionError for the first the sidecar refused."""
    if len(response.results) != asked:
        wrong = f"{len(response.results)} results for {asked} questions"
        return [from_failure(grpc.StatusCode.INTERNAL, wrong, fail_mode) for _ in range(asked)]
    decisions = []
    for index, result in enumerate(response.results):
        if result.HasField("response"):
            decisions.append(from_response(result.response))
        else:
            code = _CODES.get(result.error.code, grpc.StatusCode.UNKNOWN)
            decisions.append(from_failure(code, result.error.message, fail_mode, index))
    return decisions


def from_failure(code: grpc.StatusCode, details: str | None, fail_mode: FailMode, index: int | None = None) -> Decision:
    """The decision when there is no answer. Raises InvalidQuestionError if the question was at fault."""
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        raise InvalidQuestionError(details or "refused by the sidecar", index)
    outcome = Outcome(fail_mode.value)
    # An attacker can cause other failures at will, by the size of what he sends for example: those never open the door.
    if outcome is Outcome.ALLOW and code not in _FAIL_OPEN_CODES:
        outcome = Outcome.STEP_UP
    return Decision(
        outcome=outcome,
        basis=Basis.FAIL_SAFE,
        reason=Reason.DATA_UNAVAILABLE,
        www_authenticate=_generic_challenge(outcome),
        fail_mode_used=True,
        error=f"{code.name}: {details or 'no details'}"[:_MAX_ERROR_CHARS],
    )


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9


def _generic_challenge(outcome: Outcome) -> str | None:
    return _GENERIC_CHALLENGE if outcome is Outcome.STEP_UP else None
