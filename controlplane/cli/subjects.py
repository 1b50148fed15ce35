"""`sidestep subject`: put, get, list, disable, enable, delete."""

from __future__ import annotations

from typing import TextIO

import click
from sidestep.v1 import resources_pb2 as pb

from controlplane.cli import manifests
from controlplane.cli.client import Client
from controlplane.cli.common import add_delete, add_get, add_list
from controlplane.cli.output import show_put
from controlplane.cli.program import Family, pass_client
from controlplane.cli.values import INSTANT, exactly_one, set_time
from engine.names import Collection


@click.group(cls=Family)
def subject() -> None:
    """Subjects: users and workloads, their roles, methods and standing."""


add_get(subject, Collection.SUBJECTS, "subject")
add_list(subject, Collection.SUBJECTS, "subjects")
add_delete(subject, Collection.SUBJECTS, "subject")


@subject.command()
@click.argument("record_id", metavar="[ID]", required=False)
@click.option("--role", "roles", multiple=True, help="Role; repeat for several.")
@click.option("--method", "methods", multiple=True, help="Enrolled method (`webauthn`); repeat for several.")
@click.option("--recovered", type=INSTANT, help="Last account recovery.")
@click.option("--file", "-f", type=click.File(encoding="utf-8"), help="Read the subject from a document instead.")
@pass_client
def put(
    client: Client,
    record_id: str | None,
    roles: tuple[str, ...],
    methods: tuple[str, ...],
    recovered: float | None,
    file: TextIO | None,
) -> None:
    """Create a subject, or replace its roles and methods. Whether it is disabled stays as it was."""
    exactly_one({"ID": record_id, "--file": file})
    if file is not None:
        show_put(client, client.put(manifests.read_one(file, client.tenant_option, "Subject").record))
        return
    assert record_id is not None
    record = client.find(Collection.SUBJECTS, record_id) or pb.Subject(
        name=client.name(Collection.SUBJECTS, record_id), state=pb.SUBJECT_STATE_ACTIVE
    )
    record.roles[:] = roles
    record.methods[:] = methods
    set_time(record.recover_time, recovered)
    show_put(client, client.put(record))


@subject.command()
@click.argument("record_id", metavar="ID")
@pass_client
def disable(client: Client, record_id: str) -> None:
    """Disable a subject: every decision about it is DENY."""
    _set_state(client, record_id, pb.SUBJECT_STATE_DISABLED)


@subject.command()
@click.argument("record_id", metavar="ID")
@pass_client
def enable(client: Client, record_id: str) -> None:
    """Enable a subject again."""
    _set_state(client, record_id, pb.SUBJECT_STATE_ACTIVE)


def _set_state(client: Client, record_id: str, state: pb.SubjectState) -> None:
    record = client.get(Collection.SUBJECTS, record_id)
    record.state = state
    show_put(client, client.put(record))
