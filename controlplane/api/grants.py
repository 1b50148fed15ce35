"""AccessService: the life of grants, and the review of who could skip what."""
# ruff: noqa: N802 - the methods are named by the proto service

from __future__ import annotations

import time
from typing import Any, Final

from sidestep.v1 import access_pb2, access_pb2_grpc
from sidestep.v1 import resources_pb2 as pb

from controlplane.actor import UNVERIFIED, Permission
from controlplane.api.differences import difference
from controlplane.api.identity import admit, begin
from controlplane.api.resources import decode, encode
from controlplane.audit import Note
from controlplane.errors import ConflictError, NotFoundError
from controlplane.grants import change_grant, read_terms
from controlplane.review.access import Reviewer
from controlplane.store import Store, Write
from engine.errors import InvalidInputError
from engine.lifecycle import Step, Transition
from engine.names import SINGLETON_ID, Collection, Lane, Name, check_id, parse_name, parse_parent

ATTEMPTS: Final = 5
MAX_TEXT: Final = 1024
_ENTRIES: Final = 500
_TRANSITIONS: Final = {
    access_pb2.GRANT_TRANSITION_REQUEST: Transition.REQUEST,
    access_pb2.GRANT_TRANSITION_APPROVE: Transition.APPROVE,
    access_pb2.GRANT_TRANSITION_REJECT: Transition.REJECT,
    access_pb2.GRANT_TRANSITION_ACTIVATE: Transition.ACTIVATE,
    access_pb2.GRANT_TRANSITION_SUSPEND: Transition.SUSPEND,
    access_pb2.GRANT_TRANSITION_RESUME: Transition.RESUME,
    access_pb2.GRANT_TRANSITION_REVOKE: Transition.REVOKE,
    access_pb2.GRANT_TRANSITION_RENEW: Transition.RENEW,
}
# What a second person does.
_AGREEING: Final = frozenset({Transition.APPROVE, Transition.REJECT, Transition.RENEW})


class AccessService(access_pb2_grpc.AccessServiceServicer):
    """The verbs of access.proto over a store. One instance serves all calls, in one event loop."""

    def __init__(self, store: Store, reviewer: Reviewer) -> None:
        self._store = store
        self._reviewer = reviewer

    async def ChangeGrant(self, request: access_pb2.ChangeGrantRequest, context: Any) -> access_pb2.ChangeGrantResponse:
        """Takes one step in a grant's life, or says which rule forbids it."""
        name = parse_name(request.name)
        if name.collection is not Collection.GRANTS:
            raise InvalidInputError("name", f"{request.name!r} is not the name of a grant")
        transition = _TRANSITIONS.get(request.transition)
        if transition is None:
            raise InvalidInputError("transition", f"{request.transition} is no transition that may be asked for")
        for field in ("reason", "ticket"):
            if len(getattr(request, field).encode()) > MAX_TEXT:
                raise InvalidInputError(field, f"is longer than {MAX_TEXT} bytes")
        permission = Permission.APPROVE if transition in _AGREEING else Permission.WRITE
        note = begin(
            permission, name.tenant, f"grant.{transition}", str(name), reason=request.reason, ticket=request.ticket
        )
        if transition is Transition.APPROVE and not request.HasField("update_time"):
            raise InvalidInputError("update_time", "is required to approve: which grant did you see?")
        review_at = request.review_time.ToNanoseconds() / 1e9 if request.HasField("review_time") else None
        if review_at is not None and transition is not Transition.RENEW:
            raise InvalidInputError("review_time", f"is not for {transition}")
        step = Step(transition, note.actor.name, request.reason, review_at)
        response = await self._change(name, step, request, note)
        if transition in _AGREEING and not note.actor.verified:
            response.warnings.append(UNVERIFIED)
        return response

    async def ReviewAccess(self, request: access_pb2.ReviewAccessRequest, context: Any) -> None:
        """Writes who could skip what, by grant and subject."""
        tenant = parse_parent(request.parent)
        admit(Permission.READ, tenant)
        if request.subject:
            check_id(request.subject, "subject")
        now = time.time()
        first = access_pb2.ReviewAccessResponse(exemptions_off=await self._reviewer.exemptions_off(tenant))
        first.time.FromNanoseconds(int(now * 1e9))
        await context.write(first)
        entries: list[access_pb2.AccessEntry] = []
        async for entry in self._reviewer.entries(tenant, now, subject=request.subject, dormant=request.dormant):
            entries.append(entry)
            if len(entries) == _ENTRIES:
                await context.write(access_pb2.ReviewAccessResponse(entries=entries))
                entries = []
        if entries:
            await context.write(access_pb2.ReviewAccessResponse(entries=entries))

    async def _change(
        self, name: Name, taken: Step, request: access_pb2.ChangeGrantRequest, note: Note
    ) -> access_pb2.ChangeGrantResponse:
        """Reads, steps and writes; again, a few times, if somebody else wrote in between."""
        key, settings_key = (Collection.GRANTS, name.id), (Collection.SETTINGS, SINGLETON_ID)
        for attempt in range(1, ATTEMPTS + 1):
            stored = await self._store.get(name.tenant, *key)
            if stored is None:
                raise NotFoundError(str(name))
            grant: pb.Grant = decode(Collection.GRANTS, stored)
            if request.HasField("update_time") and request.update_time != grant.update_time:
                raise ConflictError(name.tenant, *key)
            settings = await self._store.get(name.tenant, *settings_key)
            now = time.time()
            changed = change_grant(grant, taken, read_terms(settings), now)
            changed.update_time.FromNanoseconds(int(now * 1e9))
            told = note._replace(detail=difference(Collection.GRANTS, stored, changed))
            try:
                committed = await self._store.commit(
                    name.tenant,
                    [Write(*key, encode(changed))],
                    expect={key: stored, settings_key: settings},
                    audit=told,
                )
            except ConflictError:
                if attempt == ATTEMPTS:
                    raise
                continue
            head = committed.heads[Lane.URGENT]
            revision = pb.Revision(epoch=head.epoch, revision=head.revision)
            return access_pb2.ChangeGrantResponse(grant=changed, revision=revision)
        raise AssertionError("unreachable")
