"""A page on which every word says something, the same every time."""

from __future__ import annotations

from sidecar.page import (
    BASES,
    EXEMPLAR_WORDS,
    LATENCY_BOUNDS_S,
    OFFSET_ZERO,
    OUTCOMES,
    AgentWord,
    Page,
    State,
    Word,
    WorkerWord,
)

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
SPAN_ID = "b7ad6b7169203331"
AT_NS = 1_795_000_000_123_456_789


def fill(page: Page) -> None:
    """Fills a page of two workers: one serves, the other has just died."""
    for index in (0, 1):
        slot = page.worker(index)
        slot.set_data(1.5 + index, 40 + index, 7)
        slot.count_decision(OUTCOMES.index("allow"), BASES.index("assurance_satisfied"), 40e-6)
        slot.count_decision(OUTCOMES.index("step_up"), BASES.index("challenge"), 3.0)
        slot.count_error("invalid_argument")
        for at, word in enumerate((WorkerWord.PARKED, WorkerWord.JOURNAL_RECORDS, WorkerWord.JOURNAL_BYTES), 1):
            slot.add(word, 100 * at)
    page.worker(0).set_state(State.SERVING)
    page.worker(0).count_decision(0, 0, 1.0)
    page.worker(1).set_state(State.DEAD)
    page.worker(1).set(Word.RESTARTS, 3)
    page.worker(1).set(WorkerWord.JOURNAL_FULL, 1)
    page.worker(1).add(WorkerWord.UNRECORDED, 2)
    agent = page.agent
    agent.set_state(State.SERVING)
    for own in AgentWord:
        if own not in (AgentWord.EXEMPLARS, AgentWord.EXPORT_STATE):
            agent.set(own, int(own))
    agent.set(AgentWord.EXPORT_STATE, 2)
    agent.set(AgentWord.CLOCK_OFFSET_MS, OFFSET_ZERO - 1500)
    write_exemplar(page, LATENCY_BOUNDS_S.index(50e-6), 40e-6)
    write_exemplar(page, len(LATENCY_BOUNDS_S), 3.0)


def write_exemplar(page: Page, bucket: int, duration_s: float, trace_id: str = TRACE_ID) -> None:
    """The agent's words about the last decision of a bucket."""
    words = (int(trace_id[:16], 16), int(trace_id[16:], 16), int(SPAN_ID, 16), round(duration_s * 1e9), AT_NS)
    assert len(words) == EXEMPLAR_WORDS
    for at, word in enumerate(words):
        page.agent.set(AgentWord.EXEMPLARS, word, bucket * EXEMPLAR_WORDS + at)
