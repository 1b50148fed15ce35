"""A snapshot that is coming in, and whether it is the one that was signed."""

from __future__ import annotations

import hashlib
from typing import Final

from sidestep.v1 import sync_pb2 as pb

from sidecar.store.errors import ApplyError, StorageFullError
from sidecar.store.staging import Staging
from sidecar.sync.trust import Fault, UnverifiedError

_HASH_BYTES: Final = 32


class Reception:
    """Loads the chunks into a staging. `verified`: the offer was signed, so its payload is held against the hash it states.

    Chunks are not signed one by one. So what is wrong with one of them is told, by `end`, only once the whole is known to be what
    was signed: until then someone between may have done it, and the control plane must not be told that its data was refused.
    """

    def __init__(self, staging: Staging, offer: pb.SnapshotOffer, *, verified: bool) -> None:
        self.staging = staging
        self._offer = offer
        self._verified = verified
        self._hash = hashlib.sha256()
        self._chunks = 0
        self._bytes = 0
        self._failure: ApplyError | None = None
        if verified and len(offer.payload_sha256) != _HASH_BYTES:
            raise self._altered("its offer does not say what it holds")

    def add(self, chunk: pb.SnapshotChunk) -> None:
        """Takes the next chunk. Raises UnverifiedError; ApplyError if the offer was not signed, or the store is full."""
        if self._verified:
            self._chunks += 1
            self._bytes += len(chunk.payload)
            if self._chunks > self._offer.chunks or self._bytes > self._offer.bytes:
                raise self._altered("more than was offered")
            self._hash.update(len(chunk.payload).to_bytes(4, "big") + chunk.payload)
            if self._failure is not None:
                return
        try:
            self.staging.add(chunk)
        except StorageFullError:
            raise
        except ApplyError as error:
            if not self._verified:
                raise
            self._failure = error

    def end(self) -> None:
        """All chunks are there. Raises UnverifiedError, or the ApplyError that one of them met."""
        if self._verified and (self._chunks, self._hash.digest()) != (self._offer.chunks, self._offer.payload_sha256):
            raise self._altered("other than was offered")
        if self._failure is not None:
            raise self._failure

    def _altered(self, how: str) -> UnverifiedError:
        self.staging.abort()
        cursor = self._offer.cursor
        return UnverifiedError(Fault.ALTERED, f"snapshot {cursor.revision} of tenants/{cursor.tenant} ({how})")
