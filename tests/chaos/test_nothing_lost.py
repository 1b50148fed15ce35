"""Whatever the collector does, every answered decision reaches it (DESIGN section 8): ids are counted on both sides."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.journal.quarantine import quarantine_segments
from sidecar.journal.source import read_sources
from tests.chaos.account import assert_accounted, decision_ids, recorded, sidestep
from tests.chaos.callers import Callers
from tests.chaos.collector import GRPC, HTTP, WITHIN_S, Collector, shipping_pod
from tests.fakes.collector import Behaviour
from tests.processes import until


def heavy(*values: object) -> object:
    return pytest.param(*values, marks=pytest.mark.e2e)


@pytest.mark.parametrize(("protocol", "answers"), [(HTTP, 150), heavy(GRPC, 3000), heavy(HTTP, 3000)])
def test_a_collector_that_was_down_all_the_time(tmp_path: Path, data: Path, protocol: str, answers: int) -> None:
    with Collector(tmp_path / "collector", protocol) as collector:
        with shipping_pod(data, collector, SIDESTEP_SHUTDOWN_GRACE="2s") as pod:
            with Callers(pod.address) as callers:
                callers.wait_for_answers(answers)
            assert pod.stop() == 0
        assert_accounted(callers, recorded(data))
        collector.start()
        with shipping_pod(data, collector) as pod:
            collector.wait_for(callers.ids)
            assert pod.metric("sidestep_journal_lost_total") == 0
        assert_accounted(callers, recorded(collector.export()))


@pytest.mark.parametrize(("protocol", "kills", "answers"), [(GRPC, 4, 40), heavy(GRPC, 10, 400), heavy(HTTP, 10, 400)])
def test_a_collector_that_is_killed_again_and_again(
    tmp_path: Path, data: Path, protocol: str, kills: int, answers: int
) -> None:
    with Collector(tmp_path / "collector", protocol) as collector:
        collector.start()
        with shipping_pod(data, collector) as pod:
            with Callers(pod.address) as callers:
                for _ in range(kills):
                    collector.wait_for_more()
                    collector.kill()
                    callers.wait_for_answers(answers)
                    collector.start()
            collector.wait_for(callers.ids)
            assert pod.metric("sidestep_journal_lost_total") == 0
        assert callers.unknown == 0, "callers notice nothing"
        assert_accounted(callers, recorded(collector.export()))


@pytest.mark.parametrize(("protocol", "answers"), [(GRPC, 150), heavy(HTTP, 3000)])
def test_a_collector_that_answers_too_late(tmp_path: Path, data: Path, protocol: str, answers: int) -> None:
    """It keeps the spans of a request that the sidecar has given up, and gets them again."""
    with Collector(tmp_path / "collector", protocol) as collector:
        collector.start(Behaviour(fair_every=3, delay_s=1.0))
        with shipping_pod(data, collector, OTEL_EXPORTER_OTLP_TIMEOUT="300") as pod:
            with Callers(pod.address) as callers:
                callers.wait_for_answers(answers)
                until(lambda: collector.ids() and collector.duplicates, "spans that come again", WITHIN_S)
            collector.wait_for(callers.ids)
            assert pod.metric("sidestep_journal_lost_total") == 0
        assert callers.unknown == 0
        assert_accounted(callers, recorded(collector.export()))


@pytest.mark.parametrize(("protocol", "answers"), [(HTTP, 150), heavy(GRPC, 3000)])
def test_a_collector_that_is_exhausted(tmp_path: Path, data: Path, protocol: str, answers: int) -> None:
    with Collector(tmp_path / "collector", protocol) as collector:
        collector.start(Behaviour(fair_every=3, retry_after_s=0.2))
        with shipping_pod(data, collector) as pod:
            with Callers(pod.address) as callers:
                callers.wait_for_answers(answers)
            collector.wait_for(callers.ids)
            assert pod.metric("sidestep_journal_export_failures_total") >= 2
            assert pod.metric("sidestep_journal_quarantined_total") == 0
            assert pod.metric("sidestep_journal_lost_total") == 0
        assert callers.unknown == 0
        assert_accounted(callers, recorded(collector.export()))


@pytest.mark.parametrize(("protocol", "answers"), [(GRPC, 150), heavy(HTTP, 800)])
def test_a_collector_that_takes_only_parts(tmp_path: Path, data: Path, protocol: str, answers: int) -> None:
    """What it may have rejected is set aside, and shipped when an operator says so; the sidecar runs on meanwhile."""
    journal = data / "journal"
    with Collector(tmp_path / "collector", protocol) as collector:
        collector.start(Behaviour(fair_every=2, reject=1))
        with shipping_pod(data, collector) as pod:
            with Callers(pod.address) as callers:
                callers.wait_for_answers(answers)

            def settled() -> bool:
                aside = decision_ids(each.payload for each in read_sources([journal]) if each.quarantined)
                return set(callers.ids) <= collector.ids() | aside

            until(settled, "every decision to arrive or to be set aside", WITHIN_S)
            assert not set(callers.ids) <= collector.ids(), "some were rejected"
            assert pod.metric("sidestep_journal_lost_total") == 0
            assert_accounted(callers, recorded(collector.export(), journal))
            collector.kill()
            collector.start()
            command = ("journal", "ship", str(data), "--quarantined", "--no-report")
            # Of very many files the last is finished only when there are few again.
            until(lambda: sidestep(*command, **collector.settings).exit_code == 0, "it to be shipped", WITHIN_S)
            assert quarantine_segments(journal) == []
            collector.wait_for(callers.ids)
        assert_accounted(callers, recorded(collector.export()))
