"""docs/operations.md against the code: every setting with its default, nothing that does not exist."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from controlplane.config import FILE_SETTING, Settings, load_settings, setting_name
from sidecar.config import SETTINGS, load

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
    # That they are read at all: another value of each, wrong where it can be, is refused or makes a difference.
    others = {"OTEL_EXPORTER_OTLP_COMPRESSION": "gzip", "OTEL_SDK_DISABLED": "true"}
    for name in told:
        changed = {"SIDESTEP_TENANT": "acme", name: others.get(name, "9")}
        try:
            differs = load(changed) != load({"SIDESTEP_TENANT": "acme"})
        except Exception as error:
            differs = name in str(error)
        assert differs or name.endswith("INSECURE"), name
