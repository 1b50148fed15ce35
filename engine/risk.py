"""How signals combine into one risk score.

Within a kind (network, asn, country, subject, device, session) the highest weighted score counts: two feeds naming one address
are two witnesses of one fact, and a more specific prefix does not excuse a flagged wider one. Across kinds the scores combine
as independent evidence, 100 * (1 - product(1 - score/100)): two halves make 75, and no score ever lowers another.

A kind that could not be checked is None and makes the whole None, which every threshold fails: an address must always be
given; an AS number, country, session or device only where the tenant has signals about any, so that leaving it out hides
nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from engine.facts import Risk, Signal

KINDS = ("network", "asn", "country", "subject", "device", "session")


def weighted(score: float, confidence: float) -> float:
    """A score (0-100) in proportion to its source's confidence (0-100), both clamped."""
    return min(100.0, max(0.0, score)) * min(100.0, max(0.0, confidence)) / 100.0


def combine(signals: Iterable[Signal], unchecked: Iterable[str] = ()) -> Risk:
    """The risk of a request from the signals that apply to it; `unchecked` names the kinds that could not be looked up."""
    found = tuple(signals)
    by_kind: dict[str, float | None] = dict.fromkeys(KINDS, 0.0)
    for signal in found:
        present = by_kind[signal.kind]
        if present is not None and signal.score > present:
            by_kind[signal.kind] = signal.score
    for kind in unchecked:
        by_kind[kind] = None
    return Risk(score=_noisy_or(by_kind), signals=found, **by_kind)


def _noisy_or(by_kind: Mapping[str, float | None]) -> float | None:
    safe = 1.0
    highest = 0.0
    for score in by_kind.values():
        if score is None:
            return None
        if score:
            highest = max(highest, score)
            safe *= 1.0 - score / 100.0
    # Never below the highest single score, and free of the binary dust that would lift a lone 30 above a limit of 30.
    return max(highest, round(100.0 * (1.0 - safe), 9))
