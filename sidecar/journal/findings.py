"""What verification finds in a chain."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """Faults first: something is missing or not as it was. Then notes: what has to be known to read the result."""

    GAP = "gap"
    CUT = "cut"
    EDIT = "edit"
    ANCHOR = "anchor"
    DUPLICATE = "duplicate"
    ALTERED = "altered"
    ELSEWHERE = "elsewhere"
    WAITING = "waiting"
    UNANCHORED = "unanchored"
    UNCHECKED = "unchecked"

    @property
    def is_fault(self) -> bool:
        """Whether the chain is not whole because of it."""
        return self in _FAULTS


_FAULTS = frozenset({Kind.GAP, Kind.CUT, Kind.EDIT, Kind.ANCHOR, Kind.DUPLICATE, Kind.ALTERED})
_MEANINGS = {
    Kind.GAP: "missing",
    Kind.CUT: "missing at the end: the control plane was told of them",
    Kind.EDIT: "the hash does not follow: this record or the one before it was altered",
    Kind.ANCHOR: "the hash is not the anchored one: records up to here were replaced",
    Kind.DUPLICATE: "there are copies with different content",
    Kind.ALTERED: "the exported span does not say what its record says",
    Kind.ELSEWHERE: "not in this folder: dealt with before",
    Kind.WAITING: "not delivered yet",
    Kind.UNANCHORED: "behind the last anchor, so nothing would show if more had followed",
    Kind.UNCHECKED: "content not checked, because the record before is missing",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """The records with numbers `first` to `last`, and what is with them. `detail`: more about it, or empty."""

    kind: Kind
    first: int
    last: int
    detail: str = ""

    def __str__(self) -> str:
        numbers = f"record {self.first}" if self.first == self.last else f"records {self.first} to {self.last}"
        return f"{numbers}: {_MEANINGS[self.kind]}" + (f" ({self.detail})" if self.detail else "")


def findings_of(kind: Kind, numbers: Iterable[int], detail: str = "") -> list[Finding]:
    """One finding per run of numbers; repeated ones count once."""
    found: list[Finding] = []
    for number in sorted(set(numbers)):
        if found and found[-1].last == number - 1:
            found[-1] = Finding(kind, found[-1].first, number, detail)
        else:
            found.append(Finding(kind, number, number, detail))
    return found
