"""The journal at its bound: the one case in which decisions may go unrecorded, and then they are counted exactly."""

from __future__ import annotations

from pathlib import Path

import pytest
from sidestep.v1 import decision_pb2

from tests.chaos.account import assert_accounted, audit, faults, recorded, sidestep
from tests.chaos.callers import Answer, Callers
from tests.chaos.collector import WITHIN_S, Collector, shipping_pod
from tests.chaos.pod import Plane
from tests.processes import until

# The smallest journal there is.
SMALL = {"SIDESTEP_JOURNAL_MAX": "1MiB"}
# Whatever was in flight when the bound was reached has been answered then.
IN_FLIGHT = 30


def bases(answers: list[Answer], question: str) -> set[int]:
    """What the answers to a question rest on."""
    return {answer.response.basis for answer in answers if answer.question == question}


@pytest.mark.parametrize("killed", [False, pytest.param(True, marks=pytest.mark.e2e)])
def test_exemptions_stop_and_what_is_not_recorded_is_counted(tmp_path: Path, plane: Plane, killed: bool) -> None:
    name, data = f"bound-{killed}", tmp_path / "data"
    settings = {"SIDESTEP_SIDECAR_NAME": name, **SMALL}
    with (
        Collector(tmp_path / "collector") as collector,
        shipping_pod(data, collector, plane.address, **settings) as pod,
    ):
        until(lambda: pod.readyz()["ok"], "data", WITHIN_S)
        with Callers(pod.address, pause_s=0.0) as callers:
            until(lambda: pod.readyz()["journal"]["full"], "the bound to be reached", WITHIN_S)
            before = callers.answers[:]
            callers.wait_for_answers(IN_FLIGHT)
            behind = len(callers.answers)
            callers.wait_for_answers(200)
            if killed:
                # With it goes the record of how many it owes, but not the count.
                pod.kill("worker")
                callers.wait_for_answers(200)
        at_bound = callers.answers[behind:]
        allowed = decision_pb2.BASIS_EXEMPTION_GRANT
        assert allowed in bases(before, "exempted")
        assert bases(at_bound, "exempted") == {decision_pb2.BASIS_CHALLENGE}
        for question in ("blocked", "satisfied", "challenged", "free"):
            assert bases(at_bound, question) == bases(before, question) != set()

        answered, kept = set(callers.ids), recorded(data / "journal")
        missing = len(answered - kept.decisions)
        counted = int(pod.metric("sidestep_journal_unrecorded_total"))
        assert missing <= counted <= missing + callers.unknown
        assert missing >= 200
        assert killed or callers.unknown == 0
        assert len(kept.decisions - answered) <= callers.unknown
        assert (callers.problems, faults(kept)) == ([], [])
        assert pod.metric("sidestep_journal_lost_total") == counted
        health = pod.readyz()["journal"]
        assert (health["full"], health["unrecorded"], health["lost"]) == (True, counted, counted)

        collector.start()
        collector.wait_for(answered & kept.decisions)
        until(lambda: not pod.readyz()["journal"]["full"], "room", WITHIN_S)
        with Callers(pod.address) as again:
            until(lambda: allowed in bases(again.answers, "exempted"), "exemptions to apply again", WITHIN_S)
        collector.wait_for(again.ids)
        if not killed:
            until(lambda: collector.ids() and collector.unrecorded == counted, "the record of it", WITHIN_S)
        assert pod.metric("sidestep_journal_unrecorded_total") == counted
        assert pod.stop() == 0
    found = recorded(collector.export())
    assert set(again.ids) <= found.decisions
    assert faults(found) == []
    accounts = audit(plane.address, name)
    assert sum(account["lost"] for account in accounts.values()) == counted
    assert {account["waiting"] for account in accounts.values()} == {0}
    shown = sidestep("journal", "verify", str(collector.export()), SIDESTEP_SERVER=plane.address)
    assert shown.exit_code == 0, shown.output
    assert "decisions more without a record" in shown.output


def test_strict_answers_nothing_that_is_not_recorded(tmp_path: Path, data: Path) -> None:
    with Collector(tmp_path / "collector") as collector:
        with shipping_pod(data, collector, SIDESTEP_JOURNAL_STRICT="true", **SMALL) as pod:
            with Callers(pod.address, pause_s=0.0, batches=False) as callers:
                until(lambda: callers.refused > IN_FLIGHT, "calls to be refused", WITHIN_S)
                collector.start()
                callers.wait_for_answers(100)
            assert pod.metric("sidestep_journal_unrecorded_total") == 0
            assert pod.metric("sidestep_journal_lost_total") == 0
            collector.wait_for(callers.ids)
        assert callers.unknown == 0
        found = recorded(collector.export())
        assert_accounted(callers, found)
        assert found.decisions == set(callers.ids), "no decision is recorded that was refused"
