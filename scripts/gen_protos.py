"""Generates the committed Python for proto/sidestep/v1 with the pinned grpcio-tools.

`make gen` writes it. `--check` writes nothing and exits with 1, naming the files, where the committed code differs.
"""

from __future__ import annotations

import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

PROTO = Path(__file__).resolve().parent.parent / "proto"


def generate(out: Path) -> int:
    """Writes the generated code below `out`; returns protoc's exit code."""
    sources = sorted(str(path.relative_to(PROTO)) for path in PROTO.glob("sidestep/v1/*.proto"))
    includes = [f"-I{PROTO}", f"-I{files('grpc_tools') / '_proto'}"]
    outputs = [f"--python_out={out}", f"--pyi_out={out}", f"--grpc_python_out={out}"]
    return int(protoc.main(["protoc", *includes, *outputs, *sources]))


def stale() -> list[str]:
    """The committed generated files that differ from what the generator makes."""
    with tempfile.TemporaryDirectory() as folder:
        if generate(Path(folder)) != 0:
            return ["protoc failed"]
        fresh = {path.name: path.read_bytes() for path in Path(folder).rglob("*.py*")}
    committed = {path.name: path.read_bytes() for path in (PROTO / "sidestep" / "v1").glob("*_pb2*.py*")}
    return sorted(name for name in fresh.keys() | committed.keys() if fresh.get(name) != committed.get(name))


def main() -> int:
    """Generates, or checks; returns the exit code."""
    if "--check" not in sys.argv[1:]:
        return generate(PROTO)
    differing = stale()
    for name in differing:
        print(f"proto/sidestep/v1/{name} is not what the generator makes: run `make gen`", file=sys.stderr)
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
