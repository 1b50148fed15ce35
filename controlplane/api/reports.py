"""ReportService: what sidecars send up besides acknowledgements."""
# ruff: noqa: N802 - the method is named by the proto service

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from sidestep.v1 import report_pb2, report_pb2_grpc

from controlplane.api.chains import check_chain
from controlplane.api.sidecars import check_sidecar
from controlplane.api.usage import check_usage, tenants_of
from controlplane.errors import ForbiddenError
from controlplane.store import Store
from engine.errors import InvalidInputError

MAX_CHAINS = 1_000
HEAD_BYTES = 32
# What a signed 64-bit column holds; more records, or nanoseconds, than there will be.
_MAX_COUNT = 2**63 - 1
_COUNTS = ("records", "settled", "quarantined", "discarded", "lost", "unrecorded", "spooled")

_LOG = logging.getLogger(__name__)


class ReportService(report_pb2_grpc.ReportServiceServicer):
    """The verbs of report.proto over a store."""

    def __init__(self, store: Store, scope_of: Callable[[Any], frozenset[str] | None] = lambda _context: None) -> None:
        """`scope_of`: tenants that whoever calls may report of; None: all."""
        self._store = store
        self._scope_of = scope_of

    async def ReportJournal(
        self, request: report_pb2.ReportJournalRequest, context: Any
    ) -> report_pb2.ReportJournalResponse:
        """Takes over where a sidecar's journal stands."""
        check_report(request)
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
        scope = self._scope_of(context)
        foreign = set() if scope is None else tenants_of(request) - scope
        if foreign:
            raise ForbiddenError(f"{request.sidecar} does not follow tenant {min(foreign)}")
        known = {head.tenant for head in await self._store.heads(sorted(tenants_of(request)))}
        for window in request.windows:
            # Anybody could fill the database with tenants there might be.
            kept = [usage for usage in window.tenants if usage.tenant in known]
            window.ClearField("tenants")
            window.tenants.extend(kept)
        outcomes = [check for check in request.outcomes if check.tenant in known]
        await self._store.usage.take(request.sidecar, request.windows, outcomes)
        return report_pb2.ReportUsageResponse()


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
