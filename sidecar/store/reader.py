"""Follows CURRENT and hands out read views of the live generation."""

from __future__ import annotations

import time
from pathlib import Path
from threading import Lock
from typing import Final

import lmdb

from sidecar.clock import Clock
from sidecar.store.environment import GUARD, MAP_SIZE, MAX_READERS, Environment, open_for_reading
from sidecar.store.errors import NotLoadedError
from sidecar.store.generation import DataDir, is_trusted, mark_suspect, shortfall
from sidecar.store.view import ReadView

FOLLOW_EVERY_S: Final = 0.005
"""How often CURRENT is looked at, so that a swap is seen at most this much late for one stat per period."""


class Reader:
    """Reads the store while one writer, in this or another process, writes it.

    Usable from several threads; open it after forking. A generation is opened only if it is trusted: written or
    examined in this boot (`clock.boot_id()`), not marked suspect, and as long as it claims to be.
    """

    def __init__(
        self, data_dir: Path, *, map_size: int = MAP_SIZE, max_readers: int = MAX_READERS, clock: Clock | None = None
    ) -> None:
        self._dir = DataDir(data_dir)
        self._map_size = map_size
        self._max_readers = max_readers
        self._clock = clock or Clock()
        self._live: Environment | None = None
        self._problem = "nothing was written yet"
        self._signature: tuple[int, int] | None = None
        self._follow_at = 0.0
        self._following = Lock()

    def view(self) -> ReadView:
        """One read transaction on the live generation, to be entered with `with`.

        Entering raises NotLoadedError when there is no generation to trust. That one exists does not say that anything
        was loaded into it: `ReadView.cursor` does.
        """
        return ReadView(self._begin)

    def follow(self) -> None:
        """Adopts a new generation now rather than with the next view; for the timer of an idle process."""
        with self._following:
            self._follow()

    def _follow(self) -> None:
        signature = self._dir.signature()
        if signature == self._signature:
            return
        fresh = self._open()
        with GUARD:
            old, self._live = self._live, fresh
            # A generation that could not be opened is tried again: it may become trusted without CURRENT changing.
            self._signature = None if fresh is None else signature
        if old is not None:
            old.close()

    def close(self) -> None:
        """Closes the generation once the views on it have ended. Views begun later raise NotLoadedError."""
        with self._following, GUARD:
            old, self._live = self._live, None
            self._signature = None
            self._follow_at = float("inf")
            self._problem = "the reader is closed"
        if old is not None:
            old.close()

    def _begin(self) -> tuple[Environment, lmdb.Transaction[bytes]]:
        now = time.monotonic()
        # One thread looks; the others go on with what they have, and wait only if they have nothing.
        if now >= self._follow_at and self._following.acquire(blocking=self._live is None):
            try:
                self._follow()
                self._follow_at = max(self._follow_at, now + FOLLOW_EVERY_S)
            finally:
                self._following.release()
        with GUARD:
            live = self._live
            if live is None:
                raise NotLoadedError(self._problem)
            return live, live.begin_read()

    def _open(self) -> Environment | None:
        while True:
            generation = self._dir.current()
            if generation is None:
                self._problem = "nothing was written yet"
                return None
            environment = self._open_generation(generation)
            # One that was swapped away and removed meanwhile is not at fault, and not the one to open.
            if environment is not None or generation == self._dir.current():
                return environment

    def _open_generation(self, generation: Path) -> Environment | None:
        if not is_trusted(generation, self._clock.boot_id()):
            self._problem = f"{generation.name} has not been examined since the last boot or fault"
            return None
        if shortfall(generation) != 0:  # the writer mends, or reports, this with its next transaction
            self._problem = f"{generation.name} is shorter than it claims"
            return None
        try:
            return open_for_reading(generation, map_size=self._map_size, max_readers=self._max_readers)
        except NotLoadedError as error:
            self._problem = str(error)
        except lmdb.Error as error:
            self._problem = f"{generation.name}: {error}"
            mark_suspect(generation, self._problem)
        return None
