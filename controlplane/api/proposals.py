"""ProposalService: changes that wait for a second person.

A proposal holds the record as it was put and the digest of what it was to replace. It is checked when it is made, and again, by
the rules of then, when it is approved.
"""
# ruff: noqa: N802 - the methods are named by the proto service

from __future__ import annotations

import re
import secrets
import time
from typing import Any

from sidestep.v1 import audit_pb2, audit_pb2_grpc, usage_pb2
from sidestep.v1 import resources_pb2 as pb

from controlplane.actor import ANONYMOUS, UNVERIFIED, Actor, Permission, check_second_person
from controlplane.api.differences import difference, reason_of
from controlplane.api.guard import load_control
from controlplane.api.identity import admit, begin
from controlplane.api.paging import bad_token, page_size, read_token, write_token
from controlplane.api.resources import name_of, public
from controlplane.api.writing import Approved, Writer, digest_of
from controlplane.audit import MAX_REASON, MAX_TICKET, Note
from controlplane.changecontrol import finding_rules, lifetime_s
from controlplane.errors import NotFoundError, RefusedError
from controlplane.kinds import KINDS
from controlplane.store import Committed, Store
from controlplane.store.proposals import forget_secret
from controlplane.threat.fleet import digest_of_finding, parse_finding, settle
from engine.errors import InvalidInputError
from engine.names import Lane, Name, check_tenant, lane_of, parse_name, parse_parent

_ID_BYTES = 6
_ID = re.compile(r"[0-9a-f]{12}")
_MAX_NUMBER = 2**63 - 1
_PENDING = audit_pb2.PROPOSAL_STATE_PENDING


class ProposalService(audit_pb2_grpc.ProposalServiceServicer):
    """The verbs of audit.proto that ask for changes and decide about them, over a store."""

    def __init__(self, store: Store, writer: Writer) -> None:
        self._store = store
        self._writer = writer

    async def CreateProposal(
        self, request: audit_pb2.CreateProposalRequest, context: Any
    ) -> audit_pb2.CreateProposalResponse:
        """Checks a change as if it were made, and keeps it."""
        if request.HasField("dismiss"):
            return await self._propose_dismissal(request)
        target = _target(request)
        proposal_id = secrets.token_hex(_ID_BYTES)
        name = f"tenants/{target.tenant}/proposals/{proposal_id}"
        note = begin(
            Permission.WRITE,
            target.tenant,
            "proposal.create",
            str(target),
            reason=_text(request.reason, "reason", MAX_REASON) or reason_of(request.put),
            ticket=_text(request.ticket, "ticket", MAX_TICKET),
        )
        _check_proposer(note.actor, str(target))
        asked = pb.Resource()
        asked.CopyFrom(request.put)
        # What it checks it completes: a fingerprint is hashed now, so that the raw one is not kept.
        if request.HasField("delete"):
            checked = await self._writer.delete(target, None)
        else:
            checked = await self._writer.put(asked, None, actor=note.actor.name)
        if not checked.changed:
            raise RefusedError(f"{target}: is so already, there is nothing to propose")
        proposal = audit_pb2.Proposal(
            name=name,
            state=_PENDING,
            proposer=note.actor.name,
            evidence=pb.EVIDENCE_VERIFIED if note.actor.verified else pb.EVIDENCE_ASSERTED,
            reason=note.reason,
            ticket=note.ticket,
            base_digest=digest_of(checked.stored),
            detail=difference(target.collection, checked.stored, checked.record),
            rules=checked.rules,
        )
        if request.HasField("delete"):
            proposal.delete = str(target)
        else:
            proposal.put.CopyFrom(asked)
        control = await load_control(self._store, target.tenant)
        return await self._add(target.tenant, proposal, control, note, str(target), checked.warnings)

    async def _propose_dismissal(self, request: audit_pb2.CreateProposalRequest) -> audit_pb2.CreateProposalResponse:
        tenant, finding_id = parse_finding(request.dismiss, "dismiss")
        reason, ticket = _text(request.reason, "reason", MAX_REASON), _text(request.ticket, "ticket", MAX_TICKET)
        note = begin(Permission.WRITE, tenant, "proposal.create", request.dismiss, reason=reason, ticket=ticket)
        _check_proposer(note.actor, request.dismiss)
        if not reason.strip():
            raise InvalidInputError("reason", "is required to dismiss a finding")
        finding = await self._open_finding(tenant, finding_id, request.dismiss)
        control = await load_control(self._store, tenant)
        proposal = audit_pb2.Proposal(
            name=f"tenants/{tenant}/proposals/{secrets.token_hex(_ID_BYTES)}",
            state=_PENDING,
            proposer=note.actor.name,
            evidence=pb.EVIDENCE_VERIFIED if note.actor.verified else pb.EVIDENCE_ASSERTED,
            reason=reason,
            ticket=ticket,
            dismiss=request.dismiss,
            base_digest=digest_of_finding(finding),
            detail=f"{len(finding.devices)} devices no longer suspect",
            rules=finding_rules(control),
        )
        return await self._add(tenant, proposal, control, note, request.dismiss, [])

    async def _add(
        self,
        tenant: str,
        proposal: audit_pb2.Proposal,
        control: pb.ChangeControl,
        note: Note,
        target: str,
        warnings: list[str],
    ) -> audit_pb2.CreateProposalResponse:
        """Keeps a proposal, from now until it expires."""
        now = time.time()
        proposal.create_time.FromNanoseconds(int(now * 1e9))
        proposal.expire_time.FromNanoseconds(int((now + lifetime_s(control)) * 1e9))
        told = note._replace(name=proposal.name, detail=f"{target}: {proposal.detail}")
        await self._store.proposals.add(tenant, proposal.name.rpartition("/")[2], proposal, told)
        return audit_pb2.CreateProposalResponse(proposal=_shown(proposal, now), warnings=warnings)

    async def GetProposal(self, request: audit_pb2.GetProposalRequest, context: Any) -> audit_pb2.GetProposalResponse:
        """One proposal, without secrets. NOT_FOUND if there is none."""
        tenant, proposal_id = _parse(request.name)
        admit(Permission.READ, tenant)
        proposal = await self._store.proposals.get(tenant, proposal_id)
        return audit_pb2.GetProposalResponse(proposal=_shown(proposal, time.time()))

    async def ListProposals(
        self, request: audit_pb2.ListProposalsRequest, context: Any
    ) -> audit_pb2.ListProposalsResponse:
        """A page of proposals, the newest first."""
        tenant = parse_parent(request.parent)
        admit(Permission.READ, tenant)
        limit = page_size(request.page_size)
        token = read_token(request.page_token)
        if token and not (token.isascii() and token.isdigit() and int(token) <= _MAX_NUMBER):
            raise bad_token()
        now = time.time()
        found = await self._store.proposals.list(tenant, int(token or 0), limit, now, pending_only=request.pending_only)
        return audit_pb2.ListProposalsResponse(
            proposals=[_shown(proposal, now) for _, proposal in found],
            next_page_token=write_token(str(found[-1][0])) if len(found) == limit else "",
        )

    async def ApproveProposal(
        self, request: audit_pb2.ApproveProposalRequest, context: Any
    ) -> audit_pb2.ApproveProposalResponse:
        """Makes the change: if a second person asks, and what was to be changed is as it was."""
        tenant, proposal_id = _parse(request.name)
        note = _begin(Permission.APPROVE, "proposal.approve", request)
        proposal = await self._open(tenant, proposal_id, note, second=True)
        warnings = [] if note.actor.verified else [UNVERIFIED]
        if proposal.HasField("dismiss"):
            await self._dismiss(tenant, proposal, note)
            return audit_pb2.ApproveProposalResponse(proposal=_shown(proposal, time.time()), warnings=warnings)
        target = name_of(proposal.put) if proposal.HasField("put") else parse_name(proposal.delete)

        def finished(committed: Committed) -> audit_pb2.Proposal:
            head = committed.heads[lane_of(target.collection) or Lane.URGENT]
            proposal.revision.epoch, proposal.revision.revision = head.epoch, head.revision
            return _decided(proposal, audit_pb2.PROPOSAL_STATE_APPROVED, note)

        told = note._replace(
            name=str(target),
            detail=f"{request.name} of {proposal.proposer}",
            reason=note.reason or proposal.reason,
            ticket=proposal.ticket,
        )
        approved = Approved(proposal.base_digest, self._store.proposals.closing(tenant, proposal_id, finished))
        if proposal.HasField("put"):
            asked = pb.Resource()
            asked.CopyFrom(proposal.put)
            written = await self._writer.put(asked, told, approved)
        else:
            written = await self._writer.delete(target, told, approved)
        warnings += written.warnings
        return audit_pb2.ApproveProposalResponse(proposal=_shown(proposal, time.time()), warnings=warnings)

    async def _dismiss(self, tenant: str, proposal: audit_pb2.Proposal, note: Note) -> None:
        """Dismisses the finding, record by record, then ends the proposal: what fails half-way is approved again."""
        told = note._replace(
            action="finding.dismiss",
            detail=f"{proposal.name} of {proposal.proposer}",
            reason=note.reason or proposal.reason,
            ticket=proposal.ticket,
        )
        finding_id = proposal.dismiss.rpartition("/")[2]
        finding = await self._open_finding(tenant, finding_id, proposal.dismiss)
        if digest_of_finding(finding) != proposal.base_digest:
            raise RefusedError(f"{proposal.dismiss}: has changed since this was proposed; propose it again")
        await settle(self._store, tenant, finding, told, apply=False)
        ended = _decided(proposal, audit_pb2.PROPOSAL_STATE_APPROVED, note)
        told = note._replace(name=proposal.dismiss, detail=f"{proposal.name} of {proposal.proposer}: {proposal.detail}")
        await self._store.proposals.close(tenant, proposal.name.rpartition("/")[2], ended, told)

    async def _open_finding(self, tenant: str, finding_id: str, name: str) -> usage_pb2.FleetFinding:
        finding = await self._store.findings.get(tenant, finding_id)
        if finding is None:
            raise NotFoundError(name)
        if finding.state != usage_pb2.FINDING_STATE_OPEN:
            raise RefusedError(f"{name}: was settled by {finding.actor}")
        return finding

    async def RejectProposal(
        self, request: audit_pb2.RejectProposalRequest, context: Any
    ) -> audit_pb2.RejectProposalResponse:
        """Ends a proposal of another one."""
        note = _begin(Permission.APPROVE, "proposal.reject", request)
        proposal = await self._close(request.name, note, audit_pb2.PROPOSAL_STATE_REJECTED, second=True)
        return audit_pb2.RejectProposalResponse(proposal=proposal)

    async def WithdrawProposal(
        self, request: audit_pb2.WithdrawProposalRequest, context: Any
    ) -> audit_pb2.WithdrawProposalResponse:
        """Ends a proposal of one's own."""
        note = _begin(Permission.WRITE, "proposal.withdraw", request)
        proposal = await self._close(request.name, note, audit_pb2.PROPOSAL_STATE_WITHDRAWN, second=False)
        return audit_pb2.WithdrawProposalResponse(proposal=proposal)

    async def _open(self, tenant: str, proposal_id: str, note: Note, *, second: bool) -> audit_pb2.Proposal:
        """A proposal that the actor may decide about. Raises RefusedError, NotFoundError."""
        proposal = await self._store.proposals.get(tenant, proposal_id)
        state = _state(proposal, time.time())
        if state != _PENDING:
            word = audit_pb2.ProposalState.Name(state).removeprefix("PROPOSAL_STATE_").lower()
            raise RefusedError(f"{proposal.name}: is {word} already")
        if second:
            check_second_person(note.actor, [proposal.proposer], proposal.name)
        elif note.actor.name.casefold() != proposal.proposer.casefold():
            raise RefusedError(f"{proposal.name}: only {proposal.proposer} can withdraw it; reject it instead")
        return proposal

    async def _close(
        self, name: str, note: Note, state: audit_pb2.ProposalState, *, second: bool
    ) -> audit_pb2.Proposal:
        tenant, proposal_id = _parse(name)
        proposal = await self._open(tenant, proposal_id, note, second=second)
        told = note._replace(detail=f"of {proposal.proposer}: {proposal.detail}")
        await self._store.proposals.close(tenant, proposal_id, _decided(proposal, state, note), told)
        return _shown(proposal, time.time())


def _check_proposer(actor: Actor, target: str) -> None:
    if actor.name == ANONYMOUS:
        raise RefusedError(f"{target}: nobody knows who proposes this, and so who the second person may be")


def _target(request: audit_pb2.CreateProposalRequest) -> Name:
    kind = request.WhichOneof("change")
    if kind is None:
        raise InvalidInputError("put", "a proposal puts a record or deletes one, or dismisses a finding")
    return name_of(request.put) if kind == "put" else parse_name(request.delete, "delete")


def _parse(name: str) -> tuple[str, str]:
    """Tenant and id of a proposal's name. Raises InvalidInputError."""
    parts = name.split("/")
    if len(parts) != 4 or parts[0] != "tenants" or parts[2] != "proposals" or not _ID.fullmatch(parts[3]):
        raise InvalidInputError("name", f"{name!r} is not of the form tenants/{{tenant}}/proposals/{{id}}")
    return check_tenant(parts[1], "name"), parts[3]


def _begin(permission: Permission, action: str, request: Any) -> Note:
    tenant, _ = _parse(request.name)
    return begin(permission, tenant, action, request.name, reason=_text(request.reason, "reason", MAX_REASON))


def _text(value: str, field: str, limit: int) -> str:
    if len(value) > limit:
        raise InvalidInputError(field, f"longer than {limit} characters")
    return value


def _state(proposal: audit_pb2.Proposal, now: float) -> audit_pb2.ProposalState:
    if proposal.state == _PENDING and proposal.expire_time.ToNanoseconds() <= now * 1e9:
        return audit_pb2.PROPOSAL_STATE_EXPIRED
    return proposal.state


def _decided(proposal: audit_pb2.Proposal, state: audit_pb2.ProposalState, note: Note) -> audit_pb2.Proposal:
    """The same proposal, ended."""
    proposal.state = state
    proposal.decider = note.actor.name
    proposal.decide_reason = note.reason
    proposal.decide_time.FromNanoseconds(int(time.time() * 1e9))
    forget_secret(proposal)
    return proposal


def _shown(proposal: audit_pb2.Proposal, now: float) -> audit_pb2.Proposal:
    """A proposal as the API shows it: without secrets, expired if it is."""
    shown = audit_pb2.Proposal()
    shown.CopyFrom(proposal)
    shown.state = _state(proposal, now)
    if shown.HasField("put"):
        collection = name_of(shown.put).collection
        shown.put.CopyFrom(public(collection, getattr(shown.put, KINDS[collection].field)))
    return shown
