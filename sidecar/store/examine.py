"""Finding out whether a generation on disk is sound, without trusting it: before another boot's files are served."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import lmdb

from sidecar.store.environment import open_for_writing
from sidecar.store.errors import NotLoadedError
from sidecar.store.generation import DATA, shortfall
from sidecar.store.scrub import scrub

_POLL_S: Final = 0.05
_MAX_REPORT_BYTES: Final = 2000


def examine(generation: Path, *, map_size: int, pulse: Callable[[], None]) -> str | None:
    """Examines a generation fully and returns what is wrong with it, or None.

    In this order, so that no step can crash on what an earlier one would have found: LMDB's structure, by its verifier
    in a process of its own, which never maps the file; its length; then every digest and index row. `pulse` is called
    at least every 50 ms. Takes several seconds for a million records.
    """
    problem = _verify(generation, pulse)
    if problem is not None:
        return problem
    missing = shortfall(generation)
    if missing is None:
        return "its meta pages cannot be read"
    if missing:  # sound all the same: only free pages lie beyond the end
        data = generation / DATA
        os.truncate(data, data.stat().st_size + missing)
    try:
        environment = open_for_writing(generation, map_size=map_size)
    except (NotLoadedError, lmdb.Error) as error:
        return str(error)
    try:
        for finding in scrub(environment):
            if finding is not None:
                return str(finding)
            pulse()
    finally:
        environment.close()
    return None


def _verify(generation: Path, pulse: Callable[[], None]) -> str | None:
    command = [sys.executable, "-I", "-m", "lmdb", "verify", "--env", str(generation)]
    with tempfile.TemporaryFile() as report:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and our own file
            command, stdin=subprocess.DEVNULL, stdout=report, stderr=subprocess.STDOUT
        )
        try:
            while True:
                try:
                    code = process.wait(_POLL_S)
                    break
                except subprocess.TimeoutExpired:
                    pulse()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if code == 0:
            return None
        report.seek(0)
        return report.read(_MAX_REPORT_BYTES).decode(errors="replace").strip() or f"the verifier ended with {code}"
