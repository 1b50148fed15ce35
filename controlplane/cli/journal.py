"""`sidestep journal`: prove that records are complete and unaltered; ship a spool, or the journal of a sidecar that has gone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text
from sidestep.v1 import report_pb2

from controlplane.cli.anchors import Anchors, Key, SavedAnchors, ServerAnchors
from controlplane.cli.client import Client
from controlplane.cli.decisions import Damage
from controlplane.cli.failures import FINDINGS, NOT_FOUND, UNREACHABLE, Failure
from controlplane.cli.output import console, print_data
from controlplane.cli.program import Family, pass_client
from controlplane.cli.values import INSTANT
from sidecar.journal.cursor import CursorFile, load_cursor
from sidecar.journal.export import ExporterError, open_exporter
from sidecar.journal.heads import Heads
from sidecar.journal.origin import SourceError, SourceRecord
from sidecar.journal.resource import INSTANCE, load_resource
from sidecar.journal.segment import JournalError
from sidecar.journal.shipment import Progress as Tell
from sidecar.journal.shipment import Shipment, remove_shipped, ship_folder
from sidecar.journal.source import coverage, folder_sidecars, journal_folders, read_sources
from sidecar.journal.standing import chain_standing
from sidecar.journal.verify import Anchor, ChainResult, ChainState, verify
from sidecar.otel import Otlp, parse_otlp, parse_resource

_TELL_EVERY = 500
# Chains in one report.
_REPORTED = 1_000
_UNKNOWN = (
    "nothing was reported of this chain: it is not this sidecar's, or so old that it was forgotten, or seconds young"
)


@click.group(cls=Family)
def journal() -> None:
    """The sidecars' records: prove that they are complete, ship those that were left behind."""


@journal.command("verify")
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@click.option("--anchors", "anchors_file", type=click.Path(path_type=Path), help="Take the anchors from this file.")
@click.option("--offline", is_flag=True, help="Without anchors: shows what is missing within, but no cut end.")
@click.option("--sidecar", "named", metavar="NAME", multiple=True, help="This sidecar's chains must be there, too.")
@click.option("--all", "everybody", is_flag=True, help="The chains of all sidecars must be there.")
@click.option("--since", type=INSTANT, help="Miss no chains that have not been reported since this time (`-30d`).")
@pass_client
def verify_sources(
    client: Client,
    sources: tuple[str, ...],
    anchors_file: Path | None,
    offline: bool,
    named: tuple[str, ...],
    everybody: bool,
    since: float | None,
) -> int:
    """Prove that records are complete and as they were written, or show what is missing or was altered.

    A SOURCE is a journal folder or a sidecar's data directory, a spool, or spans as OTLP JSON, the way a collector's file
    exporter writes it (also .gz; `-`: stdin). Exported spans are to hold all that was delivered of each sidecar in them, a
    folder all that was not; give all files and folders there are at once.

    The hashes are compared with the anchors that the control plane has, or that `sidestep sidecars audit -o json` saved.
    Exits with 13 if anything is missing or not as it was.
    """
    if offline and (anchors_file or named or everybody or since is not None):
        raise Failure("--offline: excludes --anchors, --sidecar, --all and --since")
    if anchors_file is not None and since is not None:
        raise Failure("--since: is for the control plane's anchors, not for those of a file")
    damage = Damage()
    try:
        expected = {*named, *folder_sidecars(sources)}
        anchors: Anchors | None = None
        if not offline:
            anchors = ServerAnchors(client, since) if anchors_file is None else SavedAnchors(anchors_file)
        known = _Chains(anchors, _settled(sources), expected, everybody=everybody)
        with _progress("records") as tell:
            found = verify(_counted(read_sources(sources, damage), tell), known, coverage(sources))
    except SourceError as error:
        raise Failure(str(error)) from None
    damage.end()
    unknown = {
        (each.sidecar, each.chain) for each in found.chains if not offline and (each.sidecar, each.chain) not in known
    }
    if not found.chains and not damage.count:
        raise Failure("no record was found", NOT_FOUND)
    if client.output == "table":
        _show_chains(found.chains, unknown, damage.count)
    else:
        print_data(client, [_plain(each, (each.sidecar, each.chain) in unknown) for each in found.chains])
    return 0 if found.is_whole and not unknown and not damage.count else FINDINGS


@journal.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--quarantined", is_flag=True, help="Also what the collector refused before.")
@click.option("--no-report", is_flag=True, help="Do not tell the control plane.")
@pass_client
def ship(client: Client, folder: Path, quarantined: bool, no_report: bool) -> int:
    """Send the records in a spool, or in the data directory of a sidecar that has gone, to the collector.

    FOLDER is searched for journal folders. The collector is that of OpenTelemetry's variables (OTEL_EXPORTER_OTLP_ENDPOINT
    and so on). What it acknowledges is removed; it is safe to interrupt this and to do it again. Then the control plane is
    told, so that `sidestep sidecars audit` no longer counts these records as waiting or lost.

    Exits with 13 if the collector refused records, which stay in the folder, and with 3 if the collector or the control plane
    could not be reached.
    """
    from controlplane.config import otel_environment

    environment = otel_environment()
    otlp, resource = parse_otlp(environment, "traces"), parse_resource(environment)
    try:
        with _shipping() as tell:
            shipments = asyncio.run(_ship(folder, otlp, resource, quarantined, tell))
    except (JournalError, ExporterError) as error:
        raise Failure(str(error)) from None
    if client.output != "table":
        print_data(client, [_as_dict(shipment) for shipment in shipments])
    told = True
    for shipment in shipments:
        if client.output == "table":
            _show_shipment(shipment, quarantined)
        if no_report or _report(client, shipment):
            _remove(shipment)
        else:
            told = False
    if not told or any(shipment.problem for shipment in shipments):
        return UNREACHABLE
    return FINDINGS if any(shipment.left or shipment.damaged for shipment in shipments) else 0


class _Chains(Mapping[Key, ChainState]):
    """What is known of chains, as verification needs it. Those looked for are of sidecars named or found until then.

    `settled`: by folders' own account, which may be newer than the last report.
    """

    def __init__(
        self, anchors: Anchors | None, settled: Mapping[Key, int], sidecars: Iterable[str], *, everybody: bool
    ) -> None:
        self._anchors = anchors
        self._settled = settled
        self._sidecars = set(sidecars)
        self._everybody = everybody

    def __getitem__(self, key: Key) -> ChainState:
        self._sidecars.add(key[0])
        known = None if self._anchors is None else self._anchors.find(key)
        if known is None:
            raise KeyError(key)
        chain = known.chain
        return ChainState(
            anchors=tuple(Anchor(records, head) for records, head in known.anchors),
            settled=max(chain.settled, self._settled.get(key, 0)),
            quarantined=chain.quarantined,
            discarded=chain.discarded,
            lost=chain.lost,
            unrecorded=chain.unrecorded,
        )

    def __iter__(self) -> Iterator[Key]:
        return (key for key in self._anchors or () if self._everybody or key[0] in self._sidecars)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _settled(sources: Iterable[str]) -> dict[Key, int]:
    """How many records of each chain the folders among the sources have dealt with. Raises SourceError."""
    found: dict[Key, int] = {}
    for folder in (each for path in sources if Path(path).is_dir() for each in journal_folders(Path(path))):
        try:
            sidecar = (load_resource(folder) or {}).get(INSTANCE, "")
            cursor = load_cursor(folder) or CursorFile()
        except OSError as error:
            raise SourceError(f"{error.filename}: {error.strerror}") from None
        for chain, tally in cursor.chains.items():
            found[sidecar, chain] = max(tally.settled, found.get((sidecar, chain), 0))
    return found


def _counted(records: Iterator[SourceRecord], tell: Callable[[int], None]) -> Iterator[SourceRecord]:
    for count, record in enumerate(records, 1):
        if count % _TELL_EVERY == 0:
            tell(count)
        yield record


@contextmanager
def _progress(noun: str) -> Iterator[Callable[[int], None]]:
    """Shows on a terminal how many there were so far."""
    out = console(stderr=True)
    if not out.is_terminal:
        yield lambda count: None
        return
    columns = (SpinnerColumn(), TextColumn("{task.completed:.0f} " + noun), TimeElapsedColumn())
    with Progress(*columns, console=out, transient=True) as progress:
        task = progress.add_task("", total=None)
        yield lambda count: progress.update(task, completed=count)


def _show_chains(chains: Iterable[ChainResult], unknown: Iterable[Key], damaged: int) -> None:
    out = console()
    whole = not_whole = 0
    for each in chains:
        is_known = (each.sidecar, each.chain) not in unknown
        good = each.is_whole and is_known
        whole, not_whole = whole + good, not_whole + (not good)
        line = Text(f"{each.sidecar or '(unnamed sidecar)'}  {each.chain}  ")
        line.append("whole" if good else "NOT WHOLE", style="green" if good else "bold red")
        line.append(f"  {each.records} records, {each.anchored} anchored")
        if each.unrecorded:
            line.append(f", {each.unrecorded} decisions more without a record", style="red")
        out.print(line, soft_wrap=True)
        if not is_known:
            out.print(Text(f"    {_UNKNOWN}", style="red"), soft_wrap=True)
        for finding in each.findings:
            out.print(Text(f"    {finding}", style="red" if finding.kind.is_fault else "dim"), soft_wrap=True)
    total = whole + not_whole
    line = Text(f"{total} chain{'s' if total != 1 else ''}: {whole} whole, {not_whole} not")
    if damaged:
        line.append(f"; {damaged} damaged place{'s' if damaged != 1 else ''} in what was read", style="bold red")
    out.print(line)


def _plain(result: ChainResult, unknown: bool) -> dict[str, Any]:
    return {
        "sidecar": result.sidecar,
        "chain": result.chain,
        "whole": result.is_whole and not unknown,
        "known": not unknown,
        "records": result.records,
        "anchored": result.anchored,
        "unrecorded": result.unrecorded,
        "findings": [
            {
                "kind": finding.kind.value,
                "fault": finding.kind.is_fault,
                "first": finding.first,
                "last": finding.last,
                "text": str(finding),
            }
            for finding in result.findings
        ],
    }


async def _ship(folder: Path, otlp: Otlp, resource: Mapping[str, str], quarantined: bool, tell: Tell) -> list[Shipment]:
    exporter = open_exporter(otlp, "traces")
    try:
        return await ship_folder(
            folder, exporter, quarantined=quarantined, resource=resource, on_progress=tell, keep_folders=True
        )
    finally:
        await exporter.close()


@contextmanager
def _shipping() -> Iterator[Tell]:
    """Shows on a terminal how far shipping got."""
    with _progress("records shipped") as tell:
        yield lambda shipped, left: tell(shipped)


def _show_shipment(shipment: Shipment, quarantined: bool) -> None:
    out = console()
    whose = f" of {shipment.sidecar}" if shipment.sidecar else ""
    out.print(
        Text(f"{shipment.folder}: {shipment.shipped} records{whose} shipped, {shipment.left} left"), soft_wrap=True
    )
    if shipment.problem:
        click.echo(f"warning: the collector takes no more: {shipment.problem}", err=True)
    elif shipment.left and quarantined:
        click.echo("warning: the collector refused what is left, or it is still being written; try again", err=True)
    elif shipment.left:
        click.echo("warning: the collector refused what is left; see --quarantined", err=True)
    if shipment.damaged:
        click.echo(f"warning: {shipment.damaged} segments are damaged and stay in the folder", err=True)
    if shipment.duplicates_possible and shipment.shipped:
        click.echo("note: some spans may have come twice, with the same ids", err=True)


def _as_dict(shipment: Shipment) -> dict[str, Any]:
    return {
        "folder": str(shipment.folder),
        "sidecar": shipment.sidecar,
        "shipped": shipment.shipped,
        "left": shipment.left,
        "damaged": shipment.damaged,
        "problem": shipment.problem,
        "duplicatesPossible": shipment.duplicates_possible,
    }


def _report(client: Client, shipment: Shipment) -> bool:
    """Tells the control plane where the folder's chains stand. False: it could not be told."""
    chains = _standings(shipment)
    if chains and not shipment.sidecar:
        click.echo(f"warning: {shipment.folder}: does not say whose it is, so the control plane was not told", err=True)
        return True
    try:
        for at in range(0, len(chains), _REPORTED):
            part = chains[at : at + _REPORTED]
            client.report(report_pb2.ReportJournalRequest(sidecar=shipment.sidecar, chains=part))
    except Failure as failure:
        click.echo(f"warning: the control plane was not told: {failure.message}", err=True)
        click.echo("note: do it again, or use --no-report; the folder is kept for that", err=True)
        return False
    return True


def _remove(shipment: Shipment) -> None:
    if shipment.left == 0:
        try:
            remove_shipped(shipment.folder)
        except OSError as error:
            raise Failure(f"{shipment.folder}: {error.strerror}") from None


def _standings(shipment: Shipment) -> list[report_pb2.JournalChain]:
    try:
        heads = {head.chain: head for head in Heads(shipment.folder).read()}
    except OSError:
        heads = {}
    told = (chain_standing(name, heads.get(name), tally) for name, tally in sorted(shipment.chains.items()))
    chains = [chain for chain in told if chain is not None and chain.records]
    for chain in chains:
        chain.report_time.FromNanoseconds(time.time_ns())
    return chains
