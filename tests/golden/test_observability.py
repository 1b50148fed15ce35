"""The dashboard and the alert rules against the code: every query parses, and asks for metrics, labels and values that exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import promql_parser
import pytest
import yaml

from controlplane.metrics.catalogue import CATALOGUE as OF_THE_CONTROL_PLANE
from sidecar.metrics.catalogue import CATALOGUE, Kind

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "observability" / "prometheus"
DASHBOARD: dict[str, Any] = json.loads((ROOT / "observability/grafana/sidestep.json").read_text(encoding="utf-8"))
GUIDE = (ROOT / "docs/observability.md").read_text(encoding="utf-8")
ALERTS: dict[str, Any] = yaml.safe_load((PROMETHEUS / "alerts.yaml").read_text(encoding="utf-8"))
RECORDED: dict[str, Any] = yaml.safe_load((PROMETHEUS / "recording.yaml").read_text(encoding="utf-8"))

# Labels that whoever scrapes adds, and those of buckets.
OF_THE_TARGET = {"job", "instance"}


class Known(NamedTuple):
    """What can be asked of a series: its labels and their values (None: any)."""

    labels: dict[str, tuple[str, ...] | None]


def known() -> dict[str, Known]:
    """Series by name: of the catalogue, and recorded ones."""
    found: dict[str, Known] = {}
    for metric in (*CATALOGUE, *OF_THE_CONTROL_PLANE):
        labels: dict[str, tuple[str, ...] | None] = dict.fromkeys(OF_THE_TARGET)
        labels |= {label.name: label.values for label in metric.labels}
        if metric.kind == Kind.HISTOGRAM:
            found |= {f"{metric.prometheus}{suffix}": Known(labels) for suffix in ("_sum", "_count")}
            found[f"{metric.prometheus}_bucket"] = Known(labels | {"le": None})
        else:
            found[metric.prometheus] = Known(labels)
    for rule in rules(RECORDED):
        found[rule["record"]] = Known({"job": None})
    return found


def rules(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [rule for group in document["groups"] for rule in group["rules"]]


def targets() -> list[tuple[str, dict[str, Any]]]:
    return [(panel["title"], target) for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]


def plain(expression: str) -> str:
    """A dashboard's query with its variables filled in."""
    return expression.replace("$__rate_interval", "5m").replace("$job", ".*").replace("$instance", ".*")


QUERIES = [
    *((f"panel {title}", plain(target["expr"])) for title, target in targets()),
    *((f"alert {rule['alert']}", rule["expr"]) for rule in rules(ALERTS)),
    *((f"record {rule['record']}", rule["expr"]) for rule in rules(RECORDED)),
]


def nodes(query: str) -> Iterator[Any]:
    found: list[Any] = []
    promql_parser.walk(promql_parser.parse(query), found.append)
    yield from found


def problems(query: str) -> Iterator[str]:
    """What a query asks for that does not exist."""
    series = known()
    labels: set[str] = set()
    for node in nodes(query):
        if type(node).__name__ != "VectorSelector":
            continue
        if node.name not in series:
            yield f"no metric {node.name}"
            continue
        labels |= series[node.name].labels.keys()
        for matcher in node.matchers.matchers:
            yield from unmatched(series[node.name], node.name, matcher)
    for node in nodes(query):
        modifier = getattr(node, "modifier", None)
        if type(node).__name__ == "AggregateExpr" and modifier is not None:
            yield from (f"nothing has a label {label}" for label in modifier.labels if label not in labels)


def unmatched(series: Known, name: str, matcher: Any) -> Iterator[str]:
    if matcher.name not in series.labels:
        yield f"{name} has no label {matcher.name}"
        return
    values = series.labels[matcher.name]
    if values is None:
        return
    for wanted in matcher.value.split("|"):
        if not any(re.fullmatch(wanted, value) for value in values):
            yield f"{name} never has {matcher.name}={wanted}"


@pytest.mark.parametrize(("where", "query"), QUERIES, ids=[where for where, _ in QUERIES])
def test_a_query_asks_for_what_exists(where: str, query: str) -> None:
    assert list(problems(query)) == []


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("sum(rate(sidestep_decision_total[5m]))", "no metric sidestep_decision_total"),
        ("sidestep_decision_duration_seconds > 1", "no metric sidestep_decision_duration_seconds"),
        ('sidestep_errors_total{reason="x"}', "sidestep_errors_total has no label reason"),
        ('sidestep_errors_total{code="oops"}', "sidestep_errors_total never has code=oops"),
        ('sidestep_errors_total{code=~"internal|oops"}', "sidestep_errors_total never has code=oops"),
        ("sum by (tenant) (sidestep_errors_total)", "nothing has a label tenant"),
    ],
)
def test_a_wrong_query_is_found(query: str, problem: str) -> None:
    assert list(problems(query)) == [problem]


def anchors() -> set[str]:
    """Of the guide's headings, as GitHub and most renderers make them."""
    headings = re.findall(r"^#+ (.+)$", GUIDE, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_alert_says_how_bad_it_is_what_it_means_and_where_help_is() -> None:
    alerts = rules(ALERTS)
    names = [alert["alert"] for alert in alerts]
    assert len(set(names)) == len(names)
    for alert in alerts:
        assert re.fullmatch(r"Sidestep[A-Z]\w+", alert["alert"])
        assert alert["labels"]["severity"] in ("critical", "warning"), alert["alert"]
        notes = alert["annotations"]
        assert notes["summary"]
        assert notes["description"].endswith(".")
        page, _, anchor = notes["runbook_url"].partition("#")
        assert (page, anchor) == ("docs/observability.md", alert["alert"].lower())
        assert anchor in anchors()
        for label in re.findall(r"\$labels\.(\w+)", notes["summary"] + notes["description"]):
            kept = {label for node in nodes(alert["expr"]) for label in aggregated(node)} or OF_THE_TARGET | {"process"}
            assert label in kept, f"{alert['alert']}: {label} is aggregated away"


def aggregated(node: Any) -> set[str]:
    """Labels that an aggregation `by` leaves; recorded series have `job` only."""
    if type(node).__name__ == "VectorSelector" and node.name.startswith("job:"):
        return {"job"}
    return set()


def test_what_must_stay_zero_has_an_alert() -> None:
    watched = {node.name for rule in rules(ALERTS) for node in nodes(rule["expr"]) if hasattr(node, "matchers")}
    must = {metric.prometheus for metric in CATALOGUE if metric.help.endswith("Must stay 0.")}
    # What was never recorded is part of what is lost.
    assert must - watched == {"sidestep_journal_unrecorded_total"}


def test_the_dashboard_is_one_grafana_takes() -> None:
    assert DASHBOARD["uid"] == "sidestep"
    assert DASHBOARD["schemaVersion"] >= 38, "Grafana 10"
    assert "id" not in DASHBOARD, "the database's, not ours"
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    for name in ("job", "instance"):
        match = re.fullmatch(r"label_values\((\w+)(?:\{.*\})?, (\w+)\)", variables[name]["definition"])
        assert match is not None
        assert (match[1] in known(), match[2]) == (True, name)
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        if panel["type"] != "row":
            assert panel["description"], panel["title"]
            assert panel["datasource"]["uid"] == "${datasource}"
            assert panel["targets"]
    taken = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(taken)) == len(taken), "panels overlap"
    assert max(x for x, _ in taken) < 24


def test_the_dashboard_shows_the_essentials_and_leads_to_traces() -> None:
    shown = {
        node.name
        for title, query in QUERIES
        if title.startswith("panel")
        for node in nodes(query)
        if hasattr(node, "matchers")
    }
    assert shown >= {
        "sidestep_decisions_total",
        "sidestep_decision_duration_seconds_bucket",
        "sidestep_data_age_seconds",
        "sidestep_sync_connected",
        "sidestep_journal_backlog",
        "sidestep_journal_lost_total",
        "sidestep_journal_export_state",
        "sidestep_process_restarts_total",
    }
    with_exemplars = [target["expr"] for _, target in targets() if target["exemplar"]]
    assert with_exemplars
    assert all("sidestep_decision_duration_seconds_bucket" in query for query in with_exemplars)
    legends = [label for _, target in targets() for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])]
    assert set(legends) <= {label for series in known().values() for label in series.labels}


@pytest.mark.e2e
def test_alerts_fire_when_they_should() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not on the PATH")
    command = [promtool, "test", "rules", "alerts.test.yaml"]
    ended = subprocess.run(command, cwd=PROMETHEUS, capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 0, ended.stdout + ended.stderr
