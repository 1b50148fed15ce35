"""The chart, rendered as Helm does it, one scenario at a time."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import helm_python
import yaml

CHART = Path(__file__).resolve().parents[2] / "helm" / "sidestep"
GOLDEN = Path(__file__).with_name("golden")
SCENARIOS = sorted(path.stem.removeprefix("values-") for path in CHART.glob("values-*.yaml"))
NAMESPACE = "sidestep-system"


@cache
def chart() -> helm_python.Chart:
    """The chart, loaded once."""
    return helm_python.Chart.load(CHART)


def values(scenario: str) -> dict[str, Any]:
    """The values of a scenario."""
    return yaml.safe_load((CHART / f"values-{scenario}.yaml").read_text(encoding="utf-8"))


def render(changes: dict[str, Any]) -> dict[str, str]:
    """Templates by their path, without the empty ones. Raises HelmError."""
    rendered = chart().render(changes, name="sidestep", namespace=NAMESPACE, is_install=True)
    return {path: text for path, text in sorted(rendered.items()) if text.strip()}


def objects(changes: dict[str, Any]) -> list[dict[str, Any]]:
    """The objects that would be applied, hooks included."""
    texts = [text for path, text in render(changes).items() if path.endswith(".yaml")]
    return [document for text in texts for document in yaml.safe_load_all(text) if document]


def pod_specs(found: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Every pod specification in them, by kind and name."""
    specs = {}
    for thing in found:
        spec = {"Pod": lambda s: s, "CronJob": lambda s: s["jobTemplate"]["spec"]["template"]["spec"]}.get(
            thing["kind"], lambda s: s.get("template", {}).get("spec")
        )(thing.get("spec", {}))
        if spec:
            specs[f"{thing['kind']} {thing['metadata']['name']}"] = spec
    return specs


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Values with changes laid over them, as -f and --set do it."""
    result = dict(base)
    for name, value in changes.items():
        old = result.get(name)
        result[name] = merged(old, value) if isinstance(value, dict) and isinstance(old, dict) else value
    return result
