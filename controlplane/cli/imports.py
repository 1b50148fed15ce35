"""Running an import with a progress bar, and saying what it did."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from sidestep.v1 import admin_pb2

from controlplane.cli.client import Client
from controlplane.cli.output import as_dict, at, console, print_data


def run_import(
    client: Client,
    start: admin_pb2.ImportStart,
    records: Iterable[Any],
    *,
    what: str,
    total: int | None = None,
    notes: dict[str, Any] | None = None,
) -> None:
    """Imports records (`total`, if known) and prints the counts, with `notes` beside them. Raises Failure."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # The bar is for a person who waits; a log file has no use for it.
    with Progress(*columns, console=console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as progress:
        task = progress.add_task(f"sending {what}", total=total)

        def sent() -> Iterator[Any]:
            for count, record in enumerate(records, start=1):
                yield record
                if count % 1000 == 0 or count == total:
                    progress.update(task, completed=count)
            progress.update(task, description=f"writing {what}")

        response = client.import_records(start, sent())
    if client.output != "table":
        print_data(client, {**as_dict(response), **(notes or {})})
        return
    counts = ", ".join(
        f"{getattr(response, count):,} {count}" for count in ("received", "added", "updated", "removed", "unchanged")
    )
    extra = "".join(
        f", {len(value) if isinstance(value, list) else value:,} {note}" for note, value in (notes or {}).items()
    )
    console().print(f"{what}: {counts}{extra}; {at(response.revision)}")
