"""Sketches: what many pods count together without telling whom they saw.

A distinct count (HyperLogLog, Flajolet et al. 2007) of 1,024 registers: the standard error is 3.25 %, small counts are near
exact by linear counting. The registers of a union are the greater ones of both, so that sketches of many pods merge in any order,
and one that arrives twice adds nothing. Items are hashed under a key made of the tenant's secret: the same item has the same hash
in every pod of a tenant, and without the secret nobody can aim at registers or try out who is in a sketch.

Heavy hitters (space saving, Metwally et al. 2005): at most so many keys are followed, and a newcomer takes the place of the
least.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator
from hashlib import blake2b
from typing import Final, Generic, TypeVar

from engine.errors import InvalidInputError

_BITS: Final = 10
REGISTERS: Final = 1 << _BITS
# Of a 64-bit hash, the bits besides those that choose the register, and one more if all are zero.
_MAX_RANK: Final = 64 - _BITS + 1
_ALPHA: Final = 0.7213 / (1 + 1.079 / REGISTERS)
# A sparse sketch has three bytes for each register that is not zero.
_SPARSE_BYTES: Final = 3
MAX_SKETCH_BYTES: Final = 1 + REGISTERS
_SPARSE: Final = 0
_DENSE: Final = 1

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


def sketch_key(secret: bytes) -> bytes:
    """The key for items of a tenant, from its secret (32 bytes)."""
    return blake2b(secret, digest_size=32, person=b"sidestep-sketch").digest()


def item_hash(key: bytes, item: str) -> int:
    """64 bits, the same in every pod of the tenant."""
    return int.from_bytes(blake2b(item.encode(), digest_size=8, key=key).digest(), "big")


class DistinctCount:
    """How many distinct items were added."""

    __slots__ = ("_registers",)

    def __init__(self) -> None:
        self._registers = bytearray(REGISTERS)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DistinctCount) and self._registers == other._registers

    __hash__ = None  # type: ignore[assignment]

    def add(self, hashed: int) -> None:
        """Adds an item by its `item_hash`."""
        register = hashed >> (64 - _BITS)
        rest = hashed & ((1 << (64 - _BITS)) - 1)
        rank = 64 - _BITS - rest.bit_length() + 1
        if rank > self._registers[register]:
            self._registers[register] = rank

    def merge(self, other: DistinctCount) -> None:
        """Makes this the count of all items of both."""
        self._registers = bytearray(map(max, self._registers, other._registers))

    def estimate(self) -> float:
        """The number of distinct items; 0 for none."""
        zeros = self._registers.count(0)
        raw = _ALPHA * REGISTERS**2 / sum(2.0**-rank for rank in self._registers)
        if raw <= 2.5 * REGISTERS and zeros:
            return REGISTERS * math.log(REGISTERS / zeros)
        return raw

    def to_bytes(self) -> bytes:
        """At most MAX_SKETCH_BYTES; a few bytes for few items."""
        found = [(at, rank) for at, rank in enumerate(self._registers) if rank]
        if len(found) * _SPARSE_BYTES >= REGISTERS:
            return bytes((_DENSE,)) + bytes(self._registers)
        return bytes((_SPARSE,)) + b"".join(at.to_bytes(2, "big") + bytes((rank,)) for at, rank in found)

    @classmethod
    def from_bytes(cls, data: bytes, field: str = "sketch") -> DistinctCount:
        """Raises InvalidInputError naming `field`."""
        sketch = cls()
        form, body = data[:1], data[1:]
        if form == bytes((_DENSE,)) and len(body) == REGISTERS:
            sketch._registers = bytearray(body)
        elif form == bytes((_SPARSE,)) and len(body) % _SPARSE_BYTES == 0 and len(body) < REGISTERS:
            for at in range(0, len(body), _SPARSE_BYTES):
                register = int.from_bytes(body[at : at + 2], "big")
                if register >= REGISTERS:
                    raise InvalidInputError(field, "names a register there is none of")
                sketch._registers[register] = max(sketch._registers[register], body[at + 2])
        else:
            raise InvalidInputError(field, "is not a sketch")
        if max(sketch._registers) > _MAX_RANK:
            raise InvalidInputError(field, "has an impossible rank")
        return sketch


def union(sketches: Iterable[DistinctCount]) -> DistinctCount:
    """The count of all items of all of them."""
    merged = DistinctCount()
    for sketch in sketches:
        merged.merge(sketch)
    return merged


class HeavyHitters(Generic[K, V]):
    """The keys that were counted most, at most `capacity` of them, each with a value of its own.

    A count is never too low, and too high by at most the total over `capacity`. A key that comes anew in the place of another
    begins with a new value.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._counts: dict[K, int] = {}
        self._values: dict[K, V] = {}

    def __len__(self) -> int:
        return len(self._counts)

    def count(self, key: K, new: Callable[[], V]) -> V:
        """Counts the key once; returns its value, which `new` makes if it was not followed."""
        known = self._counts.get(key)
        if known is not None:
            self._counts[key] = known + 1
            return self._values[key]
        floor = 0
        if len(self._counts) >= self._capacity:
            # The oldest of the least, so that the same events always leave the same keys.
            least = min(self._counts, key=self._counts.__getitem__)
            floor = self._counts.pop(least)
            del self._values[least]
        self._counts[key] = floor + 1
        value = self._values[key] = new()
        return value

    def items(self) -> Iterator[tuple[K, int, V]]:
        """Key, count and value, the most frequent first."""
        for key in sorted(self._counts, key=self._counts.__getitem__, reverse=True):
            yield key, self._counts[key], self._values[key]
