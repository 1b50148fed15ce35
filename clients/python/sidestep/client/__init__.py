"""Asks the Sidestep sidecar in this pod whether an action may skip step-up authentication.

`Client().evaluate(subject="alice", action="payments.transfer", token=...)` returns a Decision: go on if `decision.allowed`,
else answer with `decision.www_authenticate`. AsyncClient is the same for asyncio.
"""

from sidestep.client._aio import AsyncClient
from sidestep.client._client import Client
from sidestep.client._decision import Basis, ChallengeMethod, Decision, FailMode, Outcome, Reason
from sidestep.client._errors import (
    ClosedClientError,
    InvalidQuestionError,
    OutcomeError,
    ReportError,
    SettleError,
    SidestepClientError,
)
from sidestep.client._exchange import DEFAULT_ADDRESS, DEFAULT_TIMEOUT_S, ChallengeOutcome
from sidestep.client._question import Authentication, Dpop, Question, QuestionFields, Revision
from sidestep.client._report import ReportedAuthentication, ReportFields

__all__ = [
    "DEFAULT_ADDRESS",
    "DEFAULT_TIMEOUT_S",
    "AsyncClient",
    "Authentication",
    "Basis",
    "ChallengeMethod",
    "ChallengeOutcome",
    "Client",
    "ClosedClientError",
    "Decision",
    "Dpop",
    "FailMode",
    "InvalidQuestionError",
    "Outcome",
    "OutcomeError",
    "Question",
    "QuestionFields",
    "Reason",
    "ReportError",
    "ReportFields",
    "ReportedAuthentication",
    "Revision",
    "SettleError",
    "SidestepClientError",
]
