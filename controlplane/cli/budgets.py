"""`sidestep budget`: what subjects have used of a grant's budget, and what is left."""

from __future__ import annotations

from collections.abc import Iterator

import click
from sidestep.v1 import admin_pb2, lease_pb2

from controlplane.cli.client import Client
from controlplane.cli.output import as_dict, instant, print_data, print_table
from controlplane.cli.program import Family, pass_client
from engine.money import format_nanos, to_nanos
from engine.names import Collection


@click.group(cls=Family)
def budget() -> None:
    """Budgets of exemption grants: what was used since the last strong authentication."""


@budget.command()
@click.argument("grant", metavar="GRANT")
@click.option("--subject", default="", help="Only this subject's account.")
@click.option("--all", "everything", is_flag=True, help="Earlier periods too.")
@pass_client
def show(client: Client, grant: str, subject: str, everything: bool) -> None:
    """Show what subjects have used of a grant's budget in their current period.

    What workers hold counts as spent until they report or return it. Exit code 4: there is no such grant.
    """
    accounts = [account for account in _accounts(client, grant, subject) if everything or account.current]
    if client.output != "table":
        print_data(client, [as_dict(account) for account in accounts])
        return
    print_table(
        (
            ("SUBJECT", lambda each: each.subject),
            ("PERIOD", lambda each: str(each.period)),
            ("SINCE", lambda each: instant(each.start_time) if each.HasField("start_time") else "-"),
            ("SPENT", lambda each: _room(each.spent)),
            ("CANCELLED", lambda each: _room(each.cancelled)),
            ("HELD", lambda each: _room(each.held)),
            ("LEFT", lambda each: _room(each.left) if each.HasField("left") else "-"),
            ("HOLDERS", lambda each: str(each.holders)),
        ),
        accounts,
    )


def _accounts(client: Client, grant: str, subject: str) -> Iterator[admin_pb2.BudgetAccount]:
    request = admin_pb2.ListBudgetAccountsRequest(
        name=client.name(Collection.GRANTS, grant), subject=subject, page_size=1000
    )
    while True:
        response = client.call("ListBudgetAccounts", request)
        yield from response.accounts
        request.page_token = response.next_page_token
        if not request.page_token:
            return


def _room(room: lease_pb2.BudgetRoom) -> str:
    """`3 uses, 12.50 EUR`."""
    parts = [f"{room.count} use{'' if room.count == 1 else 's'}"]
    if room.HasField("amount"):
        parts.append(format_nanos(to_nanos(room.amount.units, room.amount.nanos), room.amount.currency))
    return ", ".join(parts)
