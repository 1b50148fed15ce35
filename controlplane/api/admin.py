"""AdminService: what operators and the `sidestep` CLI do.

It translates; the rules are in validation, resources, links and imports.
"""
# ruff: noqa: N802 - the methods are named by the proto service

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from sidestep.v1 import admin_pb2, admin_pb2_grpc, sync_pb2
from sidestep.v1 import resources_pb2 as pb

from controlplane.actor import Permission
from controlplane.api.accounts import list_accounts
from controlplane.api.differences import reason_of
from controlplane.api.identity import admit, begin
from controlplane.api.imports import Import
from controlplane.api.journals import list_anchors, list_chains
from controlplane.api.paging import page_size, read_token, write_token
from controlplane.api.quotas import ImportQuotas
from controlplane.api.resources import decode, name_of, public
from controlplane.api.rules import get_rules, hash_subject
from controlplane.api.writing import Writer
from controlplane.errors import NotFoundError
from controlplane.kinds import KINDS
from controlplane.store import Head, Store
from engine.errors import InvalidInputError
from engine.names import Collection, parse_name, parse_parent
from engine.policy import PolicyError, parse_policy

# A page is cut here, well below the 4 MiB that gRPC clients accept unless told otherwise.
MAX_PAGE_BYTES = 2 * 1024 * 1024


class AdminService(admin_pb2_grpc.AdminServiceServicer):
    """The verbs of admin.proto over a store. One instance serves all calls, in one event loop."""

    def __init__(self, store: Store, writer: Writer, quotas: ImportQuotas) -> None:
        self._store = store
        self._writer = writer
        self._quotas = quotas

    async def PutResource(self, request: admin_pb2.PutResourceRequest, context: Any) -> admin_pb2.PutResourceResponse:
        """Creates or replaces a record; equal content changes nothing and keeps the revision."""
        name = name_of(request.resource)
        if request.validate_only:
            # Whoever may not write learns nothing from it that reading would not tell.
            written = await self._writer.put(request.resource, None, actor=admit(Permission.READ, name.tenant).name)
        else:
            reason = request.reason or reason_of(request.resource)
            ticket = request.ticket or request.resource.grant.ticket
            note = begin(Permission.WRITE, name.tenant, "put", str(name), reason=reason, ticket=ticket)
            written = await self._writer.put(request.resource, note)
        return admin_pb2.PutResourceResponse(
            resource=public(name.collection, written.record),
            revision=_revision(written.head),
            changed=written.changed,
            warnings=written.warnings,
            guarded_by=written.rules,
        )

    async def GetResource(self, request: admin_pb2.GetResourceRequest, context: Any) -> admin_pb2.GetResourceResponse:
        """One record, without secrets. NOT_FOUND if there is none."""
        name = parse_name(request.name)
        admit(Permission.READ, name.tenant)
        value = await self._store.get(name.tenant, name.collection, name.id)
        if value is None:
            raise NotFoundError(request.name)
        return admin_pb2.GetResourceResponse(resource=public(name.collection, decode(name.collection, value)))

    async def ListResources(
        self, request: admin_pb2.ListResourcesRequest, context: Any
    ) -> admin_pb2.ListResourcesResponse:
        """A page of a collection by id, cut short of page_size where the records are large."""
        tenant = parse_parent(request.parent)
        admit(Permission.READ, tenant)
        collection = _collection(request.collection)
        limit = page_size(request.page_size)
        after = read_token(request.page_token)
        rows = await self._store.list(tenant, collection, after=after, limit=limit, prefix=request.id_prefix)
        response = admin_pb2.ListResourcesResponse(total_size=await self._store.count(tenant, collection))
        size = 0
        for record_id, value in rows:
            size += len(value)
            if response.resources and size > MAX_PAGE_BYTES:
                response.next_page_token = write_token(after)
                return response
            response.resources.append(public(collection, decode(collection, value)))
            after = record_id
        if len(rows) == limit:
            response.next_page_token = write_token(after)
        return response

    async def ListBudgetAccounts(
        self, request: admin_pb2.ListBudgetAccountsRequest, context: Any
    ) -> admin_pb2.ListBudgetAccountsResponse:
        """A page of what subjects have used of a grant's budget."""
        name = parse_name(request.name)
        admit(Permission.READ, name.tenant)
        return await list_accounts(self._store, name, request)

    async def DeleteResource(
        self, request: admin_pb2.DeleteResourceRequest, context: Any
    ) -> admin_pb2.DeleteResourceResponse:
        """Deletes a record. NOT_FOUND if there is none."""
        name = parse_name(request.name)
        note = begin(Permission.WRITE, name.tenant, "delete", str(name), reason=request.reason, ticket=request.ticket)
        written = await self._writer.delete(name, note)
        return admin_pb2.DeleteResourceResponse(revision=_revision(written.head))

    async def ImportResources(
        self, request_iterator: AsyncIterator[admin_pb2.ImportResourcesRequest], context: Any
    ) -> admin_pb2.ImportResourcesResponse:
        """Receives start, batches and commit. Whatever ends the stream before the commit discards all of it."""
        with self._quotas.run() as run:
            started: Import | None = None
            try:
                async for request in request_iterator:
                    kind = request.WhichOneof("message")
                    if (kind == "start") is not (started is None):
                        raise InvalidInputError("message", "an import begins with one start message")
                    if started is None:
                        started = Import(self._store, request.start)
                        run.begin(started.tenant)
                    elif kind == "batch":
                        run.take(len(request.batch.resources))
                        await started.add(request.batch)
                    elif kind == "commit":
                        return await started.commit(request.commit.count)
                    else:
                        raise InvalidInputError("message", "must be a batch or the commit")
                raise InvalidInputError("commit", "the stream ended without it; nothing was written")
            finally:
                if started is not None:
                    await started.close()

    async def CheckPolicy(self, request: admin_pb2.CheckPolicyRequest, context: Any) -> admin_pb2.CheckPolicyResponse:
        """Every problem of a policy document, with line and column."""
        tenant = parse_parent(request.parent)
        admit(Permission.READ, tenant)
        try:
            parsed = parse_policy(request.source)
        except PolicyError as error:
            return admin_pb2.CheckPolicyResponse(
                problems=[admin_pb2.PolicyProblem(**problem._asdict()) for problem in error.problems]
            )
        response = admin_pb2.CheckPolicyResponse(warnings=parsed.warnings)
        if parsed.tenant and parsed.tenant != tenant:
            response.problems.add(path="metadata.tenant", message=f"{parsed.tenant!r} is not the tenant {tenant!r}")
        return response

    async def GetRevisions(
        self, request: admin_pb2.GetRevisionsRequest, context: Any
    ) -> admin_pb2.GetRevisionsResponse:
        """Heads of a tenant's lanes; none before its first write."""
        tenant = parse_parent(request.parent)
        admit(Permission.READ, tenant)
        heads = await self._store.heads([tenant])
        return admin_pb2.GetRevisionsResponse(
            heads=[
                sync_pb2.Cursor(
                    tenant=head.tenant,
                    lane=f"LANE_{head.lane.name}",
                    epoch=head.epoch,
                    revision=head.revision,
                    digest=head.digest,
                )
                for head in heads
            ]
        )

    async def ListSidecars(
        self, request: admin_pb2.ListSidecarsRequest, context: Any
    ) -> admin_pb2.ListSidecarsResponse:
        """A page of the sidecars connected or seen lately, by name."""
        tenant = parse_parent(request.parent) if request.parent else None
        admit(Permission.READ, tenant)
        limit = page_size(request.page_size)
        sidecars = await self._store.sidecars(tenant, after=read_token(request.page_token), limit=limit)
        response = admin_pb2.ListSidecarsResponse(sidecars=sidecars)
        if len(sidecars) == limit:
            response.next_page_token = write_token(sidecars[-1].sidecar)
        return response

    async def ListJournalChains(
        self, request: admin_pb2.ListJournalChainsRequest, context: Any
    ) -> admin_pb2.ListJournalChainsResponse:
        """A page of the journals' chains, by sidecar and chain."""
        # A sidecar's journal holds the decisions of all tenants it serves.
        admit(Permission.READ, None)
        return await list_chains(self._store, request)

    async def ListJournalAnchors(
        self, request: admin_pb2.ListJournalAnchorsRequest, context: Any
    ) -> admin_pb2.ListJournalAnchorsResponse:
        """A page of one chain's anchors, oldest first. NOT_FOUND if nothing was reported of it."""
        admit(Permission.READ, None)
        return await list_anchors(self._store, request)

    async def GetRules(self, request: admin_pb2.GetRulesRequest, context: Any) -> admin_pb2.GetRulesResponse:
        """The rules at a revision of the urgent lane. NOT_FOUND, saying why, if they were never recorded."""
        admit(Permission.READ, parse_parent(request.parent))
        return await get_rules(self._store, request)

    async def HashSubject(self, request: admin_pb2.HashSubjectRequest, context: Any) -> admin_pb2.HashSubjectResponse:
        """What stands for a subject in decisions, by each of the tenant's TENANT keys."""
        admit(Permission.READ, parse_name(request.name).tenant)
        return await hash_subject(self._store, request)


def _revision(head: Head | None) -> pb.Revision | None:
    return None if head is None else pb.Revision(epoch=head.epoch, revision=head.revision)


def _collection(number: int) -> Collection:
    try:
        return Collection(number)
    except ValueError:
        known = ", ".join(f"COLLECTION_{collection.name}" for collection in KINDS)
        raise InvalidInputError("collection", f"must be one of {known}") from None
