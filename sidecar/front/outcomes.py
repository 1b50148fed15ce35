"""DecisionService.ReportOutcome: a service tells what became of a challenge that was a spot check."""

from __future__ import annotations

from typing import Final

from google.protobuf.message import DecodeError
from sidestep.v1 import decision_pb2, report_pb2

from engine.errors import InvalidInputError
from sidecar.callers import Caller
from sidecar.clock import Clock
from sidecar.front.decision_id import parse_id
from sidecar.usage.checks import Checks, ChecksError

MAX_OUTCOME_BYTES: Final = 1024
"""Size of a ReportOutcomeRequest."""
_OUTCOMES: Final = frozenset(
    {
        report_pb2.SPOT_CHECK_OUTCOME_PASSED,
        report_pb2.SPOT_CHECK_OUTCOME_FAILED,
        report_pb2.SPOT_CHECK_OUTCOME_ABANDONED,
    }
)
_TAKEN: Final = decision_pb2.ReportOutcomeResponse().SerializeToString()


class OutcomeTaker:
    """Takes outcomes of this pod's spot checks. Thread-safe. `checks`: None if they cannot be used."""

    def __init__(self, checks: Checks | None, clock: Clock) -> None:
        self._checks = checks
        self._clock = clock

    def answer(self, payload: bytes, caller: Caller | None) -> bytes:
        """The answer to a ReportOutcomeRequest, once the outcome is on its way to the control plane and survives any process.

        Raises InvalidInputError naming the field, UnknownCheckError, AlreadyReportedError, ChecksError.
        """
        try:
            request = decision_pb2.ReportOutcomeRequest.FromString(payload)
        except DecodeError:
            raise InvalidInputError("request", "is not a ReportOutcomeRequest message") from None
        if request.outcome not in _OUTCOMES:
            raise InvalidInputError("outcome", "must be PASSED, FAILED or ABANDONED")
        decision_id = parse_id(request.decision_id)
        if self._checks is None:
            raise ChecksError("the spot checks of this sidecar cannot be used")
        name = "" if caller is None else caller.name
        self._checks.report(decision_id, name, request.outcome, self._clock.boottime())
        return _TAKEN
