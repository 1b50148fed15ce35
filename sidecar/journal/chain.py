"""The hash chain: every record of a chain is hashed together with the hash of the one before it.

So one hash, kept elsewhere (an anchor), stands for all records up to it: none of them can be changed, removed, added or
moved without a different hash. SHA-256 (FIPS 180-4), which most processors compute themselves; without a key: a record's
hash is no secret, and whoever holds the records can check them.
"""

from __future__ import annotations

from hashlib import sha256

HASH_BYTES = 32
_GENESIS = b"sidestep journal "


def genesis(chain: str) -> bytes:
    """The chain hash before the first record. It depends on the chain's name, so no record can change its chain."""
    return sha256(_GENESIS + chain.encode()).digest()


def link(previous: bytes, payload: bytes) -> bytes:
    """The chain hash of a record, from that of the record before it (or the genesis) and the record as it was written."""
    return sha256(previous + payload).digest()
