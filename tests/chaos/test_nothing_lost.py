"""Whatever the collector does, every answered decision reaches it (DESIGN section 8): ids are counted on both sides."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.journal.quarantine import quarantine_segments
from tests.chaos.account import assert_accounted, recorded, sidestep
from tests.chaos.callers import Callers
from tests.chaos.collector import WITHIN_S, Collector
from tests.chaos.pod import Pod
from tests.fakes.collector import Behaviour
from tests.processes import until

NOBODY = "127.0.0.1:1"
GRPC, HTTP = "grpc", "http/protobuf"


def heavy(*values: object) -> object:
    return pytest.param(*values, marks=pytest.mark.e2e)


def pod_of(data: Path, collector: Collector, **settings: str) -> Pod:
    """A sidecar that ships to the collector, and needs no control plane."""
    usual = {
        "SIDESTEP_SIDECAR_NAME": "pod-7",
        "SIDESTEP_JOURNAL_SINK": "otlp",
        "SIDESTEP_SHUTDOWN_GRACE": "3s",
        "OTEL_METRICS_EXPORTER": "none",
    }
    return Pod(data, NOBODY, **(usual | collector.settings | settings))


@pytest.mark.parametrize(("protocol", "answers"), [(HTTP, 150), heavy(GRPC, 3000), heavy(HTTP, 3000)])
def test_a_collector_that_was_down_all_the_time(tmp_path: Path, data: Path, protocol: str, answers: int) -> None:
    with Collector(tmp_path / "collector", protocol) as collector:
        with pod_of(data, collector) as pod:
            with Callers(pod.address) as callers:
                callers.wait_for_answers(answers)
                # Restarted under load, it has the records of both lives.
                assert pod.stop() == 0
                pod.start()
                callers.wait_for_answers(answers)
            assert pod.stop() == 0
        assert_accounted(callers, recorded(data))
        collector.start()
        with pod_of(data, collector) as pod:
            collector.wait_for(callers.ids)
            assert pod.metric("sidestep_journal_lost_total") == 0
        assert_accounted(callers, recorded(collector.export()))


@pytest.mark.parametrize(("protocol", "kills", "answers"), [(GRPC, 4, 40), heavy(GRPC, 10, 400), heavy(HTTP, 10, 400)])
def test_a_collector_that_is_killed_again_and_again(
    tmp_path: Path, data: Path, protocol: str, kills: int, answers: int
) -> None:
    with Collector(tmp_path / "collector", protocol) as collector:
        collector.start()
        with pod_of(data, collector) as pod:
            with Callers(pod.address) as callers:
                for _ in range(kills):
                    before = len(collector.ids())
                    until(lambda before=before: len(collector.ids()) > before, "more spans", WITHIN_S)
                    collector.kill()
                    callers.wait_for_answers(answers)
                    collector.start()
            collector.wait_for(callers.ids)
            assert pod.metric("sidestep_journal_lost_total") == 0
        assert callers.unknown == 0, "callers notice nothing"
        assert_accounted(callers, recorded(collector.export()))


@pytest.mark.parametrize(
    ("protocol", "unfair", "answers"),
    [
        # Given up by the sidecar, kept by the collector: such a request comes again.
        (GRPC, Behaviour(fair_every=3, delay_s=1.0), 150),
        (HTTP, Behaviour(fair_every=3, retry_after_s=0.2), 150),
        heavy(HTTP, Behaviour(fair_every=3, delay_s=1.0), 3000),
        heavy(GRPC, Behaviour(fair_every=3, retry_after_s=0.2), 3000),
    ],
)
def test_a_collector_that_is_slow_or_exhausted(
    tmp_path: Path, data: Path, protocol: str, unfair: Behaviour, answers: int
) -> None:
    with Collector(tmp_path / "collector", protocol) as collector:
        collector.start(unfair)
        with pod_of(data, collector, OTEL_EXPORTER_OTLP_TIMEOUT="300") as pod:
            with Callers(pod.address) as callers:
                callers.wait_for_answers(answers)
            collector.wait_for(callers.ids)
            assert pod.metric("sidestep_journal_export_failures_total") > 0
            assert pod.metric("sidestep_journal_lost_total") == 0
            assert pod.metric("sidestep_journal_quarantined_total") == 0
        assert callers.unknown == 0
        assert (collector.duplicates > 0) == (unfair.delay_s > 0)
        assert_accounted(callers, recorded(collector.export()))


@pytest.mark.parametrize(("protocol", "answers"), [(GRPC, 150), heavy(HTTP, 3000)])
def test_a_collector_that_takes_only_parts(tmp_path: Path, data: Path, protocol: str, answers: int) -> None:
    journal = data / "journal"
    with Collector(tmp_path / "collector", protocol) as collector:
        collector.start(Behaviour(fair_every=2, reject=1))
        with pod_of(data, collector) as pod:
            with Callers(pod.address) as callers:
                callers.wait_for_answers(answers)

            def recorded_now() -> bool:
                return set(callers.ids) <= collector.ids() | recorded(journal).decisions

            until(recorded_now, "every decision to arrive or be set aside", WITHIN_S)
            until(lambda: pod.metric("sidestep_journal_backlog") == 0, "nothing to wait", WITHIN_S)
            assert not set(callers.ids) <= collector.ids(), "some were rejected"
            assert quarantine_segments(journal)
            assert pod.metric("sidestep_journal_lost_total") == 0
            assert_accounted(callers, recorded(collector.export(), journal))
            collector.kill()
            collector.start()
            shipped = sidestep("journal", "ship", str(data), "--quarantined", "--no-report", **collector.settings)
            assert shipped.exit_code == 0, shipped.output
            assert quarantine_segments(journal) == []
        assert_accounted(callers, recorded(collector.export()))
