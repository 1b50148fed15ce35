"""The only wiring: `python -m sidecar.app agent|worker|check`. Started by the supervisor.

`check` prints the supervisor's settings as JSON, or says on standard error what is wrong with them and exits with 2.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sidecar.config import Config
    from sidecar.page import Page

_PR_SET_PDEATHSIG = 1
_EXIT_SETTINGS = 2


def die_with_parent(parent: int) -> None:
    """Makes the kernel kill this process when its parent dies, however that happens (prctl(2)).

    Exits at once if the parent, whose process id is given, is gone already.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        sys.exit("the supervisor is gone")


def main(arguments: list[str] | None = None) -> int:
    """Runs one process of the sidecar. Returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m sidecar.app", description=__doc__)
    parser.add_argument("role", choices=("agent", "worker", "check"))
    parser.add_argument("--index", type=int, default=0, help="which worker")
    parser.add_argument("--parent", type=int, help="process id of the supervisor; this process dies with it")
    options = parser.parse_args(arguments)
    if options.parent is not None:
        # Before the slow imports, so that no orphan is left even if the supervisor dies right now.
        die_with_parent(options.parent)
    if options.role == "agent":
        # A SIGTERM that comes before the agent can handle it must not keep it from shipping what is left.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    from sidecar.config import ConfigError, load

    try:
        config = load()
    except ConfigError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return _EXIT_SETTINGS
    if options.role == "check":
        problem = _callers_problem(config) or _trusted_keys_problem(config)
        if problem:
            print(problem, file=sys.stderr)  # noqa: T201
            return _EXIT_SETTINGS
        print(json.dumps(_supervisor_settings(config)))  # noqa: T201
        return 0

    from engine import logs
    from sidecar.page import Page

    name = "agent" if options.role == "agent" else f"worker-{options.index}"
    logs.configure(config.log_level, config.log_format, name)
    page = Page(config.page_path)
    return _agent(config, page) if options.role == "agent" else _worker(config, page, options.index)


def _agent(config: Config, page: Page) -> int:
    page.agent.attach()
    from sidecar import agent

    return agent.run(config, page)


def _worker(config: Config, page: Page, index: int) -> int:
    # Ports of port 0 are those worker 0 got; it takes the same ones again after a restart.
    ports = page.worker(0).ports(len(config.listen))
    listen = tuple(listener.with_port(port) for listener, port in zip(config.listen, ports, strict=True))
    slot = page.worker(index)
    slot.attach()
    from sidecar.front import worker

    return worker.run(config.model_copy(update={"listen": listen}), index, slot)


def _callers_problem(config: Config) -> str:
    """What is wrong with the callers' file; empty: nothing. Later it may be wrong without harm, but not at the start."""
    if config.callers is None:
        return ""
    from engine.watched import WatchedFiles
    from sidecar.callers import CallersError, read_callers

    try:
        read_callers(str(config.callers), WatchedFiles())
    except CallersError as error:
        return f"SIDESTEP_CALLERS: {error}"
    return ""


def _trusted_keys_problem(config: Config) -> str:
    """What is wrong with the file of trusted keys; empty: nothing. As with callers, it matters at the start only."""
    if config.trusted_keys is None:
        return ""
    from sidecar.sync.trust import TrustedKeys, TrustedKeysError

    try:
        TrustedKeys(str(config.trusted_keys))
    except TrustedKeysError as error:
        return str(error)
    return ""


def _supervisor_settings(config: Config) -> dict[str, object]:
    """The fields of `sidecar.supervisor.Settings`."""
    return {
        "data_dir": str(config.data_dir),
        "workers": config.workers,
        "listen": [str(listener) for listener in config.listen],
        "http_host": config.http_listen.host,
        "http_port": config.http_listen.port,
        "shutdown_grace_s": config.shutdown_grace_s,
        "ready_requires_sync": config.ready_requires_sync,
        "journal_sink": config.journal_sink,
        "callers": config.callers is not None,
        "trusted_keys": config.trusted_keys is not None,
        "log_level": config.log_level,
        "log_format": config.log_format,
    }


if __name__ == "__main__":
    sys.exit(main())
