"""Where every chain of a journal stands: how many records it has, and the hash of the last.

Reported as anchors, also while the collector is down. Cheap enough to ask for every few seconds beside running writers: a
chain's last file says in its header what came before it, and in that file reading hops from frame to frame, behind the
place reached last time.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from sidecar.journal.reader import Position, SegmentReader
from sidecar.journal.segment import JournalError, SegmentName, list_segments


class Head(NamedTuple):
    """One chain: how many records were written, the chain hash of the last one (the genesis if there is none), and whether
    its writer has ended, so that nothing will be appended."""

    chain: str
    records: int
    head: bytes
    ended: bool


class _Reached(NamedTuple):
    """The end of the last sound record of a segment: its place and its chain hash. `finished`: nothing will follow in it."""

    name: SegmentName
    position: Position
    head: bytes
    finished: bool = False


class Heads:
    """The workers' chains in one journal directory. Holds no lock and keeps no file open; used by one thread."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._reached: dict[str, _Reached] = {}

    def read(self) -> list[Head]:
        """All chains with a segment left, oldest first per worker.

        A chain without segments is not among them: its files were removed because everything in them is settled. Records
        that are being written meanwhile count next time. Raises OSError.
        """
        found = [self._read_chain(chain) for chain in dict.fromkeys(name.chain for name in self._segments())]
        reached = [each for each in found if each is not None]
        self._reached = {each.name.chain: each for each in reached}
        # Having no lock, a file is its chain's last only if the writer had not begun another one by then.
        last = {name.chain: name for name in self._segments()}
        return [
            Head(name.chain, position.sequence, head, finished and last.get(name.chain, name) == name)
            for name, position, head, finished in reached
        ]

    def _segments(self) -> list[SegmentName]:
        return [name for name in list_segments(self._directory) if name.kind == "w"]

    def _read_chain(self, chain: str) -> _Reached | None:
        while names := [name for name in self._segments() if name.chain == chain]:
            try:
                return self._read_files(names)
            except FileNotFoundError:  # shipped and removed meanwhile; then there may be a newer one
                continue
        return None

    def _read_files(self, names: list[SegmentName]) -> _Reached | None:
        """From the last file whose header can be read."""
        for name in reversed(names):
            try:
                reader = SegmentReader(self._directory / str(name))
            except JournalError:
                continue
            try:
                finished = reader.finished()  # asked first: then nothing comes behind what is read
                return self._follow(name, reader)._replace(finished=finished)
            finally:
                reader.close()
        return None

    def _follow(self, name: SegmentName, reader: SegmentReader) -> _Reached:
        reached = self._reached.get(name.chain)
        if reached is None or reached.name != name:
            reached = _Reached(name, reader.first, reader.previous)
        reader.position = reached.position
        last = reader.last()
        return reached if last is None else _Reached(name, last.after, last.hash)
