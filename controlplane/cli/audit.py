"""`sidestep sidecars audit`: of what was decided, what was delivered, what waits and what is lost."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import click
from rich.text import Text
from sidestep.v1 import admin_pb2

from controlplane.cli.client import Client
from controlplane.cli.failures import FINDINGS
from controlplane.cli.output import as_dict, instant, print_data, print_table
from controlplane.cli.program import Leaf, pass_client
from controlplane.cli.values import DURATION

DEFAULT_LOST_AFTER_S = 3600.0
# A sidecar reports everything it has every five minutes.
_CONNECTED_SILENT_S = 900.0


@dataclass(frozen=True, slots=True)
class Account:
    """What became of the records of one chain. `status`: as reported. Records not settled are waiting, in a spool or lost."""

    status: admin_pb2.JournalChainStatus
    waiting: int
    in_spool: int
    # Known to be gone, answered without a record, or gone with their sidecar.
    lost: int
    # The sidecar that has the rest is not there any more.
    gone: bool

    def as_dict(self, anchors: Sequence[admin_pb2.JournalAnchor] | None) -> dict[str, Any]:
        """Plain values: those of JournalChainStatus, and what follows from them."""
        chain = self.status.chain
        value = as_dict(self.status) | {
            "lastAnchored": _last(chain.records),
            "lastDelivered": _last(chain.settled),
            "waiting": self.waiting,
            "inSpool": self.in_spool,
            "lostInAll": self.lost,
            "gone": self.gone,
        }
        return value if anchors is None else value | {"anchors": [as_dict(anchor) for anchor in anchors]}


@click.command("audit", cls=Leaf)
@click.option("--sidecar", "name", metavar="NAME", default="", help="Only this sidecar's chains.")
@click.option(
    "--lost-after",
    "lost_after_s",
    type=DURATION,
    default=DEFAULT_LOST_AFTER_S,
    help="A sidecar without connection and report for so long has gone, with all it had not delivered.  [default: 1h]",
)
@click.option("--anchors", "with_anchors", is_flag=True, help="With -o json or yaml: all anchors that are kept, too.")
@pass_client
def audit(client: Client, name: str, lost_after_s: float, with_anchors: bool) -> int:
    """Show for each chain of records what was anchored, delivered, and lost.

    A chain is what one start of one worker has decided, numbered from 0. Its records are anchored when its sidecar reports
    their number and hash; what a pod took with it is counted up to there. Exits with 13 if anything is lost, or if a sidecar
    contradicted an earlier report of its own.
    """
    accounts = list(balance(list_chains(client, name), time.time(), lost_after_s))
    lost = sum(account.lost for account in accounts)
    conflicts = sum(account.status.conflicts for account in accounts)
    if client.output == "table":
        print_table(_COLUMNS, accounts)
        click.echo(_total(accounts, lost, conflicts))
    else:
        print_data(client, [account.as_dict(_anchors(client, account, with_anchors)) for account in accounts])
    return FINDINGS if lost or conflicts else 0


def balance(
    chains: Sequence[admin_pb2.JournalChainStatus], now: float, lost_after_s: float = DEFAULT_LOST_AFTER_S
) -> Iterator[Account]:
    """Accounts of chains, at `now`.

    What is not settled will not come any more if its sidecar is neither connected nor has reported anything for
    `lost_after_s`, or if it reports other chains but, for long enough, no longer this one: then it has lost its disk.
    """
    heard_at: dict[str, float] = {}
    for status in chains:
        heard_at[status.sidecar] = max(heard_at.get(status.sidecar, 0.0), _reported_at(status))
    for status in chains:
        chain = status.chain
        silent_s = now - _reported_at(status)
        if status.connected:
            limit_s = max(lost_after_s, _CONNECTED_SILENT_S)
            gone = heard_at[status.sidecar] - _reported_at(status) > limit_s
        else:
            gone = silent_s > lost_after_s
        open_records = chain.records - chain.settled
        in_spool = min(chain.spooled, open_records)
        rest = open_records - in_spool
        lost = chain.lost + chain.unrecorded + (rest if gone else 0)
        yield Account(status, 0 if gone else rest, in_spool, lost, gone)


def list_chains(client: Client, sidecar: str = "") -> list[admin_pb2.JournalChainStatus]:
    """Chains of one sidecar, or of all (""), as last reported."""
    request = admin_pb2.ListJournalChainsRequest(sidecar=sidecar, page_size=1000)
    chains: list[admin_pb2.JournalChainStatus] = []
    while True:
        response: admin_pb2.ListJournalChainsResponse = client.call("ListJournalChains", request)
        chains += response.chains
        if not response.next_page_token:
            return chains
        request.page_token = response.next_page_token


def list_anchors(client: Client, sidecar: str, chain: str) -> list[admin_pb2.JournalAnchor]:
    """All anchors that are kept of a chain, oldest first."""
    request = admin_pb2.ListJournalAnchorsRequest(sidecar=sidecar, chain=chain, page_size=1000)
    anchors: list[admin_pb2.JournalAnchor] = []
    while True:
        response: admin_pb2.ListJournalAnchorsResponse = client.call("ListJournalAnchors", request)
        anchors += response.anchors
        if not response.next_page_token:
            return anchors
        request.page_token = response.next_page_token


def _anchors(client: Client, account: Account, wanted: bool) -> list[admin_pb2.JournalAnchor] | None:
    return list_anchors(client, account.status.sidecar, account.status.chain.chain) if wanted else None


def _reported_at(status: admin_pb2.JournalChainStatus) -> float:
    return status.last_report_time.ToNanoseconds() / 1e9


def _last(count: int) -> int | None:
    """The number of the last of so many records."""
    return count - 1 if count else None


def _number(count: int) -> str:
    return str(count - 1) if count else "-"


def _alarming(count: int) -> Text:
    return Text(str(count), style="bold red" if count else "")


def _total(accounts: Iterable[Account], lost: int, conflicts: int) -> str:
    accounts = list(accounts)
    records = sum(account.status.chain.records for account in accounts)
    waiting = sum(account.waiting for account in accounts)
    in_spool = sum(account.in_spool for account in accounts)
    sidecars = len({account.status.sidecar for account in accounts})
    return (
        f"{len(accounts)} chains of {sidecars} sidecars: {records} records anchored, {waiting} waiting, "
        f"{in_spool} in spools, {lost} lost, {conflicts} contradictions"
    )


_COLUMNS = [
    ("SIDECAR", lambda account: account.status.sidecar),
    ("CHAIN", lambda account: account.status.chain.chain),
    ("ANCHORED", lambda account: _number(account.status.chain.records)),
    ("DELIVERED", lambda account: _number(account.status.chain.settled)),
    ("WAITING", lambda account: str(account.waiting)),
    ("LOST", lambda account: _alarming(account.lost)),
    ("QUARANTINED", lambda account: str(account.status.chain.quarantined)),
    ("SPOOLED", lambda account: str(account.in_spool)),
    ("CONFLICTS", lambda account: _alarming(account.status.conflicts)),
    ("REPORTED", lambda account: instant(account.status.last_report_time)),
]
