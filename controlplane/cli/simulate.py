"""`sidestep simulate`: policies and guards tried on logins, made up or of a real data set, without any server."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any, TextIO

import click
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from controlplane.cli.client import Client
from controlplane.cli.failures import REFUSED, Failure
from controlplane.cli.manifests import only_document
from controlplane.cli.output import console, print_data, print_table
from controlplane.cli.policies import check_locally
from controlplane.cli.program import Family, pass_client
from controlplane.cli.values import label
from engine.names import check_action
from engine.policy import parse_policy
from sidecar.simulate.history import tell as tell_story
from sidecar.simulate.rba import RbaError
from sidecar.simulate.sources import open_logins, truth_path, write_story

_FILE = click.argument("file", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path))
_TENANT = "acme"


@click.group(cls=Family)
def simulate() -> None:
    """Try policies and their guards on logins: honest life with attacks in it, or the RBA data set."""


@simulate.command()
@_FILE
@click.option("--users", type=click.IntRange(10, 1_000_000), default=2000, show_default=True, help="People.")
@click.option("--days", type=click.IntRange(2, 366), default=30, show_default=True, help="Days of their lives.")
@click.option("--seed", type=int, default=1, show_default=True, help="Equal seeds give equal files.")
@click.option(
    "--attacks", type=click.IntRange(0, 1000), default=10, show_default=True, help="So many of each of six styles."
)
@pass_client
def generate(client: Client, file: Path, users: int, days: int, seed: int, attacks: int) -> None:
    """Write made-up logins to FILE, with the columns of the RBA data set; packed if its name ends in .gz.

    What belongs to attacks is written beside it, to FILE's name with `.truth.csv` at its end.
    """
    with _progress("days", days) as tell:
        logins, attacking = write_story(file, tell_story(users, days, seed, attacks, tell))
    if client.output != "table":
        print_data(
            client, {"file": str(file), "truth": str(truth_path(file)), "logins": logins, "attackLogins": attacking}
        )
    else:
        click.echo(f"{file}: {logins} logins, {attacking} of them attacks (told in {truth_path(file)})")


@simulate.command()
@_FILE
@click.option(
    "--policy",
    "policy_files",
    type=click.File(encoding="utf-8"),
    multiple=True,
    help="Decide by this policy; repeat for several.  [default: the built-in `signin`]",
)
@click.option("--action", default="signin.password", show_default=True, help="What every login asks to do.")
@click.option("--refused-action", default="", help="What is asked after a wrong password.  [default: the same]")
@click.option(
    "--truth",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="What belongs to which attack.  [default: what `generate` wrote beside FILE, if it is there]",
)
@click.option("--limit", type=click.IntRange(min=1), help="Only so many logins.")
@click.option("--users", type=click.IntRange(min=1), help="Only the logins of so many people: the first in FILE.")
@pass_client
def rba(
    client: Client,
    file: Path,
    policy_files: tuple[TextIO, ...],
    action: str,
    refused_action: str,
    truth: Path | None,
    limit: int | None,
    users: int | None,
) -> None:
    """Play the logins in FILE, a CSV with the columns of the RBA data set, through the sidecar's decision path.

    Every login asks for an exemption from the second factor. Shown is which attacks were caught, how soon and by what, and how
    many honest people were asked for more because of guards. Without a truth, accounts that FILE marks as taken over are attacks.
    """
    check_action(action, "--action")
    if refused_action:
        check_action(refused_action, "--refused-action")
    tenant, policies = _policies(policy_files, client.tenant_option)
    if truth is None and truth_path(file).exists():
        truth = truth_path(file)
    report = _play(file, truth, limit, users, tenant, policies, (action, refused_action))
    if not report["decisions"]:
        raise Failure(f"{file}: has no logins")
    if client.output != "table":
        print_data(client, report)
    else:
        _show(report)


def _play(
    file: Path,
    truth: Path | None,
    limit: int | None,
    users: int | None,
    tenant: str,
    policies: dict[str, str],
    actions: tuple[str, str],
) -> dict[str, Any]:
    try:
        # They need the sidecar's packages, which a control plane can do without.
        from sidecar.simulate.player import Player
        from sidecar.simulate.score import rehearse
    except ImportError as error:
        raise Failure(f"playing needs the sidecar's packages (sidestep[sidecar]): {error}", REFUSED) from None
    size = file.stat().st_size
    try:
        with (
            tempfile.TemporaryDirectory(prefix="sidestep-simulate-") as folder,
            _progress("bytes", size) as tell,
            open_logins(file, truth, limit, users, tell) as (logins, truths),
            Player(Path(folder), tenant, policies, action=actions[0], refused_action=actions[1]) as player,
        ):
            return rehearse(player, logins, truths).as_dict()
    except RbaError as error:
        raise Failure(str(error)) from None


def _policies(policy_files: tuple[TextIO, ...], tenant: str | None) -> tuple[str, dict[str, str]]:
    """The policies by name, and whose they are. Raises Failure with the place of every problem."""
    if not policy_files:
        source = files("sidecar.simulate").joinpath("signin.yaml").read_text(encoding="utf-8")
        return tenant or _TENANT, {"signin": source}
    policies = {}
    tenants = set()
    for file in policy_files:
        document = only_document(file)
        check_locally(document)
        parsed = parse_policy(document.text)
        name = parsed.name
        if name in policies:
            raise Failure(f"{label(file)}: a second policy named {name!r}")
        policies[name] = document.text
        tenants.add(parsed.tenant)
    if tenant is None and len(tenants) > 1:
        raise Failure(f"--policy: they are of different tenants: {', '.join(sorted(tenants))}")
    return tenant or min(tenants), policies


@contextmanager
def _progress(unit: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows on a terminal how much of it is done."""
    out = console(stderr=True)
    if not out.is_terminal:
        yield lambda done: None
        return
    columns = (BarColumn(), TaskProgressColumn(), TextColumn(unit), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=out, transient=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda done: progress.update(task, completed=done)


def _show(report: dict[str, Any]) -> None:
    out = console()
    if report["styles"]:
        print_table(_STYLE_COLUMNS, report["styles"])
        out.print()
    honest = report["honest"]
    lines = [
        f"{report['decisions']} decisions",
        f"honest logins with the right password: {honest['logins']}, exempted {_percent(honest['exemptedShare'])}, "
        f"asked for a second factor {honest['challenged']}",
        f"  because of guards: {honest['challengedByGuards']} ({_percent(honest['challengedByGuardsShare'])}), "
        f"of them {honest['challengedByGuardsUnderAttack']} on accounts under attack; {honest['usersChallengedByGuards']} people"
        + "".join(f", {name} {count}" for name, count in honest["challengedByGuard"].items()),
        f"  after stepping up still not let in: {honest['stillNotLetIn']} of {honest['steppedUp']}",
    ]
    if report["unclear"]:
        lines.append(f"from addresses that attacks came from, neither honest nor known as attack: {report['unclear']}")
    for line in lines:
        out.print(Text(line))


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"


def _when(times: dict[str, float] | None) -> str:
    if times is None:
        return "-"
    return f"{times['medianMinutes']:.0f} min, login {times['medianLogins']:.0f}"


_STYLE_COLUMNS = (
    ("attack", lambda row: row["style"]),
    ("number", lambda row: str(row["attacks"])),
    ("caught", lambda row: _percent(row["caughtShare"])),
    ("by guards", lambda row: _percent(row["caughtByGuardsShare"])),
    ("caught after (median)", lambda row: _when(row["timeToCatch"])),
    ("guard after (median)", lambda row: _when(row["timeToGuard"])),
    ("right passwords", lambda row: str(row["rightPasswords"])),
    ("let in", lambda row: f"{row['letIn']} ({_percent(row['letInShare'])})"),
    ("after a guard", lambda row: str(row["letInAfterGuard"])),
    ("guards", lambda row: ", ".join(row["guards"]) or "-"),
)
