"""Chain hashes of many records, by number."""

from __future__ import annotations

from collections.abc import Iterator

from sidecar.journal.chain import HASH_BYTES

_BLOCK = 64
_FULL = (1 << _BLOCK) - 1


class Hashes:
    """Takes about 37 bytes a record where numbers are dense, and at worst some 2 KB for a number that stands alone."""

    def __init__(self) -> None:
        self._masks: dict[int, int] = {}
        self._blocks: dict[int, bytearray] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def get(self, number: int) -> bytes | None:
        """None if there is none."""
        block, at = divmod(number, _BLOCK)
        if not self._masks.get(block, 0) >> at & 1:
            return None
        return bytes(self._blocks[block][at * HASH_BYTES : (at + 1) * HASH_BYTES])

    def put(self, number: int, chain_hash: bytes) -> None:
        """Sets or replaces it."""
        block, at = divmod(number, _BLOCK)
        mask = self._masks.get(block, 0)
        if not mask:
            self._blocks[block] = bytearray(_BLOCK * HASH_BYTES)
        if not mask >> at & 1:
            self._masks[block] = mask | 1 << at
            self._count += 1
        self._blocks[block][at * HASH_BYTES : (at + 1) * HASH_BYTES] = chain_hash

    def runs(self) -> Iterator[tuple[int, int]]:
        """First and last of each run of numbers without a hole, ascending."""
        first, behind = 0, 0
        for block in sorted(self._masks):
            for run_first, run_behind in _runs(self._masks[block]):
                start, end = block * _BLOCK + run_first, block * _BLOCK + run_behind
                if start != behind:
                    if behind > first:
                        yield first, behind - 1
                    first = start
                behind = end
        if behind > first:
            yield first, behind - 1


def _runs(mask: int) -> Iterator[tuple[int, int]]:
    """The runs of set bits: first, and behind the last."""
    if mask == _FULL:
        yield 0, _BLOCK
        return
    at = 0
    while rest := mask >> at:
        first = at + (rest & -rest).bit_length() - 1
        ones = mask >> first
        behind = first + (~ones & ones + 1).bit_length() - 1
        yield first, behind
        at = behind
