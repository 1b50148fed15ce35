"""docs/operations.md against the code: every setting with its default, every metric, nothing that does not exist."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from controlplane.config import FILE_SETTING, Settings, load_settings, setting_name
from sidecar import metrics
from sidecar.config import SETTINGS, load
from sidecar.page import Page

GUIDE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (`[^|]*`) \|([^|]*)\|", GUIDE, re.MULTILINE)


def documented(prefix: str) -> dict[str, str]:
    """Settings of the tables and their defaults; what is not in code style is no value but a description."""
    found: dict[str, str] = {}
    for names, default in ROWS:
        for name in re.findall(r"`([A-Z_]+)`", names):
            if name.startswith(prefix):
                assert name not in found, f"{name} is told twice"
                found[name] = default.strip()
    return found


def values(settings: dict[str, str]) -> dict[str, str]:
    return {name: default.strip("`") for name, default in settings.items() if default.startswith("`")}


def test_the_sidecars_settings_and_defaults_are_those_of_the_code() -> None:
    told = {name: value for name, value in documented("SIDESTEP_").items() if not name.startswith("SIDESTEP_CP_")}
    assert told.keys() == SETTINGS.keys() | {"SIDESTEP_CONFIG"}
    assert told["SIDESTEP_TENANT"] == "required"
    assert load(values(told) | {"SIDESTEP_TENANT": "acme"}) == load({"SIDESTEP_TENANT": "acme"})


def test_the_control_planes_settings_and_defaults_are_those_of_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    told = documented("SIDESTEP_CP_")
    assert told.keys() == {setting_name(field) for field in Settings.model_fields} | {FILE_SETTING}
    for name in [name for name in os.environ if name.startswith("SIDESTEP_CP_")]:
        monkeypatch.delenv(name)
    defaults = load_settings()
    for name, value in values(told).items():
        monkeypatch.setenv(name, value)
    assert load_settings() == defaults


def test_the_exporters_variables_and_defaults_are_those_of_the_code() -> None:
    told = values(documented("OTEL_"))
    assert load(told | {"SIDESTEP_TENANT": "acme"}) == load({"SIDESTEP_TENANT": "acme"})
    # That they are read at all: a wrong value of each that can be wrong is refused or makes a difference.
    for name in told:
        wrong = {"SIDESTEP_TENANT": "acme", name: "gzip" if name.endswith("COMPRESSION") else "9"}
        try:
            differs = load(wrong) != load({"SIDESTEP_TENANT": "acme"})
        except Exception as error:
            differs = name in str(error)
        assert differs or name.endswith("INSECURE"), name


def test_every_metric_is_told_with_its_kind_and_no_other(tmp_path: Path) -> None:
    page = Page.create(tmp_path / "page", 1)
    try:
        text = metrics.render(page, {"agent": (page.agent, 0), "worker-0": (page.worker(0), 0)})
    finally:
        page.close()
    rendered = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    told = {name: kind.strip() for names, kind in ROWS for name in re.findall(r"`(sidestep_\w+)`", names)}
    assert told == rendered
