"""Ships the journal of a running sidecar: in order, at least once; and at the end spools what is left.

A record leaves the journal only when the collector has acknowledged it, when it is set aside in the quarantine, when it was
copied to the spool, or when it is damaged (then it is counted as lost). See `sender.py` for what happens on which answer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Iterable
from pathlib import Path

from sidecar.journal.backlog import Backlog, file_size
from sidecar.journal.cursor import Spent, Tally
from sidecar.journal.export import Exporter
from sidecar.journal.heads import Head, Heads
from sidecar.journal.quarantine import Quarantine, quarantine_segments
from sidecar.journal.recent import Found, in_segments
from sidecar.journal.segment import list_segments
from sidecar.journal.sender import Sender
from sidecar.journal.spool import copy_to_spool
from sidecar.lease.replay import begins_at, spent_in_all
from sidecar.page import AgentSlot, AgentWord

_CURSOR_EVERY_S = 1.0

_log = logging.getLogger(__name__)


class Shipper:
    """Moves one journal directory to one exporter; without an exporter, records are discarded and counted as such.

    Runs in one task. Publishes its counters in the agent's slot.
    """

    def __init__(
        self, directory: Path, exporter: Exporter | None, slot: AgentSlot, *, resource: bytes, quarantine_bytes: int
    ) -> None:
        """Raises JournalError or OSError if the directory cannot be used. `resource`: from `encode_resource`."""
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._slot = slot
        self._backlog = Backlog(directory, slot)
        self._quarantine = Quarantine(directory, quarantine_bytes)
        self._sender = Sender(self._backlog, exporter, self._quarantine.put, slot, resource)
        self._heads = Heads(directory)
        self._saved_at = time.monotonic()
        self._measure()

    async def run(self, stop: asyncio.Event) -> None:
        """Ships until `stop` is set; a batch in flight is finished first."""
        while not stop.is_set():
            pause_s = await self.step()
            if pause_s > 0:
                await _wait(stop, pause_s)

    async def drain(self, deadline: float) -> bool:
        """Ships what is left until `deadline` (time.monotonic()); for when the writers are gone. True: nothing is left."""
        self._backlog.rewind()  # a batch may have been in flight when run() was cancelled
        while (left_s := deadline - time.monotonic()) > 0:
            pause_s = await self.step(timeout_s=left_s)
            if not self._backlog.size():
                break
            if pause_s:
                await asyncio.sleep(min(pause_s, left_s, 0.5))
        self._measure()
        return not self._backlog.size()

    async def spool(self, spool: Path, sidecar: str) -> int:
        """Moves what is left to the spool, the quarantine too; for when the writers are gone. Returns how many records.

        Whatever happens on the way, a record is whole in one of the two places. Raises SpoolError, and nothing has moved;
        OSError when the journal's own directory cannot be written: what was copied may be sent from both.
        """
        copy = self._backlog.unsettled()
        files = [*map(str, copy.segments), *quarantine_segments(self._directory)]
        if not files:
            return 0
        heads = {head.chain: head for head in self._heads.read()}
        folder = await asyncio.to_thread(copy_to_spool, self._directory, files, copy.cursor, spool, sidecar)
        count = await self._backlog.spooled(copy, heads)
        for name in quarantine_segments(self._directory):
            (self._directory / name).unlink(missing_ok=True)
        self._slot.add(AgentWord.JOURNAL_SPOOLED, count)
        self._measure()
        _log.warning("journal: %d records were not shipped in time; they are in %s", count, folder)
        return count

    def close(self) -> None:
        """Saves the cursor and closes the files."""
        try:
            self._measure()
            self._backlog.close()
        except OSError as error:
            _log.error("journal: %s: %s; some records will be sent again", self._directory, error.strerror)
        self._quarantine.close()

    def heads(self) -> list[Head]:
        """Where every chain that has segments stands. Raises OSError."""
        return self._heads.read()

    def tallies(self) -> dict[str, Tally]:
        """What became of the records, by chain. A chain of which nothing was settled yet may be missing."""
        return self._backlog.tallies()

    def forget(self, chains: Iterable[str]) -> None:
        """Drops the tallies of chains that have ended, once their last state was reported; those with segments are kept."""
        self._backlog.forget(chains)

    async def spent_by(self, chain: str, holder: str) -> Spent | None:
        """What a holder spent in all, by the records of its chain, which has ended. None: it can never be told exactly. Raises
        OSError: not now."""
        while True:
            tally, spent, exact = self._backlog.spent(chain, holder)
            if not exact:
                return None
            try:
                found = await asyncio.to_thread(spent_in_all, self._directory, chain, tally.settled, spent, holder)
            except FileNotFoundError:
                await asyncio.sleep(0)
                continue
            if self._backlog.spent(chain, holder)[0] == tally:
                return found
            # Records were settled, and perhaps removed, while they were read.

    async def requests(self, chain: str, ids: Collection[bytes]) -> Found:
        """The records of decisions that spent in a chain that has ended: of those it is asked for, those there are. Raises
        OSError: not now."""
        begins = await asyncio.to_thread(begins_at, self._directory, chain)
        records = await asyncio.to_thread(in_segments, self._directory, chain, ids)
        # Afterwards: what left the segments meanwhile is here.
        recent = self._backlog.recent.find(chain, ids)
        return Found(recent.records | records, 0.0 if begins == 0 else recent.since_ms)

    def drop_spent(self) -> None:
        """Forgets what holders spent that are closed."""
        self._backlog.drop_spent()

    def backlog_bytes(self) -> int:
        """Size of the records that are neither shipped nor set aside."""
        return self._backlog.size()

    async def step(self, timeout_s: float | None = None) -> float:
        """One batch. Returns how long to pause before the next, seconds."""
        try:
            pause_s = await self._sender.step(timeout_s)
            await self._housekeep()
        except OSError as error:
            # The disk: nothing was acknowledged on our side that is not, so try again.
            _log.error("journal: %s: %s", self._directory, error.strerror)
            self._backlog.rewind()
            return self._sender.backoff_s()
        return pause_s

    async def _housekeep(self) -> None:
        now = time.monotonic()
        if now - self._saved_at < _CURSOR_EVERY_S:
            return
        self._saved_at = now
        self._quarantine.finish()
        await self._backlog.save()
        self._measure()

    def _measure(self) -> None:
        tallies = self._backlog.tallies()
        waiting = sum(max(0, head.records - tallies.get(head.chain, Tally()).settled) for head in self._heads.read())
        quarantined = sum(file_size(self._directory / name) for name in quarantine_segments(self._directory))
        self._slot.set(AgentWord.JOURNAL_BACKLOG, waiting)
        self._slot.set(AgentWord.JOURNAL_BACKLOG_BYTES, self._backlog.size() + quarantined)
        self._slot.set(AgentWord.JOURNAL_SEGMENTS, len(list_segments(self._directory)))


async def _wait(stop: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return
