"""Refused attempts on their way into the audit log: all that matter, and no flood of them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

from sidestep.v1 import audit_pb2

from controlplane.audit import Note
from controlplane.errors import StoreError
from controlplane.store import Store
from controlplane.store.audit import Result

_LOG = logging.getLogger(__name__)

WINDOW_S: Final = 60.0
MAX_PER_TENANT: Final = 60
"""Entries of refusals for one tenant in one window; more are only counted."""
_MAX_KEYS: Final = 1_000
_FLUSH_EVERY_S: Final = 5.0


class _Key(NamedTuple):
    tenant: str
    actor: str
    action: str
    # Empty: whatever they are.
    name: str
    problem: str


@dataclass(slots=True)
class _Window:
    """What a kind of refusal has had since `begun_at`. `note` and `problem` are the newest."""

    begun_at: float
    note: Note
    problem: str
    # Not entered yet.
    repeats: int = 0
    seen: int = 0


class Refusals:
    """Enters refused attempts. The first of a kind is entered at once; those like it are counted, and entered as one when they
    are 10, 100, 1,000 ... and when a minute is over.

    A kind is one actor, action, name and reason of one tenant; of a tenant with many kinds, those beyond the first 60 of a
    minute are one kind together. What is only counted is lost if the process is killed: fewer than ten times what is entered.
    """

    def __init__(self, store: Store, now: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._now = now
        self._windows: dict[_Key, _Window] = {}
        self._lock = asyncio.Lock()

    async def record(self, tenant: str, note: Note, problem: str) -> None:
        """Enters or counts one. Durable when it returns, if it is the first of its kind. Raises StoreError."""
        async with self._lock:
            await self._flush(self._now() - WINDOW_S)
            key = _Key(tenant, note.actor.name, note.action, note.name, problem)
            of_tenant = sum(1 for other in self._windows if other.tenant == tenant)
            if key not in self._windows and (of_tenant >= MAX_PER_TENANT or len(self._windows) >= _MAX_KEYS):
                key = _Key(tenant, "", "", "", "")
            window = self._windows.get(key)
            if window is None and len(self._windows) >= 2 * _MAX_KEYS:
                _LOG.error("too many kinds of refused attempts at once: one of %s is not entered", note.actor.name)
                return
            if window is not None:
                window.note, window.problem, window.repeats = note, problem, window.repeats + 1
                window.seen += 1
                if _is_round(window.seen):
                    await self._enter_repeats(tenant, window)
                return
            # Counted from here on, also if the entry fails: a database that is in trouble gets no more of it.
            self._windows[key] = _Window(self._now(), note, problem)
        await self._enter(tenant, note, problem, 0)

    async def run(self) -> None:
        """Enters what was counted when its minute is over, until cancelled."""
        while True:
            await asyncio.sleep(_FLUSH_EVERY_S)
            try:
                async with self._lock:
                    await self._flush(self._now() - WINDOW_S)
            except StoreError as error:
                _LOG.error("refused attempts could not be entered, and wait: %s", error)

    async def close(self) -> None:
        """Enters all that was counted."""
        async with self._lock:
            await self._flush(float("inf"))

    async def _flush(self, begun_before: float) -> None:
        for key in [key for key, window in self._windows.items() if window.begun_at <= begun_before]:
            window = self._windows[key]
            await self._enter_repeats(key.tenant, window)
            del self._windows[key]

    async def _enter_repeats(self, tenant: str, window: _Window) -> None:
        if window.repeats:
            # This entry is itself one of them.
            await self._enter(tenant, window.note, window.problem, window.repeats - 1)
            window.repeats = 0

    async def _enter(self, tenant: str, note: Note, problem: str, repeats: int) -> None:
        result = Result(audit_pb2.AUDIT_OUTCOME_REFUSED, problem, repeats=repeats)
        await self._store.audit.add(tenant, note, result, time.time())


def _is_round(count: int) -> bool:
    """Whether it is 10, 100, 1,000 ..."""
    return count >= 10 and str(count).strip("0") == "1"
