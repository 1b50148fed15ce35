"""The worker loop: takes calls, decides them one after another, records all in one write, answers (DESIGN section 7).

One pass of the loop is one batch. Whatever waits is in `_work`, in the order it came; a pass takes from it until a
millisecond is spent, commits, and comes back for the rest, so that under load costs are shared and alone a call waits for
nobody. A batch request is worked on in slices, with other calls between them. No answer leaves before its record is in
the journal.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections import deque
from contextlib import ExitStack
from typing import Final

import lmdb
import msgspec
from sidestep.v1 import decision_pb2

from engine.decision import Code
from engine.errors import SidestepError
from sidecar.clock import Clock
from sidecar.front.answer import BASES, OUTCOMES, batch_error, batch_result
from sidecar.front.errors import TooLargeError, UnrecordedError, status_of
from sidecar.front.health import HEALTH_SERVICE, Health, Watchers
from sidecar.front.servicer import MAX_ENTRIES, SERVICE, DecisionServicer, Verdict, parse_batch, parse_request
from sidecar.front.transport import WAKE_S, Call, Method, StatusCode, Transport
from sidecar.journal.segment import JournalError, SegmentWriter
from sidecar.page import WorkerSlot, WorkerWord
from sidecar.store.reader import Reader
from sidecar.store.view import ReadView

_log = logging.getLogger(__name__)

MAX_BATCH: Final = 64
"""Calls taken into work at once."""
BATCH_WORK_S: Final = 0.001
"""Work after which a pass closes and answers."""
SLICE: Final = 16
"""Entries of a batch request decided before other calls get their turn."""
DEADLINE_MARGIN_S: Final = 0.002
"""Time a caller must have left for its request to be looked into."""
PARK_S: Final = 0.05
"""Longest a call waits for its min_revision."""
MAX_PARKED: Final = 256
_PARK_POLL_S: Final = 0.001
_LOG_EVERY_S: Final = 1.0
_BATCH_BYTES: Final = 4 << 20
_HEALTH_BYTES: Final = 1024

_EVALUATE, _EVALUATE_BATCH, _CHECK, _LIST, _WATCH = range(5)


def methods(max_message_bytes: int) -> tuple[Method, ...]:
    """What the loop serves, in the order of the method numbers it expects in calls."""
    return (
        Method(f"/{SERVICE}/Evaluate", max_message_bytes),
        Method(f"/{SERVICE}/EvaluateBatch", max(max_message_bytes, min(MAX_ENTRIES * max_message_bytes, _BATCH_BYTES))),
        Method(f"/{HEALTH_SERVICE}/Check", _HEALTH_BYTES),
        Method(f"/{HEALTH_SERVICE}/List", _HEALTH_BYTES),
        Method(f"/{HEALTH_SERVICE}/Watch", _HEALTH_BYTES, streaming=True),
    )


class _Question(msgspec.Struct, eq=False):
    """One request of a call that is not answered yet; with others if the call is an EvaluateBatch."""

    call: Call
    requests: list[decision_pb2.EvaluateRequest]
    traceparent: str
    # Some request wants a min_revision. The call waits for it until then (monotonic; 0: not yet looked at), but once.
    conditional: bool
    park_until: float = 0.0
    parked_out: bool = False
    # What is to become an EvaluateBatchResponse, how many places are empty, and whether it was answered or failed; None: a
    # single Evaluate.
    results: list[bytes] | None = None
    missing: int = 0
    ended: bool = False
    # How many requests have been decided.
    done: int = 0
    # Keeps an EvaluateBatch on one view.
    view: ReadView | None = None
    held: ExitStack | None = None


class _Pending(msgspec.Struct, eq=False, gc=False):
    """A verdict on its way through the journal."""

    question: _Question
    index: int
    verdict: Verdict


class WorkerLoop:
    """Serves one transport in the thread that calls `run`.

    `commit` is shared by the loops of a worker: it guards the journal and the slot, which each take one writer.
    `strict`: without room in the journal nothing is answered, instead of nobody exempted.
    """

    def __init__(
        self,
        transport: Transport,
        servicer: DecisionServicer,
        reader: Reader,
        journal: SegmentWriter,
        slot: WorkerSlot,
        health: Health,
        clock: Clock,
        commit: threading.Lock,
        *,
        max_message_bytes: int,
        strict: bool,
    ) -> None:
        self._transport = transport
        self._servicer = servicer
        self._reader = reader
        self._journal = journal
        self._slot = slot
        self._health = health
        self._clock = clock
        self._commit_lock = commit
        self._max_message_bytes = max_message_bytes
        self._strict = strict
        self._watchers = Watchers(health, transport)
        self._work: deque[_Question] = deque()
        self._parked: list[_Question] = []
        # When to look at the parked ones again.
        self._look_at = 0.0
        self._log_at = 0.0
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
            if calls is None:
                if not self._work and not self._parked:
                    return
                calls = []
                for question in self._parked:
                    question.parked_out = True
            for call in calls:
                self._accept(call)
            if self._work or self._parked:
                self._pass()

    def _patience_s(self) -> float:
        if self._work:
            return 0.0
        return _PARK_POLL_S if self._parked else WAKE_S

    def _accept(self, call: Call) -> None:
        """Parses a call into work, or answers it at once if it is about health."""
        try:
            if call.method == _EVALUATE:
                self._work.append(_question(call, [parse_request(call.payload)]))
            elif call.method == _EVALUATE_BATCH:
                question = _question(call, list(parse_batch(call.payload).requests))
                question.missing = len(question.requests)
                question.results = [b""] * question.missing
                self._work.append(question)
            elif call.method == _CHECK:
                self._transport.answer(call, self._health.check(call.payload))
            elif call.method == _LIST:
                self._transport.answer(call, self._health.list())
            else:
                self._watchers.add(call)
        except Exception as error:
            self._fail(call, error)

    def _pass(self) -> None:
        """Decides what there is time for, records it and answers it."""
        pending: list[_Pending] = []
        room = self._has_room()
        try:
            if not room and self._strict:
                raise UnrecordedError("the journal is full")
            with self._reader.view() as view:
                self._decide(view, room, pending)
        except Exception as error:
            # Not about one call: there is no data, or none that can be read, or no journal.
            for question in (*self._work, *self._parked):
                _give_back(question)
                question.ended = True
                self._fail(question.call, error)
            self._work.clear()
            self._parked.clear()
        if pending:
            self._commit(pending, room)

    def _has_room(self) -> bool:
        try:
            with self._commit_lock:
                return self._journal.has_room()
        except OSError as error:
            self._complain(error)
            return False

    def _decide(self, view: ReadView, room: bool, pending: list[_Pending]) -> None:
        work = self._work
        begun = time.monotonic()
        if self._parked and begun >= self._look_at:
            # What waited longest goes first.
            parked, self._parked = self._parked, []
            work.extendleft(reversed(parked))
            self._look_at = begun + _PARK_POLL_S
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

    def _advance(self, question: _Question, view: ReadView, now: float, room: bool, pending: list[_Pending]) -> None:
        """Decides the question, or a slice of it, or lets it wait."""
        if question.call.cancelled:
            _give_back(question)
        elif question.conditional and self._park(question, view):
            self._parked.append(question)
        elif question.results is None:
            self._decide_one(question, 0, view, now, room, pending)
        else:
            self._decide_slice(question, view, now, room, pending)
            if question.done < len(question.requests):
                self._work.append(question)

    def _park(self, question: _Question, view: ReadView) -> bool:
        """Whether the call is to wait for its min_revision."""
        if question.parked_out or question.done:
            return False
        reached = self._servicer.min_revision_reached
        if all(reached(request, view) for request in question.requests):
            question.conditional = False
            return False
        now = time.monotonic()
        if not question.park_until and len(self._parked) < MAX_PARKED and not self._health.draining:
            question.park_until = min(now + PARK_S, question.call.deadline - 2 * DEADLINE_MARGIN_S)
            with self._commit_lock:
                self._slot.add(WorkerWord.PARKED)
        if now < question.park_until:
            return True
        question.parked_out = True
        return False

    def _decide_slice(
        self, question: _Question, view: ReadView, now: float, room: bool, pending: list[_Pending]
    ) -> None:
        """Decides the next entries of an EvaluateBatch, all of them over the view of the first."""
        if question.view is None:
            question.held = ExitStack()
            question.view = question.held.enter_context(self._reader.view())
        end = min(question.done + SLICE, len(question.requests))
        for index in range(question.done, end):
            self._decide_one(question, index, question.view, now, room, pending)
        question.done = end
        if end == len(question.requests):
            _give_back(question)

    def _decide_one(
        self, question: _Question, index: int, view: ReadView, now: float, room: bool, pending: list[_Pending]
    ) -> None:
        request = question.requests[index]
        try:
            if question.results is not None and request.ByteSize() > self._max_message_bytes:
                raise TooLargeError(f"the entry has {request.ByteSize()} bytes, the limit is {self._max_message_bytes}")
            if question.call.deadline - time.monotonic() < DEADLINE_MARGIN_S:
                verdict = self._servicer.give_up(request, question.traceparent, view, now, Code.DEADLINE)
            else:
                behind = question.parked_out and not self._servicer.min_revision_reached(request, view)
                verdict = self._servicer.evaluate(
                    request, question.traceparent, view, now, journal_full=not room, behind=behind
                )
        except lmdb.Error:
            raise  # the view takes note of it, and all that rests on it fails
        except Exception as error:
            self._reject(question, index, error)
        else:
            pending.append(_Pending(question, index, verdict))

    def _commit(self, pending: list[_Pending], room: bool) -> None:
        """Appends all records in one write, then answers."""
        recorded = False
        with self._commit_lock:
            if room:
                records = [item.verdict.record for item in pending]
                try:
                    self._journal.append(records)
                except JournalError as error:
                    self._complain(error)
                else:
                    recorded = True
                    self._slot.add(WorkerWord.JOURNAL_RECORDS, len(records))
                    self._slot.add(WorkerWord.JOURNAL_BYTES, sum(map(len, records)))
            self._slot.set(WorkerWord.JOURNAL_FULL, 0 if recorded else 1)
        if not recorded:
            if self._strict:
                for item in pending:
                    self._reject(item.question, item.index, UnrecordedError("the decision could not be recorded"))
                return
            pending = self._off_the_record(pending)
        with self._commit_lock:
            if not recorded:
                self._slot.add(WorkerWord.UNRECORDED, len(pending))
            for item in pending:
                decision = item.verdict.decision
                self._slot.count_decision(OUTCOMES[decision.outcome], BASES[decision.basis], item.verdict.duration_s)
        for item in pending:
            self._resolve(item.question, item.index, item.verdict.answer)

    def _off_the_record(self, pending: list[_Pending]) -> list[_Pending]:
        """The verdicts without exemptions."""
        left = []
        for item in pending:
            try:
                item.verdict = self._servicer.without_exemption(item.verdict)
            except Exception as error:
                self._reject(item.question, item.index, error)
            else:
                left.append(item)
        return left

    def _resolve(self, question: _Question, index: int, answer: bytes) -> None:
        """An answer for one request; it leaves once the call's other requests have theirs."""
        if question.results is None:
            self._transport.answer(question.call, answer)
        else:
            self._place(question, index, batch_result(answer))

    def _reject(self, question: _Question, index: int, error: BaseException) -> None:
        """An error in the place of one request's answer."""
        if question.results is None:
            self._fail(question.call, error)
        else:
            code, message = self._status(error)
            self._place(question, index, batch_error(code, message))

    def _place(self, question: _Question, index: int, result: bytes) -> None:
        results = question.results
        if results is None or question.ended:
            return
        results[index] = result
        question.missing -= 1
        if not question.missing:
            question.ended = True
            self._transport.answer(question.call, b"".join(results))

    def _fail(self, call: Call, error: BaseException) -> None:
        code, message = self._status(error)
        self._transport.fail(call, code, message)

    def _status(self, error: BaseException) -> tuple[StatusCode, str]:
        """What to tell the caller, once it has been counted."""
        code, message = status_of(error)
        if code is StatusCode.INTERNAL:
            self._complain(error)
        with self._commit_lock:
            self._slot.count_error(code.name.lower())
        return code, message

    def _complain(self, error: BaseException) -> None:
        """Logs a fault of ours, at most once a second, by its kind and place: messages may hold personal data."""
        now = time.monotonic()
        if now < self._log_at:
            return
        self._log_at = now + _LOG_EVERY_S
        if isinstance(error, SidestepError):
            _log.error("%s: %s", type(error).__name__, error)
            return
        frames = traceback.extract_tb(error.__traceback__)
        place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "?"
        _log.error("a call failed: %s at %s", type(error).__name__, place)


def _question(call: Call, requests: list[decision_pb2.EvaluateRequest]) -> _Question:
    conditional = any(request.HasField("min_revision") for request in requests)
    return _Question(call, requests, call.metadata_value("traceparent"), conditional)


def _give_back(question: _Question) -> None:
    """Ends the view of an EvaluateBatch, if it holds one."""
    if question.held is not None:
        question.held.close()
        question.held = question.view = None
