"""What can be said of the Dockerfile without a container engine; tests/image runs the trees it copies."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
STEPS = [line for line in TEXT.splitlines() if line and not line.startswith("#")]


def _stages() -> dict[str, list[str]]:
    stages: dict[str, list[str]] = {}
    name = ""
    for step in STEPS:
        if match := re.fullmatch(r"FROM (\S+) AS (\S+)", step):
            name = match[2]
            stages[name] = list(stages.get(match[1], ()))
        elif name:
            stages[name].append(step)
    return stages


def _programs(target: str) -> tuple[str, ...]:
    spec = importlib.util.spec_from_file_location("build_tree", ROOT / "scripts" / "build_tree.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    programs: tuple[str, ...] = module.PROGRAMS[target]
    return programs


@pytest.mark.parametrize("target", ["sidecar", "controlplane"])
def test_an_image_runs_as_a_number_without_compiler_or_pip_and_watches_itself(target):
    steps = _stages()[target]
    users = [step.split()[1] for step in steps if step.startswith("USER")]
    assert users == ["65532:65532"]
    runs = " ".join(step for step in steps if step.startswith("RUN"))
    assert "site-packages/*" in runs
    assert "ensurepip" in runs
    assert not re.search(r"apt-get|apk|gcc|pip install", runs)
    (health,) = (step for step in steps if step.startswith("HEALTHCHECK"))
    (entry,) = (step for step in steps if step.startswith("ENTRYPOINT"))
    assert "sidestep-healthcheck" in health
    assert re.findall(r'"(.+?)"', entry)[0] in _programs(target)
    assert f"COPY --from=build-{target} /opt/sidestep /opt/sidestep" in steps
    assert any(step.startswith("LABEL org.opencontainers.image.title=") for step in steps)


def test_every_base_is_one_pinned_argument():
    bases = re.findall(r"^FROM (\S+) AS", TEXT, re.MULTILINE)
    (argument,) = re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", TEXT, re.MULTILINE)
    assert {base for base in bases if base not in _stages()} == {"${PYTHON_IMAGE}"}
    assert re.search(r":[0-9]+\.[0-9]+\.[0-9]+-slim", argument)


def test_what_it_copies_is_there_and_reaches_the_builder():
    sent = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [step.split()[1:-1] for step in STEPS if step.startswith("COPY") and "--from" not in step]
    for source in (name for names in copied for name in names):
        assert (ROOT / source).exists(), source
        assert source.split("/")[0] in sent, source
