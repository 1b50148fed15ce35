"""`sidestep class`: list, get, suspend, resume; the breakers of classes of grants."""

from __future__ import annotations

import time

import click
from sidestep.v1 import resources_pb2 as pb
from sidestep.v1 import usage_pb2, usage_pb2_grpc

from controlplane.breakers import limits_of, read_breaker, write_breaker
from controlplane.cli.changes import Change, put_record
from controlplane.cli.client import Client
from controlplane.cli.failures import REFUSED, Failure
from controlplane.cli.output import as_dict, print_data, print_table, show_put, show_record, show_records
from controlplane.cli.program import Family, pass_client
from engine.breaker import Phase, resume, suspend
from engine.classes import DEFAULT_CLASS
from engine.names import SINGLETON_ID, Collection


@click.group("class", cls=Family)
def grant_class() -> None:
    """Classes of grants: whether their grants apply, and the breakers that suspend them for abuse."""


@grant_class.command("list")
@pass_client
def list_classes(client: Client) -> None:
    """List the classes there are, with how their breakers stand."""
    show_records(client, Collection.GRANT_CLASSES, _all(client))


@grant_class.command("abuse")
@pass_client
def abuse(client: Client) -> None:
    """Show what spot checks found, by class: how many exemptions are abuse, with the bounds that each hold at 95 %."""
    request = usage_pb2.ListClassAbuseRequest(parent=client.parent)
    found = client.call("ListClassAbuse", request, service=usage_pb2_grpc.UsageServiceStub).classes
    if client.output != "table":
        print_data(client, [as_dict(each) for each in found])
        return
    print_table(
        [
            ("CLASS", lambda each: each.grant_class),
            ("DRAWS", lambda each: str(each.draws)),
            ("PASSED", lambda each: str(each.passed)),
            ("FAILED", lambda each: str(each.failed)),
            ("GIVEN UP", lambda each: str(each.abandoned)),
            ("RATE", lambda each: f"{each.rate:.2%}" if each.passed + each.failed + each.abandoned else "-"),
            ("BETWEEN", lambda each: f"{each.lower:.2%} and {each.upper:.2%}"),
            ("LIMIT", lambda each: f"{each.breaker.max_rate:.2%}" if each.HasField("breaker") else "-"),
        ],
        found,
    )


@grant_class.command("get")
@click.argument("class_id", metavar="CLASS")
@pass_client
def get_class(client: Client, class_id: str) -> None:
    """Show how the breaker of one class stands."""
    show_record(client, _current(client, class_id))


@grant_class.command("suspend")
@click.argument("class_id", metavar="CLASS")
@click.option("--reason", required=True, help="Why.")
@pass_client
def suspend_class(client: Client, class_id: str, reason: str) -> None:
    """No grant of CLASS applies any more, until `sidestep class resume`."""
    record = _current(client, class_id)
    after = suspend(read_breaker(record), time.time())
    show_put(client, client.put(write_breaker(record.name, after, None, reason)))


@grant_class.command("resume", cls=Change)
@click.argument("class_id", metavar="CLASS")
@click.option("--reason", required=True, help="Why.")
@pass_client
def resume_class(client: Client, class_id: str, reason: str) -> None:
    """The grants of CLASS apply again: with more spot checks at first if the class has a breaker, else at once.

    Refused (exit code 1) if it is not suspended.
    """
    record = _current(client, class_id)
    breaker = read_breaker(record)
    if breaker.phase is not Phase.SUSPENDED:
        raise Failure(f"{record.name}: is not suspended", REFUSED)
    limits = limits_of(client.find(Collection.SETTINGS, SINGLETON_ID)).get(class_id)
    after = resume(breaker, limits, time.time())
    client.why = client.why or reason
    put_record(client, write_breaker(record.name, after, limits, reason))


def _current(client: Client, class_id: str) -> pb.GrantClassState:
    found: pb.GrantClassState | None = client.find(Collection.GRANT_CLASSES, class_id)
    return found or _active(client, class_id)


def _active(client: Client, class_id: str) -> pb.GrantClassState:
    return pb.GrantClassState(name=client.name(Collection.GRANT_CLASSES, class_id), state=pb.CLASS_STATE_ACTIVE)


def _all(client: Client) -> list[pb.GrantClassState]:
    settings = client.find(Collection.SETTINGS, SINGLETON_ID)
    known = {stated.id for stated in settings.grant_classes} if settings is not None else set()
    states = {DEFAULT_CLASS: _active(client, DEFAULT_CLASS)} if not known else {}
    for class_id in (*known, *limits_of(settings)):
        states[class_id] = _active(client, class_id)
    for record in client.list(Collection.GRANT_CLASSES):
        states[record.name.rpartition("/")[2]] = record
    return [states[class_id] for class_id in sorted(states)]
