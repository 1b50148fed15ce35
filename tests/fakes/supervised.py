"""Runs a supervisor over `tests.fakes.child` processes; a test starts this as a process of its own.

python -m tests.fakes.supervised SETTINGS_JSON DIARY TRAITS_JSON     traits by process name: {"worker-0": ["silent"]}
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path

from sidecar import child, supervisor


def main(settings_json: str, diary: str, traits_json: str) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    settings = supervisor.Settings(**json.loads(settings_json))
    traits = json.loads(traits_json)

    def command(role: str, index: int) -> list[str]:
        name = "agent" if role == "agent" else f"worker-{index}"
        page = str(Path(settings.data_dir) / "page")
        start = [sys.executable, "-m", "tests.fakes.child", role, str(index), str(os.getpid()), page, diary]
        return [*start, *traits.get(name, [])]

    # Patience for humans is too long for tests.
    child.HANG_S = 2.0
    child._BACKOFF_LAST_S = 0.5
    try:
        return supervisor.Supervisor(settings, command).run()
    except supervisor.SupervisorError as error:
        sys.stderr.write(f"{error}\n")
        return error.code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
