"""`sidestep decisions`: replay recorded decisions, try a policy on them, find those about a user.

They are read where the audit trail has them: in a sidecar's journal, in its spool, or in spans that a collector exported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TextIO
from uuid import UUID

import click
import msgspec
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from controlplane.cli import manifests
from controlplane.cli.client import Client
from controlplane.cli.failures import DIFFERENT, NOT_FOUND, Failure
from controlplane.cli.output import console, print_data
from controlplane.cli.policies import check_locally
from controlplane.cli.program import Family, pass_client
from controlplane.cli.rulebook import Rulebook
from controlplane.cli.subjects import hashes_of
from controlplane.cli.tally import Recorded, Tally, show_tally
from controlplane.cli.values import INSTANT, exactly_one, label
from engine.candidate import Candidate, candidate
from engine.facts import Facts
from engine.policy import parse_policy
from sidecar.journal.origin import SourceError, SourceRecord
from sidecar.journal.record import Record
from sidecar.journal.replay import Cause, Revision, differences, read_decision
from sidecar.journal.source import read_sources

_TELL_EVERY = 250
_MAX_WARNINGS = 20
_PAGE = 1 << 16
_REPLAYS_DIFFERENTLY = "replays_differently"
_MEANINGS = {cause.value: cause.meaning for cause in Cause} | {
    _REPLAYS_DIFFERENTLY: "they do not even replay as recorded",
}


@click.group(cls=Family)
def decisions() -> None:
    """Recorded decisions: decide them again, try a policy on them, find those about a user."""


class Wanted(NamedTuple):
    """Which decisions of the sources: all that match. `until` is exclusive."""

    sources: tuple[str, ...]
    tenant: str | None
    since: float | None
    until: float | None


def _wanted(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say which decisions."""
    for decorate in (
        click.option("--until", type=INSTANT, help="Only decisions made before this time."),
        click.option("--since", type=INSTANT, help="Only decisions made at this time (`-1d`: a day ago) or later."),
        click.argument("more", metavar="[SOURCE]...", nargs=-1),
        click.option(
            "--from",
            "first",
            metavar="SOURCE",
            required=True,
            multiple=True,
            help="A journal folder or a sidecar's data directory, a spool, or OTLP JSON as a collector's file exporter "
            "writes it (also .gz; `-`: stdin). Repeat it, or let further ones follow.",
        ),
    ):
        command = decorate(command)
    return command


@decisions.command()
@_wanted
@click.option("--policy", "policy_file", type=click.File(encoding="utf-8"), help="The candidate to try.")
@click.option("--rules", "rules_file", type=click.Path(path_type=Path), help="Take the rules from this file.")
@click.option("--save-rules", type=click.Path(path_type=Path), help="Write the rules that were needed to this file.")
@click.option("--examples", type=click.IntRange(min=0), default=3, show_default=True, help="So many of each change.")
@pass_client
def replay(
    client: Client,
    first: tuple[str, ...],
    more: tuple[str, ...],
    since: float | None,
    until: float | None,
    policy_file: TextIO | None,
    rules_file: Path | None,
    save_rules: Path | None,
    examples: int,
) -> int:
    """Decide recorded decisions again, by the policies and settings of their time: each must come out identical.

    With --policy, show what a candidate would have made of them. It takes the place of the policy of its name, and of the one
    that it `replaces`. A decision that cannot be told, because a value or the rules of then are not known, is counted apart.

    The rules come from the control plane, or from a file that --save-rules made. With --tenant, only that tenant's decisions
    are looked at. Exits with 12 if a decision does not come out as recorded.
    """
    if rules_file is not None and save_rules is not None:
        raise Failure("--rules and --save-rules: the rules are either read from a file or written to one")
    tried = None if policy_file is None else _candidate(policy_file, client.tenant_option)
    tenant = tried[0] if tried else client.tenant if client.tenant_option else None
    book = Rulebook(client) if rules_file is None else Rulebook.load(rules_file)
    tally = Tally(tried[1].policy.name if tried else None, examples)
    with _progress() as tell:
        _replay(
            Wanted((*first, *more), tenant, since, until), Revisions(book, tried[1] if tried else None), tally, tell
        )
    if save_rules is not None:
        book.save(save_rules)
    for note in book.notes.values():
        click.echo(f"note: {note}", err=True)
    if not (tally.replayed or tally.compared or tally.undetermined):
        raise Failure("no decision was found", NOT_FOUND)
    if client.output != "table":
        print_data(client, tally.as_dict())
    else:
        show_tally(tally, _MEANINGS)
    return DIFFERENT if tally.different else 0


@decisions.command()
@_wanted
@click.option("--user", metavar="SUBJECT", help="About this subject; its hashes come from the control plane.")
@click.option("--hash", "user_hash", metavar="HASH", help="About whom this `user.hash` stands for.")
@click.option("--id", "decision_id", metavar="ID", help="The decision with this id.")
@pass_client
def find(
    client: Client,
    first: tuple[str, ...],
    more: tuple[str, ...],
    since: float | None,
    until: float | None,
    user: str | None,
    user_hash: str | None,
    decision_id: str | None,
) -> None:
    """Show recorded decisions about one user, or the one with an id, each with its reasons."""
    exactly_one({"--user": user, "--hash": user_hash, "--id": decision_id})
    wanted = Wanted((*first, *more), client.tenant if client.tenant_option or user else None, since, until)
    identified = _uuid(decision_id) if decision_id is not None else b""
    hashes = {user_hash} if user_hash else {item.hash for item in hashes_of(client, user)} if user else set()
    found: list[dict[str, Any]] = []
    count = unread = 0
    for source, record in _decisions(wanted):
        if isinstance(record, Cause):
            unread += 1
        elif record.decision_id == identified or record.user_hash in hashes or (user and record.user_id == user):
            count += 1
            if client.output == "table":
                _show(source, record)
            else:
                found.append(_plain(source, record))
            if identified:
                break
    if unread:
        click.echo(f"warning: {unread} records could not be read", err=True)
    if not count:
        raise Failure("no decision was found", NOT_FOUND)
    if client.output != "table":
        print_data(client, found)


class Revisions:
    """The rules of every revision that is asked for, ready to decide by; with those a candidate would make of them."""

    def __init__(self, book: Rulebook, tried: Candidate | None) -> None:
        self._book = book
        self._tried = tried
        self._prepared = lru_cache(maxsize=256)(self._prepare)

    @property
    def tries(self) -> bool:
        """Whether there is a candidate."""
        return self._tried is not None

    def of(self, facts: Facts) -> Revision | Cause:
        """The rules that decided these facts; the cause if they cannot be had. Raises Failure if nobody answers."""
        epoch, revision = facts.data.epoch, facts.data.revision
        chapter = self._book.find(facts.tenant, epoch, revision)
        if chapter is None:
            return Cause.RULES_UNKNOWN
        return self._prepared(facts.tenant, epoch, chapter.from_revision)

    def _prepare(self, tenant: str, epoch: int, from_revision: int) -> Revision:
        chapter = self._book.find(tenant, epoch, from_revision)
        assert chapter is not None
        return Revision(chapter.rules.settings, chapter.rules.policies, self._tried)


class Damage:
    """Tells of what cannot be read in the sources; reading goes on behind it."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, error: SourceError) -> None:
        """Warns, unless there were many already."""
        self.count += 1
        if self.count <= _MAX_WARNINGS:
            click.echo(f"warning: {error}", err=True)

    def end(self) -> None:
        """Says how many were not told."""
        if self.count > _MAX_WARNINGS:
            click.echo(f"warning: {self.count - _MAX_WARNINGS} more places could not be read", err=True)


class Once:
    """Tells records apart: the same one may be in several sources, and twice in an export. One bit for each."""

    def __init__(self) -> None:
        self._pages: dict[tuple[str, str, int], bytearray] = {}

    def first(self, record: SourceRecord) -> bool:
        """Whether it was not seen before."""
        page, bit = divmod(record.sequence, _PAGE)
        key = (record.sidecar, record.chain, page)
        bits = self._pages.get(key)
        if bits is None:
            bits = self._pages[key] = bytearray(_PAGE // 8)
        mask = 1 << (bit & 7)
        if bits[bit >> 3] & mask:
            return False
        bits[bit >> 3] |= mask
        return True


def _decisions(wanted: Wanted) -> Iterator[tuple[SourceRecord, Record | Cause]]:
    """The decisions in the sources, each once; the cause for one that cannot be read. Raises Failure for what is no source."""
    once = Once()
    damage = Damage()
    try:
        for source in read_sources(wanted.sources, damage):
            record = read_decision(source.payload)
            if record is None or not once.first(source):
                continue
            if isinstance(record, Record):
                if wanted.tenant is not None and record.facts.tenant != wanted.tenant:
                    continue
                if wanted.since is not None and record.at < wanted.since:
                    continue
                if wanted.until is not None and record.at >= wanted.until:
                    continue
            yield source, record
    except SourceError as error:
        raise Failure(str(error)) from None
    damage.end()


def _replay(wanted: Wanted, revisions: Revisions, tally: Tally, tell: Callable[[int], None]) -> None:
    for count, (source, record) in enumerate(_decisions(wanted), 1):
        if count % _TELL_EVERY == 0:
            tell(count)
        revision = record if isinstance(record, Cause) else revisions.of(record.facts)
        if isinstance(record, Cause) or isinstance(revision, Cause):
            assert isinstance(revision, Cause)
            tally.undetermined[revision.value] += 1
            tally.untried[revision.value] += revisions.tries
            continue
        recorded = Recorded(record.decision_id, source.sidecar, record.facts, record.decision)
        again = revision.again(record)
        if isinstance(again, Cause):
            tally.undetermined[again.value] += 1
        else:
            found = differences(record.decision, again)
            tally.again(recorded, found)
            if found:
                # What a candidate would change could not be told from what is different already.
                tally.untried[_REPLAYS_DIFFERENTLY] += revisions.tries
                continue
        if revisions.tries:
            would_be = revision.otherwise(record)
            if isinstance(would_be, Cause):
                tally.untried[would_be.value] += 1
            else:
                tally.tried(recorded, would_be)


def _candidate(file: TextIO, tenant: str | None) -> tuple[str, Candidate]:
    """The policy in a file, and its tenant. Raises Failure with the place of every problem."""
    documents = manifests.split(file)
    if len(documents) != 1:
        raise Failure(f"{label(file)}: has {len(documents)} documents, not one")
    document = documents[0]
    for warning in check_locally(document):
        click.echo(f"warning: {document.file}: {warning}", err=True)
    manifest = manifests.read_document(document, tenant, "Policy")
    return manifest.record.name.split("/")[1], candidate(parse_policy(document.text))


def _uuid(text: str) -> bytes:
    try:
        return UUID(text).bytes
    except ValueError:
        raise Failure(f"--id: {text!r} is not a decision id") from None


@contextmanager
def _progress() -> Iterator[Callable[[int], None]]:
    """Shows on a terminal how many decisions were looked at."""
    out = console(stderr=True)
    if not out.is_terminal:
        yield lambda count: None
        return
    columns = (SpinnerColumn(), TextColumn("{task.completed:.0f} decisions"), TimeElapsedColumn())
    with Progress(*columns, console=out, transient=True) as progress:
        task = progress.add_task("", total=None)
        yield lambda count: progress.update(task, completed=count)


def _show(source: SourceRecord, record: Record) -> None:
    about = Recorded(record.decision_id, source.sidecar, record.facts, record.decision).about()
    out = console()
    head = Text(f"{about['time']}  ").append(
        f"{record.decision.outcome.value} {record.decision.basis.value}", style="bold"
    )
    out.print(head.append(f"  {about['action']}  {about['decision']}", style="not bold"), soft_wrap=True)
    lines = [("reasons", "; ".join(map(str, record.decision.reasons)))]
    lines.append(("policies", " ".join(record.decision.policies)))
    lines.append(("grant", record.decision.grant))
    lines.append(("user", record.user_id or record.user_hash))
    lines.append(("from", " ".join(filter(None, (record.caller, record.client_address)))))
    lines.append(("data", f"tenant {about['tenant']}, revision {about['revision']}, sidecar {source.sidecar or '-'}"))
    for name, value in lines:
        if value:
            out.print(Text(f"    {name}: ", style="dim").append(value, style="not dim"), soft_wrap=True)


def _plain(source: SourceRecord, record: Record) -> dict[str, Any]:
    recorded = Recorded(record.decision_id, source.sidecar, record.facts, record.decision)
    decision = record.decision
    return {
        **recorded.about(),
        "userHash": record.user_hash,
        "userId": record.user_id,
        "caller": record.caller,
        "clientAddress": record.client_address,
        "requestId": record.request_id,
        "traceparent": record.traceparent,
        **{field: msgspec.to_builtins(getattr(decision, field)) for field in decision.__struct_fields__},
        "reasons": [str(reason) for reason in decision.reasons],
    }
