"""Builds the file tree of an image: the programs of one target with all they need, under one folder.

    python scripts/build_tree.py sidecar /opt/sidestep
    python scripts/build_tree.py controlplane /opt/sidestep

The Dockerfile runs this in its build stages; without a container engine it makes the same tree anywhere. The tree is
a virtual environment without pip: only programs of Sidestep in `bin/`, packages pinned by constraints.txt, compiled once because
the root of a container is read-only, and `sbom.cdx.json`, its bill of materials (CycloneDX 1.6).

The Python that runs this is the one the tree will use. It needs pip, and cyclonedx-bom (extra `image`).
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import venv
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BOM = "sbom.cdx.json"

# What a target is installed from, the packages it does not run, and the programs it offers.
INSTALLED = {
    "sidecar": ("proto", ".[sidecar]"),
    "controlplane": ("proto", "clients/python", ".[controlplane]"),
}
LEFT_OUT = {"sidecar": ("controlplane",), "controlplane": ()}
PROGRAMS = {
    "sidecar": ("sidestep-sidecar", "sidestep-healthcheck"),
    "controlplane": (
        "sidestep",
        "sidestep-controlplane",
        "sidestep-healthcheck",
        "sidestep-injector",
        "sidestep-webhook-certificate",
    ),
}


def main() -> None:
    """Exit code 1: a step failed, and says why."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=sorted(INSTALLED))
    parser.add_argument("prefix", type=Path, help="a folder that does not exist yet")
    arguments = parser.parse_args()
    prefix: Path = arguments.prefix.resolve()
    if prefix.exists() and any(prefix.iterdir()):
        sys.exit(f"{prefix}: is not empty")
    try:
        build(arguments.target, prefix)
    except subprocess.CalledProcessError as error:
        sys.exit(f"{' '.join(map(str, error.cmd))}: exit code {error.returncode}")
    size = sum(path.lstat().st_size for path in prefix.rglob("*"))
    print(f"{arguments.target}: {prefix}, {size / 2**20:.1f} MiB")


def build(target: str, prefix: Path) -> None:
    """Makes the tree. Raises CalledProcessError."""
    venv.create(prefix, with_pip=False, symlinks=True)
    python = prefix / "bin" / "python"
    # fmt: off
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--disable-pip-version-check", "--no-compile",
         "--constraint", ROOT / "constraints.txt", *(ROOT / source for source in INSTALLED[target])],
        check=True,
    )
    # fmt: on
    packages = site_packages(prefix)
    for name in LEFT_OUT[target]:
        shutil.rmtree(packages / name)
    _keep_programs(prefix / "bin", PROGRAMS[target])
    # It would tell where the tree was built.
    for path in packages.glob("*.dist-info/direct_url.json"):
        path.unlink()
    write_bom(python, packages, prefix / BOM)
    compiled = [python, "-m", "compileall", "-q", "-j", "0", "--invalidation-mode", "unchecked-hash", packages]
    subprocess.run(compiled, check=True)


def site_packages(prefix: Path) -> Path:
    """Where the packages of a tree lie."""
    (packages,) = (prefix / "lib").glob("python3.*/site-packages")
    return packages


def write_bom(python: Path, packages: Path, path: Path) -> None:
    """Writes the bill of materials of a tree; the same tree gives the same file."""
    # fmt: off
    subprocess.run(
        [sys.executable, "-m", "cyclonedx_py", "environment", "--spec-version", "1.6", "--output-format", "JSON",
         "--output-reproducible", "--output-file", path, python],
        check=True, stderr=subprocess.DEVNULL,
    )
    # fmt: on
    bom = json.loads(path.read_text())
    stated = {
        found.metadata["Name"].lower(): found.metadata["License"] for found in distributions(path=[str(packages)])
    }
    for component in bom["components"]:
        # The tool takes over only what is an SPDX expression or a classifier.
        if "licenses" not in component and stated[component["name"].lower()]:
            component["licenses"] = [{"license": {"name": stated[component["name"].lower()]}}]
    path.write_text(json.dumps(bom, indent=2, sort_keys=True) + "\n")


def _keep_programs(folder: Path, programs: tuple[str, ...]) -> None:
    """Leaves Python and what a target offers: activation scripts and tools of dependencies have no use in an image."""
    for path in folder.iterdir():
        if path.name not in programs and not path.name.startswith("python"):
            path.unlink()


if __name__ == "__main__":
    main()
