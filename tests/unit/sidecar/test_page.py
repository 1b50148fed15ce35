"""The shared page."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sidestep.v1 import decision_pb2

from sidecar.page import (
    BASES,
    ERRORS,
    EXEMPLAR_WORDS,
    LATENCY_BOUNDS_S,
    OUTCOMES,
    UNKNOWN,
    AgentWord,
    Page,
    PageError,
    State,
    Word,
    WorkerWord,
    boottime_ms,
)


@pytest.fixture
def page(tmp_path: Path) -> Page:
    return Page.create(tmp_path / "page", 2)


def test_what_one_process_writes_another_reads(tmp_path: Path) -> None:
    page = Page.create(tmp_path / "page", 2)
    script = f"""
from pathlib import Path
from sidecar.page import Page, State
slot = Page(Path({str(tmp_path / "page")!r})).worker(1)
slot.attach()
slot.set_ports([0, 4000])
slot.set_state(State.SERVING)
slot.set_data(1.5, 42, 2**63)
for _ in range(3):
    slot.count_decision(1, 3, 0.0001)
"""
    child = subprocess.Popen([sys.executable, "-c", script])
    assert child.wait(20) == 0
    slot = page.worker(1)
    assert slot.pid == child.pid
    assert slot.state is State.SERVING
    assert slot.ports(2) == [0, 4000]
    assert (slot.get(Word.DATA_AGE_MS), slot.get(Word.URGENT_REVISION)) == (1500, 42)
    assert slot.get(Word.BULK_REVISION) == 2**63
    assert slot.get(WorkerWord.DECISIONS, 1 * len(BASES) + 3) == 3
    assert 0 <= boottime_ms() - slot.get(Word.HEARTBEAT_MS) < 20_000
    assert page.worker(0).state is State.EMPTY
    assert page.agent.state is State.EMPTY


def test_slots_do_not_overlap(page: Page) -> None:
    slots = [page.agent, page.worker(0), page.worker(1)]
    words = 256
    for mark, slot in enumerate(slots, 1):
        for word in range(words):
            slot.set(word, mark)
    for mark, slot in enumerate(slots, 1):
        assert {slot.get(word) for word in range(words)} == {mark}
    assert page.drain_deadline_ms == 0
    assert page.workers == 2


def test_words_of_a_slot_do_not_overlap() -> None:
    sizes = {
        WorkerWord.PORTS: 8,
        WorkerWord.DECISIONS: len(OUTCOMES) * len(BASES),
        WorkerWord.ERRORS: len(ERRORS),
        WorkerWord.LATENCY: len(LATENCY_BOUNDS_S) + 1,
    }
    used = [word + at for word in WorkerWord for at in range(sizes.get(word, 1))]
    exemplars = {AgentWord.EXEMPLARS: EXEMPLAR_WORDS * (len(LATENCY_BOUNDS_S) + 1)}
    used_by_agent = [word + at for word in AgentWord for at in range(exemplars.get(word, 1))]
    for words in (used, used_by_agent):
        assert len(set(words)) == len(words)
        assert min(words) > max(Word)
        assert max(words) < 256


def test_labels_are_those_of_the_api() -> None:
    assert [f"OUTCOME_{name.upper()}" for name in OUTCOMES] == list(decision_pb2.Outcome.keys())
    assert [f"BASIS_{name.upper()}" for name in BASES] == list(decision_pb2.Basis.keys())


def test_a_restarted_owner_goes_on_counting(page: Page) -> None:
    slot = page.worker(0)
    slot.attach()
    slot.count_decision(2, 4, 0.5)
    slot.set_data(1.0, 5, 5)
    slot.set_state(State.SERVING)
    slot.attach()
    assert slot.state is State.STARTING
    assert slot.get(Word.DATA_AGE_MS) == UNKNOWN
    slot.count_decision(2, 4, 0.5)
    assert slot.get(WorkerWord.DECISIONS, 2 * len(BASES) + 4) == 2


def test_numbers_the_page_does_not_know_count_as_unspecified(page: Page) -> None:
    slot = page.worker(0)
    slot.count_decision(99, -1, -1.0)
    slot.count_error("something else")
    assert slot.get(WorkerWord.DECISIONS, 0) == 1
    assert slot.get(WorkerWord.ERRORS, ERRORS.index("other")) == 1


def test_a_new_page_does_not_disturb_processes_on_the_old_one(tmp_path: Path) -> None:
    old = Page.create(tmp_path / "page", 1)
    new = Page.create(tmp_path / "page", 3)
    old.agent.set(Word.PID, 1)
    assert new.agent.pid == 0
    assert Page(tmp_path / "page").workers == 3


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\0" * 2048 * 4, b"\xff" * 2048 * 4])
def test_a_file_that_is_no_page_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "page").write_bytes(content)
    with pytest.raises(PageError, match="page"):
        Page(tmp_path / "page")


def test_a_missing_page_or_slot_is_refused(tmp_path: Path, page: Page) -> None:
    with pytest.raises(PageError, match="No such file"):
        Page(tmp_path / "missing")
    with pytest.raises(PageError, match="no slot for worker 2"):
        page.worker(2)
    with pytest.raises(PageError, match="1 to 64"):
        Page.create(tmp_path / "large", 65)


def test_the_page_says_since_when_it_counts(tmp_path: Path) -> None:
    before = time.time_ns()
    page = Page.create(tmp_path / "page", 1)
    assert before <= page.created_ns <= time.time_ns()
    assert Page(tmp_path / "page").created_ns == page.created_ns


def test_the_file_takes_its_room_when_it_is_made(tmp_path: Path) -> None:
    Page.create(tmp_path / "page", 4)
    stat = os.stat(tmp_path / "page")
    assert stat.st_blocks * 512 >= stat.st_size
