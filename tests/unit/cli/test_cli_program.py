"""What all commands share: options in any position, one-line errors, exit codes."""

from __future__ import annotations

import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest
from click.testing import CliRunner

from controlplane.cli.main import cli
from controlplane.cli.values import DURATION, INSTANT
from tests.fakes.admin import AdminServer

if TYPE_CHECKING:
    from conftest import Sidestep


def commands(group: click.Group, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], click.Command]]:
    found: list[tuple[tuple[str, ...], click.Command]] = []
    for name, command in group.commands.items():
        here = (*path, name)
        found += commands(command, here) if isinstance(command, click.Group) else [(here, command)]
    return found


def test_the_commands_are_those_of_the_manual() -> None:
    names = {" ".join(path) for path, _ in commands(cli)}
    manual = (Path(__file__).parents[3] / "docs" / "cli.md").read_text()
    assert {name for name in names if f"`sidestep {name}" not in manual} == set()


@pytest.mark.parametrize(
    ("path", "command"), commands(cli), ids=lambda item: " ".join(item) if isinstance(item, tuple) else ""
)
def test_every_command_has_help_and_the_shared_options(path: tuple[str, ...], command: click.Command) -> None:
    result = CliRunner().invoke(cli, [*path, "--help"])
    assert result.exit_code == 0
    assert command.help
    for option in ("--server", "--tenant", "--output", "--deadline"):
        assert option in result.stdout


def test_shared_options_count_in_every_position_and_beat_the_environment(server: AdminServer) -> None:
    env = {"SIDESTEP_SERVER": "127.0.0.1:1", "SIDESTEP_TENANT": "wrong"}
    runner = CliRunner(env=env)
    for args in (
        ["-s", server.address, "-t", "acme", "-o", "json", "posture", "get"],
        ["posture", "get", "-s", server.address, "-t", "acme", "-o", "json"],
        ["-t", "other", "posture", "get", "-s", server.address, "-t", "acme", "-o", "json"],
    ):
        result = runner.invoke(cli, args)
        assert result.exit_code == 0, result.stderr
        assert '"tenants/acme/postures/default"' in result.stdout


def test_a_missing_tenant_is_asked_for(server: AdminServer) -> None:
    result = CliRunner().invoke(cli, ["-s", server.address, "grant", "list"])
    assert (result.exit_code, result.stderr) == (2, "error: --tenant: is required (or SIDESTEP_TENANT)\n")


@pytest.mark.parametrize(
    ("args", "code", "problem"),
    [
        (["nonsense"], 2, "No such command"),
        (["grant", "put", "g1", "--max-age", "soon"], 2, "'soon' is not a duration"),
        (["grant", "put", "g1", "--subject", "a", "--role", "b"], 2, "--subject and --role: give exactly one of"),
        (["grant", "put", "a/b", "--subject", "a"], 2, "grant: "),
        (["grant", "put", "g1", "--subject", "a"], 1, "grant.actions: at least one action pattern is required"),
        (["grant", "put", "g1", "--subject", "a", "--action", "x"], 1, "grant.expire_time: is required"),
        (["device", "put", "d1", "--fingerprint", "os"], 2, "--fingerprint: 'os' is not NAME=VALUE"),
        (
            ["device", "put", "d1", "--fingerprint", "a=1", "--fingerprint", "a=2"],
            2,
            "--fingerprint: 'a' is given twice",
        ),
        (["device", "put", "d1"], 1, "device.subject: must not be empty"),
        (["key", "add", "k1"], 2, "give exactly one of --jwk or --pem"),
        (["apply", "-f", "/nonexistent/file.yaml"], 2, "No such file"),
        (["signal", "import", "-", "--source", "Bad!"], 2, "--source: 'Bad!' is not a source"),
        (["signal", "put", "ip"], 2, "VALUE: is required"),
        (["-t", "ACME", "grant", "list"], 2, "--tenant: 'ACME' is not a tenant id"),
        (["grant", "get", "none"], 4, "tenants/acme/grants/none: not found"),
        (["grant"], 2, "Usage:"),
    ],
)
def test_errors_are_one_line_with_the_documented_code(
    sidestep: Sidestep, args: list[str], code: int, problem: str
) -> None:
    shown = sidestep(*args, code=code)
    assert problem in shown
    if problem != "Usage:":
        assert shown.startswith("error: ")
        assert len(shown.splitlines()) == 1


def test_an_unreachable_server_is_code_3() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        result = CliRunner().invoke(cli, ["-s", address, "-t", "acme", "grant", "list"])
    assert result.exit_code == 3
    assert result.stderr.startswith(f"error: {address}: unavailable")
    assert len(result.stderr.splitlines()) == 1


def test_a_silent_server_is_code_3_after_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        result = CliRunner().invoke(cli, ["-s", address, "-t", "acme", "--deadline", "300ms", "grant", "list"])
    assert (result.exit_code, result.stderr) == (3, f"error: {address}: no answer within the deadline\n")


def test_markup_in_data_is_shown_as_it_is(sidestep: Sidestep) -> None:
    sidestep("subject", "put", "[red]x", "--role", "[bold]")
    assert "[red]x" in sidestep("subject", "list")
    assert "[bold]" in sidestep("subject", "get", "[red]x")


def test_times_and_durations() -> None:
    assert (
        INSTANT.convert("2026-01-01T00:00:00+02:00", None, None) == datetime(2025, 12, 31, 22, tzinfo=UTC).timestamp()
    )
    assert INSTANT.convert("2026-01-01", None, None) == datetime(2026, 1, 1, tzinfo=UTC).timestamp()
    now = datetime.now(UTC).timestamp()
    assert abs(INSTANT.convert("+1h30m", None, None) - now - 5400) < 5
    assert DURATION.convert("1h30m", None, None) == 5400
    for bad in ("0s", "x", ""):
        with pytest.raises(click.BadParameter):
            DURATION.convert(bad, None, None)
