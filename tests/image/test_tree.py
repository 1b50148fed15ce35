"""The file trees that become the images: built as the Dockerfile builds them, run as a cluster would run them.

No container engine is needed. Where this runs as root the programs get a root that is read-only and a user that is nobody, in a
mount namespace of their own; elsewhere they run as they are.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.processes import PATIENCE_S, Program, until

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
NOBODY = 65532
# Measured 115 and 178 MiB. Whoever adds a dependency that makes an image much larger shall notice.
MOST_MIB = {"sidecar": 150, "controlplane": 220}


@pytest.fixture(scope="module", params=["sidecar", "controlplane"])
def tree(request, tmp_path_factory) -> Iterator[tuple[str, Path]]:
    prefix = tmp_path_factory.mktemp("tree") / "sidestep"
    command = [sys.executable, str(ROOT / "scripts" / "build_tree.py"), request.param, str(prefix)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert built.returncode == 0, built.stderr
    yield request.param, prefix
    shutil.rmtree(prefix)


def test_it_holds_programs_of_ours_and_neither_pip_nor_what_the_target_does_not_run(tree):
    target, prefix = tree
    programs = {path.name for path in (prefix / "bin").iterdir() if not path.name.startswith("python")}
    packages = {path.name for path in (prefix / "lib").glob("python3.*/site-packages/*")}
    assert not {"pip", "setuptools", "wheel", "pytest", "grpc_tools", "cyclonedx"} & packages
    assert {"engine", "sidecar", "sidestep"} <= packages
    if target == "sidecar":
        assert programs == {"sidestep-sidecar", "sidestep-healthcheck"}
        assert not {"controlplane", "sqlalchemy", "click"} & packages
    else:
        assert {"sidestep", "sidestep-controlplane", "sidestep-healthcheck"} <= programs
    size = sum(path.lstat().st_size for path in prefix.rglob("*")) / 2**20
    assert size < MOST_MIB[target], f"{size:.0f} MiB"


def test_its_bill_of_materials_lists_every_distribution_with_version_and_licence(tree):
    _, prefix = tree
    bom = json.loads((prefix / "sbom.cdx.json").read_text())
    listed = {component["name"].lower(): component for component in bom["components"]}
    command = [prefix / "bin" / "python", "-c", _DISTRIBUTIONS]
    installed = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert bom["specVersion"] == "1.6"
    assert {name: component["version"] for name, component in listed.items()} == installed
    assert not [name for name, component in listed.items() if not component.get("licenses")]
    assert str(prefix.parent) not in (prefix / "sbom.cdx.json").read_text()


def test_every_module_of_ours_can_be_imported(tree):
    target, prefix = tree
    packages = "engine,sidecar" if target == "sidecar" else "engine,controlplane"
    command = [prefix / "bin" / "python", "-c", _IMPORT_ALL, packages]
    assert json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout) == []


def test_it_starts_and_answers_on_a_read_only_root_as_nobody(tree, tmp_path):
    target, prefix = tree
    data = tmp_path / "data"
    data.mkdir()
    if target == "sidecar":
        program, path = "sidestep-sidecar", "/startz"
        settings = {
            "SIDESTEP_TENANT": "acme",
            "SIDESTEP_DATA_DIR": str(data),
            "SIDESTEP_LISTEN": "127.0.0.1:0",
            "SIDESTEP_HTTP_LISTEN": "127.0.0.1:0",
            # Nobody listens there: it must start and answer all the same.
            "SIDESTEP_CONTROL_PLANE": "127.0.0.1:1",
        }
    else:
        program, path = "sidestep-controlplane", "/healthz"
        settings = {
            "SIDESTEP_CP_DATABASE_URL": f"sqlite+aiosqlite:///{data}/sidestep.db",
            "SIDESTEP_CP_LISTEN": "127.0.0.1:0",
            "SIDESTEP_CP_HTTP_LISTEN": "127.0.0.1:0",
        }
    with _running(prefix, program, data, settings, tmp_path / "log") as started:
        check = [prefix / "bin" / "sidestep-healthcheck", started.http, path]
        until(lambda: subprocess.run(check, capture_output=True, check=False).returncode == 0, f"{path} to say yes")
        missing = subprocess.run([*check[:2], "/nowhere"], capture_output=True, text=True, check=False)
        assert missing.returncode == 1
        assert "404" in missing.stderr
        with grpc.insecure_channel(started.grpc) as channel:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        assert started.stop() == 0, started.errors()
    gone = subprocess.run(check, capture_output=True, text=True, check=False)
    assert gone.returncode == 1
    assert "refused" in gone.stderr.lower()


@contextlib.contextmanager
def _running(prefix: Path, program: str, data: Path, settings: dict[str, str], log: Path) -> Iterator[Program]:
    command = [str(prefix / "bin" / program)]
    if os.geteuid() == 0:
        os.chown(data, NOBODY, NOBODY)
        for folder in (*data.parents, *prefix.parents):
            # Temporary folders of tests are closed to others.
            if folder.is_relative_to(_temporary(data)):
                folder.chmod(0o755)
        mounts = [
            "mount --make-rprivate /",
            'mount --bind "$1" "$1"',
            *_readable_python(data),
            "mount -o remount,ro,bind /",
        ]
        script = " && ".join([*mounts, "shift", 'exec "$@"'])
        user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs"]
        command = ["unshare", "--mount", "sh", "-c", script, "sh", str(data), *user, *command]
    started = Program(command, settings, log)
    try:
        started.wait_until_ready()
        yield started
    finally:
        started.end()


def _readable_python(data: Path) -> list[str]:
    """Mounts that let nobody read the Python of this machine, which may lie in somebody's home."""
    python = Path(sys.base_prefix)
    home = Path("/", *python.parts[1:2])
    if home.stat().st_mode & 0o005 == 0o005:
        return []
    aside = data.with_name("python")
    aside.mkdir()
    return [
        f"mount --bind {python} {aside}",
        f"mount -t tmpfs -o mode=755 tmpfs {home}",
        f"mkdir -p {python}",
        f"mount --move {aside} {python}",
    ]


def _temporary(path: Path) -> Path:
    return next(parent for parent in path.parents if parent.name.startswith("pytest-of-"))


_DISTRIBUTIONS = """
import json
from importlib.metadata import distributions
print(json.dumps({d.metadata["Name"].lower(): d.version for d in distributions()}))
"""
_IMPORT_ALL = """
import importlib, json, pkgutil, sys
failed = []
for name in sys.argv[1].split(","):
    for module in pkgutil.walk_packages(importlib.import_module(name).__path__, name + "."):
        # What only Alembic runs, and finds its own context in.
        if module.name == "controlplane.store.migrations.env":
            continue
        try:
            importlib.import_module(module.name)
        except ImportError as error:
            failed.append(f"{module.name}: {error}")
print(json.dumps(failed))
"""
