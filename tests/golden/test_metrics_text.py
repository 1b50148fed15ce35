"""`/metrics` of a fixed page, in both formats, against golden files. To accept a change: GOLDEN_UPDATE=1 pytest tests/golden."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.metrics.catalogue import CATALOGUE, Kind
from sidecar.metrics.collect import collect
from sidecar.metrics.text import Format, render
from sidecar.page import AgentWord, Page
from tests.fakes.counters import AT_NS, SPAN_ID, TRACE_ID, fill, write_exemplar
from tests.golden import openmetrics

HERE = Path(__file__).parent


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    page = Page.create(tmp_path / "page", 2)
    fill(page)
    yield page
    page.close()


@pytest.mark.parametrize("form", Format)
def test_the_text_is_that_of_the_golden_file(page: Page, form: Format) -> None:
    golden = HERE / f"metrics.{form.name.lower()}.txt"
    text = render(collect(page), form)
    if os.environ.get("GOLDEN_UPDATE"):
        golden.write_text(text, encoding="utf-8")
    assert text == golden.read_text(encoding="utf-8")


def test_openmetrics_holds_to_its_specification_and_says_everything(page: Page) -> None:
    families = openmetrics.parse(render(collect(page), Format.OPENMETRICS))
    assert {name: (family.kind, family.unit) for name, family in families.items()} == {
        metric.family: (metric.kind.value, metric.prometheus_unit) for metric in CATALOGUE
    }
    assert all(family.samples for family in families.values())
    # A dead worker's data does not count.
    assert [sample.value for sample in families["sidestep_data_age_seconds"].samples] == [1.5]


def test_a_fresh_page_is_valid_openmetrics_too(tmp_path: Path) -> None:
    page = Page.create(tmp_path / "fresh", 1)
    families = openmetrics.parse(render(collect(page), Format.OPENMETRICS))
    page.close()
    # What is not known yet: no revision, and an age that sets off every alarm.
    assert not families["sidestep_revision"].samples
    assert families["sidestep_data_age_seconds"].samples[0].value == float("inf")
    assert [s.value for s in families["sidestep_decision_duration_seconds"].samples] == [0.0] * 19
    # Counters that alarms watch are there from the start, or the first step would go unseen.
    assert families["sidestep_journal_lost"].samples[0].value == 0.0


def test_both_formats_say_the_same_but_for_exemplars(page: Page) -> None:
    def samples(form: Format) -> list[str]:
        return [line.split(" # ")[0] for line in render(collect(page), form).splitlines() if not line.startswith("#")]

    assert samples(Format.PROMETHEUS) == samples(Format.OPENMETRICS)
    assert " # " not in "".join(line for line in render(collect(page), Format.PROMETHEUS) if not line.startswith("#"))


def test_labels_are_those_of_the_catalogue(page: Page) -> None:
    families = openmetrics.parse(render(collect(page), Format.OPENMETRICS))
    for metric in CATALOGUE:
        if metric.kind is Kind.HISTOGRAM:
            continue
        for sample in families[metric.family].samples:
            assert list(sample.labels) == [label.name for label in metric.labels]
            assert all(sample.labels[label.name] in label.values for label in metric.labels)


def test_an_exemplar_leads_from_its_bucket_to_its_trace(page: Page) -> None:
    families = openmetrics.parse(render(collect(page), Format.OPENMETRICS))
    found = {s.labels["le"]: s.exemplar for s in families["sidestep_decision_duration_seconds"].samples if s.exemplar}
    labels = {"trace_id": TRACE_ID, "span_id": SPAN_ID}
    at = AT_NS // 1_000_000 / 1000
    assert found == {
        "5e-05": openmetrics.Exemplar(labels, 40e-6, at),
        "+Inf": openmetrics.Exemplar(labels, 3.0, at),
    }


def test_an_exemplar_that_is_half_written_is_left_out(page: Page) -> None:
    write_exemplar(page, 0, 3.0)  # the duration of another bucket
    write_exemplar(page, 1, 20e-6, trace_id="0" * 32)
    page.agent.set(AgentWord.EXEMPLARS, 0, 2 * 5 + 2)  # bucket 2 loses its span id
    families = openmetrics.parse(render(collect(page), Format.OPENMETRICS))
    assert [s.labels["le"] for s in families["sidestep_decision_duration_seconds"].samples if s.exemplar] == ["+Inf"]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("sidestep_revision 4", "interleaved"),
        ("# EOF", "EOF in the middle"),
        ("sidestep_decisions{outcome=allow} 1", "a label without quotes"),
        ("# TYPE sidestep_decisions counter", "a family twice"),
    ],
)
def test_the_reader_of_these_tests_is_strict(page: Page, line: str, why: str) -> None:
    good = render(collect(page), Format.OPENMETRICS)
    lines = good.splitlines()
    at = next(index for index, text in enumerate(lines) if re.match(r"sidestep_journal_records_total", text))
    broken = "\n".join([*lines[:at], line, *lines[at:]]) + "\n"
    with pytest.raises(AssertionError):
        openmetrics.parse(broken)
    assert openmetrics.parse(good), why
