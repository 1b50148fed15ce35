"""`sidestep access review`: who could skip what, by which grant, when it was last used and when it is due for review."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from typing import Any

import click
from rich.text import Text
from sidestep.v1 import access_pb2, access_pb2_grpc
from sidestep.v1 import resources_pb2 as pb

from controlplane.cli.client import Client
from controlplane.cli.output import as_dict, coloured, instant, print_data, print_table, requirement, state_name
from controlplane.cli.program import Family, pass_client

_SCOPES = {pb.GRANT_SCOPE_SUBJECT: "subject", pb.GRANT_SCOPE_ROLE: "role", pb.GRANT_SCOPE_DEVICE: "device"}
NOT_REPORTED = "not reported"
WHOEVER = "(role in token)"
# What a spreadsheet would take for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@click.group(cls=Family)
def access() -> None:
    """Who could skip step-up."""


@access.command()
@click.option("--subject", default="", help="Only of this subject.")
@click.option(
    "--dormant", is_flag=True, help="Also grants that waive nothing now: suspended, lapsed, not yet valid, ..."
)
@click.option("--csv", "as_csv", is_flag=True, help="Print comma-separated values.")
@pass_client
def review(client: Client, subject: str, dormant: bool, as_csv: bool) -> None:
    """List who could skip what at this moment: one line for each subject and grant.

    Roles are expanded to the subjects that are known to have them; whoever has a role by their token alone stands in a line of
    its own. Policies may still forbid what a grant allows.
    """
    answers = client.stream(
        "ReviewAccess",
        access_pb2.ReviewAccessRequest(parent=client.parent, subject=subject, dormant=dormant),
        service=access_pb2_grpc.AccessServiceStub,
    )
    first = next(answers)
    if first.exemptions_off:
        click.echo("warning: the kill switch is thrown: no grant applies", err=True)
    entries = (entry for answer in answers for entry in answer.entries)
    if as_csv:
        _write_csv(entries)
    elif client.output == "table":
        print_table(_COLUMNS, list(entries))
    else:
        print_data(
            client,
            {
                "time": first.time.ToJsonString(),
                "exemptions_off": first.exemptions_off,
                "entries": [as_dict(entry) for entry in entries],
            },
        )


def _write_csv(entries: Iterator[Any]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(heading.lower().replace(" ", "_") for heading, _ in _COLUMNS)
    for entry in entries:
        writer.writerow(_plain(str(cell(entry))) for _, cell in _COLUMNS)


def _plain(value: str) -> str:
    """A value that a spreadsheet shows and does not compute: ids and reasons come from others."""
    return f"'{value}" if value.startswith(_FORMULA) and value != "-" else value


def _last_use(entry: Any) -> str:
    return instant(entry.last_use_time) if entry.HasField("last_use_time") else NOT_REPORTED


def _state(entry: Any) -> Text:
    return Text(entry.refusal) if entry.refusal else coloured(state_name(entry.state))


_COLUMNS: list[tuple[str, Any]] = [
    ("SUBJECT", lambda entry: entry.subject or WHOEVER),
    ("GRANT", lambda entry: entry.grant),
    ("BY", lambda entry: f"{_SCOPES.get(entry.scope, '?')}:{entry.scope_value}"),
    ("CLASS", lambda entry: entry.grant_class or "-"),
    ("ACTIONS", lambda entry: " ".join(entry.actions)),
    ("CEILING", lambda entry: requirement(entry.ceiling)),
    ("STATE", _state),
    ("EXPIRES", lambda entry: instant(entry.expire_time)),
    ("REVIEW DUE", lambda entry: instant(entry.review_time)),
    ("LAST USED", _last_use),
    ("OWNER", lambda entry: entry.owner or "-"),
    ("TICKET", lambda entry: entry.ticket or "-"),
    ("REASON", lambda entry: entry.reason or "-"),
]
