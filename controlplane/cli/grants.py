"""`sidestep grant`: request, put, get, show, list, approve, reject, activate, suspend, resume, revoke, renew, delete."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TextIO, TypeVar

import click
from sidestep.v1 import access_pb2, access_pb2_grpc, audit_pb2, audit_pb2_grpc
from sidestep.v1 import resources_pb2 as pb

from controlplane.cli import manifests
from controlplane.cli.budget_options import OPTIONS, stated_budget
from controlplane.cli.client import Client
from controlplane.cli.common import add_delete, add_get, add_list
from controlplane.cli.failures import REFUSED, Failure
from controlplane.cli.output import as_dict, at, instant, print_data, show_put, show_record, show_result, state_name
from controlplane.cli.program import Family, pass_client
from controlplane.cli.values import DURATION, INSTANT, exactly_one, set_time
from engine.names import Collection

_F = TypeVar("_F", bound=Callable[..., Any])
# A put of these goes on from where the grant is; anything else it makes active again, if the class allows that.
_KEPT = frozenset({pb.GRANT_STATE_SUSPENDED, pb.GRANT_STATE_REVOKED, pb.GRANT_STATE_REQUESTED, pb.GRANT_STATE_APPROVED})
_HISTORY = 50


@click.group(cls=Family)
def grant() -> None:
    """Exemption grants: who may skip step-up, for which actions, until when and up to which ceiling.

    A grant is requested, approved by somebody else, and activated. Where its class wants no approval, `put` makes it active at
    once.
    """


add_get(grant, Collection.GRANTS, "grant")
add_list(grant, Collection.GRANTS, "grants")
add_delete(grant, Collection.GRANTS, "grant")


def _bounds(command: _F) -> _F:
    """The options that say what a grant allows."""
    for option in reversed(
        (
            click.argument("record_id", metavar="[ID]", required=False),
            click.option("--subject", help="Who is exempt: this subject,"),
            click.option("--role", help="... everyone with this role,"),
            click.option("--device", help="... or everyone on this device. Exactly one of the three."),
            click.option(
                "--action", "actions", multiple=True, help="Action or pattern (`payments.*`); repeat for several."
            ),
            click.option("--acr", help="Ceiling: the highest acr it may waive."),
            click.option(
                "--max-age", type=DURATION, help="Ceiling: the shortest freshness it may waive (at least 30s)."
            ),
            click.option("--starts", type=INSTANT, help="Valid from.  [default: at once]"),
            click.option("--expires", type=INSTANT, help="Valid until (`+90d`, `2027-01-31`)."),
            click.option("--condition", default="", help="CEL that must hold besides."),
            click.option("--class", "grant_class", default="", help="Its class in the settings."),
            click.option("--review", type=INSTANT, help="When it is to be reviewed.  [default: as its class says]"),
            click.option("--reason", default="", help="Why it exists."),
            click.option("--owner", default="", help="Who answers for it."),
            click.option("--ticket", default="", help="Where it was asked for (`SEC-1234`)."),
            *OPTIONS,
            click.option(
                "--file", "-f", type=click.File(encoding="utf-8"), help="Read the grant from a document instead."
            ),
        )
    ):
        command = option(command)
    return command


def _stated(client: Client, record_id: str | None, file: TextIO | None, given: dict[str, Any]) -> pb.Grant:
    """The grant that options or a document state, without a state. Raises Failure."""
    exactly_one({"ID": record_id, "--file": file})
    if file is not None:
        read: pb.Grant = manifests.read_one(file, client.tenant_option, "Grant").record
        return read
    assert record_id is not None
    exactly_one({f"--{scope}": given[scope] for scope in ("subject", "role", "device")})
    record = pb.Grant(
        name=client.name(Collection.GRANTS, record_id),
        subject=given["subject"],
        role=given["role"],
        device=given["device"],
        actions=given["actions"],
        condition=given["condition"],
        grant_class=given["grant_class"],
        reason=given["reason"],
        owner=given["owner"],
        ticket=given["ticket"],
    )
    record.ceiling.acr = given["acr"] or ""
    if given["max_age"] is not None:
        record.ceiling.max_age.FromNanoseconds(int(given["max_age"] * 1e9))
    set_time(record.start_time, given["starts"])
    set_time(record.expire_time, given["expires"])
    if (stated := stated_budget(given)) is not None:
        record.budget.CopyFrom(stated)
    if given["review"] is not None:
        set_time(record.review_time, given["review"])
    return record


@grant.command()
@_bounds
@pass_client
def put(client: Client, /, record_id: str | None, file: TextIO | None, **given: Any) -> None:
    """Create a grant, or replace its bounds. A suspended or revoked grant stays so.

    Refused where its class wants approvals: request it.
    """
    record = _stated(client, record_id, file, given)
    if file is None:
        known = client.find(Collection.GRANTS, str(record_id))
        record.state = known.state if known is not None and known.state in _KEPT else pb.GRANT_STATE_ACTIVE
    show_put(client, client.put(record))


@grant.command()
@_bounds
@pass_client
def request(client: Client, /, record_id: str | None, file: TextIO | None, **given: Any) -> None:
    """Request a grant, or other bounds for one, which is out of force until they are approved.

    With an ID alone: request again a grant that was rejected, has expired or has lapsed.
    """
    scopes = [given[name] for name in ("subject", "role", "device")]
    if file is None and record_id is not None and not any(scopes):
        _change(client, record_id, access_pb2.GRANT_TRANSITION_REQUEST, reason=given["reason"], ticket=given["ticket"])
        return
    record = _stated(client, record_id, file, given)
    record.state = pb.GRANT_STATE_REQUESTED
    response = client.put(record)
    stored = response.resource.grant
    if stored.state not in (pb.GRANT_STATE_REQUESTED, pb.GRANT_STATE_APPROVED):
        raise Failure(f"{stored.name}: is {state_name(stored.state)} with these very bounds", REFUSED)
    sentence = f"{stored.name} is {state_name(stored.state)} {at(response.revision)}"
    show_result(client, response, sentence)


@grant.command()
@click.argument("record_id", metavar="ID")
@pass_client
def show(client: Client, record_id: str) -> None:
    """Show one grant and what happened to it, the newest first."""
    record = client.get(Collection.GRANTS, record_id)
    entries = audit_pb2.ListAuditEntriesRequest(
        parent=client.parent, name_prefix=record.name, newest_first=True, page_size=_HISTORY
    )
    answer = client.call("ListAuditEntries", entries, service=audit_pb2_grpc.AuditServiceStub)
    history = [audit_pb2.AuditEntry.FromString(kept.entry) for kept in answer.records]
    # Another grant's name may begin with this one's.
    history = [entry for entry in history if entry.name == record.name]
    if client.output != "table":
        print_data(client, {"grant": as_dict(record), "history": [as_dict(entry) for entry in history]})
        return
    show_record(client, record)
    for entry in history:
        refused = "REFUSED: " if entry.outcome == audit_pb2.AUDIT_OUTCOME_REFUSED else ""
        because = f" ({entry.reason})" if entry.reason else ""
        click.echo(f"{instant(entry.time)} {entry.actor} {entry.action}{because}: {refused}{entry.detail}")


@grant.command()
@click.argument("record_id", metavar="ID")
@click.option("--reason", default="", help="Why.")
@click.option("--ticket", default="", help="A reference into another system.")
@pass_client
def approve(client: Client, record_id: str, reason: str, ticket: str) -> None:
    """Approve a requested grant, as somebody else than its requester."""
    seen = client.get(Collection.GRANTS, record_id)
    if client.output == "table":
        show_record(client, seen)
    _change(client, record_id, access_pb2.GRANT_TRANSITION_APPROVE, reason=reason, ticket=ticket, seen=seen)


@grant.command()
@click.argument("record_id", metavar="ID")
@click.option("--reason", default="", help="Why.")
@click.option("--ticket", default="", help="A reference into another system.")
@click.option("--review", type=INSTANT, help="When the next review is due.  [default: as its class says]")
@pass_client
def renew(client: Client, record_id: str, reason: str, ticket: str, review: float | None) -> None:
    """Say that a grant was reviewed and is still needed. Brings a lapsed one back into force."""
    _change(client, record_id, access_pb2.GRANT_TRANSITION_RENEW, reason=reason, ticket=ticket, review=review)


def _add(name: str, transition: access_pb2.GrantTransition, help_text: str, *, reason_required: bool) -> None:
    """Adds a command that takes one step."""
    # A default would count as given.
    no_default: dict[str, Any] = {"required": True} if reason_required else {"default": ""}
    reason_option = click.option("--reason", help="Why.", **no_default)

    @grant.command(name, help=help_text)
    @click.argument("record_id", metavar="ID")
    @reason_option
    @click.option("--ticket", default="", help="A reference into another system.")
    @pass_client
    def _step(client: Client, record_id: str, reason: str, ticket: str) -> None:
        _change(client, record_id, transition, reason=reason, ticket=ticket)


_add("reject", access_pb2.GRANT_TRANSITION_REJECT, "Reject a requested or approved grant.", reason_required=True)
_add("activate", access_pb2.GRANT_TRANSITION_ACTIVATE, "Put an approved grant into force.", reason_required=False)
_add(
    "suspend",
    access_pb2.GRANT_TRANSITION_SUSPEND,
    "Suspend a grant: it waives nothing until it is resumed.",
    reason_required=True,
)
_add(
    "resume",
    access_pb2.GRANT_TRANSITION_RESUME,
    "Resume a suspended grant. A revoked one stays revoked: delete it and request a new one.",
    reason_required=False,
)
_add(
    "revoke",
    access_pb2.GRANT_TRANSITION_REVOKE,
    "Revoke a grant for good. Prints the revision to pass as min_revision where the revocation must hold.",
    reason_required=True,
)


def _change(
    client: Client,
    record_id: str,
    transition: access_pb2.GrantTransition,
    *,
    reason: str,
    ticket: str,
    review: float | None = None,
    seen: pb.Grant | None = None,
) -> None:
    """Takes a step and says what the grant is now, at which revision."""
    change = access_pb2.ChangeGrantRequest(
        name=client.name(Collection.GRANTS, record_id), transition=transition, reason=reason, ticket=ticket
    )
    set_time(change.review_time, review)
    if review is None:
        change.ClearField("review_time")
    if seen is not None:
        change.update_time.CopyFrom(seen.update_time)
    response = client.call("ChangeGrant", change, service=access_pb2_grpc.AccessServiceStub)
    for warning in response.warnings:
        click.echo(f"warning: {warning}", err=True)
    revision, changed = response.revision, response.grant
    lines = [f"{changed.name} is {state_name(changed.state)} {at(revision)}"]
    if changed.HasField("review_time") and transition == access_pb2.GRANT_TRANSITION_RENEW:
        lines.append(f"next review: {instant(changed.review_time)}")
    if transition in (access_pb2.GRANT_TRANSITION_REVOKE, access_pb2.GRANT_TRANSITION_SUSPEND):
        lines.append(f"min_revision: {{epoch: {revision.epoch}, revision: {revision.revision}}}")
    show_result(client, response, "\n".join(lines))
