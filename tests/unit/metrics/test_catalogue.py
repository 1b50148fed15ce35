"""Names, units and labels of metrics."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sidecar.metrics.catalogue import CATALOGUE, Kind, Label, Metric
from sidecar.metrics.collect import collect
from sidecar.page import Page


@pytest.mark.parametrize(
    ("name", "kind", "unit", "prometheus"),
    [
        ("sidestep.decisions", Kind.COUNTER, "{decision}", "sidestep_decisions_total"),
        ("sidestep.decision.duration", Kind.HISTOGRAM, "s", "sidestep_decision_duration_seconds"),
        ("sidestep.journal.bytes", Kind.COUNTER, "By", "sidestep_journal_bytes_total"),
        ("sidestep.journal.backlog", Kind.GAUGE, "{record}", "sidestep_journal_backlog"),
        ("sidestep.journal.backlog.bytes", Kind.GAUGE, "By", "sidestep_journal_backlog_bytes"),
        ("sidestep.wait", Kind.COUNTER, "s", "sidestep_wait_seconds_total"),
    ],
)
def test_prometheus_names_follow_from_opentelemetrys(name: str, kind: Kind, unit: str, prometheus: str) -> None:
    assert Metric(name, kind, unit, "").prometheus == prometheus


def test_the_catalogue_is_well_formed() -> None:
    names = [metric.name for metric in CATALOGUE]
    assert len(set(names)) == len(names)
    assert len({metric.prometheus for metric in CATALOGUE}) == len(names)
    for metric in CATALOGUE:
        assert re.fullmatch(r"sidestep(\.[a-z]+(_[a-z]+)*)+", metric.name)
        assert metric.unit in ("s", "By") or re.fullmatch(r"\{[a-z]+\}", metric.unit)
        # Text formats would have to escape them.
        assert not set('\\"\n') & set(metric.help)
        assert metric.help[0].isupper() or metric.help[0].isdigit()
        assert metric.help.endswith(".")
        for label in metric.labels:
            assert isinstance(label, Label)
            assert re.fullmatch(r"[a-z]+", label.name)
            assert all(re.fullmatch(r"[a-z][a-z0-9_-]*", value) for value in label.values)
            assert 1 < len(set(label.values)) <= 65


def test_the_design_names_metrics_that_exist() -> None:
    promised = """sidestep.decisions sidestep.decision.duration sidestep.data.age sidestep.revision
        sidestep.journal.backlog sidestep.journal.lost sidestep.sync.connected"""
    assert set(promised.split()) <= {metric.name for metric in CATALOGUE}


def test_every_metric_is_collected_even_with_the_most_workers(tmp_path: Path) -> None:
    page = Page.create(tmp_path / "page", 64)
    samples = collect(page)
    page.close()
    assert [sample.metric for sample in samples] == list(CATALOGUE)
    for metric, points, histogram in samples:
        assert (histogram is not None) == (metric.kind is Kind.HISTOGRAM)
        for point in points:
            assert len(point.labels) == len(metric.labels)
            assert all(value in label.values for value, label in zip(point.labels, metric.labels, strict=True))
        assert len({point.labels for point in points}) == len(points)
