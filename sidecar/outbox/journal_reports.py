"""Reports to the control plane where every chain of the journal stands (ReportService.ReportJournal).

The heads are anchors: once they are there, records can no longer be changed, dropped or lost with the pod unnoticed.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import grpc
from sidestep.v1 import report_pb2 as pb

from sidecar.journal.cursor import Tally
from sidecar.journal.heads import Head
from sidecar.journal.segment import parse_segment_name
from sidecar.journal.standing import chain_standing
from sidecar.outbox.unrecorded import Unrecorded
from sidecar.page import AgentWord, Page
from sidecar.retryinfo import retry_after_s
from sidecar.sync.backoff import Backoff
from sidecar.upstream import Line, Upstream

MAX_CHAINS = 1_000
DEADLINE_S = 5.0
# Also when nothing has changed, so that the control plane sees the sidecar is there.
_EVERYTHING_EVERY_S = 300.0
_BACKOFF_LIMIT_S = 60.0
# Longest wait the control plane may ask for: what is not anchored meanwhile could not be counted if it were lost.
_LONGEST_WAIT_S = 300.0
_METHOD = "/sidestep.v1.ReportService/ReportJournal"
_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5_000),
)

_log = logging.getLogger(__name__)


class Journal(Protocol):
    """What the reports are about; a Shipper is one."""

    def heads(self) -> list[Head]:
        """Where every chain that has segments stands. Raises OSError."""

    def tallies(self) -> dict[str, Tally]:
        """What became of the records, by chain."""

    def forget(self, chains: Iterable[str]) -> None:
        """Drops the tallies of chains that have ended."""


@dataclass(frozen=True, slots=True)
class ReportSettings:
    """`sidecar`: as in Hello. `interval_s`: between two reports while the journal grows. `metadata` goes with every report and
    may carry a bearer token."""

    upstream: Upstream
    sidecar: str
    interval_s: float
    metadata: Sequence[tuple[str, str]] = ()


class JournalReporter:
    """Reports one journal, for as long as `run` runs. Failures show in the page and in the log, and disturb nobody.

    Used in the event loop's thread. `directory`: the journal's.
    """

    def __init__(self, journal: Journal, directory: Path, page: Page, settings: ReportSettings) -> None:
        self._journal = journal
        self._settings = settings
        self._slot = page.agent
        self._unrecorded = Unrecorded(directory, page)
        self._backoff = Backoff(first_s=settings.interval_s, limit_s=max(_BACKOFF_LIMIT_S, settings.interval_s))
        self._line = Line(settings.upstream, _OPTIONS)
        # What the control plane knows, by chain, without the time.
        self._known: dict[str, pb.JournalChain] = {}
        self._everything_at = float("-inf")
        self._failing = False

    async def run(self) -> None:
        """Reports what has changed, every `interval_s`, until cancelled."""
        # A fleet that starts together does not report together.
        pause_s = random.uniform(0.0, self._settings.interval_s)  # noqa: S311
        while True:
            await asyncio.sleep(pause_s)
            if time.monotonic() - self._everything_at >= _EVERYTHING_EVERY_S:
                self._known.clear()
                self._everything_at = time.monotonic()
            failed_for_s = await self._report(DEADLINE_S)
            if failed_for_s is None:
                self._backoff.reset()
                pause_s = self._settings.interval_s
            else:
                pause_s = max(self._settings.interval_s, failed_for_s)

    async def report_last(self, timeout_s: float) -> bool:
        """Reports what has changed since, once more if a connection that stood is gone. False: it is not known up there."""
        deadline = time.monotonic() + timeout_s
        for _ in range(2 if self._known and not self._failing else 1):
            left_s = deadline - time.monotonic()
            if left_s > 0 and await self._report(min(left_s, DEADLINE_S)) is None:
                return True
        return False

    async def close(self) -> None:
        """Closes the channel; a report in flight is cancelled."""
        await self._line.close()

    async def _report(self, timeout_s: float) -> float | None:
        """One report, in messages of at most MAX_CHAINS. None: all is known up there; else how long to wait."""
        try:
            chains, present = self._look()
        except OSError as error:
            return self._failed(f"the journal cannot be read: {error.strerror}", None)
        changed = [chain for name, chain in chains.items() if _without_time(chain) != self._known.get(name)]
        for at in range(0, len(changed), MAX_CHAINS):
            part = changed[at : at + MAX_CHAINS]
            request = pb.ReportJournalRequest(sidecar=self._settings.sidecar, chains=part)
            try:
                response: pb.ReportJournalResponse = await self._call(request, timeout_s)
            except grpc.aio.AioRpcError as error:
                detail = f"{error.code().name}: {(error.details() or '')[:200]}"
                return self._failed(detail, retry_after_s(error))
            self._slot.add(AgentWord.ANCHOR_REPORTS)
            self._known.update({chain.chain: _without_time(chain) for chain in part})
            if response.conflicts:
                _log.error(
                    "anchors: the control plane knows otherwise of chains %s", ", ".join(response.conflicts[:10])
                )
        if self._failing:
            _log.info("anchors: reported again")
        self._failing = False
        self._forget(chains, present)
        return None

    async def _call(self, request: pb.ReportJournalRequest, timeout_s: float) -> pb.ReportJournalResponse:
        settings = self._settings
        call = (await self._line.channel()).unary_unary(
            _METHOD,
            request_serializer=pb.ReportJournalRequest.SerializeToString,
            response_deserializer=pb.ReportJournalResponse.FromString,
        )
        response: pb.ReportJournalResponse = await call(
            request, timeout=timeout_s, metadata=tuple(settings.metadata), wait_for_ready=False
        )
        return response

    def _failed(self, why: str, wait_s: float | None) -> float:
        self._slot.add(AgentWord.ANCHOR_FAILURES)
        if not self._failing:  # once per outage, not once per attempt
            _log.warning("anchors: not reported, will try again: %s", why)
        self._failing = True
        return self._backoff.next_s(None if wait_s is None else min(wait_s, _LONGEST_WAIT_S))

    def _look(self) -> tuple[dict[str, pb.JournalChain], set[str]]:
        """Where every chain stands now, and which of them have segments."""
        now_ns = time.time_ns()
        # In this order: a chain whose last segment goes in between is known from its tally then.
        heads = {head.chain: head for head in self._journal.heads()}
        tallies = self._journal.tallies()
        unrecorded = self._unrecorded.count(_newest({*heads, *tallies}))
        chains = {}
        for name in {*heads, *tallies, *unrecorded}:
            chain = chain_standing(name, heads.get(name), tallies.get(name, Tally()))
            if chain is None:
                continue
            chain.unrecorded = unrecorded.get(name, 0)
            chain.report_time.FromNanoseconds(now_ns)
            chains[name] = chain
        return chains, set(heads)

    def _forget(self, chains: Mapping[str, pb.JournalChain], present: Collection[str]) -> None:
        """What has ended and was reported so needs no memory any more, but for a worker's newest chain."""
        newest = _newest(chains).values()
        gone = [name for name, chain in chains.items() if chain.ended and name not in present and name not in newest]
        self._journal.forget(gone)
        self._unrecorded.forget(gone)
        for name in gone:
            self._known.pop(name, None)


def _without_time(chain: pb.JournalChain) -> pb.JournalChain:
    copy = pb.JournalChain()
    copy.CopyFrom(chain)
    copy.ClearField("report_time")
    return copy


def _newest(chains: Iterable[str]) -> dict[int, str]:
    """The chain of each worker's last start."""
    parsed = (parse_segment_name(f"{chain}-00000000.seg") for chain in chains)
    return {name.worker: name.chain for name in sorted(name for name in parsed if name is not None)}
