"""How far each lane ever was, outside the generations: who was further once is not led back by what was true then.

The file `marks` in the data directory is written anew and renamed, so it is always whole. Its rows are sealed like bookkeeping
rows (`keys.seal`); from one that is damaged on all count as missing, and their lanes are then loaded anew. It is written at most
once a second,
so after the death of the machine, or of the cache too, a mark may be that much behind.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from struct import Struct, error
from typing import Final, NamedTuple

from engine.names import Lane
from sidecar.store import keys
from sidecar.store.errors import DamagedRowError

_log = logging.getLogger(__name__)

LaneId = tuple[str, Lane]

FILE: Final = "marks"
_MAGIC: Final = b"sidestep marks 1\n"
_KIND: Final = b"mark\0"
_ROW = Struct(">HH")
_MARK = Struct(">QQ")
_EVERY_S: Final = 1.0


class Mark(NamedTuple):
    """A place in a lane's history. Ordered."""

    epoch: int
    revision: int


class Marks:
    """The marks of one data directory. Only what was signed may raise one. For one thread, like the writer."""

    def __init__(self, directory: Path) -> None:
        """Reads what is there. Raises OSError."""
        self._path = directory / FILE
        self._marks: dict[LaneId, Mark] = {}
        self._changed = False
        self._written_at = float("-inf")
        try:
            self._load(self._path.read_bytes())
        except FileNotFoundError:
            return

    def get(self, lane_id: LaneId) -> Mark | None:
        """How far the lane was; None: nothing signed was ever loaded into it."""
        return self._marks.get(lane_id)

    def known(self) -> dict[LaneId, Mark]:
        """All of them."""
        return dict(self._marks)

    def lift(self, lane_id: LaneId, epoch: int, revision: int) -> None:
        """Notes that the lane is, or was, at least here."""
        mark = Mark(epoch, revision)
        known = self._marks.get(lane_id)
        if known is None or known < mark:
            self._marks[lane_id] = mark
            self._changed = True

    def flush(self, *, now: bool = False) -> None:
        """Writes the file if there is something new and the last time is a second ago, or `now`. Raises OSError."""
        if not self._changed or (not now and time.monotonic() - self._written_at < _EVERY_S):
            return
        draft = self._path.with_name(self._path.name + ".tmp")
        with draft.open("wb") as file:
            file.write(_MAGIC)
            for (tenant, lane), mark in self._marks.items():
                key = keys.lane_row(_KIND, tenant, lane)
                value = keys.seal(key, _MARK.pack(*mark))
                file.write(_ROW.pack(len(key), len(value)) + key + value)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self._path)
        self._changed = False
        self._written_at = time.monotonic()

    def _load(self, data: bytes) -> None:
        if not data.startswith(_MAGIC):
            _log.error("%s: not a file of marks of this version; every lane is loaded anew", self._path)
            return
        at = len(_MAGIC)
        try:
            while at < len(data):
                key_size, value_size = _ROW.unpack_from(data, at)
                at += _ROW.size
                key, value = data[at : at + key_size], data[at + key_size : at + key_size + value_size]
                at += key_size + value_size
                self._marks[keys.parse_lane_row(_KIND, key)] = Mark(*_MARK.unpack(keys.unseal(key, value)))
        except (DamagedRowError, error):
            _log.error("%s: a row is not as it was written; lanes from there on are loaded anew", self._path)


def forget_marks(directory: Path) -> None:
    """Removes the file: what is loaded from now on is not verified, and must not count as if it were. Raises OSError."""
    (directory / FILE).unlink(missing_ok=True)
