"""What both clients share: the channel, the two methods, and how a call becomes a question."""

from __future__ import annotations

import logging
import math
from enum import Enum
from typing import Final

import grpc
from sidestep.client._decision import Decision, FailMode
from sidestep.client._errors import OutcomeError, SettleError
from sidestep.client._question import Question, QuestionFields
from sidestep.v1 import decision_pb2, lease_pb2

DEFAULT_ADDRESS: Final = "127.0.0.1:9191"
"""Where a sidecar listens unless told otherwise."""
DEFAULT_TIMEOUT_S: Final = 0.25
"""How long a call may take, connecting included."""

SETTLE_TIMEOUT_S: Final = 2.0
"""How long settling may take unless it says otherwise: nobody waits for it as for a decision."""

EVALUATE: Final = "/sidestep.v1.DecisionService/Evaluate"
EVALUATE_BATCH: Final = "/sidestep.v1.DecisionService/EvaluateBatch"
SETTLE: Final = "/sidestep.v1.DecisionService/Settle"
REPORT_OUTCOME: Final = "/sidestep.v1.DecisionService/ReportOutcome"

CHANNEL_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    # A restarted sidecar is used at once: it is on this machine, so trying often costs nothing.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Also the time a connection may take to establish: a busy sidecar may be slow, the call's own deadline is shorter.
    ("grpc.min_reconnect_backoff_ms", 1000),
    # The answer in time is worth more than a second try.
    ("grpc.enable_retries", 0),
    # The sidecar is local: no proxy of the environment and no service config of some resolver may come between.
    ("grpc.enable_http_proxy", 0),
    ("grpc.service_config_disable_resolution", 1),
)

_RETRYABLE: Final = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})

_log = logging.getLogger("sidestep.client")


class ChallengeOutcome(Enum):
    """What became of a challenge. ABANDONED: the user did not go on."""

    PASSED = "PASSED"
    FAILED = "FAILED"
    ABANDONED = "ABANDONED"


def check_settings(address: str, timeout_s: float, fail_mode: FailMode) -> None:
    """Refuses settings that cannot work, with ValueError, and says aloud that failing open was chosen."""
    if not address:
        raise ValueError("address: must not be empty")
    check_timeout(timeout_s)
    if fail_mode is FailMode.ALLOW:
        _log.warning("fail mode ALLOW: actions go on without step-up whenever the sidecar does not answer")


def check_timeout(timeout_s: float) -> float:
    """The timeout, if it is a positive number of seconds; else ValueError."""
    if not 0 < timeout_s < math.inf:
        raise ValueError("timeout_s: a positive number of seconds needed")
    return timeout_s


def asked(question: Question | None, fields: QuestionFields) -> Question:
    """The question of a call, given whole or as its fields. TypeError: given both ways, or a field is missing."""
    if question is None:
        return Question(**fields)
    if fields:
        raise TypeError(f"the question is given already; not also as {', '.join(fields)}")
    return question


def to_settle_request(decision: Decision | str, executed: bool) -> decision_pb2.SettleRequest:
    """What settles a decision, given whole or by its id. ValueError for one that never came."""
    decision_id = decision if isinstance(decision, str) else decision.decision_id
    if not decision_id:
        raise ValueError("decision: has no id, because no decision came")
    settlement = lease_pb2.SETTLEMENT_EXECUTED if executed else lease_pb2.SETTLEMENT_CANCELLED
    return decision_pb2.SettleRequest(decision_id=decision_id, settlement=settlement)


def settle_error(code: grpc.StatusCode, details: str | None) -> SettleError:
    """Why a decision could not be settled."""
    return SettleError(f"{code.name}: {details or ''}", retryable=code in _RETRYABLE)


def to_outcome_request(decision: Decision | str, outcome: ChallengeOutcome) -> decision_pb2.ReportOutcomeRequest:
    """What reports an outcome, of a decision given whole or by its id. ValueError for one that never came."""
    decision_id = decision if isinstance(decision, str) else decision.decision_id
    if not decision_id:
        raise ValueError("decision: has no id, because no decision came")
    return decision_pb2.ReportOutcomeRequest(decision_id=decision_id, outcome=f"SPOT_CHECK_OUTCOME_{outcome.value}")


def outcome_error(code: grpc.StatusCode, details: str | None) -> OutcomeError | None:
    """Why an outcome could not be reported; None: the decision was no spot check, and nothing is to be reported."""
    if code is grpc.StatusCode.NOT_FOUND:
        return None
    return OutcomeError(f"{code.name}: {details or ''}", retryable=code in _RETRYABLE)
