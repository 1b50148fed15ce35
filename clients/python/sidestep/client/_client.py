"""The client for threads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import TracebackType
from typing import Self, Unpack

import grpc
from sidestep.client._credentials import Credentials
from sidestep.client._decision import Decision, FailMode, from_batch_response, from_failure, from_response
from sidestep.client._errors import ClosedClientError
from sidestep.client._exchange import (
    CHANNEL_OPTIONS,
    DEFAULT_ADDRESS,
    DEFAULT_TIMEOUT_S,
    EVALUATE,
    EVALUATE_BATCH,
    REPORT_OUTCOME,
    SETTLE,
    SETTLE_TIMEOUT_S,
    ChallengeOutcome,
    asked,
    check_settings,
    check_timeout,
    outcome_error,
    settle_error,
    to_outcome_request,
    to_settle_request,
)
from sidestep.client._question import Question, QuestionFields, to_batch_request, to_request
from sidestep.client._report import (
    REPORT,
    REPORT_TIMEOUT_S,
    ReportedAuthentication,
    ReportFields,
    from_report_response,
    report_error,
    to_report_request,
)
from sidestep.client._trace import Metadata, trace_metadata
from sidestep.v1 import decision_pb2


class Client:
    """A connection to the sidecar of this pod. Thread-safe; make one per process, after forking, and close it at the
    end.

    `address`: `host:port` or `unix:///path`. `timeout_s`: longest a call may take unless it says otherwise.
    `fail_mode`: the outcome when no answer comes in time; read FailMode before choosing ALLOW.
    `token`, or better `token_file`: this service's own token, for a sidecar that serves known callers only; the file is read
    again when it changes. With a token the address must be on this machine, since nothing is encrypted, unless
    `insecure_token` says that it may leave it. Raises ValueError for settings that cannot work.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        fail_mode: FailMode = FailMode.STEP_UP,
        token: str | None = None,
        token_file: str | os.PathLike[str] | None = None,
        insecure_token: bool = False,
    ) -> None:
        check_settings(address, timeout_s, fail_mode)
        self._credentials = Credentials(address, token, token_file, insecure_token)
        self._timeout_s = timeout_s
        self._fail_mode = fail_mode
        self._closed = False
        self._channel = grpc.insecure_channel(address, CHANNEL_OPTIONS)
        self._evaluate = self._channel.unary_unary(
            EVALUATE,
            request_serializer=decision_pb2.EvaluateRequest.SerializeToString,
            response_deserializer=decision_pb2.EvaluateResponse.FromString,
        )
        self._evaluate_batch = self._channel.unary_unary(
            EVALUATE_BATCH,
            request_serializer=decision_pb2.EvaluateBatchRequest.SerializeToString,
            response_deserializer=decision_pb2.EvaluateBatchResponse.FromString,
        )

        self._report_outcome = self._channel.unary_unary(
            REPORT_OUTCOME,
            request_serializer=decision_pb2.ReportOutcomeRequest.SerializeToString,
            response_deserializer=decision_pb2.ReportOutcomeResponse.FromString,
        )
        self._settle = self._channel.unary_unary(
            SETTLE,
            request_serializer=decision_pb2.SettleRequest.SerializeToString,
            response_deserializer=decision_pb2.SettleResponse.FromString,
        )
        self._report = self._channel.unary_unary(
            REPORT,
            request_serializer=decision_pb2.ReportAuthenticationRequest.SerializeToString,
            response_deserializer=decision_pb2.ReportAuthenticationResponse.FromString,
        )

    def evaluate(
        self,
        question: Question | None = None,
        /,
        *,
        timeout_s: float | None = None,
        traceparent: str | None = None,
        **fields: Unpack[QuestionFields],
    ) -> Decision:
        """Asks one question, given as a Question or as its fields: `evaluate(subject="alice",
        action="payments.transfer")`.

        No answer within `timeout_s`, or any other failure, gives the fail mode's decision. Raises
        InvalidQuestionError or TypeError for a question that cannot be asked, ClosedClientError after close().
        """
        request = to_request(asked(question, fields))
        timeout_s = self._begin(timeout_s)
        try:
            response = self._evaluate(request, timeout=timeout_s, metadata=self._metadata(traceparent))
        except grpc.RpcError as error:
            return from_failure(*_status(error), self._fail_mode)
        return from_response(response)

    def evaluate_batch(
        self, questions: Sequence[Question], *, timeout_s: float | None = None, traceparent: str | None = None
    ) -> Sequence[Decision]:
        """Asks up to 100 questions at once, each decided for itself; decisions in order. Errors as evaluate().

        InvalidQuestionError names the first question at fault; no decision is returned then.
        """
        batch = to_batch_request(questions)
        timeout_s = self._begin(timeout_s)
        if not questions:
            return []
        try:
            response = self._evaluate_batch(batch, timeout=timeout_s, metadata=self._metadata(traceparent))
        except grpc.RpcError as error:
            failure = from_failure(*_status(error), self._fail_mode)
            return [failure for _ in questions]
        return from_batch_response(response, len(questions), self._fail_mode)

    def settle(self, decision: Decision | str, *, executed: bool, timeout_s: float = SETTLE_TIMEOUT_S) -> None:
        """Tells what became of what a decision permitted: it was carried out, or it never will be and the grant's budget gets
        back what was spent. For decisions by a grant with a budget, within an hour; telling it twice changes nothing.

        Raises SettleError, ValueError for a decision that never came, ClosedClientError after close().
        """
        request = to_settle_request(decision, executed)
        timeout_s = self._begin(timeout_s)
        try:
            self._settle(request, timeout=timeout_s, metadata=self._metadata(None))
        except grpc.RpcError as error:
            raise settle_error(*_status(error)) from error

    def report_authentication(
        self, subject: str, token: str, *, timeout_s: float = REPORT_TIMEOUT_S, **fields: Unpack[ReportFields]
    ) -> ReportedAuthentication:
        """Tells of a finished step-up, with the token that proves it: from now on it counts in the session and on the device.

        The token needs `jti` (used once), `auth_time` and `acr`. `session_id`: where the token has no `sid`. `dpop`: for a token
        bound to a key. `device_id`, `fingerprint`: the device it happened on; with `register_device` it becomes known by that id.
        Raises ReportError, TypeError, ClosedClientError after close().
        """
        request = to_report_request(subject, token, fields)
        timeout_s = self._begin(timeout_s)
        try:
            response = self._report(request, timeout=timeout_s, metadata=self._metadata(None))
        except grpc.RpcError as error:
            raise report_error(*_status(error)) from error
        return from_report_response(response)

    def report_outcome(
        self, decision: Decision | str, outcome: ChallengeOutcome, *, timeout_s: float = SETTLE_TIMEOUT_S
    ) -> bool:
        """Tells what became of a challenge, so that the abuse among exemptions can be estimated. May be told of every STEP_UP:
        only challenges that were spot checks count, within an hour. True: it counts; False: it was no spot check.

        Raises OutcomeError, ValueError for a decision that never came, ClosedClientError after close().
        """
        request = to_outcome_request(decision, outcome)
        timeout_s = self._begin(timeout_s)
        try:
            self._report_outcome(request, timeout=timeout_s, metadata=self._metadata(None))
        except grpc.RpcError as error:
            failure = outcome_error(*_status(error))
            if failure is None:
                return False
            raise failure from error
        return True

    def close(self) -> None:
        """Ends the connection; calls in flight get the fail mode's decision. May be called again."""
        self._closed = True
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _begin(self, timeout_s: float | None) -> float:
        if self._closed:
            raise ClosedClientError("the client is closed")
        return self._timeout_s if timeout_s is None else check_timeout(timeout_s)

    def _metadata(self, traceparent: str | None) -> Metadata:
        return trace_metadata(traceparent) + self._credentials.metadata()


def _status(error: grpc.RpcError) -> tuple[grpc.StatusCode, str | None]:
    if isinstance(error, grpc.Call):
        return error.code(), error.details()
    return grpc.StatusCode.UNKNOWN, type(error).__name__
