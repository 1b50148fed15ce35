"""What keeps the database and the snapshot directory bounded: compaction of the log, forgetting sidecars and
their journals."""

from __future__ import annotations

import asyncio
import logging
import time

from controlplane.changes import Changes, LaneKey
from controlplane.errors import StoreError
from controlplane.snapshots import Snapshots
from controlplane.store import Store

_LOG = logging.getLogger(__name__)

_FORGET_EVERY_S = 600.0


class Retention:
    """Works every `every_s` seconds until stopped.

    The log of each lane keeps at most `log_entries` commits and `log_bytes` bytes, but never loses what follows a snapshot
    that a stream is reading. Sidecars not seen for `sidecars_s` seconds are forgotten, journal chains not
    reported for `journals_s` seconds too, as are budgets' periods that are over and unchanged for that long, and used proofs
    once they would be refused anyway. Proposals that have expired are ended, and their secrets go.
    """

    def __init__(
        self,
        store: Store,
        changes: Changes,
        snapshots: Snapshots,
        *,
        log_entries: int,
        log_bytes: int,
        sidecars_s: float,
        journals_s: float,
        every_s: float = 5.0,
    ) -> None:
        self._store = store
        self._changes = changes
        self._snapshots = snapshots
        self._log_entries = log_entries
        self._log_bytes = log_bytes
        self._sidecars_s = sidecars_s
        self._journals_s = journals_s
        self._every_s = every_s
        self._looked_at: dict[LaneKey, int] = {}
        self._forgot_at = float("-inf")

    async def run(self) -> None:
        """Works until cancelled. Errors of the database are logged and tried again."""
        while True:
            try:
                await self.compact()
                await self._store.flush_sidecars()
                if time.monotonic() - self._forgot_at >= _FORGET_EVERY_S:
                    await self._store.forget_sidecars(time.time() - self._sidecars_s)
                    await self._store.journals.forget(time.time() - self._journals_s)
                    await self._store.budgets.forget(time.time() - self._journals_s)
                    await self._store.proofs.forget(time.time())
                    await self._store.proposals.expire(time.time())
                    self._forgot_at = time.monotonic()
            except StoreError as error:
                _LOG.warning("retention: %s", error)
            except Exception:
                # A bug must not end this in silence and let the database grow.
                _LOG.exception("retention")
            await asyncio.sleep(self._every_s)

    async def compact(self) -> int:
        """Brings the log of every lane that has moved within its bounds; returns how many commits were dropped."""
        dropped = 0
        for key, head in list(self._changes.heads.items()):
            if self._looked_at.get(key) == head.revision:
                continue
            excess = await self._store.log_excess(*key, max_entries=self._log_entries, max_bytes=self._log_bytes)
            leased = self._snapshots.oldest_leased(key)
            cut = excess if leased is None else min(excess, leased)
            if cut:
                # First the offer, then the log: no stream is given a file from which nothing leads on.
                self._snapshots.withdraw(key, before=cut)
                dropped += await self._store.compact(*key, cut)
            if cut == excess:
                self._looked_at[key] = head.revision
        return dropped
