"""Which chain the decisions belong to that were answered without a record.

Workers count them in the page; the page is new with every supervisor, and its words know no chains. What a worker's word
rises by is put down to the worker's newest chain, in a small file beside the segments, so that neither a restart of the
agent nor one of the worker counts a decision twice or not at all. What rose in a page after it was last looked at, because
everything was killed, is found in that page, which the supervisor keeps until the next one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from sidecar.journal.cursor import replace_file
from sidecar.journal.segment import SegmentName
from sidecar.page import Page, WorkerWord

_FILE = "unrecorded.json"

_log = logging.getLogger(__name__)


class _Book(msgspec.Struct):
    """`page`: when the page was made that `seen` is of. `seen`: the word of each worker. `chains`: what was put down to each."""

    page: int = 0
    seen: dict[int, int] = {}
    chains: dict[str, int] = {}


class Unrecorded:
    """The counts of one data directory."""

    def __init__(self, directory: Path, page: Page) -> None:
        """`directory`: the journal's."""
        self._path = directory / _FILE
        self._page = page
        self._book = _load(self._path)

    def count(self, newest: Mapping[int, str]) -> dict[str, int]:
        """Unrecorded decisions by chain, since the chain began. `newest`: each worker's newest chain.

        Decisions of a worker that has no chain yet belong to one without records, named after the page's creation.
        """
        book = self._book
        changed = False
        if book.page != self._page.created_ns:
            earlier = self._page.earlier()
            if earlier is not None:
                if earlier.created_ns != book.page:  # nothing was put down of it
                    book.seen = {}
                changed = self._take(earlier, newest)
                earlier.close()
            book.page, book.seen = self._page.created_ns, {}
        changed |= self._take(self._page, newest)
        if changed:
            self._save()
        return dict(book.chains)

    def _take(self, page: Page, newest: Mapping[int, str]) -> bool:
        """Puts down what has risen in a page. Whether anything has."""
        book = self._book
        changed = False
        for worker in range(page.workers):
            word = page.worker(worker).get(WorkerWord.UNRECORDED)
            rise = word - book.seen.get(worker, 0)
            if rise > 0:
                chain = newest.get(worker) or self._placeholder(worker)
                book.seen[worker] = word
                book.chains[chain] = book.chains.get(chain, 0) + rise
                changed = True
        return changed

    def forget(self, chains: Iterable[str]) -> None:
        """Drops chains whose end was reported."""
        if [chain for chain in chains if self._book.chains.pop(chain, None) is not None]:
            self._save()

    def _placeholder(self, worker: int) -> str:
        return SegmentName("w", worker, self._page.created_ns // 1_000_000, 0).chain

    def _save(self) -> None:
        try:
            replace_file(self._path, msgspec.json.encode(self._book))
        except OSError as error:
            # The counts are right for as long as this process lives; they are written with the next change.
            _log.error("journal: %s: %s", self._path, error.strerror)


def _load(path: Path) -> _Book:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Book)
    except (FileNotFoundError, msgspec.MsgspecError):
        return _Book()
