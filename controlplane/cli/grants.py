"""`sidestep grant`: put, get, list, suspend, resume, revoke, delete."""

from __future__ import annotations

from typing import TextIO

import click
from sidestep.v1 import resources_pb2 as pb

from controlplane.cli import manifests
from controlplane.cli.client import Client
from controlplane.cli.common import add_delete, add_get, add_list
from controlplane.cli.failures import REFUSED, Failure
from controlplane.cli.output import at, show_put, show_result
from controlplane.cli.program import Family, pass_client
from controlplane.cli.values import DURATION, INSTANT, exactly_one, set_time
from engine.names import Collection


@click.group(cls=Family)
def grant() -> None:
    """Exemption grants: who may skip step-up, for which actions, until when and up to which ceiling."""


add_get(grant, Collection.GRANTS, "grant")
add_list(grant, Collection.GRANTS, "grants")
add_delete(grant, Collection.GRANTS, "grant")


@grant.command()
@click.argument("record_id", metavar="[ID]", required=False)
@click.option("--subject", help="Who is exempt: this subject,")
@click.option("--role", help="... everyone with this role,")
@click.option("--device", help="... or everyone on this device. Exactly one of the three.")
@click.option("--action", "actions", multiple=True, help="Action or pattern (`payments.*`); repeat for several.")
@click.option("--acr", help="Ceiling: the highest acr it may waive.")
@click.option("--max-age", type=DURATION, help="Ceiling: the shortest freshness it may waive (at least 30s).")
@click.option("--starts", type=INSTANT, help="Valid from.  [default: at once]")
@click.option("--expires", type=INSTANT, help="Valid until (`+90d`, `2027-01-31`).")
@click.option("--condition", default="", help="CEL that must hold besides.")
@click.option("--reason", default="", help="Why it exists.")
@click.option("--owner", default="", help="Who answers for it.")
@click.option("--file", "-f", type=click.File(encoding="utf-8"), help="Read the grant from a document instead.")
@pass_client
def put(
    client: Client,
    record_id: str | None,
    subject: str | None,
    role: str | None,
    device: str | None,
    actions: tuple[str, ...],
    acr: str | None,
    max_age: float | None,
    starts: float | None,
    expires: float | None,
    condition: str,
    reason: str,
    owner: str,
    file: TextIO | None,
) -> None:
    """Create a grant, or replace its bounds. A suspended or revoked grant stays so."""
    exactly_one({"ID": record_id, "--file": file})
    if file is not None:
        show_put(client, client.put(manifests.read_one(file, client.tenant_option, "Grant").record))
        return
    assert record_id is not None
    exactly_one({"--subject": subject, "--role": role, "--device": device})
    known = client.find(Collection.GRANTS, record_id)
    record = pb.Grant(
        name=client.name(Collection.GRANTS, record_id),
        state=known.state if known is not None else pb.GRANT_STATE_ACTIVE,
        subject=subject,
        role=role,
        device=device,
        actions=actions,
        condition=condition,
        reason=reason,
        owner=owner,
    )
    record.ceiling.acr = acr or ""
    if max_age is not None:
        record.ceiling.max_age.FromNanoseconds(int(max_age * 1e9))
    set_time(record.start_time, starts)
    set_time(record.expire_time, expires)
    show_put(client, client.put(record))


@grant.command()
@click.argument("record_id", metavar="ID")
@pass_client
def suspend(client: Client, record_id: str) -> None:
    """Suspend a grant: it waives nothing until it is resumed."""
    record = client.get(Collection.GRANTS, record_id)
    if record.state == pb.GRANT_STATE_REVOKED:
        raise Failure(f"{record.name}: is revoked", REFUSED)
    record.state = pb.GRANT_STATE_SUSPENDED
    show_put(client, client.put(record))


@grant.command()
@click.argument("record_id", metavar="ID")
@pass_client
def resume(client: Client, record_id: str) -> None:
    """Resume a suspended grant. A revoked one stays revoked: delete it and put a new one."""
    record = client.get(Collection.GRANTS, record_id)
    if record.state == pb.GRANT_STATE_REVOKED:
        raise Failure(f"{record.name}: is revoked; a revoked grant does not come back", REFUSED)
    record.state = pb.GRANT_STATE_ACTIVE
    show_put(client, client.put(record))


@grant.command()
@click.argument("record_id", metavar="ID")
@pass_client
def revoke(client: Client, record_id: str) -> None:
    """Revoke a grant for good. Prints the revision to pass as min_revision where the revocation must hold."""
    record = client.get(Collection.GRANTS, record_id)
    record.state = pb.GRANT_STATE_REVOKED
    response = client.put(record)
    revision = response.revision
    show_result(
        client,
        response,
        f"{record.name} revoked {at(revision)}\n"
        f"min_revision: {{epoch: {revision.epoch}, revision: {revision.revision}}}",
    )
