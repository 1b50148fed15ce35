"""`sidestep session`: revoke, list, delete."""

from __future__ import annotations

import click
from sidestep.v1 import resources_pb2 as pb

from controlplane.cli.client import Client
from controlplane.cli.common import add_delete, add_get, add_list
from controlplane.cli.output import show_put
from controlplane.cli.program import Family, pass_client
from controlplane.cli.values import INSTANT, set_time
from engine.names import Collection


@click.group(cls=Family)
def session() -> None:
    """Revoked sessions."""


add_get(session, Collection.REVOKED_SESSIONS, "revoked session")
add_list(session, Collection.REVOKED_SESSIONS, "revoked sessions")
add_delete(session, Collection.REVOKED_SESSIONS, "revocation")


@session.command()
@click.argument("record_id", metavar="ID")
@click.option("--subject", default="", help="Whose session it is.")
@click.option("--reason", default="", help="Why.")
@click.option(
    "--expires",
    type=INSTANT,
    default="+30d",
    show_default=True,
    help="When the record may be dropped: after the session's last token has expired.",
)
@pass_client
def revoke(client: Client, record_id: str, subject: str, reason: str, expires: float) -> None:
    """Revoke a session: who uses it must log in again."""
    record = pb.RevokedSession(name=client.name(Collection.REVOKED_SESSIONS, record_id), subject=subject, reason=reason)
    set_time(record.expire_time, expires)
    show_put(client, client.put(record))
