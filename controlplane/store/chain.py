"""What is believed of one chain of a sidecar's journal, report after report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from sidestep.v1 import report_pb2

ANCHOR_EVERY_S = 60.0
# Of a chain that has lived long, the gaps grow with it: so ten days cost some 2,000 anchors, not 14,400.
_ANCHORS_PER_AGE = 500


class Taken(NamedTuple):
    """What a report did: contradict an earlier one, and bring an anchor worth keeping."""

    conflict: bool
    anchor: bool


@dataclass(slots=True)
class ChainState:
    """A row of `journal_chains`; fields as there. Nothing in it is ever taken back."""

    sidecar: str
    chain: str
    first_report_at: float
    last_report_at: float
    records: int = 0
    head: bytes = b""
    settled: int = 0
    quarantined: int = 0
    discarded: int = 0
    lost: int = 0
    unrecorded: int = 0
    spooled: int = 0
    ended: bool = False
    reported_ns: int = 0
    head_at: float = 0.0
    anchored_at: float = 0.0
    conflicts: int = 0

    def take(self, report: report_pb2.JournalChain, now: float) -> Taken:
        """Takes over what a report adds. Repeating one changes nothing but `last_report_at`.

        A report contradicts if it has another hash for the same number of records, or, being newer, fewer records: then the
        earlier anchor stands. An older one that says less has only been overtaken. Fewer records settled are no
        contradiction: after a crash some are sent again. A report from the future counts as one of now: a clock that was ahead
        for a moment must not make all later reports look overtaken.
        """
        reported_ns = min(report.report_time.ToNanoseconds(), int(now * 1e9))
        newer = reported_ns > self.reported_ns
        if report.records == self.records:
            conflict = report.head != self.head and reported_ns != self.reported_ns
        else:
            conflict = newer and report.records < self.records
        anchor = report.records > self.records and self._is_due(now)
        if report.records > self.records:
            self.records, self.head, self.head_at = report.records, report.head, now
            self.anchored_at = now if anchor else self.anchored_at
        for name in ("settled", "quarantined", "discarded", "lost", "unrecorded", "spooled"):
            setattr(self, name, max(getattr(self, name), getattr(report, name)))
        if newer and report.ended and report.settled == report.records < self.records:
            # Its owner has dealt with all it has, and will never have the rest: a node crash cut the chain.
            self.lost = max(self.lost, report.lost + self.records - report.records)
            self.settled = self.records
        self.ended = self.ended or report.ended
        self.reported_ns = max(self.reported_ns, reported_ns)
        self.last_report_at = max(self.last_report_at, now)
        self.conflicts += conflict
        return Taken(conflict, anchor)

    def _is_due(self, now: float) -> bool:
        return now - self.anchored_at >= max(ANCHOR_EVERY_S, (now - self.first_report_at) / _ANCHORS_PER_AGE)
