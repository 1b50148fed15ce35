"""Services that ask a sidecar while it is being harmed, and keep apart what they know of each call."""

from __future__ import annotations

import threading
from typing import NamedTuple

import grpc
from sidestep.v1 import decision_pb2, decision_pb2_grpc

from tests.chaos.pod import CHANNEL_OPTIONS
from tests.fakes.stock import exempted, request, satisfied
from tests.processes import until

WITHIN_S = 60.0
_DEADLINE_S = 20.0
# Every so many calls one with all questions.
_BATCH_EVERY = 10
# What a sidecar says that has decided nothing: strict, with its journal at the bound.
NOT_RECORDED = "the journal is full"
# A call that broke is not made again behind our back: it may have been decided.
_OPTIONS = (*CHANNEL_OPTIONS, ("grpc.enable_retries", 0))


class Answer(NamedTuple):
    """One decision that a service was told. `question`: see QUESTIONS."""

    question: str
    response: decision_pb2.EvaluateResponse


class Callers:
    """Some services, a thread and a connection each, that ask until the block ends.

    `pause_s`: between two calls of one service. `batches`: some calls are EvaluateBatch.
    """

    def __init__(self, address: str, count: int = 2, *, pause_s: float = 0.003, batches: bool = True) -> None:
        self.answers: list[Answer] = []
        # Decisions that may have been made for calls that ended without an answer. Nobody knows their ids.
        self.unknown = 0
        # Calls that were told that nothing was decided.
        self.refused = 0
        # What must not happen to a sound question, whatever is killed.
        self.problems: list[str] = []
        self._address = address
        self._pause_s = pause_s
        self._batches = batches
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, name=f"caller-{number}") for number in range(count)]

    @property
    def ids(self) -> list[str]:
        """Of the decisions that were answered."""
        return [answer.response.decision_id for answer in self.answers]

    def wait_for_answers(self, count: int) -> None:
        """Waits for so many more answers."""
        wanted = len(self.answers) + count
        until(lambda: self.problems or len(self.answers) >= wanted, f"{count} answers", WITHIN_S)

    def end(self) -> None:
        """Asks no more; what was asked is answered."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def _run(self) -> None:
        questions = {
            "exempted": exempted(),
            "blocked": request("mallory"),
            "satisfied": satisfied(),
            "challenged": request("bob"),
            "free": request("bob", "browse.items"),
        }
        with grpc.insecure_channel(self._address, options=_OPTIONS) as channel:
            stub = decision_pb2_grpc.DecisionServiceStub(channel)  # type: ignore[no-untyped-call]
            number = 0
            while not self._stop.wait(self._pause_s):
                number += 1
                asked = list(questions)
                if not self._batches or number % _BATCH_EVERY:
                    asked = [asked[number % len(asked)]]
                try:
                    answers = _ask(stub, [questions[name] for name in asked])
                except grpc.RpcError as error:
                    self._failed(error, len(asked))
                else:
                    with self._lock:
                        self.answers += map(Answer, asked, answers)

    def _failed(self, error: grpc.RpcError, decisions: int) -> None:
        with self._lock:
            if error.details() == NOT_RECORDED and decisions == 1:
                self.refused += 1
            elif error.code() is grpc.StatusCode.UNAVAILABLE:
                self.unknown += decisions
            else:
                self.problems.append(repr(error))


def _ask(
    stub: decision_pb2_grpc.DecisionServiceStub, requests: list[decision_pb2.EvaluateRequest]
) -> list[decision_pb2.EvaluateResponse]:
    """Raises grpc.RpcError."""
    if len(requests) == 1:
        return [stub.Evaluate(requests[0], timeout=_DEADLINE_S)]
    batch = decision_pb2.EvaluateBatchRequest(requests=requests)
    return [result.response for result in stub.EvaluateBatch(batch, timeout=_DEADLINE_S).results]
