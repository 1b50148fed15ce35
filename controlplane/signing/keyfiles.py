"""Signing keys in files: Ed25519 private keys, PEM (PKCS #8, RFC 8410), without a password.

The setting SIDESTEP_CP_SIGNING_KEYS names files, and folders of `*.pem` files, separated by commas. The key in a file named
`current.pem` signs; if there is none, the one whose file name comes last, so that names which are dates do what one expects. The
others lie ready. Files are read again when they change; files that cannot be used change nothing.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Final, NamedTuple

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from controlplane.errors import SettingsError
from engine.statement import key_id
from engine.watched import WatchedFiles

_LOG = logging.getLogger(__name__)

SETTING: Final = "SIDESTEP_CP_SIGNING_KEYS"
LOOK_EVERY_S: Final = 1.0
"""How often it is looked whether a file has changed."""
_CURRENT: Final = "current.pem"
_MAX_BYTES: Final = 16 << 10
_MAX_FILES: Final = 64


class _Key(NamedTuple):
    key_id: str
    path: Path
    private: Ed25519PrivateKey


class KeyFiles:
    """A Signer over files. For one event loop."""

    def __init__(self, setting: str) -> None:
        """Reads the files that the setting's value names. Raises SettingsError naming the one that cannot be used."""
        self._places = [Path(part.strip()) for part in setting.split(",") if part.strip()]
        self._problem = ""
        self._files = WatchedFiles()
        self._paths = _paths(self._places)
        self._current, self._size = _read(self._paths, self._files)
        _LOG.info("signing: key %s of %d, from %s", self.key_id, self._size, self._current.path)

    @property
    def key_id(self) -> str:
        """The key that signs now."""
        return self._current.key_id

    async def sign(self, statement: bytes) -> tuple[str, bytes]:
        """See Signer. Takes some 25 µs, so it is done at once."""
        return self._current.key_id, self._current.private.sign(statement)

    def describe(self) -> dict[str, object]:
        """What health tells: which key signs, and whether the files cannot be used as they are now."""
        return {"signing_key": self.key_id, "signing_keys": self._size, "signing_keys_unusable": bool(self._problem)}

    async def follow(self) -> None:
        """Reads the files again whenever they change, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await self.look()

    async def look(self) -> None:
        """Reads the files again if they have changed."""
        try:
            paths = await asyncio.to_thread(_paths, self._places)
            if paths == self._paths and not await asyncio.to_thread(self._files.changed):
                return
            files = WatchedFiles()
            self._files, self._paths = files, paths
            current, size = await asyncio.to_thread(_read, paths, files)
        except SettingsError as error:
            if str(error) != self._problem:
                self._problem = str(error)
                _LOG.error("%s; key %s goes on signing", error, self.key_id)
            return
        if self._problem or (current.key_id, size) != (self.key_id, self._size):
            _LOG.info("signing: key %s of %d, from %s", current.key_id, size, current.path)
        self._problem = ""
        self._current, self._size = current, size


def new_key() -> bytes:
    """A new private key, PEM (PKCS #8)."""
    return Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def public_pem(private_pem: bytes, where: str) -> tuple[str, bytes]:
    """Id and public key, PEM (SubjectPublicKeyInfo), of a private key. Raises SettingsError naming `where`."""
    public = _load(private_pem, where).public_key()
    return _id_of(public), public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _id_of(public: Ed25519PublicKey) -> str:
    return key_id(public.public_bytes(Encoding.Raw, PublicFormat.Raw))


def _paths(places: list[Path]) -> list[Path]:
    """The files; of a folder all that are named *.pem."""
    paths: list[Path] = []
    for place in places:
        try:
            paths += sorted(place.glob("*.pem")) if place.is_dir() else [place]
        except OSError as error:
            raise SettingsError(f"{SETTING}: {place}: {error.strerror}") from None
    if len(paths) > _MAX_FILES:
        raise SettingsError(f"{SETTING}: more than {_MAX_FILES} files")
    return paths


def _read(paths: list[Path], files: WatchedFiles) -> tuple[_Key, int]:
    """The key that signs, and how many there are."""
    keys: dict[str, _Key] = {}
    for path in paths:
        try:
            found = files.read(str(path), _MAX_BYTES)
        except OSError as error:
            raise SettingsError(f"{SETTING}: {path}: {error.strerror or error}") from None
        if found is None:
            raise SettingsError(f"{SETTING}: {path}: no such file")
        if found.open_to_others:
            _LOG.warning("%s: %s: every user of this machine may read or write it", SETTING, path)
        private = _load(found.data, str(path))
        name = _id_of(private.public_key())
        # One key under two names is one key: a link named current.pem may point at another of the files.
        known = keys.get(name)
        if known is None or _rank(known.path) < _rank(path):
            keys[name] = _Key(name, path, private)
    if not keys:
        raise SettingsError(f"{SETTING}: there is no key")
    return max(keys.values(), key=lambda key: _rank(key.path)), len(keys)


def _rank(path: Path) -> tuple[bool, str, str]:
    return path.name == _CURRENT, path.name, str(path)


def _load(data: bytes, where: str) -> Ed25519PrivateKey:
    """Raises SettingsError, which says nothing of the content."""
    try:
        private = load_pem_private_key(data, password=None)
    except TypeError:
        raise SettingsError(f"{SETTING}: {where}: is protected by a password") from None
    except (ValueError, UnsupportedAlgorithm):
        raise SettingsError(f"{SETTING}: {where}: not a private key in PEM") from None
    if not isinstance(private, Ed25519PrivateKey):
        raise SettingsError(f"{SETTING}: {where}: not an Ed25519 key")
    return private
