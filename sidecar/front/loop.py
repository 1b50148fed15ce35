"""The worker loop: takes calls, decides them one after another, records all in one write, answers (DESIGN section 7).

One pass of the loop is one batch. Whatever waits is in `_work`, in the order it came; a pass takes from it until a
millisecond is spent, commits, and comes back for the rest, so that under load costs are shared and alone a call waits for
nobody. A batch request is worked on in slices, with other calls between them. No answer leaves before its record is in
the journal.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Final

import lmdb

from engine.decision import Code
from sidecar.callers import Caller
from sidecar.clock import Clock
from sidecar.front.admission import Admission
from sidecar.front.answer import BASES, OUTCOMES, batch_error, batch_result
from sidecar.front.aside import Aside
from sidecar.front.errors import TooLargeError, UnrecordedError, details_of
from sidecar.front.faults import Faults
from sidecar.front.health import Health, Watchers
from sidecar.front.methods import CHECK, EVALUATE, EVALUATE_BATCH, LIST, OTHERS, WATCH, OtherCall
from sidecar.front.parked import DEADLINE_MARGIN_S, POLL_S, Parked
from sidecar.front.question import BatchQuestion, Pending, Question
from sidecar.front.recorder import Recorder
from sidecar.front.servicer import (
    DecisionServicer,
    Verdict,
    parse_batch,
    parse_request,
)
from sidecar.front.transport import WAKE_S, Call, Transport
from sidecar.page import WorkerSlot
from sidecar.store.reader import Reader
from sidecar.store.view import ReadView

MAX_BATCH: Final = 64
"""Calls taken into work at once."""
BATCH_WORK_S: Final = 0.001
"""Work after which a pass closes and answers."""
SLICE: Final = 16
"""Entries of a batch request decided before other calls get their turn."""


class WorkerLoop:
    """Serves one transport in the thread that calls `run`.

    `recorder` and `slot` are shared by the loops of a worker. `strict`: without room in the journal nothing is answered,
    instead of nobody exempted. `admission`: whom to serve, and about what; None: everyone.
    """

    def __init__(
        self,
        transport: Transport,
        servicer: DecisionServicer,
        reader: Reader,
        recorder: Recorder,
        slot: WorkerSlot,
        health: Health,
        clock: Clock,
        *,
        max_message_bytes: int,
        strict: bool,
        admission: Admission | None = None,
        others: Sequence[OtherCall] = (),
    ) -> None:
        self._transport = transport
        self._servicer = servicer
        self._reader = reader
        self._recorder = recorder
        self._slot = slot
        self._health = health
        self._clock = clock
        self._max_message_bytes = max_message_bytes
        self._strict = strict
        self._admission = admission
        self._others = others
        self._watchers = Watchers(health, transport)
        self._work: deque[Question] = deque()
        self._parked = Parked(servicer, slot, health)
        # Those that ended in this pass, with decisions to account for.
        self._ended_batches: list[BatchQuestion] = []
        self._faults = Faults(slot)
        self._aside = Aside()
        self.ticked_at = time.monotonic()
        """When the loop last came round (time.monotonic()); it does at least every quarter of a second."""

    def run(self) -> None:
        """Serves until the transport has drained or was closed, then answers what is left."""
        while True:
            self.ticked_at = time.monotonic()
            calls = self._transport.receive(max(0, MAX_BATCH - len(self._work)), self._patience_s())
            if self._health.draining:
                self._watchers.end()
            else:
                self._watchers.tell()
            if self._aside.waiting:
                self._end_aside()
            if calls is None:
                if not self._work and not self._parked:
                    if not self._aside.waiting:
                        return
                    time.sleep(POLL_S)
                calls = []
                self._parked.hurry()
            for call in calls:
                self._accept(call)
            if self._work or self._parked:
                self._pass()

    def _patience_s(self) -> float:
        if self._work:
            return 0.0
        return POLL_S if self._parked or self._aside.waiting else WAKE_S

    def _accept(self, call: Call) -> None:
        """Parses a call into work, or answers it at once if it is about health."""
        try:
            if call.method == EVALUATE:
                caller = self._admitted(call, "Evaluate")
                self._work.append(_question(call, caller))
            elif call.method == EVALUATE_BATCH:
                caller = self._admitted(call, "EvaluateBatch")
                self._work.append(self._batch_question(call, caller))
            elif call.method == CHECK:
                self._transport.answer(call, self._health.check(call.payload))
            elif call.method == LIST:
                self._transport.answer(call, self._health.list())
            elif call.method == WATCH:
                self._watchers.add(call)
            else:
                other = self._others[call.method - OTHERS]
                self._aside.take(call, other.answer, self._admitted(call, other.rpc))
        except Exception as error:
            self._fail(call, error)

    def _end_aside(self) -> None:
        for call, outcome in self._aside.finished():
            if isinstance(outcome, bytes):
                self._transport.answer(call, outcome)
            else:
                self._fail(call, outcome)

    def _admitted(self, call: Call, rpc: str) -> Caller | None:
        """Whose call it is; None if that is not asked. Raises as `Admission.admit`."""
        return None if self._admission is None else self._admission.admit(call, rpc)

    def _batch_question(self, call: Call, caller: Caller | None) -> BatchQuestion:
        requests = list(parse_batch(call.payload).requests)
        return BatchQuestion(
            call,
            requests,
            call.metadata_value("traceparent"),
            any(request.HasField("min_revision") for request in requests),
            caller=caller,
            id=self._servicer.new_batch(),
            at=self._clock.wall(),
            begun=time.monotonic(),
            results=[b""] * len(requests),
            missing=len(requests),
        )

    def _pass(self) -> None:
        """Decides what there is time for, records it and answers it."""
        pending: list[Pending] = []
        room = self._recorder.has_room()
        try:
            if not room and self._strict:
                raise UnrecordedError("the journal is full")
            with self._reader.view() as view:
                self._decide(view, room, pending)
        except Exception as error:
            # Not about one call: there is no data, or none that can be read, or no journal.
            self._fail_all(error)
        if pending or self._ended_batches:
            self._commit(pending, room)

    def _fail_all(self, error: Exception) -> None:
        for question in (*self._work, *self._parked):
            question.failed = True
            self._end(question)
            self._transport.fail(question.call, *self._faults.status(error))
        self._work.clear()
        self._parked.clear()

    def _end(self, question: Question) -> None:
        """Nothing more of it will be decided."""
        if isinstance(question, BatchQuestion):
            question.give_back()
            if question.decided:
                self._ended_batches.append(question)

    def _decide(self, view: ReadView, room: bool, pending: list[Pending]) -> None:
        work = self._work
        begun = time.monotonic()
        # What waited longest goes first.
        work.extendleft(reversed(self._parked.due(begun)))
        now = self._clock.wall()
        for _ in range(len(work)):
            question = work.popleft()
            try:
                self._advance(question, view, now, room, pending)
            except Exception:
                # Not this question's fault: it shares the fate of those behind it.
                work.appendleft(question)
                raise
            if time.monotonic() - begun >= BATCH_WORK_S:
                return

    def _advance(self, question: Question, view: ReadView, now: float, room: bool, pending: list[Pending]) -> None:
        """Decides the question, or a slice of it, or lets it wait."""
        if question.call.cancelled:
            self._end(question)
        elif question.conditional and self._parked.for_revision(question, view):
            self._parked.add(question)
        elif isinstance(question, BatchQuestion):
            self._decide_slice(question, view, now, room, pending)
        elif (question.stalled and not self._parked.ready(question)) or not self._decide_one(
            question, 0, view, now, room, pending
        ):
            self._parked.add(question)

    def _decide_slice(
        self, question: BatchQuestion, view: ReadView, now: float, room: bool, pending: list[Pending]
    ) -> None:
        """Decides the next requests of an EvaluateBatch, all of them over the view of the first."""
        if question.view is None:
            question.held = ExitStack()
            question.view = question.held.enter_context(self._reader.view())
        if question.done < len(question.requests):
            indexes: Sequence[int] = range(question.done, min(question.done + SLICE, len(question.requests)))
            question.done = indexes[-1] + 1
        else:
            indexes = self._parked.ready(question)[:SLICE]
        for index in indexes:
            # One that has to wait is come back to when all have been looked into.
            self._decide_one(question, index, question.view, now, room, pending)
        if question.done < len(question.requests):
            self._work.append(question)
        elif question.stalled:
            self._parked.add(question)
        else:
            self._end(question)

    def _decide_one(
        self, question: Question, index: int, view: ReadView, now: float, room: bool, pending: list[Pending]
    ) -> bool:
        """Decides one request. False: it has to wait."""
        request, caller = question.requests[index], question.caller
        stalled = question.stalled.get(index)
        waited = None if stalled is None else stalled.examined
        batch = question.id if isinstance(question, BatchQuestion) else b""
        try:
            if batch and request.ByteSize() > self._max_message_bytes:
                raise TooLargeError(f"the entry has {request.ByteSize()} bytes, the limit is {self._max_message_bytes}")
            if caller is not None and self._admission is not None:
                self._admission.check(caller, request.action.name)
            if question.call.deadline - time.monotonic() < DEADLINE_MARGIN_S:
                verdict = self._servicer.give_up(
                    request, question.traceparent, view, now, Code.DEADLINE, caller=caller, batch=batch
                )
            else:
                behind = question.parked_out and not self._servicer.min_revision_reached(request, view)
                while True:
                    found = self._servicer.evaluate(
                        request,
                        question.traceparent,
                        view,
                        now,
                        caller=caller,
                        batch=batch,
                        journal_full=not room,
                        behind=behind,
                        patient=self._parked.patient(question, index),
                        waited=waited,
                    )
                    if isinstance(found, Verdict):
                        verdict = found
                        break
                    waited = found.examined
                    if self._parked.stall(question, index, found):
                        return False
        except lmdb.Error:
            raise  # the view takes note of it, and all that rests on it fails
        except Exception as error:
            question.stalled.pop(index, None)
            self._reject(question, index, error)
        else:
            question.stalled.pop(index, None)
            if isinstance(question, BatchQuestion):
                question.decided += 1
                question.recorded += verdict.repeated
            if verdict.repeated:
                self._resolve(question, index, verdict.answer)
            else:
                pending.append(Pending(question, index, verdict))
        return True

    def _commit(self, pending: list[Pending], room: bool) -> None:
        """Appends all records in one write, then answers."""
        ended, self._ended_batches = self._ended_batches, []
        kept = 0
        if room:
            kept = self._recorder.record(
                [item.verdict.record for item in pending], [question.record() for question in ended]
            )
        self._servicer.recorded([item.verdict for item in pending[:kept]])
        for item in pending[:kept]:
            if isinstance(item.question, BatchQuestion):
                item.question.recorded += 1
        if not room or kept < len(pending):
            pending = pending[:kept] + self._off_the_record(pending[kept:])
            for question in ended:
                if question.recorded:
                    self._recorder.owe(question.record())
        for item in pending:
            decision = item.verdict.decision
            self._slot.count_decision(OUTCOMES[decision.outcome], BASES[decision.basis], item.verdict.duration_s)
        for item in pending:
            self._resolve(item.question, item.index, item.verdict.answer)

    def _off_the_record(self, pending: list[Pending]) -> list[Pending]:
        """Of verdicts that could not be recorded, those to be answered all the same."""
        left = []
        for item in pending:
            self._servicer.unrecorded(item.verdict)
            if not item.question.failed and self._take_back(item):
                left.append(item)
            elif isinstance(item.question, BatchQuestion):
                item.question.decided -= 1
        if left:
            self._recorder.unrecorded(len(left))
        return left

    def _take_back(self, item: Pending) -> bool:
        """Takes back an exemption. Whether the verdict may be answered then: not in strict mode, and its request is failed."""
        try:
            if self._strict:
                raise UnrecordedError("the decision could not be recorded")
            item.verdict = self._servicer.without_exemption(item.verdict)
        except Exception as error:
            self._reject(item.question, item.index, error)
            return False
        return True

    def _resolve(self, question: Question, index: int, answer: bytes) -> None:
        """An answer for one request; it leaves once the call's other requests have theirs."""
        if isinstance(question, BatchQuestion):
            self._place(question, index, batch_result(answer))
        else:
            self._transport.answer(question.call, answer)

    def _reject(self, question: Question, index: int, error: BaseException) -> None:
        """An error in the place of one request's answer."""
        if isinstance(question, BatchQuestion):
            self._place(question, index, batch_error(*self._faults.status(error, question.call)))
        else:
            self._fail(question.call, error)

    def _place(self, question: BatchQuestion, index: int, result: bytes) -> None:
        question.results[index] = result
        question.missing -= 1
        if not question.missing and not question.failed:
            self._transport.answer(question.call, b"".join(question.results))

    def _fail(self, call: Call, error: BaseException) -> None:
        self._transport.fail(call, *self._faults.status(error, call), details_of(error))


def _question(call: Call, caller: Caller | None) -> Question:
    request = parse_request(call.payload)
    return Question(
        call, [request], call.metadata_value("traceparent"), request.HasField("min_revision"), caller=caller
    )
