"""The digest of a (tenant, lane): a keyed multiset hash that shows a replica equals the control plane (DESIGN section 6).

It is the sum modulo 2^256 of BLAKE2b-256 (RFC 7693), keyed with the lane's digest key, over each record's collection, id and
value bytes. Order does not matter, and a change costs two hashes. It proves equality against accidents and bugs; forgery is
what signatures are for.
"""

from __future__ import annotations

from hashlib import blake2b
from struct import Struct

DIGEST_BYTES = 32
KEY_BYTES = 32
EMPTY = bytes(DIGEST_BYTES)
_MODULUS = 1 << 256
_HEAD = Struct(">HI")


class Digest:
    """A running digest. Not thread-safe.

    `key` is the lane's digest key (32 bytes); `value` continues from a stored digest.
    """

    __slots__ = ("_keyed", "_sum")

    def __init__(self, key: bytes, value: bytes = EMPTY) -> None:
        if len(key) != KEY_BYTES or len(value) != DIGEST_BYTES:
            raise ValueError("digest key and value are 32 bytes each")
        self._keyed = blake2b(digest_size=DIGEST_BYTES, key=key)
        self._sum = int.from_bytes(value, "big")

    def add(self, collection: int, record_id: str, value: bytes) -> None:
        """Counts a record in."""
        self._sum += self._hash(collection, record_id, value)

    def remove(self, collection: int, record_id: str, value: bytes) -> None:
        """Counts a record out again; `value` is what was added."""
        self._sum -= self._hash(collection, record_id, value)

    def value(self) -> bytes:
        """The digest as 32 bytes, big-endian."""
        self._sum %= _MODULUS
        return self._sum.to_bytes(DIGEST_BYTES, "big")

    def _hash(self, collection: int, record_id: str, value: bytes) -> int:
        key = record_id.encode()
        # Copying the keyed state saves hashing the key block for every record.
        h = self._keyed.copy()
        h.update(_HEAD.pack(collection, len(key)) + key + value)
        return int.from_bytes(h.digest(), "big")
