"""Commands that change a record which change control may guard: at once, or as a proposal with --propose."""

from __future__ import annotations

from typing import Any

import click
from sidestep.v1 import audit_pb2, audit_pb2_grpc

from controlplane.cli.client import Client, wrap
from controlplane.cli.output import at, show_put, show_result
from controlplane.cli.program import Leaf
from engine.names import Collection


class Change(Leaf):
    """A command that changes one record or several; takes the options of changes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        taken = {name for param in self.params for name in param.opts}
        self.params += [option for option in _options() if not taken.intersection(option.opts)]


def put_record(client: Client, record: Any) -> None:
    """Puts a record, or proposes that, and says so."""
    if client.propose:
        show_proposed(client, propose(client, audit_pb2.CreateProposalRequest(put=wrap(record))))
    else:
        show_put(client, client.put(record))


def delete_record(client: Client, collection: Collection, record_id: str) -> None:
    """Deletes a record and says at which revision it is gone; or proposes that."""
    name = client.name(collection, record_id)
    if client.propose:
        show_proposed(client, propose(client, audit_pb2.CreateProposalRequest(delete=name)))
        return
    revision = client.delete(collection, record_id)
    show_result(client, revision, f"{name} deleted {at(revision)}")


def propose(client: Client, request: audit_pb2.CreateProposalRequest) -> audit_pb2.CreateProposalResponse:
    """Makes a proposal, with the reason and ticket of the command line."""
    request.reason, request.ticket = client.why, client.ticket
    response: audit_pb2.CreateProposalResponse = client.call(
        "CreateProposal", request, service=audit_pb2_grpc.ProposalServiceStub
    )
    return response


def show_proposed(client: Client, response: audit_pb2.CreateProposalResponse) -> None:
    """Prints what was proposed. Warnings go to stderr in every format."""
    for warning in response.warnings:
        click.echo(f"warning: {warning}", err=True)
    show_result(client, response, proposed(response.proposal))


def proposed(proposal: audit_pb2.Proposal) -> str:
    """A sentence for whoever proposed something."""
    proposal_id = proposal.name.rpartition("/")[2]
    return f"{target(proposal)} proposed: `sidestep proposal approve {proposal_id}` by a second person makes the change"


def target(proposal: audit_pb2.Proposal) -> str:
    """The name of the record, or finding, that a proposal is about."""
    if proposal.HasField("dismiss"):
        return proposal.dismiss
    if proposal.HasField("delete"):
        return proposal.delete
    return str(getattr(proposal.put, proposal.put.WhichOneof("resource") or "").name)


def _options() -> list[click.Parameter]:
    def option(*names: str, attribute: str, **more: Any) -> click.Option:
        def remember(ctx: click.Context, param: click.Parameter, value: Any) -> None:
            if value is not None:
                setattr(ctx.ensure_object(Client), attribute, value)

        return click.Option(names, callback=remember, expose_value=False, **more)

    return [
        option(
            "--propose", attribute="propose", is_flag=True, default=None, help="Ask for it: a second person decides."
        ),
        option("--why", attribute="why", help="Reason for the audit log, and for whoever decides."),
        option("--ticket", attribute="ticket", help="Ticket for the audit log."),
    ]
