from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from controlplane.cli.main import cli
from tests.fakes.admin import AdminServer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[AdminServer]:
    with AdminServer(tmp_path) as running:
        yield running


class Sidestep:
    """Runs the program in this process against a server."""

    def __init__(self, server: AdminServer, folder: Path) -> None:
        self._server = server
        self.folder = folder

    def __call__(self, *args: str, code: int = 0, stdin: str = "", out: bool = False) -> str:
        """Runs a command that must exit with `code`; returns stdout, or stderr if that is not 0 and `out` is not set."""
        env = {"SIDESTEP_SERVER": self._server.address, "SIDESTEP_TENANT": "acme"}
        result = CliRunner(env=env).invoke(cli, list(args), input=stdin)
        assert result.exit_code == code, (result.exit_code, result.stdout, result.stderr, result.exception)
        self.stderr = result.stderr
        return result.stdout if code == 0 or out else result.stderr

    def json(self, *args: str, **more: Any) -> Any:
        """Runs a command and reads its JSON."""
        return json.loads(self("-o", "json", *args, **more))

    def file(self, name: str, text: str) -> str:
        """Writes a file and returns its path."""
        path = self.folder / name
        path.write_text(text)
        return str(path)


@pytest.fixture
def sidestep(server: AdminServer, tmp_path: Path) -> Callable[..., str]:
    return Sidestep(server, tmp_path)
