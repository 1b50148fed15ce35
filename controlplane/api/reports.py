"""ReportService: what sidecars send up besides acknowledgements."""
# ruff: noqa: N802 - the methods are named by the proto service

from __future__ import annotations

import logging
import time
from typing import Any

from sidestep.v1 import report_pb2, report_pb2_grpc

from controlplane.api.authentications import Authentications
from controlplane.api.chains import check_chain
from controlplane.api.refusals import Refusals
from controlplane.api.sidecars import check_sidecar, check_text
from controlplane.api.usage import check_usage, tenants_of, within_time
from controlplane.identity.sidecars import Sidecars
from controlplane.metrics.catalogue import AUTHENTICATIONS
from controlplane.metrics.tally import Tally
from controlplane.proofs import MAX_TOKEN_BYTES
from controlplane.store import Store
from engine.errors import InvalidInputError
from engine.names import check_id, check_tenant

MAX_CHAINS = 1_000
MAX_REPORTED = 100
_MAX_CALLER_BYTES = 128
_MAX_PROBLEM_BYTES = 128
HEAD_BYTES = 32
# What a signed 64-bit column holds; more records, or nanoseconds, than there will be.
_MAX_COUNT = 2**63 - 1
_COUNTS = ("records", "settled", "quarantined", "discarded", "lost", "unrecorded", "spooled")

_LOG = logging.getLogger(__name__)


class ReportService(report_pb2_grpc.ReportServiceServicer):
    """The verbs of report.proto over a store."""

    def __init__(self, store: Store, refusals: Refusals, sidecars: Sidecars) -> None:
        self._store = store
        self._refusals = refusals
        self.results = Tally.of(AUTHENTICATIONS)
        self._sidecars = sidecars

    async def ReportJournal(
        self, request: report_pb2.ReportJournalRequest, context: Any
    ) -> report_pb2.ReportJournalResponse:
        """Takes over where a sidecar's journal stands."""
        check_report(request)
        await self._sidecars.admit(context, request.sidecar)
        conflicts = await self._store.journals.report(request.sidecar, request.chains)
        if conflicts:
            _LOG.warning(
                "sidecar %s: %d journal chains contradict earlier reports: %s ...",
                request.sidecar,
                len(conflicts),
                conflicts[0],
            )
        return report_pb2.ReportJournalResponse(conflicts=conflicts)

    async def ReportUsage(self, request: report_pb2.ReportUsageRequest, context: Any) -> report_pb2.ReportUsageResponse:
        """Takes over what decisions and guards came to."""
        check_usage(request)
        within_time(request, time.time())
        caller = await self._sidecars.admit(context, request.sidecar)
        for tenant in sorted(tenants_of(request)):
            self._sidecars.refuse_tenant(caller, tenant)
        known = {head.tenant for head in await self._store.heads(sorted(tenants_of(request)))}
        for window in request.windows:
            # Anybody could fill the database with tenants there might be.
            kept = [usage for usage in window.tenants if usage.tenant in known]
            window.ClearField("tenants")
            window.tenants.extend(kept)
        outcomes = [check for check in request.outcomes if check.tenant in known]
        await self._store.usage.take(request.sidecar, request.windows, outcomes, caller.witness)
        return report_pb2.ReportUsageResponse()

    async def ReportAuthentications(
        self, request: report_pb2.ReportAuthenticationsRequest, context: Any
    ) -> report_pb2.ReportAuthenticationsResponse:
        """Verifies and records finished authentications, one after another: the first failure of the database ends it, and the
        sidecar sends them all again."""
        check_authentications(request)
        caller = await self._sidecars.admit(context, request.sidecar)
        tenants = {each.tenant for each in request.authentications} | {each.tenant for each in request.refusals}
        for tenant in sorted(tenants):
            self._sidecars.refuse_tenant(caller, tenant)
        reporting = Authentications(self._store, self._refusals, request.sidecar, verified=bool(caller.identity))
        response = report_pb2.ReportAuthenticationsResponse()
        for reported in request.authentications:
            receipt = await reporting.record(reported)
            response.receipts.add(
                outcome="AUTHENTICATION_OUTCOME_REFUSED" if receipt.problem else "AUTHENTICATION_OUTCOME_RECORDED",
                problem=receipt.problem,
                device_updated=receipt.device_updated,
            )
            self.results.add("refused" if receipt.problem else "recorded")
            if receipt.problem:
                _LOG.warning("sidecar %s: a reported authentication was refused: %s", request.sidecar, receipt.problem)
        for refused in request.refusals:
            await reporting.refuse(refused)
            self.results.add("refused")
        return response


def check_authentications(request: report_pb2.ReportAuthenticationsRequest) -> None:
    """Raises InvalidInputError naming the field of a report that cannot be one."""
    check_sidecar(request.sidecar, "sidecar")
    for field in ("authentications", "refusals"):
        if len(getattr(request, field)) > MAX_REPORTED:
            raise InvalidInputError(field, f"more than {MAX_REPORTED}")
    for index, reported in enumerate(request.authentications):
        field = f"authentications[{index}]"
        _check_whom(reported.tenant, reported.subject, field)
        if not 0 < len(reported.token) <= MAX_TOKEN_BYTES:
            raise InvalidInputError(f"{field}.token", f"must have 1 to {MAX_TOKEN_BYTES} bytes")
        if not 0 < reported.report_time.ToNanoseconds() <= _MAX_COUNT:
            raise InvalidInputError(f"{field}.report_time", "is required, and after 1970")
        if reported.device:
            check_id(reported.device, f"{field}.device")
        elif reported.register:
            raise InvalidInputError(f"{field}.device", "is required to register it")
    for index, refused in enumerate(request.refusals):
        field = f"refusals[{index}]"
        _check_whom(refused.tenant, refused.subject, field)
        check_text(refused.caller, f"{field}.caller", _MAX_CALLER_BYTES)
        check_text(refused.problem, f"{field}.problem", _MAX_PROBLEM_BYTES)


def _check_whom(tenant: str, subject: str, field: str) -> None:
    check_tenant(tenant, f"{field}.tenant")
    check_id(subject, f"{field}.subject")


def check_report(request: report_pb2.ReportJournalRequest) -> None:
    """Raises InvalidInputError naming the field of a report that cannot be one."""
    check_sidecar(request.sidecar, "sidecar")
    if len(request.chains) > MAX_CHAINS:
        raise InvalidInputError("chains", f"more than {MAX_CHAINS}")
    seen: set[str] = set()
    for index, chain in enumerate(request.chains):
        field = f"chains[{index}]"
        check_chain(chain.chain, f"{field}.chain")
        if chain.chain in seen:
            raise InvalidInputError(f"{field}.chain", f"{chain.chain} is given twice")
        seen.add(chain.chain)
        _check_numbers(chain, field)


def _check_numbers(chain: report_pb2.JournalChain, field: str) -> None:
    for name in _COUNTS:
        if getattr(chain, name) > _MAX_COUNT:
            raise InvalidInputError(f"{field}.{name}", "is not a possible number of records")
    if len(chain.head) != (HEAD_BYTES if chain.records else 0):
        raise InvalidInputError(f"{field}.head", f"must have {HEAD_BYTES} bytes, or none if there are no records")
    if chain.settled > chain.records:
        raise InvalidInputError(f"{field}.settled", "more than there are records")
    if not 0 < chain.report_time.ToNanoseconds() <= _MAX_COUNT:
        raise InvalidInputError(f"{field}.report_time", "is required, and after 1970")
