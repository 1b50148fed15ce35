"""The sender: takes batches from a backlog to an exporter, at least once, and decides by the answer what becomes of them.

What the collector says (`Verdict`), and what happens:

    ACCEPTED            the batch is delivered; batches grow again
    ACCEPTED, partly    the batch is quarantined, because OTLP forbids sending it again and does not say which spans were
                        rejected; the next batches are small, so that few share its fate
    RETRY               the same again, after a pause with full jitter that grows to 15 s, or as long as the collector asks
    TOO_MUCH            again with half as many; a single large record is quarantined in the end
    REFUSED             again with half as many, to find the record at fault, which is quarantined
    DENIED              nothing moves, it is about the setup; tried again after pauses that grow to 60 s

A batch that is to be quarantined and cannot be waits, and everything behind it.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence

from sidecar.journal.backlog import Backlog, Batch, Fate
from sidecar.journal.exemplars import Exemplars
from sidecar.journal.export import Exporter, ExportResult, Verdict
from sidecar.journal.quarantine import Quarantined
from sidecar.journal.span import encode_request
from sidecar.page import EXPORT_STATES, AgentSlot, AgentWord

MAX_BATCH_RECORDS = 512
_IDLE_S = 0.1
_BACKOFF_FIRST_S = 0.1
_BACKOFF_LAST_S = 15.0
_DENIED_LAST_S = 60.0
_BISECT_S = 0.02
# A batch that was rejected partly is followed by ones of this part of its size.
_PARTLY_DIVISOR = 8
# A record that is refused alone so often in a row is at fault itself; as "too much", only if it is large.
_ATTEMPTS_ALONE = 3
_LARGE_BYTES = 64 << 10

_STATES = {
    Verdict.ACCEPTED: "accepting",
    Verdict.RETRY: "retrying",
    Verdict.TOO_MUCH: "retrying",
    Verdict.REFUSED: "refusing",
    Verdict.DENIED: "refusing",
}

_log = logging.getLogger(__name__)


class Sender:
    """Moves one backlog to one exporter; without an exporter, records are discarded and counted as such.

    `put_aside` quarantines records, durably, and says whether it could; it is called in a thread. `resource`: from
    `encode_resource`. Used by one task; publishes its counters in `slot`.
    """

    def __init__(
        self,
        backlog: Backlog,
        exporter: Exporter | None,
        put_aside: Callable[[Sequence[Quarantined]], bool],
        slot: AgentSlot,
        resource: bytes,
    ) -> None:
        self._backlog = backlog
        self._exporter = exporter
        self._put_aside = put_aside
        self._slot = slot
        self._resource = resource
        self._exemplars = Exemplars(slot)
        self._limit = MAX_BATCH_RECORDS
        self._failures = 0
        self._alone = 0
        # To be quarantined, before anything else is sent; and why.
        self._owed: tuple[Batch, str] | None = None
        self.last: ExportResult | None = None
        """What the collector said last."""
        slot.set(AgentWord.EXPORT_STATE, EXPORT_STATES.index("idle"))

    async def step(self, timeout_s: float | None = None) -> float:
        """One batch. Returns how long to pause before the next, seconds. Raises OSError when the disk fails.

        When it is cancelled or has raised, the backlog is to be rewound.
        """
        if self._owed is not None:
            return await self._set_aside(*self._owed)
        batch = await self._backlog.collect(self._limit)
        if not batch.entries:
            await self._backlog.settle(batch, Fate.DELIVERED)
            return 0.0 if batch.done else _IDLE_S
        if self._exporter is None:
            self._slot.add(AgentWord.JOURNAL_DISCARDED, len(batch.entries))
            await self._backlog.settle(batch, Fate.DISCARDED)
            return _linger_s(batch)
        if batch.unreadable:
            return await self._set_aside(batch, "no span can be made of it")
        result = await self._exporter.export(encode_request(batch.spans, self._resource), timeout_s)
        self._note(result)
        if result.verdict is not Verdict.ACCEPTED:
            return await self._failed(batch, result)
        self._failures = self._alone = 0
        if result.rejected:
            self._limit = max(1, len(batch.spans) // _PARTLY_DIVISOR)
            rejected = min(result.rejected, len(batch.spans))
            why = f"the collector rejected {rejected} of a batch of {len(batch.spans)}: {result.detail}"
            return await self._set_aside(batch, why)
        self._limit = min(MAX_BATCH_RECORDS, self._limit * 2)
        self._slot.add(AgentWord.JOURNAL_SHIPPED, len(batch.spans))
        self._exemplars.offer(batch.spans)
        await self._backlog.settle(batch, Fate.DELIVERED)
        return _linger_s(batch)

    @property
    def owes(self) -> bool:
        """Whether a batch waits for room in the quarantine."""
        return self._owed is not None

    def backoff_s(self, verdict: Verdict = Verdict.RETRY) -> float:
        """A pause after a failure: full jitter, doubling from 0.1 s until something is accepted."""
        self._failures += 1
        ceiling = min(
            _DENIED_LAST_S if verdict is Verdict.DENIED else _BACKOFF_LAST_S,
            _BACKOFF_FIRST_S * 2 ** min(self._failures, 16),
        )
        return random.uniform(_BACKOFF_FIRST_S / 2, ceiling)  # noqa: S311

    def _note(self, result: ExportResult) -> None:
        """Counts and logs; a state of affairs once, not once per attempt."""
        self.last = result
        state = EXPORT_STATES.index(_STATES[result.verdict])
        changed = state != self._slot.get(AgentWord.EXPORT_STATE)
        self._slot.set(AgentWord.EXPORT_STATE, state)
        if result.verdict is Verdict.ACCEPTED:
            if changed and self._failures:
                _log.info("journal: the collector accepts again after %d pauses", self._failures)
            return
        self._slot.add(AgentWord.EXPORT_FAILURES)
        if changed:
            _log.warning("journal: %s, will try again: %s", EXPORT_STATES[state], result.detail)

    async def _failed(self, batch: Batch, result: ExportResult) -> float:
        self._backlog.rewind()
        if result.verdict in (Verdict.RETRY, Verdict.DENIED):
            return max(result.retry_after_s or 0.0, self.backoff_s(result.verdict))
        if len(batch.spans) > 1:  # look for the record that is at fault
            self._limit = max(1, len(batch.spans) // 2)
            return _BISECT_S if result.verdict is Verdict.REFUSED else self.backoff_s()
        if result.verdict is Verdict.REFUSED or batch.size > _LARGE_BYTES:
            self._alone += 1
        if self._alone >= _ATTEMPTS_ALONE:
            return await self._set_aside(batch, result.detail)
        return self.backoff_s()

    async def _set_aside(self, batch: Batch, why: str) -> float:
        self._owed = (batch, why)
        records = [Quarantined(chain, entry.sequence, entry.hash, entry.payload) for chain, entry in batch.entries]
        if not await asyncio.to_thread(self._put_aside, records):  # waits for the disk
            self._slot.set(AgentWord.EXPORT_STATE, EXPORT_STATES.index("refusing"))
            return self.backoff_s()
        _log.error("journal: %d records set aside: %s", len(records), why)
        self._owed = None
        self._alone = 0
        self._slot.add(AgentWord.JOURNAL_QUARANTINED, len(records))
        await self._backlog.settle(batch, Fate.QUARANTINED)
        return 0.0


def _linger_s(batch: Batch) -> float:
    """How long to wait for more records: what came during an export is few, and every export has its price."""
    return 0.0 if batch.full else _IDLE_S
