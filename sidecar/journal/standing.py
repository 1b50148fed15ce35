"""Where a chain stands, as the control plane is told."""

from __future__ import annotations

from sidestep.v1 import report_pb2

from sidecar.journal.cursor import Tally
from sidecar.journal.heads import Head


def chain_standing(chain: str, head: Head | None, tally: Tally) -> report_pb2.JournalChain | None:
    """The state of one chain, without time and unrecorded decisions. `head`: None if it has no segments left.

    Read heads before tallies: a chain whose last segment goes in between is then known from its tally. None: there are
    records, but the hash of the last is not known, so nothing can be said yet.
    """
    told = report_pb2.JournalChain(
        chain=chain,
        settled=tally.settled,
        quarantined=tally.quarantined,
        discarded=tally.discarded,
        lost=tally.lost,
        spooled=tally.spooled,
        ended=head is None or head.ended,
    )
    dealt_with = tally.settled + tally.spooled
    if head is not None and head.records >= dealt_with:
        told.records, last = head.records, head.head
    else:
        told.records, last = dealt_with, tally.head
    if told.records:
        if not last:
            return None
        told.head = last
    return told
