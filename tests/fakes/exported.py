"""What a collector kept, held against the records it was made of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Span, Status

from sidecar.journal.chain import genesis, link
from sidecar.journal.span import encode_span
from tests.fakes.otlp import attributes

DECISION_ID = "sidestep.decision.id"


def decision_ids(spans: Iterable[Span]) -> set[str]:
    """Of the spans that are decisions."""
    return {str(found[DECISION_ID]) for span in spans if DECISION_ID in (found := attributes(span))}


def altered(spans: Iterable[Span]) -> list[str]:
    """Spans that are not what the record in them gives: a field or an attribute was lost or changed on the way."""
    wrong = []
    for span in spans:
        found = attributes(span)
        payload, chain, sequence = (found.get(f"sidestep.{key}") for key in ("record", "journal.chain", "journal.seq"))
        chain_hash = found.get("sidestep.journal.hash")
        if not (isinstance(payload, bytes) and isinstance(chain, str) and isinstance(sequence, int)):
            wrong.append(f"{span.span_id.hex()} has no record, chain or number: {found}")
            continue
        assert isinstance(chain_hash, bytes)
        wanted = ScopeSpans.FromString(encode_span(payload, chain, sequence, chain_hash)).spans[0]
        if _plain(span) != _plain(wanted):
            wrong.append(f"{chain} {sequence}: {_plain(span)} instead of {_plain(wanted)}")
    return wrong


def broken(spans: Iterable[Span]) -> list[str]:
    """Where the chains do not hold: a number that is missing, or a hash that does not follow from the one before it.

    Spans that came twice count once. Every chain is expected from its first record on.
    """
    chains: dict[str, dict[int, tuple[bytes, bytes]]] = defaultdict(dict)
    for span in spans:
        found = attributes(span)
        record, chain_hash = found["sidestep.record"], found["sidestep.journal.hash"]
        assert isinstance(record, bytes)
        assert isinstance(chain_hash, bytes)
        chains[str(found["sidestep.journal.chain"])][int(str(found["sidestep.journal.seq"]))] = record, chain_hash
    wrong = []
    for name, records in chains.items():
        head = genesis(name)
        for number in range(max(records) + 1):
            if number not in records:
                wrong.append(f"{name}: {number} is missing")
                break
            payload, chain_hash = records[number]
            head = link(head, payload)
            if head != chain_hash:
                wrong.append(f"{name}: the hash of {number} is not that of what came")
                break
    return wrong


def _plain(span: Span) -> tuple[object, ...]:
    """Everything of a span that means something: not the order of its attributes, and not an empty status."""
    bare = Span()
    bare.CopyFrom(span)
    del bare.attributes[:]
    if bare.status == Status():
        bare.ClearField("status")
    return bare.SerializeToString(deterministic=True), len(span.attributes), attributes(span)
