"""docs/observability.md against the code: metrics, attributes, commands, settings and links it tells of are those that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Span

from controlplane.cli.main import cli
from controlplane.config import Settings, setting_name
from controlplane.metrics.catalogue import CATALOGUE as OF_THE_CONTROL_PLANE
from engine.decision import Outcome
from sidecar.config import SETTINGS
from sidecar.journal.chain import HASH_BYTES
from sidecar.journal.record import AnyRecord, encode_record
from sidecar.journal.span import encode_span
from sidecar.metrics.catalogue import CATALOGUE
from tests.fakes.otlp import attributes
from tests.fakes.records import make_batch, make_record, make_unrecorded

ROOT = Path(__file__).parents[2]
PATH = ROOT / "docs" / "observability.md"
GUIDE = PATH.read_text(encoding="utf-8")


def section(title: str) -> str:
    text = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", GUIDE, re.MULTILINE | re.DOTALL)
    assert text is not None
    return text[1]


def rows(text: str, columns: int) -> list[list[str]]:
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return [row for row in cells if len(row) == columns and not set(row[0]) <= set("-")]


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


@pytest.mark.parametrize(
    ("title", "catalogue"), [("Metrics", CATALOGUE), ("Metrics of the control plane", OF_THE_CONTROL_PLANE)]
)
def test_every_metric_is_told_as_it_is_and_no_other(title: str, catalogue: tuple[Any, ...]) -> None:
    told = [(code(name), code(otel), kind, code(labels)) for name, otel, kind, labels, _ in rows(section(title), 5)[1:]]
    assert told == [
        ([metric.prometheus], [metric.name], metric.kind.value, [label.name for label in metric.labels])
        for metric in catalogue
    ]


def spans_of(records: list[AnyRecord]) -> list[Span]:
    encoded = b"".join(
        encode_span(encode_record(record), "w0-1", number, bytes(HASH_BYTES)) for number, record in enumerate(records)
    )
    return list(ScopeSpans.FromString(encoded).spans)


def test_every_attribute_and_span_is_told_and_no_other() -> None:
    spans = spans_of([make_record(user_id="alice"), *make_batch(1), make_unrecorded()])
    written = {key for span in spans for key in attributes(span)}
    told = {name for names, *_ in rows(section("Spans"), 4)[1:] for name in code(names)}
    factors = ("identity", "device", "session", "risk")
    assert {f"sidestep.factor.{name}.passed" for name in factors} <= told
    unmeasured = {name for name in told if name.startswith("sidestep.factor.")}
    assert told - unmeasured == {name for name in written if not name.startswith("sidestep.factor.")}
    assert {name for name in written if name.startswith("sidestep.factor.")} <= told
    assert {span.name for span in spans} == {code(row[0])[0] for row in rows(section("Spans"), 5)[1:]}


def test_types_of_attributes_are_those_written() -> None:
    kinds = {
        "string_value": "string",
        "int_value": "int",
        "double_value": "double",
        "bool_value": "bool",
        "bytes_value": "bytes",
        "array_value": "string[]",
    }
    told = {name: kind for names, kind, *_ in rows(section("Spans"), 4)[1:] for name in code(names)}
    for span in spans_of([make_record(user_id="alice"), *make_batch(1), make_unrecorded()]):
        for pair in span.attributes:
            assert told[pair.key] == kinds[str(pair.value.WhichOneof("value"))], pair.key


def test_outcomes_are_written_as_told() -> None:
    (row,) = [row for row in rows(section("Spans"), 4) if row[0] == "`sidestep.outcome`"]
    assert code(row[3]) == [outcome.value for outcome in Outcome]


COMMANDS = sorted(
    {
        command.rstrip(" \\")
        for block in re.findall(r"^```\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
        for command in block.splitlines()
        if command.startswith("sidestep ")
    }
    | set(re.findall(r"`(sidestep [^`]+)`", GUIDE))
)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_exists_and_takes_what_it_is_shown_with(command: str) -> None:
    _, *words = shlex.split(command)
    group: click.Command = cli
    context = click.Context(cli, info_name="sidestep")
    while isinstance(group, click.Group) and words and not words[0].startswith("-"):
        found = group.get_command(context, words.pop(0))
        assert found is not None, command
        group = found
        context = click.Context(group, info_name=group.name, parent=context)
    known = {name for parameter in group.params for name in (*parameter.opts, *parameter.secondary_opts)}
    assert {word for word in words if word.startswith("--")} <= known


def test_the_shown_commands_are_documented_by_the_program_itself() -> None:
    shown = CliRunner().invoke(cli, ["sidecars", "audit", "--help"])
    assert shown.exit_code == 0
    assert "13" in shown.output, "the guide tells this exit code"


def test_settings_exist() -> None:
    known = SETTINGS.keys() | {setting_name(field) for field in Settings.model_fields}
    assert set(re.findall(r"SIDESTEP_[A-Z_]*[A-Z]", GUIDE)) <= known


def test_links_lead_somewhere() -> None:
    anchors = {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", GUIDE, re.MULTILINE)
    }
    for target in re.findall(r"\]\(([^)]+)\)", GUIDE):
        page, _, anchor = target.partition("#")
        if page:
            assert (PATH.parent / page).exists(), target
        else:
            assert anchor in anchors, target


def test_configuration_examples_are_yaml_and_every_part_of_the_pipelines_is_there() -> None:
    collector, scrape = [
        yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
    ]
    for name, pipeline in collector["service"]["pipelines"].items():
        for kind in ("receivers", "processors", "exporters"):
            assert set(pipeline[kind]) <= collector[kind].keys(), name
    assert set(collector["service"]["extensions"]) <= collector["extensions"].keys()
    assert scrape["scrape_configs"][0]["job_name"] == "sidestep"
