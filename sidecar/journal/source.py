"""Reads journal records from where they are kept: journal folders, spools, and exported spans.

A source is a path:

    a folder     with segments or `resource.json`, or with such folders somewhere below: a journal folder, a sidecar's data
                 directory, a spool. The quarantine is part of it; what was not copied to a spool in full (`.part`) is not.
    a file       of exported spans, see exported.py; `-`: the same from standard input
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any, cast

import msgspec

from sidecar.journal.chain import HASH_BYTES
from sidecar.journal.exported import read_exported
from sidecar.journal.origin import Coverage, Damaged, SourceError, SourceRecord
from sidecar.journal.quarantine import WRITER as QUARANTINE
from sidecar.journal.quarantine import decode_quarantined
from sidecar.journal.reader import Entry, SegmentReader
from sidecar.journal.resource import INSTANCE, RESOURCE_FILE, load_resource
from sidecar.journal.segment import JournalError, SegmentName, list_segments, parse_segment_name

STDIN = "-"
_SLICE_RECORDS = 512


def read_sources(paths: Sequence[str | Path], damaged: Damaged | None = None) -> Iterator[SourceRecord]:
    """All records of all sources, in the order of the paths and of the files; never more than some of them in memory.

    Raises SourceError for a path that is no source. For what cannot be read within one (a damaged segment, a broken line, a
    span of ours that is not whole) too, or tells `damaged` and goes on. A segment's torn tail is not damage: the write was cut
    short, and nobody got those decisions.
    """
    tell = damaged or _raise
    for path in paths:
        if path == STDIN:
            yield from _read_stdin(tell)
        elif os.path.isdir(path):
            for folder in journal_folders(Path(path)):
                yield from _read_folder(folder, tell)
        else:
            yield from _read_file(Path(path), tell)


def coverage(paths: Sequence[str | Path]) -> Coverage:
    """What the sources ought to hold."""
    folders = [path != STDIN and os.path.isdir(path) for path in paths]
    if all(folders):
        return Coverage.UNDELIVERED
    return Coverage.EVERYTHING if any(folders) else Coverage.DELIVERED


def folder_sidecars(paths: Sequence[str | Path]) -> set[str]:
    """Names of the sidecars whose folders are among the sources, also if there is no record in them.

    Raises SourceError for a folder that is no source.
    """
    folders = (Path(path) for path in paths if path != STDIN and os.path.isdir(path))
    return {_sidecar(folder) for path in folders for folder in journal_folders(path)}


def journal_folders(path: Path) -> list[Path]:
    """The journal folders at or below a folder, sorted. Raises SourceError if there is none."""
    found = []
    for folder, below, files in os.walk(path, onerror=_unreadable):
        below[:] = sorted(name for name in below if not name.startswith("."))
        if RESOURCE_FILE in files or any(map(parse_segment_name, files)):
            found.append(Path(folder))
    if not found:
        raise SourceError(f"{path}: there is no journal in this folder")
    return found


def _raise(error: SourceError) -> None:
    raise error


def _unreadable(error: OSError) -> None:
    raise SourceError(f"{error.filename}: {error.strerror}")


def _sidecar(folder: Path) -> str:
    try:
        return (load_resource(folder) or {}).get(INSTANCE, "")
    except OSError as error:
        raise SourceError(f"{folder / RESOURCE_FILE}: {error.strerror}") from None


def _read_folder(folder: Path, damaged: Damaged) -> Iterator[SourceRecord]:
    sidecar = _sidecar(folder)
    for name in list_segments(folder):
        path = folder / str(name)
        try:
            reader = SegmentReader(path)
        except FileNotFoundError:  # shipped and removed meanwhile
            continue
        except JournalError as error:
            damaged(SourceError(str(error)))
            continue
        except OSError as error:
            damaged(SourceError(f"{path}: {error.strerror}"))
            continue
        try:
            yield from _read_segment(sidecar, name, str(path), reader, damaged)
        finally:
            reader.close()


def _read_segment(
    sidecar: str, name: SegmentName, path: str, reader: SegmentReader, damaged: Damaged
) -> Iterator[SourceRecord]:
    previous = reader.previous
    while entries := reader.read(_SLICE_RECORDS):
        for entry in entries:
            if entry.skipped:
                damaged(SourceError(f"{path}: {entry.skipped} damaged records before number {entry.sequence}"))
                previous = b""
            if name.writer != QUARANTINE:
                yield SourceRecord(
                    sidecar, name.chain, entry.sequence, entry.hash, entry.payload, path, previous=previous
                )
            elif (record := _unwrapped(sidecar, path, entry, damaged)) is not None:
                yield record
            previous = b""  # the next one's is the hash of this one


def _unwrapped(sidecar: str, path: str, entry: Entry, damaged: Damaged) -> SourceRecord | None:
    """The record in an envelope of the quarantine."""
    try:
        inner = decode_quarantined(entry.payload)
    except msgspec.MsgspecError as error:
        damaged(SourceError(f"{path}: number {entry.sequence} of the quarantine cannot be read: {error}"))
        return None
    if len(inner.hash) != HASH_BYTES or inner.sequence < 0:
        damaged(SourceError(f"{path}: number {entry.sequence} of the quarantine says nothing sound of its record"))
        return None
    return SourceRecord(sidecar, inner.chain, inner.sequence, inner.hash, inner.payload, path, quarantined=True)


def _read_stdin(damaged: Damaged) -> Iterator[SourceRecord]:
    stream = BufferedReader(cast("Any", sys.stdin.buffer))
    try:
        yield from read_exported(stream, "stdin", damaged)
    finally:
        stream.detach()  # not ours to close


def _read_file(path: Path, damaged: Damaged) -> Iterator[SourceRecord]:
    try:
        with path.open("rb") as file:
            yield from read_exported(file, str(path), damaged)
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror or error}") from None
