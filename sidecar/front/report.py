"""DecisionService.ReportAuthentication: a service tells of a finished step-up."""

from __future__ import annotations

import logging
import threading
import time
from typing import Final

from google.protobuf.message import DecodeError
from sidestep.v1 import decision_pb2, report_pb2

from engine.errors import InvalidInputError
from sidecar.callers import Caller
from sidecar.clock import Clock
from sidecar.gather.proof import ProofReader, Reported
from sidecar.local.store import MAX_OUTBOX, LocalStore, LocalStoreError, StaleProofError, UsedProofError
from sidecar.store.reader import Reader

MAX_REPORT_BYTES: Final = 64 << 10
"""Size of a ReportAuthenticationRequest."""
AUTHENTICATION: Final = "authentication"
REFUSAL: Final = "refusal"
"""Kinds of what goes into the outbox."""
_REFUSAL_EVERY_S: Final = 60.0
_MAX_REFUSALS: Final = 64

_log = logging.getLogger(__name__)


class AuthenticationReporter:
    """Takes reports for all loops of a worker. Thread-safe. `local`: None if it cannot be used."""

    def __init__(self, local: LocalStore | None, reader: Reader, clock: Clock, default_tenant: str) -> None:
        self._local = local
        self._reader = reader
        self._clock = clock
        self._proofs = ProofReader(default_tenant)
        self._lock = threading.Lock()
        # When a refusal of a kind was last told of, by time.monotonic().
        self._told: dict[tuple[str, str, str, str], float] = {}

    def answer(self, payload: bytes, caller: Caller | None) -> bytes:
        """The answer to a ReportAuthenticationRequest, once the authentication counts in every worker and survives any process.

        Raises InvalidInputError naming the field, UsedProofError, StaleProofError, LocalStoreError, NotLoadedError, ScopeError.
        """
        try:
            request = decision_pb2.ReportAuthenticationRequest.FromString(payload)
        except DecodeError:
            raise InvalidInputError("request", "is not a ReportAuthenticationRequest message") from None
        local = self._local
        if local is None:
            raise LocalStoreError("the local store of this sidecar cannot be used")
        now = self._clock.wall()
        with self._lock:
            try:
                with self._reader.view() as view:
                    reported = self._proofs.read(request, view, now)
                event = reported.event
                up = reported.up.SerializeToString()
                local.record(
                    reported.tenant, reported.subject, reported.jti, reported.until, event, up, now, kind=AUTHENTICATION
                )
            except (InvalidInputError, UsedProofError, StaleProofError) as error:
                self._refused(local, request, caller, error)
                raise
        return _response(reported).SerializeToString()

    def _refused(
        self,
        local: LocalStore,
        request: decision_pb2.ReportAuthenticationRequest,
        caller: Caller | None,
        error: Exception,
    ) -> None:
        """Has it entered in the audit log, unless it is about the form of the request; of a flood the first of each kind."""
        if isinstance(error, InvalidInputError) and error.field != "token":
            return
        try:
            tenant, subject = self._proofs.whom(request)
        except InvalidInputError:
            return
        name = "" if caller is None else caller.name
        problem = error.problem if isinstance(error, InvalidInputError) else str(error)
        kind = (tenant, subject, name, problem)
        now = time.monotonic()
        self._told = {told: at for told, at in self._told.items() if now - at < _REFUSAL_EVERY_S}
        if kind in self._told or len(self._told) >= _MAX_REFUSALS:
            return
        self._told[kind] = now
        _log.warning("a reported authentication was refused: %s", problem)
        refusal = report_pb2.RefusedAuthentication(tenant=tenant, subject=subject, caller=name, problem=problem)
        refusal.time.FromNanoseconds(int(self._clock.wall() * 1e9))
        try:
            # Refusals must not keep out what was proved.
            if local.waiting() < MAX_OUTBOX // 2:
                local.put(REFUSAL, refusal.SerializeToString())
        except LocalStoreError as failed:
            _log.error("a refusal could not be kept for the audit log: %s", failed)


def _response(reported: Reported) -> decision_pb2.ReportAuthenticationResponse:
    event = reported.event
    response = decision_pb2.ReportAuthenticationResponse(
        session=event.session, device=event.device, registering=reported.up.register
    )
    response.authentication.acr = event.acr
    response.authentication.amr.extend(event.amr)
    response.authentication.issuer = event.issuer
    response.authentication.auth_time.FromNanoseconds(int(event.at * 1e9))
    return response
