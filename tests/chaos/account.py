"""Both sides of the account: what callers were told, and what was recorded, wherever the records are by now."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from click.testing import CliRunner, Result

from controlplane.cli.main import cli
from sidecar.journal.origin import SourceRecord
from sidecar.journal.record import Record, UnrecordedRecord, decode_record
from sidecar.journal.source import coverage, read_sources
from sidecar.journal.verify import Verification, verify
from tests.chaos.callers import Callers


@dataclass(frozen=True)
class Recorded:
    """What sources hold between them: exports of a collector, folders of a sidecar, spools."""

    decisions: frozenset[str]
    # Decisions that the records say were answered without one.
    unrecorded: int
    verification: Verification


def recorded(*sources: Path) -> Recorded:
    """Reads, and verifies by the hashes alone, everything in them."""
    decisions: set[str] = set()
    unrecorded: dict[bytes, int] = {}

    def noted(records: Iterator[SourceRecord]) -> Iterator[SourceRecord]:
        for each in records:
            decisions.update(decision_ids([each.payload]))
            record = decode_record(each.payload)
            if isinstance(record, UnrecordedRecord):
                unrecorded[record.id] = record.count
            yield each

    verification = verify(noted(read_sources(sources)), {}, coverage(sources))
    return Recorded(frozenset(decisions), sum(unrecorded.values()), verification)


def decision_ids(payloads: Iterable[bytes]) -> set[str]:
    """Of those records that are decisions."""
    records = map(decode_record, payloads)
    return {str(UUID(bytes=record.decision_id)) for record in records if isinstance(record, Record)}


def faults(found: Recorded) -> list[str]:
    """Where chains are not whole."""
    return [
        f"{chain.sidecar} {chain.chain}: {finding}"
        for chain in found.verification.chains
        for finding in chain.findings
        if finding.kind.is_fault
    ]


def assert_accounted(callers: Callers, found: Recorded, *, others: Sequence[str] = ()) -> None:
    """Every answered decision is recorded, each with an id of its own; no record is of a decision nobody asked for; chains hold.

    `others`: decisions that were recorded besides those of the callers.
    """
    answered = set(callers.ids)
    assert callers.problems == []
    assert len(answered) == len(callers.answers)
    lost = answered - found.decisions
    assert not lost, f"{len(lost)} of {len(answered)} answered decisions are recorded nowhere"
    unasked = found.decisions - answered - set(others)
    assert len(unasked) <= callers.unknown, f"{len(unasked)} records, {callers.unknown} calls without an answer"
    assert faults(found) == []


def sidestep(*args: str, **environment: str) -> Result:
    """Runs the command line."""
    return CliRunner(env=environment).invoke(cli, list(args))


def audit(server: str, sidecar: str) -> dict[str, dict[str, int]]:
    """`sidestep sidecars audit`: the account of each chain of a sidecar, which counts as gone once it is not connected."""
    asked = ("sidecars", "audit", "--sidecar", sidecar, "--lost-after", "1ms", "-o", "json")
    shown = sidestep(*asked, SIDESTEP_SERVER=server)
    return {
        each["chain"]["chain"]: {
            "records": 1 + (-1 if each["lastAnchored"] is None else each["lastAnchored"]),
            "waiting": each["waiting"],
            "lost": each["lostInAll"],
            "conflicts": int(each.get("conflicts", 0)),
        }
        for each in json.loads(shown.stdout)
    }
