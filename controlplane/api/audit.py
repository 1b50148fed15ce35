"""AuditService: what was done to a tenant's records, by whom."""
# ruff: noqa: N802 - the methods are named by the proto service

from __future__ import annotations

from typing import Any

from google.protobuf.message import DecodeError
from sidestep.v1 import audit_pb2, audit_pb2_grpc

from controlplane.actor import Permission
from controlplane.api.identity import admit
from controlplane.api.paging import bad_token, page_size, read_token, write_token
from controlplane.store import Store
from engine.errors import InvalidInputError
from engine.names import parse_parent

# So many entries are looked at for one page of those that match.
_LOOKED_AT = 5_000
_BATCH = 500
_MAX_NUMBER = 2**63 - 1


class AuditService(audit_pb2_grpc.AuditServiceServicer):
    """The verbs of audit.proto that tell of the log, over a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def ListAuditEntries(
        self, request: audit_pb2.ListAuditEntriesRequest, context: Any
    ) -> audit_pb2.ListAuditEntriesResponse:
        """A page of the entries that match."""
        tenant = parse_parent(request.parent)
        admit(Permission.READ, tenant)
        limit = page_size(request.page_size)
        after = _number(read_token(request.page_token))
        response = audit_pb2.ListAuditEntriesResponse(head=await self._store.audit.head(tenant))
        looked_at = 0
        while looked_at < _LOOKED_AT:
            batch = await self._store.audit.read(tenant, after, _BATCH, newest_first=request.newest_first)
            for number, record in batch:
                after = number
                if _matches(request, record):
                    response.records.append(record)
                    if len(response.records) == limit:
                        response.next_page_token = write_token(str(after))
                        return response
            if len(batch) < _BATCH:
                return response
            looked_at += len(batch)
        response.next_page_token = write_token(str(after))
        return response

    async def ExportAudit(self, request: audit_pb2.ExportAuditRequest, context: Any) -> None:
        """Writes the entries there are now, oldest first."""
        tenant = parse_parent(request.parent)
        admit(Permission.READ, tenant)
        if request.from_number > _MAX_NUMBER:
            raise InvalidInputError("from_number", "is no number of an entry")
        head, newest = await self._store.audit.extent(tenant)
        await context.write(audit_pb2.ExportAuditResponse(head=head))
        after = max(request.from_number, 1) - 1
        while after < newest:
            batch = await self._store.audit.read(tenant, after, min(_BATCH, newest - after))
            if not batch:
                return
            await context.write(audit_pb2.ExportAuditResponse(records=[record for _, record in batch]))
            after = batch[-1][0]


def _number(token: str) -> int:
    if not token:
        return 0
    if not token.isascii() or not token.isdigit() or int(token) > _MAX_NUMBER:
        raise bad_token()
    return int(token)


def _matches(request: audit_pb2.ListAuditEntriesRequest, record: audit_pb2.AuditRecord) -> bool:
    try:
        entry = audit_pb2.AuditEntry.FromString(record.entry)
    except DecodeError:
        # Somebody damaged it. Whoever looks for anything should see that.
        return True
    if request.actor and entry.actor != request.actor:
        return False
    if request.action:
        whole = entry.action == request.action
        if not whole and not (request.action.endswith(".") and entry.action.startswith(request.action)):
            return False
    if request.outcome and entry.outcome != request.outcome:
        return False
    return entry.name.startswith(request.name_prefix)
