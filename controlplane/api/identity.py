"""Who calls the admin API, and whether they may: one interceptor knows them, every method asks.

A method that reads begins with `admit(Permission.READ, tenant)`; one that changes something with
`note = begin(Permission.WRITE, tenant, "grant.revoke", name)`, and hands the note to the store with the change. If it is
refused from there on, the interceptor leaves an entry in the audit log.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import grpc

from controlplane.actor import Actor, Permission, asserted
from controlplane.api.refusals import Refusals
from controlplane.audit import Note
from controlplane.errors import ForbiddenError, RefusedError, ShrinkError, UnauthenticatedError
from controlplane.operators import Operators
from engine.errors import InvalidInputError, SidestepError

_LOG = logging.getLogger(__name__)

ACTOR_METADATA = "x-sidestep-actor"
_LOG_EVERY_S = 1.0
# Services that only operators may call. A service that is not here knows its callers in another way.
GUARDED = frozenset({"AdminService", "AuditService", "AccessService", "ProposalService", "UsageService"})
# What counts as refused by a rule, and not as having failed.
_REFUSALS = (ForbiddenError, RefusedError, InvalidInputError, ShrinkError)


@dataclass(slots=True)
class _Call:
    """One call under way: who makes it, and what it has begun to do."""

    actor: Actor
    tenant: str = ""
    note: Note | None = None


_CALL: ContextVar[_Call | None] = ContextVar("call", default=None)


def admit(permission: Permission, tenant: str | None) -> Actor:
    """Who calls. Raises ForbiddenError if they may not do this for the tenant; None: for all tenants at once."""
    actor = _call().actor
    _check(actor, permission, tenant)
    return actor


def begin(permission: Permission, tenant: str, action: str, name: str, *, reason: str = "", ticket: str = "") -> Note:
    """The note of what the caller is about to do, for the audit log. Raises ForbiddenError.

    `action` is a verb, `put` or `grant.approve`; `name` what it is done to. If the call raises a refusal from here on, that is
    entered in the log.
    """
    call = _call()
    call.tenant = tenant
    call.note = Note(call.actor, action, name, reason=reason, ticket=ticket)
    _check(call.actor, permission, tenant)
    return call.note


class IdentityInterceptor(grpc.aio.ServerInterceptor):
    """Knows the caller of guarded services by the token; without operators (development mode) by the word of the caller."""

    def __init__(self, operators: Operators | None, refusals: Refusals) -> None:
        self._operators = operators
        self._refusals = refusals
        self._strangers = 0
        self._log_at = 0.0

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wraps the handlers of guarded services."""
        handler = await continuation(handler_call_details)
        service = str(handler_call_details.method).strip("/").partition("/")[0]
        if handler is None or service.rpartition(".")[2] not in GUARDED:
            return handler
        wrapped = {
            kind: self._known(behaviour)
            for kind in ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
            if inspect.iscoroutinefunction(behaviour := getattr(handler, kind))
        }
        # A handler that cannot be wrapped would be open to anyone.
        assert wrapped, f"{handler_call_details.method} is no coroutine function"
        return handler._replace(**wrapped)

    def _known(self, behaviour: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
        async def known(request: Any, context: Any) -> Any:
            call = _Call(self._actor(dict(context.invocation_metadata() or ())))
            token = _CALL.set(call)
            try:
                return await behaviour(request, context)
            except _REFUSALS as error:
                if call.note is not None:
                    await self._enter(call.tenant, call.note, error)
                raise
            finally:
                _CALL.reset(token)

        return known

    def _actor(self, metadata: dict[str, Any]) -> Actor:
        if self._operators is None:
            return asserted(str(metadata.get(ACTOR_METADATA, "")))
        actor = self._operators.actor(str(metadata.get("authorization", "")))
        if actor is None:
            self._note()
            raise UnauthenticatedError
        return actor

    def _note(self) -> None:
        """Logs a call without a token, at most once a second, and how many were since the last line."""
        self._strangers += 1
        now = time.monotonic()
        if now >= self._log_at:
            _LOG.warning("refused %d calls without the token of an operator", self._strangers)
            self._strangers, self._log_at = 0, now + _LOG_EVERY_S

    async def _enter(self, tenant: str, note: Note, error: SidestepError) -> None:
        try:
            await self._refusals.record(tenant, note, str(error))
        except SidestepError:
            # The caller's answer is the refusal; that it could not be entered is ours.
            _LOG.exception("a refusal could not be entered in the audit log")


def _call() -> _Call:
    call = _CALL.get()
    if call is None:
        raise UnauthenticatedError
    return call


def _check(actor: Actor, permission: Permission, tenant: str | None) -> None:
    if not actor.may(permission, tenant):
        where = "all tenants" if tenant is None else f"tenants/{tenant}"
        raise ForbiddenError(f"{actor.name} has no permission to {permission.value} {where}")
