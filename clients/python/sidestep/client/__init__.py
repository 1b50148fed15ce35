"""Asks the Sidestep sidecar in this pod whether an action may skip step-up authentication.

`Client().evaluate(subject="alice", action="payments.transfer", token=...)` returns a Decision: go on if `decision.allowed`,
else answer with `decision.www_authenticate`. AsyncClient is the same for asyncio.
"""

from sidestep.client._aio import AsyncClient
from sidestep.client._client import Client
from sidestep.client._decision import Basis, ChallengeMethod, Decision, FailMode, Outcome, Reason
from sidestep.client._errors import ClosedClientError, InvalidQuestionError, SettleError, SidestepClientError
from sidestep.client._exchange import DEFAULT_ADDRESS, DEFAULT_TIMEOUT_S
from sidestep.client._question import Authentication, Dpop, Question, QuestionFields, Revision

__all__ = [
    "DEFAULT_ADDRESS",
    "DEFAULT_TIMEOUT_S",
    "AsyncClient",
    "Authentication",
    "Basis",
    "ChallengeMethod",
    "Client",
    "ClosedClientError",
    "Decision",
    "Dpop",
    "FailMode",
    "InvalidQuestionError",
    "Outcome",
    "Question",
    "QuestionFields",
    "Reason",
    "Revision",
    "SettleError",
    "SidestepClientError",
]
