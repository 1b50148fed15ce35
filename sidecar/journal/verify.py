"""Proves that records are complete and as they were written.

Every record is hashed together with the one before it (chain.py), and the control plane was told from time to time how many
records a chain had and the hash of the last: its anchors. So, for each chain:

    1. a record's hash must follow from the hash before it and its content, or one of the two was altered;
    2. numbers must have no holes, and reach as far as the anchors say;
    3. the hash of an anchored record must be the anchor's, or everything up to there was written anew.

Without anchors, whoever could write the records could have written all hashes anew, or cut the end.
"""

from __future__ import annotations

import tempfile
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from struct import Struct
from typing import NamedTuple

import msgspec

from sidecar.journal.chain import HASH_BYTES, genesis, link
from sidecar.journal.findings import Finding, Kind, findings_of
from sidecar.journal.hashes import Hashes
from sidecar.journal.origin import Coverage, SourceRecord

_IN_MEMORY_BYTES = 32 << 20
_WAITING = Struct(f"<QI{HASH_BYTES}s")


class Anchor(NamedTuple):
    """A chain had so many records, and `head` was the chain hash of the last."""

    records: int
    head: bytes


@dataclass(frozen=True)
class ChainState:
    """What the control plane knows of a chain. Counts as in `JournalChain` of sidestep/v1/report.proto."""

    anchors: tuple[Anchor, ...] = ()
    settled: int = 0
    quarantined: int = 0
    discarded: int = 0
    lost: int = 0
    unrecorded: int = 0


@dataclass(frozen=True)
class ChainResult:
    """What verification found of one chain."""

    sidecar: str
    chain: str
    # How many different records were found.
    records: int
    # So many from the first on are as the last matching anchor says.
    anchored: int
    # Decisions that were answered without a record: as the records found say, or the control plane if it knows of more.
    unrecorded: int
    findings: tuple[Finding, ...]

    @property
    def is_whole(self) -> bool:
        """No fault."""
        return not any(finding.kind.is_fault for finding in self.findings)


@dataclass(frozen=True)
class Verification:
    """One result per chain, sorted by sidecar and chain."""

    chains: tuple[ChainResult, ...]

    @property
    def is_whole(self) -> bool:
        """No fault in any chain."""
        return all(chain.is_whole for chain in self.chains)


def verify(
    records: Iterable[SourceRecord],
    chains: Mapping[tuple[str, str], ChainState],
    coverage: Coverage = Coverage.EVERYTHING,
) -> Verification:
    """Verifies records, in any order and with any duplicates, against what is known of (sidecar, chain).

    `chains`: those looked for; one that is not there counts as cut. `coverage`: what the records' sources ought to hold, so
    that what was delivered is not missed in a sidecar's folder, nor in an export what the sidecar still has. Takes about 40
    bytes of memory per record; a record that comes before its predecessor waits in a temporary file.
    """
    with _Waiting() as waiting:
        found: dict[tuple[str, str], _Chain] = {}
        for record in records:
            key = (record.sidecar, record.chain)
            chain = found.get(key)
            if chain is None:
                chain = found[key] = _Chain(record.chain, chains.get(key), waiting)
            chain.add(record)
        for key, state in chains.items():
            if key not in found:
                found[key] = _Chain(key[1], state, waiting)
        return Verification(tuple(found[key].result(key[0], coverage) for key in sorted(found)))


class _Waiting:
    """Records put aside until it is known what comes before them."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES)  # noqa: SIM115
        self._size = 0

    def __enter__(self) -> _Waiting:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def put(self, record: SourceRecord) -> int:
        """Returns the place to get it back from."""
        place = self._size
        self._file.seek(place)
        head = _WAITING.pack(record.sequence, len(record.payload), record.hash)
        self._size += self._file.write(head + record.payload)
        return place

    def get(self, place: int) -> tuple[int, bytes, bytes]:
        """Number, chain hash and payload."""
        self._file.seek(place)
        number, size, chain_hash = _WAITING.unpack(self._file.read(_WAITING.size))
        return number, chain_hash, self._file.read(size)


class _Unrecorded(msgspec.Struct):
    kind: str = ""
    count: int = 0


_UNRECORDED = msgspec.msgpack.Decoder(_Unrecorded)


class _Chain:
    """One chain while its records come in."""

    def __init__(self, name: str, state: ChainState | None, waiting: _Waiting) -> None:
        self._name = name
        self._state = state
        self._known = state or ChainState()
        self._hashes = Hashes()
        # By number: the chain hash before it, as a segment's header says, as anchors say.
        self._headers: dict[int, bytes] = {}
        self._anchors = {anchor.records: anchor.head for anchor in self._known.anchors if anchor.records > 0}
        self._flagged: dict[tuple[Kind, str], list[int]] = defaultdict(list)
        self._waiting = waiting
        self._places = array("Q")
        # The first record that was not set aside.
        self._first: int | None = None
        self._unrecorded = 0

    def add(self, record: SourceRecord) -> None:
        """Takes one record."""
        number = record.sequence
        if record.previous:
            self._headers.setdefault(number, record.previous)
        if record.altered:
            self._flag(Kind.ALTERED, number, ", ".join(record.altered))
        if not record.quarantined and (self._first is None or number < self._first):
            self._first = number
        before = self._before(number)
        held = self._hashes.get(number)
        if held is None:
            self._hashes.put(number, record.hash)
            self._unrecorded += _unrecorded(record.payload)
        elif held != record.hash:
            self._flag(Kind.DUPLICATE, number)
        if before is None:
            self._places.append(self._waiting.put(record))
        elif link(before, record.payload) != record.hash:
            self._flag(Kind.EDIT, number)

    def result(self, sidecar: str, coverage: Coverage) -> ChainResult:
        """What is to be said when all records have come."""
        self._check_waiting()
        for number, before in self._headers.items():
            if number and self._hashes.get(number - 1) not in (None, before):
                self._flag(Kind.EDIT, number)
        anchored = self._check_anchors()
        findings = [each for (kind, detail), at in self._flagged.items() for each in findings_of(kind, at, detail)]
        findings += self._missing(coverage)
        findings.sort(key=lambda finding: (not finding.kind.is_fault, finding.first, finding.kind.value))
        return ChainResult(
            sidecar=sidecar,
            chain=self._name,
            records=len(self._hashes),
            anchored=anchored,
            unrecorded=max(self._unrecorded, self._known.unrecorded),
            findings=tuple(findings),
        )

    def _flag(self, kind: Kind, number: int, detail: str = "") -> None:
        self._flagged[kind, detail].append(number)

    def _before(self, number: int) -> bytes | None:
        """The chain hash before a record: of the one before, if it is here, else as it is known from elsewhere."""
        if number == 0:
            return genesis(self._name)
        return self._hashes.get(number - 1) or self._headers.get(number) or self._anchors.get(number)

    def _check_waiting(self) -> None:
        alone: dict[int, bytes] = {}
        for place in self._places:
            number, chain_hash, payload = self._waiting.get(place)
            before = self._before(number)
            if before is None:
                self._flag(Kind.UNCHECKED, number)
                # Of copies that cannot be checked it can still be said whether they are equal.
                content = link(b"", payload)
                if alone.setdefault(number, content) != content:
                    self._flag(Kind.DUPLICATE, number)
            elif link(before, payload) != chain_hash:
                self._flag(Kind.EDIT, number)

    def _check_anchors(self) -> int:
        anchored = 0
        for records, head in self._anchors.items():
            held = self._hashes.get(records - 1)
            if held == head:
                anchored = max(anchored, records)
            elif held is not None:
                self._flag(Kind.ANCHOR, records - 1)
        return anchored

    def _missing(self, coverage: Coverage) -> Iterator[Finding]:
        """What is not there, and what lies beyond what was anchored."""
        anchored = max(self._anchors, default=0)
        due = 0
        for first, last in self._hashes.runs():
            if first > due:
                yield from self._gap(Kind.GAP, due, first - 1, coverage)
            due = last + 1
        if due < anchored:
            yield from self._gap(Kind.CUT, due, anchored - 1, coverage)
        elif due > anchored:
            yield Finding(Kind.UNANCHORED, anchored, due - 1)

    def _gap(self, kind: Kind, first: int, last: int, coverage: Coverage) -> Iterator[Finding]:
        # Split where responsibility changes: below, records have been dealt with; from there on, the sidecar had them.
        settled = self._known.settled
        if coverage is Coverage.UNDELIVERED:
            if self._state is None:
                settled = self._first or 0
            if first < settled:
                yield Finding(Kind.ELSEWHERE, first, min(last, settled - 1))
            first = max(first, settled)
        elif coverage is Coverage.DELIVERED and kind is Kind.CUT:
            if last >= settled:
                yield Finding(Kind.WAITING, max(first, settled), last)
            last = min(last, settled - 1)
        if first <= last:
            yield Finding(kind, first, last, self._explanation(first))

    def _explanation(self, first: int) -> str:
        """Counts that may explain why records below `settled` are missing."""
        known = self._known
        counts = (("lost", known.lost), ("quarantined", known.quarantined), ("discarded", known.discarded))
        told = [f"{count} {word}" for word, count in counts if count and first < known.settled]
        return f"the sidecar told of {', '.join(told)}" if told else ""


def _unrecorded(payload: bytes) -> int:
    """How many decisions a record says were answered without one."""
    try:
        record = _UNRECORDED.decode(payload)
    except msgspec.MsgspecError:
        return 0
    return record.count if record.kind == "unrecorded" else 0
