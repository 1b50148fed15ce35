"""The commands that are the same for every collection: get, list, delete."""

from __future__ import annotations

import click

from controlplane.cli.changes import Change, delete_record
from controlplane.cli.client import Client
from controlplane.cli.output import show_record, show_records
from controlplane.cli.program import Family, pass_client
from engine.names import Collection


def add_get(group: Family, collection: Collection, noun: str) -> None:
    """Adds `get ID`."""

    @group.command("get", help=f"Show one {noun}.")
    @click.argument("record_id", metavar="ID")
    @pass_client
    def _get(client: Client, record_id: str) -> None:
        show_record(client, client.get(collection, record_id))


def add_list(group: Family, collection: Collection, nouns: str) -> None:
    """Adds `list`."""

    @group.command("list", help=f"List {nouns}, ordered by id.")
    @click.option("--prefix", default="", help="Only ids that begin with this.")
    @click.option("--limit", type=click.IntRange(min=1), help="At most this many.  [default: all]")
    @pass_client
    def _list(client: Client, prefix: str, limit: int | None) -> None:
        show_records(client, collection, client.list(collection, prefix, limit))


def add_delete(group: Family, collection: Collection, noun: str) -> None:
    """Adds `delete ID`."""

    @group.command("delete", cls=Change, help=f"Delete one {noun}.")
    @click.argument("record_id", metavar="ID")
    @pass_client
    def _delete(client: Client, record_id: str) -> None:
        delete_record(client, collection, record_id)
