"""ReportService: what sidecars send up besides acknowledgements."""
# ruff: noqa: N802 - the method is named by the proto service

from __future__ import annotations

import logging
import re
from typing import Any

from sidestep.v1 import report_pb2, report_pb2_grpc

from controlplane.api.sidecars import check_sidecar
from controlplane.store import Store
from engine.errors import InvalidInputError

MAX_CHAINS = 1_000
HEAD_BYTES = 32
_CHAIN = re.compile(r"w(0|[1-9][0-9]{0,2})-[0-9a-f]{12}")
# What a signed 64-bit column holds; more records, or nanoseconds, than there will be.
_MAX_COUNT = 2**63 - 1
_COUNTS = ("records", "settled", "quarantined", "discarded", "lost", "unrecorded", "spooled")

_LOG = logging.getLogger(__name__)


class ReportService(report_pb2_grpc.ReportServiceServicer):
    """The verbs of report.proto over a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

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


def check_chain(chain: str, field: str) -> None:
    """A chain's name: a worker, and when it started. Raises InvalidInputError."""
    if not _CHAIN.fullmatch(chain):
        raise InvalidInputError(field, "is not the name of a worker's chain (example: w0-0192f3c4a1b2)")


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
