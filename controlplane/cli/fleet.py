"""`sidestep sidecar list` and `sidestep revisions`: who has what."""

from __future__ import annotations

import click
from sidestep.v1 import admin_pb2, sync_pb2
from sidestep.v1 import resources_pb2 as pb

from controlplane.cli.client import Client
from controlplane.cli.output import as_dict, coloured, instant, print_data, print_table
from controlplane.cli.program import Family, Leaf, pass_client


@click.group(cls=Family)
def sidecar() -> None:
    """The fleet of sidecars."""


@sidecar.command("list")
@pass_client
def list_sidecars(client: Client) -> None:
    """List sidecars connected or seen lately; with --tenant only those that follow it."""
    request = admin_pb2.ListSidecarsRequest(parent=client.parent if client.tenant_option else "", page_size=1000)
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
    print_table(
        [
            ("SIDECAR", lambda status: status.sidecar),
            ("VERSION", lambda status: status.version or "-"),
            ("CONNECTED", lambda status: coloured("ACTIVE" if status.connected else "DISABLED")),
            ("SEEN", lambda status: instant(status.seen_time)),
            ("REVISIONS", lambda status: " ".join(_cursor(cursor) for cursor in status.cursors) or "-"),
            ("REFUSAL", lambda status: status.refusal or "-"),
        ],
        sidecars,
    )


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


def _cursor(cursor: sync_pb2.Cursor) -> str:
    return f"{cursor.tenant}/{_lane(cursor.lane)}={cursor.epoch}:{cursor.revision}"


def _lane(lane: pb.Lane) -> str:
    return pb.Lane.Name(lane).removeprefix("LANE_").lower()
