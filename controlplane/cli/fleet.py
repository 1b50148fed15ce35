"""`sidestep sidecar list`, `sidestep rollout wait` and `sidestep revisions`: who has what."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from sidestep.v1 import admin_pb2, sync_pb2
from sidestep.v1 import resources_pb2 as pb

from controlplane.cli.client import Client
from controlplane.cli.failures import NOT_EVERYONE, REFUSING
from controlplane.cli.output import as_dict, coloured, console, instant, print_data, print_table
from controlplane.cli.program import Family, Leaf, pass_client
from controlplane.cli.values import DURATION
from engine.durations import format_duration

_POLL_S = 0.5
_LANES = {"urgent": pb.LANE_URGENT, "bulk": pb.LANE_BULK}


@click.group(cls=Family)
def sidecar() -> None:
    """The fleet of sidecars."""


@sidecar.command("list")
@click.option("--behind", is_flag=True, help="Only those that lack a revision.")
@click.option("--refusing", is_flag=True, help="Only those that refuse a change.")
@click.option("--disconnected", is_flag=True, help="Only those that are not connected.")
@pass_client
def list_sidecars(client: Client, *, behind: bool, refusing: bool, disconnected: bool) -> None:
    """List sidecars connected or seen lately; with --tenant only those that follow it.

    How far each is behind is shown per lane, as revisions and as the age of the oldest of them.
    """
    request = admin_pb2.ListSidecarsRequest(
        parent=client.parent if client.tenant_option else "",
        page_size=1000,
        behind=behind,
        refusing=refusing,
        disconnected=disconnected,
    )
    sidecars: list[admin_pb2.SidecarStatus] = []
    while True:
        response: admin_pb2.ListSidecarsResponse = client.call("ListSidecars", request)
        sidecars += response.sidecars
        if not response.next_page_token:
            break
        request.page_token = response.next_page_token
    if client.output != "table":
        print_data(client, [as_dict(status) for status in sidecars])
        return
    _print_sidecars(sidecars)


@click.group(cls=Family)
def rollout() -> None:
    """Whether changes have arrived everywhere."""


@rollout.command("wait")
@click.option(
    "--timeout", "timeout_s", type=DURATION, default=30.0, help="Longest wait.  [default: 30s]", metavar="DURATION"
)
@click.option(
    "--revision",
    metavar="[EPOCH:]REVISION",
    help="What everyone shall have, of the tenant's lane.  [default: the newest of each tenant]",
)
@click.option("--lane", type=click.Choice(list(_LANES)), default="urgent", show_default=True, help="Of --revision.")
@click.option(
    "--seen-within",
    "seen_s",
    type=DURATION,
    default=60.0,
    metavar="DURATION",
    help="Sidecars that left count for so long, and cannot be reached.  [default: 1m]",
)
@pass_client
def wait(client: Client, timeout_s: float, revision: str | None, lane: str, seen_s: float) -> int:
    """Wait until every sidecar has applied a revision; print who has not.

    Everyone is: each sidecar connected to any replica, or seen within --seen-within, that follows the tenant (without --tenant:
    any tenant). Exits with 0 if all have it, with 14 if some lack it at the end, with 15 if one of these refuses a change.
    """
    request = admin_pb2.GetRolloutRequest(parent=client.parent if client.tenant_option or revision else "")
    request.seen_within.FromNanoseconds(int(seen_s * 1e9))
    if revision is not None:
        request.targets.append(_target(client.parent.removeprefix("tenants/"), lane, revision))
    deadline = time.monotonic() + timeout_s
    with _bar() as bar:
        while True:
            response: admin_pb2.GetRolloutResponse = client.call("GetRollout", request)
            # What was newest at first stays the goal, however much is written meanwhile.
            del request.targets[:]
            request.targets.extend(response.targets)
            bar(response)
            left_s = deadline - time.monotonic()
            if response.current >= response.sidecars or left_s <= 0:
                break
            time.sleep(min(_POLL_S, left_s))
    return _show_rollout(client, response)


@click.command(cls=Leaf)
@pass_client
def revisions(client: Client) -> None:
    """Show the newest revision of each of the tenant's lanes."""
    response: admin_pb2.GetRevisionsResponse = client.call(
        "GetRevisions", admin_pb2.GetRevisionsRequest(parent=client.parent)
    )
    if client.output != "table":
        print_data(client, [as_dict(head) for head in response.heads])
        return
    print_table(
        [
            ("LANE", lambda head: _lane(head.lane)),
            ("EPOCH", lambda head: str(head.epoch)),
            ("REVISION", lambda head: str(head.revision)),
            ("DIGEST", lambda head: head.digest.hex()),
        ],
        response.heads,
    )


def _show_rollout(client: Client, response: admin_pb2.GetRolloutResponse) -> int:
    lacking = response.sidecars - response.current
    refusing = any(status.refusal for status in response.missing)
    if client.output != "table":
        print_data(client, as_dict(response))
    else:
        where = " ".join(_cursor(target) for target in response.targets[:3])
        more = f" and {len(response.targets) - 3} more" if len(response.targets) > 3 else ""
        click.echo(f"{response.current} of {response.sidecars} sidecars have {where or 'nothing yet'}{more}")
        if lacking:
            _print_sidecars(response.missing)
        if lacking > len(response.missing):
            click.echo(f"... and {lacking - len(response.missing)} more")
    if not lacking:
        return 0
    return REFUSING if refusing else NOT_EVERYONE


@contextmanager
def _bar() -> Iterator[_Bar]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as progress:
        yield _Bar(progress)


class _Bar:
    """Shows how many have it, to a person who waits."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("sidecars", total=None)

    def __call__(self, response: admin_pb2.GetRolloutResponse) -> None:
        self._progress.update(self._task, completed=response.current, total=response.sidecars)


def _target(tenant: str, lane: str, revision: str) -> sync_pb2.Cursor:
    epoch, _, number = revision.rpartition(":")
    if not number.isdigit() or not (epoch.isdigit() or not epoch) or int(number) == 0:
        raise click.BadParameter(f"{revision!r} is not REVISION or EPOCH:REVISION", param_hint="--revision")
    return sync_pb2.Cursor(tenant=tenant, lane=pb.Lane.Name(_LANES[lane]), epoch=int(epoch or 0), revision=int(number))


def _print_sidecars(sidecars: Iterable[admin_pb2.SidecarStatus]) -> None:
    print_table(
        [
            ("SIDECAR", lambda status: status.sidecar),
            ("VERSION", _version),
            ("CONNECTED", lambda status: coloured("ACTIVE" if status.connected else "DISABLED")),
            ("SEEN", lambda status: instant(status.seen_time)),
            ("CLOCK", _clock),
            ("REVISIONS", lambda status: " ".join(_cursor(cursor) for cursor in status.cursors) or "-"),
            ("BEHIND", lambda status: " ".join(_lag(lag) for lag in status.lags) or "-"),
            ("REFUSAL", lambda status: status.refusal or "-"),
        ],
        sidecars,
    )


def _version(status: admin_pb2.SidecarStatus) -> str:
    skew = " (outside)" if status.version_skew == admin_pb2.VERSION_SKEW_OUTSIDE else ""
    return (status.version or "-") + skew


def _clock(status: admin_pb2.SidecarStatus) -> str:
    return f"{status.clock_offset_ms / 1000:+.1f}s" if status.HasField("clock_offset_ms") else "-"


def _lag(lag: admin_pb2.SidecarLag) -> str:
    where = f"{lag.tenant}/{_lane(lag.lane)}"
    if not lag.revisions:
        return f"{where}=loading"
    age_s = lag.age.ToNanoseconds() / 1e9
    return f"{where}=-{lag.revisions}" + (f"({format_duration(max(1, int(age_s)))})" if lag.HasField("age") else "")


def _cursor(cursor: sync_pb2.Cursor) -> str:
    return f"{cursor.tenant}/{_lane(cursor.lane)}={cursor.epoch}:{cursor.revision}"


def _lane(lane: pb.Lane) -> str:
    return pb.Lane.Name(lane).removeprefix("LANE_").lower()
