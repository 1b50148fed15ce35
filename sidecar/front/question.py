"""What the worker loop has to answer: a call with its request, or an EvaluateBatch with its many."""

from __future__ import annotations

import time
from contextlib import ExitStack

import msgspec
from sidestep.v1 import decision_pb2

from sidecar.callers import Caller
from sidecar.front.servicer import Verdict
from sidecar.front.traceparent import kept_traceparent
from sidecar.front.transport import Call
from sidecar.guard.guards import Examined
from sidecar.journal.record import BatchRecord
from sidecar.lease.leases import Wait
from sidecar.store.view import ReadView


class Stalled(msgspec.Struct, eq=False):
    """A request that cannot be decided yet, what it waits for, and until when at most (monotonic)."""

    over: Wait
    until: float
    examined: Examined | None = None


class Question(msgspec.Struct, eq=False):
    """A call that is not answered yet."""

    call: Call
    requests: list[decision_pb2.EvaluateRequest]
    traceparent: str
    # Some request wants a min_revision. The call waits for it until then (monotonic; 0: not yet looked at), but once.
    conditional: bool
    park_until: float = 0.0
    parked_out: bool = False
    # Its requests that wait, by index.
    stalled: dict[int, Stalled] = {}
    # The loop is about to end: it may not wait for anything.
    hurried: bool = False
    # How many requests have been looked into.
    done: int = 0
    # The call was failed while some of its requests were still on their way.
    failed: bool = False
    # None: callers are not identified.
    caller: Caller | None = None


class BatchQuestion(Question, eq=False):
    """An EvaluateBatch. `id`, `at` (wall clock) and `begun` (monotonic): as in its record."""

    id: bytes = b""
    at: float = 0.0
    begun: float = 0.0
    # What is to become an EvaluateBatchResponse, and how many places are empty.
    results: list[bytes] = []
    missing: int = 0
    # How many requests have a decision, and of how many it is in the journal.
    decided: int = 0
    recorded: int = 0
    # All requests are decided over one view.
    view: ReadView | None = None
    held: ExitStack | None = None

    def give_back(self) -> None:
        """Ends the view, if it holds one."""
        if self.held is not None:
            self.held.close()
            self.held = self.view = None

    def record(self) -> BatchRecord:
        """Its journal record. Requests that were never looked into count as errors, like those that got one."""
        size = len(self.requests)
        duration_us = round((time.monotonic() - self.begun) * 1e6)
        traceparent = kept_traceparent(self.traceparent)
        caller = "" if self.caller is None else self.caller.name
        return BatchRecord(self.id, self.at, duration_us, size, size - self.decided, traceparent, caller)


class Pending(msgspec.Struct, eq=False, gc=False):
    """A verdict on its way through the journal."""

    question: Question
    index: int
    verdict: Verdict
