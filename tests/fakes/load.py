"""A service that asks without a break and expects every question to be answered."""

from __future__ import annotations

import threading

import grpc
from sidestep.v1 import decision_pb2, decision_pb2_grpc

from tests.fakes.stock import exempted, request, satisfied
from tests.processes import PATIENCE_S, until

_PAUSE_S = 0.001
# Every so many questions a batch with all of them.
_BATCH_EVERY = 10


class Load:
    """Asks a sidecar with tests/fakes/stock.py's records, from a thread, until the block ends.

    `ids`: of the decisions, in the order of the answers. `failures`: questions that got none.
    """

    def __init__(self, target: str) -> None:
        self.ids: list[str] = []
        self.failures: list[grpc.RpcError] = []
        self._target = target
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load")

    def wait_for_answers(self, count: int) -> None:
        """Waits for so many more answers, or the first failure."""
        wanted = len(self.ids) + count
        until(lambda: self.failures or len(self.ids) >= wanted, f"{count} answers")

    def go_on_for(self, seconds: float) -> None:
        """Lets it ask for so long."""
        self._stop.wait(seconds)

    def end(self) -> None:
        """Asks no more."""
        self._stop.set()
        self._thread.join()

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def _run(self) -> None:
        questions = [exempted(), request("mallory"), satisfied(), request("bob"), request("bob", "browse.items")]
        batch = decision_pb2.EvaluateBatchRequest(requests=questions)
        with grpc.insecure_channel(self._target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub = decision_pb2_grpc.DecisionServiceStub(channel)  # type: ignore[no-untyped-call]
            number = 0
            while not self._stop.wait(_PAUSE_S):
                number += 1
                try:
                    if number % _BATCH_EVERY:
                        answers = [stub.Evaluate(questions[number % len(questions)], timeout=PATIENCE_S)]
                    else:
                        results = stub.EvaluateBatch(batch, timeout=PATIENCE_S).results
                        answers = [result.response for result in results]
                except grpc.RpcError as error:
                    self.failures.append(error)
                else:
                    self.ids += [answer.decision_id for answer in answers]
