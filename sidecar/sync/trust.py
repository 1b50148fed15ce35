"""Who is believed: the control plane's public keys, pinned in a file, and what is verified by them.

The setting SIDESTEP_TRUSTED_KEYS names a file of Ed25519 public keys, PEM (RFC 8410), one after another; text between them is for
people. All of them are believed, so that keys can be changed without a pause. The file is read again when it changes; one that
cannot be used changes nothing.
"""

from __future__ import annotations

import logging
import re
from enum import StrEnum
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from google.protobuf.message import DecodeError
from sidestep.v1 import sync_pb2 as pb

from engine.errors import SidestepError
from engine.statement import Kind, key_id, statement
from engine.watched import WatchedFiles
from sidecar.page import UNVERIFIED
from sidecar.sync.errors import ProtocolError, SyncError

_log = logging.getLogger(__name__)

SETTING: Final = "SIDESTEP_TRUSTED_KEYS"
_MAX_BYTES: Final = 64 << 10
_MAX_KEYS: Final = 64
_PEM = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)
_KINDS: Final = {kind.value: kind for kind in Kind}


class TrustedKeysError(SidestepError):
    """The file of trusted keys cannot be used. The message names setting and file."""


class Fault(StrEnum):
    """Why something was not believed. Values are those of `sidecar.page.UNVERIFIED`, in the same order."""

    UNSIGNED = "unsigned"
    UNKNOWN_KEY = "unknown_key"
    BAD_SIGNATURE = "bad_signature"
    REPLAYED = "replayed"
    """It answers what was not asked on this stream."""
    ROLLED_BACK = "rolled_back"
    """It is older than what was held here already."""
    ALTERED = "altered"
    """A snapshot's payload is not what was signed."""


assert tuple(Fault) == UNVERIFIED


class UnverifiedError(SyncError):
    """What came does not prove itself, so nothing of it was applied, and the stream that brought it is given up."""

    def __init__(self, fault: Fault, what: str) -> None:
        super().__init__(f"{what}: {fault.replace('_', ' ')}")
        self.fault = fault


class TrustedKeys:
    """The pinned keys. For one event loop."""

    def __init__(self, path: str) -> None:
        """Reads the file. Raises TrustedKeysError."""
        self._path = path
        self._files = WatchedFiles()
        self._keys = _read(path, self._files)
        self.problem = ""
        """Why the file cannot be used as it is now; empty: it can."""
        _log.info("trusted keys: %s", ", ".join(sorted(self._keys)))

    def __len__(self) -> int:
        return len(self._keys)

    def look(self) -> None:
        """Reads the file again if it has changed. Blocks for as long as a small file takes."""
        if not self._files.changed():
            return
        self._files = files = WatchedFiles()
        try:
            keys = _read(self._path, files)
        except TrustedKeysError as error:
            if str(error) != self.problem:
                self.problem = str(error)
                _log.error("%s; the keys trusted before still are", error)
            return
        if self.problem or keys.keys() != self._keys.keys():
            _log.info("trusted keys: %s", ", ".join(sorted(keys)))
        self.problem = ""
        self._keys = keys

    def open(self, raw: bytes) -> pb.SyncResponse:
        """A response of which nothing is left that would have to be signed and is not.

        An unasked heartbeat needs no signature: it says that the other side lives, and loses what else it says. Raises
        UnverifiedError, ProtocolError.
        """
        response = decode(raw)
        kind = _KINDS.get(response.WhichOneof("message") or "")
        if kind is None:
            return response
        signed = pb.SignedResponse.FromString(raw)
        if kind is Kind.HEARTBEAT and not response.heartbeat.nonce:
            return pb.SyncResponse(heartbeat=pb.Heartbeat())
        content: bytes = getattr(signed, kind.value)
        self._verify(kind, content, signed.signature)
        # From the bytes that were signed, whatever else may be in the message.
        verified = pb.SyncResponse()
        try:
            if kind is Kind.DELTA:
                verified.delta = content
            else:
                getattr(verified, kind.value).MergeFromString(content)
        except DecodeError:
            raise ProtocolError(f"a signed {kind.value} cannot be decoded") from None
        return verified

    def _verify(self, kind: Kind, content: bytes, signature: pb.Signature) -> None:
        if not signature.signature:
            raise UnverifiedError(Fault.UNSIGNED, kind.value)
        key = self._keys.get(signature.key_id)
        if key is None:
            raise UnverifiedError(Fault.UNKNOWN_KEY, f"{kind.value} signed by {signature.key_id[:64]!r}")
        try:
            key.verify(signature.signature, statement(kind, content))
        except InvalidSignature:
            raise UnverifiedError(Fault.BAD_SIGNATURE, kind.value) from None


def decode(raw: bytes) -> pb.SyncResponse:
    """A response as it came. Raises ProtocolError."""
    try:
        return pb.SyncResponse.FromString(raw)
    except DecodeError:
        raise ProtocolError("a message cannot be decoded") from None


def _read(path: str, files: WatchedFiles) -> dict[str, Ed25519PublicKey]:
    where = f"{SETTING}: {path}"
    try:
        found = files.read(path, _MAX_BYTES)
    except OSError as error:
        raise TrustedKeysError(f"{where}: {error.strerror or error}") from None
    if found is None:
        raise TrustedKeysError(f"{where}: no such file")
    keys: dict[str, Ed25519PublicKey] = {}
    for number, match in enumerate(_PEM.finditer(found.data), 1):
        try:
            key = load_pem_public_key(match[0])
        except (ValueError, UnsupportedAlgorithm):
            raise TrustedKeysError(f"{where}: block {number} is not a public key") from None
        if not isinstance(key, Ed25519PublicKey):
            raise TrustedKeysError(f"{where}: block {number} is not an Ed25519 key")
        keys[key_id(key.public_bytes(Encoding.Raw, PublicFormat.Raw))] = key
    if not 0 < len(keys) <= _MAX_KEYS:
        raise TrustedKeysError(f"{where}: holds {len(keys)} public keys instead of 1 to {_MAX_KEYS}")
    return keys
