"""Writes helm/sidestep/README.md: what the chart installs, and every value with its default and its description.

    python scripts/chart_readme.py            writes it
    python scripts/chart_readme.py --check    exit code 1 if it is not what would be written

Defaults come from values.yaml, descriptions from values.schema.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).resolve().parent.parent / "helm" / "sidestep"
HEAD = """# Chart `sidestep`

<!-- Written by scripts/chart_readme.py from values.yaml and values.schema.json: change those. -->

Installs the control plane, the webhook that gives pods their sidecar, and what Prometheus, Grafana and a collector want of them.
[docs/kubernetes.md](../../docs/kubernetes.md) says how to go about it.

```
helm install sidestep helm/sidestep -n sidestep-system --create-namespace -f helm/sidestep/values-minimal.yaml
```

Nothing is open unless you say so: without certificates, or names for sidecars and operators, `controlplane.insecure` and
`sidecar.tls.insecure` must be set.

| scenario | values |
|---|---|
"""


def main() -> None:
    """Exit code 1 with --check: out of date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    text = render()
    path = CHART / "README.md"
    if not check:
        path.write_text(text, encoding="utf-8")
    elif not path.exists() or path.read_text(encoding="utf-8") != text:
        sys.exit("helm/sidestep/README.md is out of date: python scripts/chart_readme.py")


def render() -> str:
    """The text of the page."""
    text = HEAD
    for path in sorted(CHART.glob("values-*.yaml")):
        first = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        text += f"| `{path.name}` | {first} |\n"
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    for section, node in schema["properties"].items():
        if section not in values:
            continue
        rows = list(_rows(section, values[section], node))
        if len(rows) > 1:
            text += f"\n## {section}\n\n{node['description']}\n\n"
            rows = rows[1:]
        elif "## All" not in text:
            text += "\n## All\n\n"
        else:
            text += _row(*rows[0])
            continue
        text += "| value | default | meaning |\n|---|---|---|\n" + "".join(_row(*row) for row in rows)
    return text


def _rows(path: str, value: Any, node: dict[str, Any]) -> Iterator[tuple[str, Any, str]]:
    """A value and all below it: name, default (None for what has parts), meaning."""
    meaning = node.get("description", "")
    if "enum" in node:
        meaning += f" One of {', '.join(f'`{choice}`' for choice in node['enum'])}."
    parts = node.get("properties")
    yield path, (None if parts and not path.endswith("resources") else value), meaning
    if parts and not path.endswith("resources"):
        for name, part in parts.items():
            yield from _rows(f"{path}.{name}", value[name], part)


def _row(path: str, value: Any, meaning: str) -> str:
    default = "" if value is None else f"`{json.dumps(value)}`"
    escaped = meaning.replace("|", "\\|").replace("<", "&lt;").replace(">", "&gt;")
    return f"| `{path}` | {default} | {escaped} |\n"


if __name__ == "__main__":
    main()
