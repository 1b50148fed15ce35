"""docs/policies.md and docs/policy.schema.json say what the code does."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from engine.cases import run_cases
from engine.durations import format_duration
from engine.plan import NIST_PROFILES
from engine.policy import json_schema, parse_policy
from engine.policy.conditions import VARIABLES

DOCS = Path(__file__).parents[3] / "docs"
GUIDE = (DOCS / "policies.md").read_text()


def blocks() -> list[str]:
    return re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL)


def test_the_table_of_variables() -> None:
    table = GUIDE.split("<!-- variables")[1].split("<!-- end of variables -->")[0]
    rows = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in table.splitlines() if "`" in line]
    types = {v.name: v.type.name().lower().replace("<", "(").replace(">", ")") for v in VARIABLES}
    assert rows == [(f"`{v.name}`", types[v.name], v.meaning) for v in VARIABLES]


def test_the_schema_copy() -> None:
    """`sidestep policy schema > docs/policy.schema.json` renews it."""
    assert json.loads((DOCS / "policy.schema.json").read_text()) == json_schema()


def test_the_nist_times() -> None:
    for profile, (overall_s, idle_s) in NIST_PROFILES.items():
        idle = "-" if idle_s is None else format_duration(idle_s)
        overall = {"1d": "24h"}.get(format_duration(overall_s), format_duration(overall_s))
        assert f"| `{profile}` | {overall} | {idle} |" in GUIDE


def test_the_examples_in_it_work() -> None:
    policy, cases = blocks()
    assert parse_policy(policy).warnings == []
    assert [result.differences for result in run_cases(policy, cases)] == [[], []]


def keys(schema: dict[str, Any], part: dict[str, Any]) -> Iterator[str]:
    """Every key the schema knows, at whatever depth."""
    if "$ref" in part:
        part = schema["$defs"][part["$ref"].rpartition("/")[2]]
    for name, inner in part.get("properties", {}).items():
        yield name
        yield from keys(schema, inner)
    for inner in (*part.get("anyOf", ()), *([part["items"]] if "items" in part else [])):
        yield from keys(schema, inner)


def test_every_key_is_explained() -> None:
    schema = json_schema()
    guides = GUIDE + (DOCS / "guards.md").read_text()
    explained = set(re.findall(r"[A-Za-z0-9]+", " ".join(re.findall(r"`([^`\n]+)`", guides))))
    missing = sorted(set(keys(schema, schema)) - explained)
    assert missing == []


def test_links_lead_somewhere() -> None:
    headings = {re.sub(r"[^a-z0-9 -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.+)$", GUIDE, re.M)}
    for target in re.findall(r"\]\(([^)]+)\)", GUIDE):
        if target.startswith("#"):
            assert target[1:] in headings, target
        elif "://" not in target:
            assert (DOCS / target).exists(), target


def test_cases_in_the_guide_are_plain_yaml() -> None:
    assert all(isinstance(yaml.safe_load(block), dict) for block in blocks())
