"""`sidestep subject`: put, get, list, disable, enable, event, delete, hash."""

from __future__ import annotations

import time
from typing import TextIO

import click
from sidestep.v1 import admin_pb2
from sidestep.v1 import resources_pb2 as pb

from controlplane.cli import manifests
from controlplane.cli.changes import Change, put_record
from controlplane.cli.client import Client
from controlplane.cli.common import add_delete, add_get, add_list
from controlplane.cli.failures import NOT_FOUND, Failure
from controlplane.cli.output import as_dict, instant, print_data, print_table
from controlplane.cli.program import Family, pass_client
from controlplane.cli.values import INSTANT, exactly_one, set_time
from engine.names import Collection


@click.group(cls=Family)
def subject() -> None:
    """Subjects: users and workloads, their roles, methods and standing."""


add_get(subject, Collection.SUBJECTS, "subject")
add_list(subject, Collection.SUBJECTS, "subjects")
add_delete(subject, Collection.SUBJECTS, "subject")


@subject.command(cls=Change)
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
        put_record(client, manifests.read_one(file, client.tenant_option, "Subject").record)
        return
    assert record_id is not None
    record = client.find(Collection.SUBJECTS, record_id) or pb.Subject(
        name=client.name(Collection.SUBJECTS, record_id), state=pb.SUBJECT_STATE_ACTIVE
    )
    record.roles[:] = roles
    record.methods[:] = methods
    set_time(record.recover_time, recovered)
    put_record(client, record)


@subject.command(cls=Change)
@click.argument("record_id", metavar="ID")
@pass_client
def disable(client: Client, record_id: str) -> None:
    """Disable a subject: every decision about it is DENY."""
    _set_state(client, record_id, pb.SUBJECT_STATE_DISABLED)


@subject.command(cls=Change)
@click.argument("record_id", metavar="ID")
@pass_client
def enable(client: Client, record_id: str) -> None:
    """Enable a subject again."""
    _set_state(client, record_id, pb.SUBJECT_STATE_ACTIVE)


@subject.command("event", cls=Change)
@click.argument("record_id", metavar="ID")
@click.option("--recovery", "fields", flag_value="recover_time", help="The account was recovered.")
@click.option("--sim-change", "fields", flag_value="sim_change_time", help="The phone number moved to another SIM.")
@click.option(
    "--new-authenticator", "fields", flag_value="authenticator_change_time", help="An authenticator was added."
)
@click.option("--at", type=INSTANT, help="When.  [default: now]")
@pass_client
def event(client: Client, record_id: str, fields: str | None, at: float | None) -> None:
    """Tell of an event that voids what the subject's devices and sessions have proved.

    No grant applies to the subject until the tenant's cool-off is over.
    """
    if fields is None:
        raise click.UsageError("name the event: --recovery, --sim-change or --new-authenticator")
    record = client.get(Collection.SUBJECTS, record_id)
    set_time(getattr(record, fields), time.time() if at is None else at)
    put_record(client, record)


@subject.command("hash")
@click.argument("record_id", metavar="SUBJECT")
@pass_client
def hash_subject(client: Client, record_id: str) -> None:
    """Show what stands for a subject in the audit trail: its `user.hash`, by each of the tenant's keys, newest first.

    The subject need not be registered.
    """
    hashes = hashes_of(client, record_id)
    if not hashes:
        raise Failure(f"{client.parent}: has no TENANT key, so that decisions name nobody", NOT_FOUND)
    if client.output != "table":
        print_data(client, [as_dict(item) for item in hashes])
        return
    print_table(
        [
            ("HASH", lambda item: item.hash),
            ("KEY", lambda item: item.key),
            ("STARTS", lambda item: instant(item.start_time)),
            ("EXPIRES", lambda item: instant(item.expire_time)),
        ],
        hashes,
    )


def hashes_of(client: Client, subject_id: str) -> list[admin_pb2.SubjectHash]:
    """A subject's hashes in the audit trail, by each TENANT key, newest first."""
    request = admin_pb2.HashSubjectRequest(name=client.name(Collection.SUBJECTS, subject_id))
    response: admin_pb2.HashSubjectResponse = client.call("HashSubject", request)
    return list(response.hashes)


def _set_state(client: Client, record_id: str, state: pb.SubjectState) -> None:
    record = client.get(Collection.SUBJECTS, record_id)
    record.state = state
    put_record(client, record)
