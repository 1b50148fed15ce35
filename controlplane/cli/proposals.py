"""`sidestep proposal`: list, show, approve, reject, withdraw. Changes that wait for a second person."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Any

import click
from rich.text import Text
from sidestep.v1 import audit_pb2, audit_pb2_grpc

from controlplane.cli.changes import target
from controlplane.cli.client import Client
from controlplane.cli.failures import Failure
from controlplane.cli.manifests import dump
from controlplane.cli.output import as_dict, at, console, instant, print_data, print_table, show_result
from controlplane.cli.program import Family, pass_client
from controlplane.kinds import KINDS
from engine.names import parse_name

_ID = re.compile(r"[0-9a-f]{12}")
_LINE_STYLES = {"+": "green", "-": "red", "@": "cyan"}
_STYLES = {"PENDING": "yellow", "APPROVED": "green", "REJECTED": "red"}


@click.group(cls=Family)
def proposal() -> None:
    """Changes that somebody asked for and a second person decides about."""


@proposal.command("list")
@click.option("--all", "everything", is_flag=True, help="Also those that are decided or expired.")
@click.option("--limit", type=click.IntRange(min=1), help="At most this many.  [default: all]")
@pass_client
def list_proposals(client: Client, everything: bool, limit: int | None) -> None:
    """List what waits, the newest first."""
    found = list(_list(client, limit, pending_only=not everything))
    if client.output == "table":
        print_table(_COLUMNS, found)
    else:
        print_data(client, [as_dict(item) for item in found])


@proposal.command("show")
@click.argument("proposal_id", metavar="ID")
@pass_client
def show(client: Client, proposal_id: str) -> None:
    """Show one proposal: who asks for what, and every line that would change."""
    request = audit_pb2.GetProposalRequest(name=_name(client, proposal_id))
    found: audit_pb2.Proposal = _call(client, "GetProposal", request).proposal
    if client.output != "table":
        print_data(client, as_dict(found))
        return
    print_table([("", lambda row: row[0]), ("", lambda row: row[1])], [row for row in _rows(found) if row[1]])
    for line in _compare(client, found):
        console().print(Text(line, style=_LINE_STYLES.get(line[:1], "")), soft_wrap=True)


@proposal.command("approve")
@click.argument("proposal_id", metavar="ID")
@click.option("--reason", default="", help="Why.")
@pass_client
def approve(client: Client, proposal_id: str, reason: str) -> None:
    """Make the change, as a second person: not the one who proposed it. Look at it first: `sidestep proposal show`."""
    request = audit_pb2.ApproveProposalRequest(name=_name(client, proposal_id), reason=reason)
    response: audit_pb2.ApproveProposalResponse = _call(client, "ApproveProposal", request)
    for warning in response.warnings:
        click.echo(f"warning: {warning}", err=True)
    found = response.proposal
    if found.HasField("dismiss"):
        show_result(client, response, f"{target(found)} dismissed")
        return
    done = "deleted" if found.HasField("delete") else "written"
    show_result(client, response, f"{target(found)} {done} {at(found.revision)}")


@proposal.command("reject")
@click.argument("proposal_id", metavar="ID")
@click.option("--reason", default="", help="Why.")
@pass_client
def reject(client: Client, proposal_id: str, reason: str) -> None:
    """End somebody else's proposal without the change."""
    request = audit_pb2.RejectProposalRequest(name=_name(client, proposal_id), reason=reason)
    response: audit_pb2.RejectProposalResponse = _call(client, "RejectProposal", request)
    show_result(client, response, f"{response.proposal.name} rejected")


@proposal.command("withdraw")
@click.argument("proposal_id", metavar="ID")
@click.option("--reason", default="", help="Why.")
@pass_client
def withdraw(client: Client, proposal_id: str, reason: str) -> None:
    """End your own proposal."""
    request = audit_pb2.WithdrawProposalRequest(name=_name(client, proposal_id), reason=reason)
    response: audit_pb2.WithdrawProposalResponse = _call(client, "WithdrawProposal", request)
    show_result(client, response, f"{response.proposal.name} withdrawn")


def _name(client: Client, proposal_id: str) -> str:
    if not _ID.fullmatch(proposal_id):
        raise Failure(
            f"ID: {proposal_id!r} is not a proposal's id (12 hexadecimal digits, as `sidestep proposal list` shows)"
        )
    return f"{client.parent}/proposals/{proposal_id}"


def _call(client: Client, method: str, request: Any) -> Any:
    return client.call(method, request, service=audit_pb2_grpc.ProposalServiceStub)


def _list(client: Client, limit: int | None, *, pending_only: bool) -> Iterator[audit_pb2.Proposal]:
    request = audit_pb2.ListProposalsRequest(parent=client.parent, pending_only=pending_only)
    left = limit
    while left is None or left > 0:
        request.page_size = min(left or 1000, 1000)
        response: audit_pb2.ListProposalsResponse = _call(client, "ListProposals", request)
        yield from response.proposals
        if not response.next_page_token:
            return
        left = None if left is None else left - len(response.proposals)
        request.page_token = response.next_page_token


def _state(found: audit_pb2.Proposal) -> Text:
    word = audit_pb2.ProposalState.Name(found.state).removeprefix("PROPOSAL_STATE_")
    return Text(word, style=_STYLES.get(word, ""))


def _change(found: audit_pb2.Proposal) -> str:
    return f"{found.WhichOneof('change')} {target(found)}"


def _compare(client: Client, found: audit_pb2.Proposal) -> Iterator[str]:
    """The record as it is now and as it was proposed, as documents, line by line; nothing of a decided proposal."""
    if found.state != audit_pb2.PROPOSAL_STATE_PENDING or found.HasField("dismiss"):
        return
    name = parse_name(target(found))
    current = client.find(name.collection, name.id)
    before = [] if current is None else dump(name.collection, current).splitlines()
    after: list[str] = []
    if found.HasField("put"):
        record = getattr(found.put, KINDS[name.collection].field)
        after = dump(name.collection, record).splitlines()
    yield ""
    yield from difflib.unified_diff(before, after, "now", "proposed", lineterm="")


def _rows(found: audit_pb2.Proposal) -> list[tuple[str, Any]]:
    decided = f"{found.decider} {instant(found.decide_time)}" if found.decider else ""
    return [
        ("id", found.name.rpartition("/")[2]),
        ("state", _state(found)),
        ("change", _change(found)),
        ("differs", found.detail),
        ("guarded by", ", ".join(found.rules)),
        ("proposer", f"{found.proposer} {instant(found.create_time)}"),
        ("reason", found.reason),
        ("ticket", found.ticket),
        ("expires", instant(found.expire_time)),
        ("decided by", decided),
        ("decided why", found.decide_reason),
        ("revision", at(found.revision) if found.HasField("revision") else ""),
    ]


_COLUMNS = [
    ("ID", lambda found: found.name.rpartition("/")[2]),
    ("STATE", _state),
    ("CHANGE", _change),
    ("DIFFERS", lambda found: found.detail),
    ("PROPOSER", lambda found: found.proposer),
    ("EXPIRES", lambda found: instant(found.expire_time)),
    ("REASON", lambda found: " ".join(part for part in (found.reason, found.ticket) if part) or "-"),
]
