"""A counter with closed labels, for the parts of the program to count with; they know nothing of how metrics get out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


class Tally:
    """Counts by one label or several. Belongs to one thread; another may read."""

    def __init__(self, labels: Iterable[tuple[str, ...]]) -> None:
        """`labels`: the values there can be, each counted from 0 so that its first rise is seen."""
        self._counts: dict[tuple[str, ...], float] = dict.fromkeys(labels, 0)

    @classmethod
    def of(cls, values: Iterable[str]) -> Tally:
        """With one label."""
        return cls((value,) for value in values)

    def add(self, *labels: str, by: float = 1) -> None:
        """Counts. Raises KeyError for labels that were not announced."""
        self._counts[labels] += by

    def __getitem__(self, labels: str | tuple[str, ...]) -> float:
        return self._counts[(labels,) if isinstance(labels, str) else labels]

    def __iter__(self) -> Iterator[tuple[tuple[str, ...], float]]:
        return iter(tuple(self._counts.items()))
