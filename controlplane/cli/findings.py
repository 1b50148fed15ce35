"""`sidestep findings`: what all pods' reports show together, for a person to decide on."""

from __future__ import annotations

import click
from sidestep.v1 import audit_pb2, usage_pb2, usage_pb2_grpc

from controlplane.cli.changes import Change, propose, show_proposed
from controlplane.cli.client import Client
from controlplane.cli.failures import NOT_FOUND, Failure
from controlplane.cli.output import as_dict, instant, print_data, print_table, show_result
from controlplane.cli.program import Family, pass_client

_STATES = {
    usage_pb2.FINDING_STATE_OPEN: "open",
    usage_pb2.FINDING_STATE_APPLIED: "applied",
    usage_pb2.FINDING_STATE_DISMISSED: "dismissed",
}


@click.group("finding", cls=Family)
def finding() -> None:
    """Fingerprints in too many hands, seen over several pods."""


@finding.command("list")
@click.option("--all", "everything", is_flag=True, help="Also those that are settled.")
@pass_client
def list_findings(client: Client, everything: bool) -> None:
    """List findings, the newest first."""
    found = _list(client, everything)
    if client.output != "table":
        print_data(client, [as_dict(each) for each in found])
        return
    print_table(
        [
            ("FINDING", _id),
            ("STATE", lambda each: _STATES.get(each.state, "?")),
            ("SUBJECTS", lambda each: f"{each.subjects:.0f}"),
            ("SIDECARS", lambda each: str(len(each.sidecars))),
            ("DEVICES", lambda each: str(len(each.devices))),
            ("FIRST", lambda each: instant(each.first_time)),
            ("LAST", lambda each: instant(each.last_time)),
        ],
        found,
    )


@finding.command("show")
@click.argument("finding_id", metavar="ID")
@pass_client
def show_finding(client: Client, finding_id: str) -> None:
    """Show one finding: who was seen, by which sidecars."""
    found = next((each for each in _list(client, True) if _id(each) == finding_id), None)
    if found is None:
        raise Failure(f"{client.parent}/findings/{finding_id}: not found", NOT_FOUND)
    if client.output != "table":
        print_data(client, as_dict(found))
        return
    click.echo(f"{found.name}: {_STATES.get(found.state, '?')}, about {found.subjects:.0f} subjects")
    click.echo(f"seen by: {', '.join(found.sidecars)}")
    if found.actor:
        click.echo(f"settled by {found.actor}: {found.reason}")
    for pair in found.devices:
        click.echo(f"  {pair.subject} on {pair.device}")


@finding.command("apply")
@click.argument("finding_id", metavar="ID")
@click.option("--reason", required=True, help="Why.")
@pass_client
def apply_finding(client: Client, finding_id: str, reason: str) -> None:
    """Quarantine the finding's devices for their subjects. `sidestep device restore` takes that back, one by one."""
    _settle(client, finding_id, "FINDING_STATE_APPLIED", reason, "quarantined")


@finding.command("dismiss", cls=Change)
@click.argument("finding_id", metavar="ID")
@click.option("--reason", required=True, help="Why.")
@pass_client
def dismiss_finding(client: Client, finding_id: str, reason: str) -> None:
    """Take back what was done of itself; the fingerprint is not found again for 30 days."""
    if client.propose:
        client.why = client.why or reason
        asked = audit_pb2.CreateProposalRequest(dismiss=f"{client.parent}/findings/{finding_id}")
        show_proposed(client, propose(client, asked))
        return
    _settle(client, finding_id, "FINDING_STATE_DISMISSED", reason, "no longer suspect")


def _settle(client: Client, finding_id: str, state: str, reason: str, done: str) -> None:
    request = usage_pb2.SettleFindingRequest(name=f"{client.parent}/findings/{finding_id}", state=state, reason=reason)
    response = client.call("SettleFinding", request, service=usage_pb2_grpc.UsageServiceStub)
    show_result(client, response, f"{request.name}: {response.changed} devices {done}")


def _list(client: Client, everything: bool) -> list[usage_pb2.FleetFinding]:
    request = usage_pb2.ListFindingsRequest(parent=client.parent, all=everything)
    return list(client.call("ListFindings", request, service=usage_pb2_grpc.UsageServiceStub).findings)


def _id(each: usage_pb2.FleetFinding) -> str:
    return str(each.name.rpartition("/")[2])
