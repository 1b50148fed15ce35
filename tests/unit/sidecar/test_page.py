"""The shared page and its rendering as Prometheus text."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from sidestep.v1 import decision_pb2

from sidecar.metrics import render
from sidecar.page import (
    BASES,
    ERRORS,
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
    assert len(set(used)) == len(used)
    assert min(used) > max(Word)
    assert min(AgentWord) > max(Word)
    assert max(used) < 256


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


def test_metrics_sum_over_workers_and_name_every_process(page: Page) -> None:
    for index, age in ((0, 1.5), (1, 2.5)):
        slot = page.worker(index)
        slot.attach()
        slot.set_state(State.SERVING)
        slot.set_data(age, 40 + index, 7)
        slot.count_decision(1, 2, 40e-6)
        slot.count_decision(2, 4, 3.0)
        slot.count_error("invalid_argument")
        slot.add(WorkerWord.JOURNAL_RECORDS, 2)
    page.agent.set(AgentWord.JOURNAL_BACKLOG_BYTES, 1234)
    page.agent.add(AgentWord.JOURNAL_LOST, 5)
    page.agent.set(AgentWord.SYNC_CONNECTED, 1)
    text = render(page, {"agent": (page.agent, 0), "worker-0": (page.worker(0), 3)})
    lines = text.splitlines()
    for expected in (
        'sidestep_decisions_total{outcome="allow",basis="assurance_satisfied"} 2',
        'sidestep_decisions_total{outcome="deny",basis="blocked"} 0',
        'sidestep_errors_total{code="invalid_argument"} 2',
        'sidestep_decision_duration_seconds_bucket{le="2.5e-05"} 0',
        'sidestep_decision_duration_seconds_bucket{le="5e-05"} 2',
        'sidestep_decision_duration_seconds_bucket{le="1"} 2',
        'sidestep_decision_duration_seconds_bucket{le="+Inf"} 4',
        "sidestep_decision_duration_seconds_count 4",
        "sidestep_decision_duration_seconds_sum 6.00008",
        "sidestep_journal_records_total 4",
        "sidestep_journal_backlog_bytes 1234",
        "sidestep_journal_lost_total 5",
        "sidestep_sync_connected 1",
        "sidestep_data_age_seconds 2.5",
        'sidestep_revision{lane="urgent"} 40',
        'sidestep_revision{lane="bulk"} 7',
        'sidestep_process_state{process="worker-0",state="serving"} 1',
        'sidestep_process_state{process="worker-0",state="dead"} 0',
        'sidestep_process_restarts_total{process="worker-0"} 3',
    ):
        assert expected in lines
    assert text.endswith("\n")
    sample = re.compile(r'[a-z_]+(\{[a-z_]+="[^"]*"(,[a-z_]+="[^"]*")*\})? \S+')
    assert all(line.startswith("# ") or sample.fullmatch(line) for line in lines)
    names = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(names) == len(set(names))


def test_an_unknown_age_is_the_worst_age(page: Page) -> None:
    page.worker(0).set_data(1.0, 1, 1)
    page.worker(1).set_data(None, None, None)
    assert "sidestep_data_age_seconds +Inf" in render(page, {}).splitlines()
    assert 'sidestep_revision{lane="urgent"} 1' in render(page, {})


def test_the_file_takes_its_room_when_it_is_made(tmp_path: Path) -> None:
    Page.create(tmp_path / "page", 4)
    stat = os.stat(tmp_path / "page")
    assert stat.st_blocks * 512 >= stat.st_size
