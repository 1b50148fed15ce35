"""Calls that wait: for their min_revision, or for what a request cannot be decided without.

A request waits for a slice of a budget, or for the first call with its request_id. The requests of an EvaluateBatch wait side
by side: all are looked into before the call waits for any, so that what they need is asked for at once, and each waits no longer
than one alone would.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

from sidecar.front.health import Health
from sidecar.front.question import Question, Stalled
from sidecar.front.servicer import DecisionServicer, Waiting
from sidecar.page import WorkerSlot, WorkerWord
from sidecar.store.view import ReadView

DEADLINE_MARGIN_S: Final = 0.002
"""Time a caller must have left for its request to be looked into."""
PARK_S: Final = 0.05
"""Longest a call waits for its min_revision."""
WAIT_S: Final = 0.03
"""Longest a request waits for what else it cannot be decided without: a slice of a budget, the first call with its request_id."""
MAX_PARKED: Final = 256
POLL_S: Final = 0.001
"""How often those that wait are looked at again."""


class Parked:
    """The waiting calls of one loop. Not thread-safe."""

    def __init__(self, servicer: DecisionServicer, slot: WorkerSlot, health: Health) -> None:
        self._reached = servicer.min_revision_reached
        self._slot = slot
        self._health = health
        self._parked: list[Question] = []
        # When to look at them again.
        self._look_at = 0.0

    def __len__(self) -> int:
        return len(self._parked)

    def __iter__(self) -> Iterator[Question]:
        return iter(self._parked)

    def add(self, question: Question) -> None:
        """It has to wait (on)."""
        self._parked.append(question)

    def due(self, now: float) -> list[Question]:
        """Takes all of them, in the order in which they came, if it is time to look. `now`: monotonic."""
        if not self._parked or now < self._look_at:
            return []
        self._look_at = now + POLL_S
        return self.clear()

    def clear(self) -> list[Question]:
        """Takes all of them."""
        parked, self._parked = self._parked, []
        return parked

    def hurry(self) -> None:
        """Nobody waits any longer."""
        for question in self._parked:
            question.parked_out = question.hurried = True

    def for_revision(self, question: Question, view: ReadView) -> bool:
        """Whether the call is to wait for its min_revision."""
        if question.parked_out or question.done:
            return False
        if all(self._reached(request, view) for request in question.requests):
            question.conditional = False
            return False
        now = time.monotonic()
        if not question.park_until and len(self._parked) < MAX_PARKED and not self._health.draining:
            question.park_until = min(now + PARK_S, question.call.deadline - 2 * DEADLINE_MARGIN_S)
            self._slot.add(WorkerWord.PARKED)
        if now < question.park_until:
            return True
        question.parked_out = True
        return False

    def stall(self, question: Question, index: int, waiting: Waiting) -> bool:
        """Whether one of the call's requests has to wait (on)."""
        stalled = question.stalled.get(index)
        now = time.monotonic()
        if stalled is None:
            if len(self._parked) >= MAX_PARKED or question.hurried:
                until = now
            else:
                until = min(now + WAIT_S, question.call.deadline - 2 * DEADLINE_MARGIN_S)
                if not question.stalled:
                    self._slot.add(WorkerWord.PARKED)
            stalled = question.stalled[index] = Stalled(waiting.over, until)
        stalled.over, stalled.examined = waiting.over, waiting.examined
        return not self._ready(question, stalled, now)

    def patient(self, question: Question, index: int) -> bool:
        """Whether the request may wait."""
        stalled = question.stalled.get(index)
        return stalled is None or (not question.hurried and time.monotonic() < stalled.until)

    def ready(self, question: Question) -> list[int]:
        """Those of the call's requests that waited and need not any longer, in their order."""
        now = time.monotonic()
        return sorted(index for index, stalled in question.stalled.items() if self._ready(question, stalled, now))

    def _ready(self, question: Question, stalled: Stalled, now: float) -> bool:
        return question.hurried or now >= stalled.until or stalled.over()
