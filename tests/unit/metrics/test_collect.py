"""What the page says becomes samples: sums over workers, the worst age, what counts as lost."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.metrics import catalogue
from sidecar.metrics.catalogue import Metric
from sidecar.metrics.collect import collect
from sidecar.page import AgentWord, Page, State, Word, WorkerWord
from tests.fakes.counters import fill


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    page = Page.create(tmp_path / "page", 2)
    yield page
    page.close()


def values(page: Page, metric: Metric) -> dict[tuple[str, ...], float]:
    (sample,) = [sample for sample in collect(page) if sample.metric is metric]
    return {point.labels: point.value for point in sample.points}


def test_counters_of_workers_are_summed_up(page: Page) -> None:
    fill(page)
    decisions = values(page, catalogue.DECISIONS)
    assert decisions["allow", "assurance_satisfied"] == 2
    assert decisions["step_up", "challenge"] == 2
    assert decisions["unspecified", "unspecified"] == 1
    assert ("unspecified", "challenge") not in decisions
    assert values(page, catalogue.ERROR_COUNT)[("invalid_argument",)] == 2
    assert values(page, catalogue.JOURNAL_RECORDS) == {(): 400}
    (duration,) = [sample.histogram for sample in collect(page) if sample.histogram is not None]
    assert (sum(duration.counts), duration.sum_s) == (5, pytest.approx(7.00008))


def test_lost_is_what_is_gone_and_what_was_never_recorded(page: Page) -> None:
    assert values(page, catalogue.JOURNAL_LOST) == {(): 0}
    page.agent.add(AgentWord.JOURNAL_LOST, 5)
    page.worker(0).add(WorkerWord.UNRECORDED, 2)
    page.worker(1).add(WorkerWord.UNRECORDED, 1)
    assert values(page, catalogue.JOURNAL_LOST) == {(): 8}
    assert values(page, catalogue.JOURNAL_UNRECORDED) == {(): 3}


def test_an_unknown_age_is_the_worst_age_and_an_unknown_revision_none(page: Page) -> None:
    assert values(page, catalogue.DATA_AGE) == {(): math.inf}
    assert values(page, catalogue.REVISION) == {}
    for index in (0, 1):
        page.worker(index).attach()
    page.worker(0).set_data(1.0, 1, 1)
    assert values(page, catalogue.DATA_AGE) == {(): math.inf}
    assert values(page, catalogue.REVISION) == {("urgent",): 1, ("bulk",): 1}
    page.worker(1).set_data(2.5, 3, None)
    assert values(page, catalogue.DATA_AGE) == {(): 2.5}
    page.worker(0).set_data(1.0, 4, None)
    assert values(page, catalogue.REVISION) == {("urgent",): 3}
    page.worker(1).set_state(State.DEAD)
    assert values(page, catalogue.DATA_AGE) == {(): 1.0}
    assert values(page, catalogue.REVISION) == {("urgent",): 4}


def test_every_process_is_in_one_state(page: Page) -> None:
    page.agent.set_state(State.SERVING)
    page.worker(1).set_state(State.DEAD)
    page.worker(1).set(Word.RESTARTS, 3)
    states = values(page, catalogue.PROCESS_STATE)
    assert [labels for labels, value in states.items() if value] == [
        ("agent", "serving"),
        ("worker-0", "empty"),
        ("worker-1", "dead"),
    ]
    assert values(page, catalogue.PROCESS_RESTARTS) == {("agent",): 0, ("worker-0",): 0, ("worker-1",): 3}


def test_the_collector_is_in_one_state(page: Page) -> None:
    page.agent.set(AgentWord.EXPORT_STATE, 3)
    states = values(page, catalogue.EXPORT_STATE)
    assert [labels for labels, value in states.items() if value] == [("refusing",)]
    assert len(states) == 4


def test_callers_are_as_many_as_the_worker_knows_that_knows_fewest(page: Page) -> None:
    assert values(page, catalogue.CALLERS) == {(): 0}
    for index, known in enumerate((3, 2)):
        page.worker(index).attach()
        page.worker(index).set(WorkerWord.CALLERS, known)
    page.worker(0).set(WorkerWord.CALLERS_UNUSABLE, 1)
    page.worker(1).add(WorkerWord.CALLERS_FAILURES, 2)
    assert values(page, catalogue.CALLERS) == {(): 2}
    assert values(page, catalogue.CALLERS_UNUSABLE) == {(): 1}
    assert values(page, catalogue.CALLERS_FAILURES) == {(): 2}
    page.worker(1).set_state(State.DEAD)
    assert values(page, catalogue.CALLERS) == {(): 3}
