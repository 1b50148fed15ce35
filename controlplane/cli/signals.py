"""`sidestep signal`: put, list, delete, and import of feeds."""

from __future__ import annotations

import time
from typing import TextIO

import click
from sidestep.v1 import admin_pb2

from controlplane.cli import manifests
from controlplane.cli.changes import Change, delete_record
from controlplane.cli.client import Client
from controlplane.cli.failures import Failure
from controlplane.cli.imports import run_import
from controlplane.cli.output import show_put, show_records
from controlplane.cli.program import Family, pass_client
from controlplane.cli.values import DURATION, exactly_one, label
from controlplane.feeds import FORMATS, FeedSignal, Problem, check_value, expiry_on_grid, merge, parse, to_signal
from engine.names import SIGNAL_KINDS, Collection, check_source, signal_id

DEFAULT_TTL_S = 7 * 86400.0
_SHOWN_PROBLEMS = 100


@click.group(cls=Family)
def signal() -> None:
    """Risk signals about networks, countries, subjects, devices and sessions."""


@signal.command()
@click.argument("kind", metavar="[KIND]", type=click.Choice(SIGNAL_KINDS), required=False)
@click.argument("value", metavar="[VALUE]", required=False)
@click.option("--source", default="manual", show_default=True, help="Who says so.")
@click.option("--score", type=click.IntRange(0, 100), default=50, show_default=True, help="0 (harmless) to 100.")
@click.option("--confidence", type=click.IntRange(0, 100), help="How sure the source is.  [default: 100]")
@click.option("--ttl", type=DURATION, default="7d", show_default=True, help="How long it counts.")
@click.option("--file", "-f", type=click.File(encoding="utf-8"), help="Read the signal from a document instead.")
@pass_client
def put(
    client: Client,
    kind: str | None,
    value: str | None,
    source: str,
    score: int,
    confidence: int | None,
    ttl: float,
    file: TextIO | None,
) -> None:
    """Create or replace a signal about VALUE."""
    exactly_one({"KIND": kind, "--file": file})
    if file is not None:
        show_put(client, client.put(manifests.read_one(file, client.tenant_option, "Signal").record))
        return
    if kind is None or value is None:
        raise Failure("VALUE: is required")
    read = FeedSignal(kind, check_value(kind, value), score, confidence)
    show_put(client, client.put(to_signal(client.tenant, source, read, time.time() + ttl)))


@signal.command("list")
@click.option("--kind", type=click.Choice(SIGNAL_KINDS), help="Only this kind.")
@click.option("--source", help="Only this source's.")
@click.option("--limit", type=click.IntRange(min=1), help="At most this many.  [default: all]")
@pass_client
def list_signals(client: Client, kind: str | None, source: str | None, limit: int | None) -> None:
    """List signals, ordered by kind and value."""
    # The source ends an id, so it is picked out here.
    records = client.list(Collection.SIGNALS, f"{kind}~" if kind else "", None if source else limit)
    if source:
        records = (record for record in records if record.source == source)
        records = (record for record, _ in zip(records, range(limit), strict=False)) if limit else records
    show_records(client, Collection.SIGNALS, records)


@signal.command(cls=Change)
@click.argument("kind", type=click.Choice(SIGNAL_KINDS))
@click.argument("value")
@click.option("--source", default="manual", show_default=True, help="Whose signal.")
@pass_client
def delete(client: Client, kind: str, value: str, source: str) -> None:
    """Delete one source's signal about VALUE."""
    delete_record(client, Collection.SIGNALS, signal_id(kind, check_value(kind, value), source))


@signal.command("import")
@click.argument("file", type=click.File(encoding="utf-8", errors="replace"))
@click.option("--source", required=True, help="Name of the feed; its signals are kept apart from other sources'.")
@click.option("--format", "feed_format", type=click.Choice(FORMATS), help="Format of FILE.  [default: detected]")
@click.option("--score", type=click.IntRange(0, 100), default=50, show_default=True, help="For lines without a score.")
@click.option("--ttl", type=DURATION, default="7d", show_default=True, help="How long a signal counts at least.")
@click.option(
    "--replace/--add", default=True, help="Remove the source's signals that FILE does not name.  [default: --replace]"
)
@click.option("--force", is_flag=True, help="Let a feed shrink by more than 20 %.")
@pass_client
def import_feed(
    client: Client,
    file: TextIO,
    source: str,
    feed_format: str | None,
    score: int,
    ttl: float,
    replace: bool,
    force: bool,
) -> None:
    """Import a threat feed from FILE (`-`: stdin): IPsum, a plain list of addresses and prefixes, or CSV.

    A bad line is reported with its number and skipped; the rest is imported.
    """
    check_source(source, "--source")
    tenant, now = client.tenant, time.time()
    read: list[FeedSignal] = []
    problems: list[Problem] = []
    for item in parse(file, feed_format, score=score):
        if isinstance(item, Problem):
            problems.append(item)
        else:
            read.append(item)
    _show(problems, label(file))
    merged = merge(read)
    current = [item for item in merged if item.expire_at is None or item.expire_at > now]
    if not current and not force:
        raise Failure(f"{label(file)}: no line of it is a signal that counts; nothing was imported")
    expire_at = expiry_on_grid(now, ttl)
    records = [to_signal(tenant, source, item, expire_at) for item in current]
    start = admin_pb2.ImportStart(
        parent=client.parent, collection="COLLECTION_SIGNALS", source=source, replace=replace, force=force
    )
    notes = {
        "merged": len(read) - len(merged),
        "expired": len(merged) - len(current),
        "refused": [problem._asdict() for problem in problems],
    }
    run_import(client, start, records, total=len(records), what=f"signals of {source}", notes=notes)


def _show(problems: list[Problem], file: str) -> None:
    for problem in problems[:_SHOWN_PROBLEMS]:
        click.echo(f"refused: {file}:{problem.line}: {problem.reason}: {problem.text}", err=True)
    if len(problems) > _SHOWN_PROBLEMS:
        click.echo(f"refused: {file}: and {len(problems) - _SHOWN_PROBLEMS} more lines", err=True)
