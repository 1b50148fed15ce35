"""Signed responses on the sync stream: the bytes of a message, and a signature over exactly these bytes."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, Protocol

from sidestep.v1 import sync_pb2

from controlplane.api.wire import delimited
from engine.statement import Kind, statement

_FIELDS: Final = {kind: sync_pb2.SignedResponse.DESCRIPTOR.fields_by_name[kind.value].number for kind in Kind}
# Deltas that several streams read from the log, long after they were published.
_CACHED: Final = 16_384


class Signer(Protocol):
    """Who holds the keys: files, or a service that never gives them out. May be used by several tasks at a time."""

    @property
    def key_id(self) -> str:
        """The key that signs now (`engine.statement.key_id`)."""

    async def sign(self, statement: bytes) -> tuple[str, bytes]:
        """The key's id, and its Ed25519 signature (64 bytes) over these bytes, fewer than 128. Raises SigningError."""


class Signatures:
    """Makes responses to send. Without a signer they are unsigned, and sidecars that pin keys refuse them."""

    def __init__(self, signer: Signer | None = None) -> None:
        self._signer = signer
        self._cached_for = ""
        self._cache: OrderedDict[bytes, bytes] = OrderedDict()

    @property
    def key_id(self) -> str:
        """The key that signs now; empty: none. What was signed by another is better signed anew."""
        return "" if self._signer is None else self._signer.key_id

    async def response(self, kind: Kind, content: bytes) -> bytes:
        """An encoded SyncResponse with a message, given encoded, and its signature. Raises SigningError."""
        message = delimited(_FIELDS[kind], content)
        if self._signer is None:
            return message
        return message + await self._signature(self._signer, kind, content)

    async def _signature(self, signer: Signer, kind: Kind, content: bytes) -> bytes:
        stated = statement(kind, content)
        if self._cached_for != signer.key_id:
            self._cache.clear()
            self._cached_for = signer.key_id
        cached = self._cache.get(stated)
        if cached is not None:
            self._cache.move_to_end(stated)
            return cached
        key_id, signature = await signer.sign(stated)
        made = sync_pb2.Signature(key_id=key_id, signature=signature).SerializeToString()
        encoded = delimited(sync_pb2.SyncResponse.SIGNATURE_FIELD_NUMBER, made)
        # Nothing else is said twice in the same bytes.
        if kind is Kind.DELTA and key_id == self._cached_for:
            self._cache[stated] = encoded
            if len(self._cache) > _CACHED:
                self._cache.popitem(last=False)
        return encoded
