"""The networks a track was seen on, eight bytes each: a flood of made-up devices on made-up networks must fit into memory."""

from __future__ import annotations

from array import array
from typing import Final

_LOW: Final = (1 << 32) - 1


def network_key(address: bytes, prefix4: int, prefix6: int) -> int:
    """32 bits that stand for the network of a packed address, in this process. Two networks have the same once in billions."""
    # The length tells the family.
    prefix = address[: prefix4 // 8] if len(address) == 4 else b"6" * 8 + address[: prefix6 // 8]
    return hash(prefix) & _LOW


class Networks:
    """Networks by key and when they were last seen, that order. Times are kept in whole seconds, rounded up, so that one is
    remembered a second too long rather than too short."""

    __slots__ = ("_seen",)

    def __init__(self) -> None:
        # Each: the key in the upper half, the time in the lower.
        self._seen = array("Q")

    def __len__(self) -> int:
        return len(self._seen)

    def __contains__(self, key: int | None) -> bool:
        seen = self._seen
        if len(seen) == 1:
            return seen[0] >> 32 == key
        return any(each >> 32 == key for each in seen)

    def add(self, key: int, now: float, most: int) -> None:
        """Sees one at `now`. Of more than `most` the longest unseen is dropped."""
        seen, packed = self._seen, key << 32 | _whole(now)
        if len(seen) == 1 and seen[0] >> 32 == key:
            seen[0] = packed
            return
        for place, each in enumerate(seen):
            if each >> 32 == key:
                del seen[place]
                break
        seen.append(packed)
        if len(seen) > most:
            del seen[0]

    def touch(self, now: float) -> None:
        """Sees the latest again."""
        if self._seen:
            self._seen[-1] = self._seen[-1] & ~_LOW | _whole(now)

    def forget(self, before: float) -> None:
        """Drops what was last seen before a time."""
        seen = self._seen
        while seen and seen[0] & _LOW < before:
            del seen[0]


def _whole(now: float) -> int:
    return min(max(0, int(now) + 1), _LOW)
