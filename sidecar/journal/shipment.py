"""Ships journals nobody runs any more: a spool, the data directory of a sidecar that has gone, or a copy of either.

Every journal folder found below a folder is shipped under its own resource, chains, numbers and hashes, as its sidecar would
have done. What was acknowledged is removed; what the collector refuses stays, in the folder's quarantine. It may be
interrupted at any moment and repeated: a record is in the folder until the collector has it, and may be sent twice.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from sidecar.journal.backlog import DAMAGED, Backlog
from sidecar.journal.claim import locked
from sidecar.journal.cursor import CURSOR_FILE, Tally
from sidecar.journal.export import Exporter, Verdict
from sidecar.journal.heads import Heads
from sidecar.journal.quarantine import Quarantine, Quarantined, quarantine_segments
from sidecar.journal.quarantine_backlog import QuarantineBacklog
from sidecar.journal.reader import SegmentReader
from sidecar.journal.resource import INSTANCE, RESOURCE_FILE, load_resource
from sidecar.journal.segment import JournalError, list_segments, parse_segment_name
from sidecar.journal.sender import Sender
from sidecar.journal.span import encode_resource
from sidecar.page import AgentSlot, AgentWord

_UNBOUNDED = 1 << 50

_log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Told after every step: spans acknowledged so far, and bytes that are left of the folder at hand."""


class FolderInUseError(JournalError):
    """A sidecar runs on the folder, or it is being shipped already."""


class Shipment(NamedTuple):
    """What became of one journal folder."""

    folder: Path
    # `service.instance.id` of its resource; empty: not known.
    sidecar: str
    # Spans acknowledged this time.
    shipped: int
    # Records that are still in the folder, those of its quarantine included.
    left: int
    # Segments in it that cannot be read; they stay, for people.
    damaged: int
    # Why the folder was given up, in the collector's words; empty: it was not.
    problem: str
    # Attempts ended without an answer, the cursor was missing, or records had been set aside because their batch was accepted
    # only partly: some spans may have come twice. (What was under way when a sidecar crashed always may.)
    duplicates_possible: bool
    # Tallies of the workers' chains; empty if only the quarantine of a running sidecar was shipped.
    chains: dict[str, Tally]


def find_journals(folder: Path) -> list[Path]:
    """Journal folders at and below a folder. Raises JournalError if there are none, or a part cannot be read."""

    def fail(error: OSError) -> None:
        raise JournalError(f"{error.filename}: {error.strerror}")

    found = []
    for path, directories, files in os.walk(folder, onerror=fail):
        # Names that begin with a dot: a spool that was never finished.
        directories[:] = sorted(name for name in directories if not name.startswith("."))
        if any(name == CURSOR_FILE or parse_segment_name(name) for name in files):
            found.append(Path(path))
    if not found:
        raise JournalError(f"{folder}: there is no journal in it")
    return found


async def ship_folder(
    folder: Path,
    exporter: Exporter,
    *,
    quarantined: bool = False,
    resource: Mapping[str, str] | None = None,
    on_progress: Progress | None = None,
    patience_s: float = 30.0,
    keep_folders: bool = False,
) -> list[Shipment]:
    """Ships every journal folder below `folder`, one after another; see Shipment for what became of each.

    `quarantined`: also what the collector refused before; of a running sidecar's folder, only that. `resource`: attributes of
    folders that do not say whose they are. It gives a folder up when the collector will not have it, or has taken nothing for
    `patience_s`. `keep_folders`: a folder that is empty afterwards stays, with the tallies of its chains, until
    `remove_shipped` is called, so that what was shipped can be told again. Raises FolderInUseError before anything is sent,
    JournalError if a folder cannot be used.
    """
    folders = find_journals(folder)
    with ExitStack() as claims:
        running = [claims.enter_context(_claimed(each)) for each in folders]
        if any(running) and not quarantined:
            name = folders[running.index(True)]
            raise FolderInUseError(f"{name}: its sidecar is running and ships it itself")
        shipments: list[Shipment] = []
        for each, alive in zip(folders, running, strict=True):
            job = _Job(
                each, exporter, resource or {}, on_progress, patience_s, sum(s.shipped for s in shipments), keep_folders
            )
            try:
                shipments.append(await job.run(quarantined, alive))
            except OSError as error:
                raise JournalError(f"{error.filename or each}: {error.strerror}") from error
        return shipments


class _Job:
    """One folder's shipment."""

    def __init__(
        self,
        folder: Path,
        exporter: Exporter,
        fallback: Mapping[str, str],
        on_progress: Progress | None,
        patience_s: float,
        shipped_before: int,
        keep: bool,
    ) -> None:
        self._folder = folder
        self._exporter = exporter
        self._resource = load_resource(folder) or dict(fallback)
        self._on_progress = on_progress
        self._patience_s = patience_s
        self._shipped_before = shipped_before
        self._keep = keep
        self._slot = AgentSlot.detached()
        self._problem = ""

    async def run(self, quarantined: bool, running: bool) -> Shipment:
        folder = self._folder
        unsure = not (folder / CURSOR_FILE).exists()
        chains: dict[str, Tally] = {}
        if quarantined:
            unsure = unsure or bool(quarantine_segments(folder))
            await self._ship(QuarantineBacklog(folder, self._slot), _keep)
        if not running:
            chains = await self._ship_chains()
        left = _count(folder, chains, running)
        shipment = Shipment(
            folder,
            self._resource.get(INSTANCE, ""),
            self._slot.get(AgentWord.JOURNAL_SHIPPED),
            left,
            len(list(folder.glob("*" + DAMAGED))),
            self._problem,
            unsure or self._slot.get(AgentWord.EXPORT_FAILURES) > 0,
            chains,
        )
        if not running and left == 0 and not self._keep:
            remove_shipped(folder)
        return shipment

    async def _ship_chains(self) -> dict[str, Tally]:
        backlog = Backlog(self._folder, self._slot)
        quarantine = Quarantine(self._folder, _UNBOUNDED)
        try:
            await self._ship(backlog, quarantine.put)
            return backlog.tallies()
        finally:
            quarantine.close()

    async def _ship(self, backlog: Backlog, put_aside: Callable[[Sequence[Quarantined]], bool]) -> None:
        sender = Sender(backlog, self._exporter, put_aside, self._slot, encode_resource(self._resource))
        try:
            left, moved_at = backlog.size(), time.monotonic()
            while left or sender.owes:
                pause_s = await sender.step()
                before, left = left, backlog.size()
                if self._on_progress is not None:
                    self._on_progress(self._shipped_before + self._slot.get(AgentWord.JOURNAL_SHIPPED), left)
                if left < before:
                    moved_at = time.monotonic()
                waited_s = time.monotonic() - moved_at + pause_s
                if sender.last is not None and (sender.last.verdict is Verdict.DENIED or waited_s > self._patience_s):
                    self._problem = sender.last.detail
                    return
                if left:
                    await asyncio.sleep(pause_s)
        finally:
            backlog.close()


def _keep(records: Sequence[Quarantined]) -> bool:
    """What is refused again stays in the file it is in."""
    _log.error("journal: %d records of the quarantine are refused again", len(records))
    return True


@contextmanager
def _claimed(folder: Path) -> Iterator[bool]:
    """Keeps a folder from being shipped twice at once, and its sidecar from being started. Says whether that is running.

    Raises FolderInUseError, JournalError.
    """
    guard = folder.parent / "lock"
    with ExitStack() as held:
        try:
            running = guard.exists() and not held.enter_context(locked(guard))
            if not running and not held.enter_context(locked(folder)):
                raise FolderInUseError(f"{folder}: it is being shipped already")
            segments = [folder / str(name) for name in list_segments(folder) if name.kind == "w"]
        except OSError as error:
            raise JournalError(f"{error.filename or folder}: {error.strerror}") from error
        yield running or not all(map(_finished, segments))


def _finished(segment: Path) -> bool:
    try:
        reader = SegmentReader(segment)
    except (FileNotFoundError, JournalError):
        return True
    try:
        return reader.finished()
    finally:
        reader.close()


def _count(folder: Path, chains: Mapping[str, Tally], running: bool) -> int:
    """Records that are left in a folder; in that of a running sidecar, in its quarantine."""
    left = 0
    if not running:
        left = sum(head.records - chains.get(head.chain, Tally()).settled for head in Heads(folder).read())
    for name in quarantine_segments(folder):
        try:
            reader = SegmentReader(folder / name)
        except (FileNotFoundError, JournalError):
            continue
        while entries := reader.read(10_000):
            left += len(entries)
        reader.close()
    return left


def remove_shipped(folder: Path) -> None:
    """Removes a folder that was a copy and holds nothing any more. A data directory keeps its journal's cursor.

    Raises OSError.
    """
    if not (folder.parent / "lock").exists() and set(os.listdir(folder)) <= {CURSOR_FILE, RESOURCE_FILE}:
        for name in (CURSOR_FILE, RESOURCE_FILE):
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()
