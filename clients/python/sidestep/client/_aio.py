"""The client for asyncio."""

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

_UNDECODABLE = (grpc.StatusCode.INTERNAL, "the answer could not be decoded")


class AsyncClient:
    """As Client, for one event loop: the one that runs its first call."""

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
        self._address = address
        self._timeout_s = timeout_s
        self._fail_mode = fail_mode
        self._closed = False
        # A channel belongs to the loop it is made in, and clients are often made before there is one.
        self._channel: grpc.aio.Channel | None = None

    async def evaluate(
        self,
        question: Question | None = None,
        /,
        *,
        timeout_s: float | None = None,
        traceparent: str | None = None,
        **fields: Unpack[QuestionFields],
    ) -> Decision:
        """As Client.evaluate(). Cancelling the task cancels the call."""
        request = to_request(asked(question, fields))
        timeout_s, channel = self._begin(timeout_s)
        call = channel.unary_unary(
            EVALUATE,
            request_serializer=decision_pb2.EvaluateRequest.SerializeToString,
            response_deserializer=decision_pb2.EvaluateResponse.FromString,
        )
        try:
            response = await call(request, timeout=timeout_s, metadata=self._metadata(traceparent))
        except grpc.aio.AioRpcError as error:
            return from_failure(error.code(), error.details(), self._fail_mode)
        # grpc.aio delivers None where it could not decode an answer.
        if not isinstance(response, decision_pb2.EvaluateResponse):
            return from_failure(*_UNDECODABLE, self._fail_mode)
        return from_response(response)

    async def evaluate_batch(
        self, questions: Sequence[Question], *, timeout_s: float | None = None, traceparent: str | None = None
    ) -> Sequence[Decision]:
        """As Client.evaluate_batch(). Cancelling the task cancels the call."""
        batch = to_batch_request(questions)
        timeout_s, channel = self._begin(timeout_s)
        if not questions:
            return []
        call = channel.unary_unary(
            EVALUATE_BATCH,
            request_serializer=decision_pb2.EvaluateBatchRequest.SerializeToString,
            response_deserializer=decision_pb2.EvaluateBatchResponse.FromString,
        )
        try:
            response = await call(batch, timeout=timeout_s, metadata=self._metadata(traceparent))
        except grpc.aio.AioRpcError as error:
            failure = from_failure(error.code(), error.details(), self._fail_mode)
            return [failure for _ in questions]
        if not isinstance(response, decision_pb2.EvaluateBatchResponse):
            failure = from_failure(*_UNDECODABLE, self._fail_mode)
            return [failure for _ in questions]
        return from_batch_response(response, len(questions), self._fail_mode)

    async def settle(self, decision: Decision | str, *, executed: bool, timeout_s: float = SETTLE_TIMEOUT_S) -> None:
        """As Client.settle(). Cancelling the task cancels the call."""
        request = to_settle_request(decision, executed)
        timeout_s, channel = self._begin(timeout_s)
        call = channel.unary_unary(
            SETTLE,
            request_serializer=decision_pb2.SettleRequest.SerializeToString,
            response_deserializer=decision_pb2.SettleResponse.FromString,
        )
        try:
            await call(request, timeout=timeout_s, metadata=self._metadata(None))
        except grpc.aio.AioRpcError as error:
            raise settle_error(error.code(), error.details()) from error

    async def report_authentication(
        self, subject: str, token: str, *, timeout_s: float = REPORT_TIMEOUT_S, **fields: Unpack[ReportFields]
    ) -> ReportedAuthentication:
        """As Client.report_authentication(). Cancelling the task cancels the call."""
        request = to_report_request(subject, token, fields)
        timeout_s, channel = self._begin(timeout_s)
        call = channel.unary_unary(
            REPORT,
            request_serializer=decision_pb2.ReportAuthenticationRequest.SerializeToString,
            response_deserializer=decision_pb2.ReportAuthenticationResponse.FromString,
        )
        try:
            response = await call(request, timeout=timeout_s, metadata=self._metadata(None))
        except grpc.aio.AioRpcError as error:
            raise report_error(error.code(), error.details()) from error
        if not isinstance(response, decision_pb2.ReportAuthenticationResponse):
            raise report_error(*_UNDECODABLE)
        return from_report_response(response)

    async def report_outcome(
        self, decision: Decision | str, outcome: ChallengeOutcome, *, timeout_s: float = SETTLE_TIMEOUT_S
    ) -> bool:
        """As Client.report_outcome(). Cancelling the task cancels the call."""
        request = to_outcome_request(decision, outcome)
        timeout_s, channel = self._begin(timeout_s)
        call = channel.unary_unary(
            REPORT_OUTCOME,
            request_serializer=decision_pb2.ReportOutcomeRequest.SerializeToString,
            response_deserializer=decision_pb2.ReportOutcomeResponse.FromString,
        )
        try:
            await call(request, timeout=timeout_s, metadata=self._metadata(None))
        except grpc.aio.AioRpcError as error:
            failure = outcome_error(error.code(), error.details())
            if failure is None:
                return False
            raise failure from error
        return True

    async def close(self) -> None:
        """Ends the connection; calls in flight are cancelled. May be called again."""
        self._closed = True
        if self._channel is not None:
            await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _begin(self, timeout_s: float | None) -> tuple[float, grpc.aio.Channel]:
        if self._closed:
            raise ClosedClientError("the client is closed")
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(self._address, CHANNEL_OPTIONS)
        return self._timeout_s if timeout_s is None else check_timeout(timeout_s), self._channel

    def _metadata(self, traceparent: str | None) -> Metadata:
        return trace_metadata(traceparent) + self._credentials.metadata()
