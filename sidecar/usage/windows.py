"""Windows of usage as files: a worker writes them, the agent sends and removes them.

`DATA_DIR/usage/{chain}-{number}.window`, an encoded UsageWindow under its name only when it is whole. They are numbers for
statistics: one that a crash of the node tears is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from google.protobuf.message import DecodeError
from sidestep.v1 import report_pb2

MAX_FILES: Final = 1_000
"""So many wait at most; then a worker counts on in its open window."""
_NAME: Final = re.compile(r"(w[0-9]+-[0-9a-f]{12})-([0-9]{12})\.window")


def write_window(directory: Path, window: report_pb2.UsageWindow) -> bool:
    """Writes a window. False: too many wait already. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    if sum(1 for path in directory.iterdir() if path.suffix == ".window") >= MAX_FILES:
        return False
    path = directory / f"{window.chain}-{window.number:012d}.window"
    draft = path.with_suffix(".draft")
    draft.write_bytes(window.SerializeToString())
    draft.rename(path)
    return True


def waiting(directory: Path) -> list[Path]:
    """Windows there are, of each chain in order. Raises OSError."""
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if _NAME.fullmatch(path.name))


def read_window(path: Path) -> report_pb2.UsageWindow | None:
    """A window; None if it is torn. Raises OSError."""
    try:
        return report_pb2.UsageWindow.FromString(path.read_bytes())
    except DecodeError:
        return None


def remove(paths: Iterable[Path]) -> None:
    """Raises OSError."""
    for path in paths:
        path.unlink(missing_ok=True)
