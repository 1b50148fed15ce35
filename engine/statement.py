"""What the control plane signs, and the sidecar verifies, of a message on the sync stream.

The signed statement is a domain, the kind of message, and the SHA-256 of the message's bytes as they are on the wire:

    "sidestep.v1.sync " kind LF sha256(content)

So it is short whatever is signed (a key management service takes some kilobytes), and no signature of one kind is one of another.
What the content says binds the rest: tenant, lane, epoch, revision and the digest before a delta; a snapshot's payload by its
hash; an answer to a ping, and a scope, by the sidecar's own nonce.
"""

from __future__ import annotations

import hashlib
from enum import Enum
from typing import Final

KEY_BYTES: Final = 32
"""Size of an Ed25519 public key (RFC 8032)."""
SIGNATURE_BYTES: Final = 64
_DOMAIN: Final = b"sidestep.v1.sync "


class Kind(Enum):
    """The kinds of message that are signed. Values are field names of SignedResponse."""

    HEARTBEAT = "heartbeat"
    DELTA = "delta"
    SNAPSHOT_OFFER = "snapshot_offer"
    SCOPE = "scope"


def statement(kind: Kind, content: bytes) -> bytes:
    """The bytes to sign for a message."""
    return _DOMAIN + kind.value.encode() + b"\n" + hashlib.sha256(content).digest()


def key_id(public_key: bytes) -> str:
    """What signatures call the key with these 32 bytes. Raises ValueError for another size."""
    if len(public_key) != KEY_BYTES:
        raise ValueError(f"an Ed25519 public key has {KEY_BYTES} bytes, not {len(public_key)}")
    return hashlib.sha256(public_key).hexdigest()[:16]
