"""The way to the control plane: one place that says where it is, and how it and we prove who we are.

Certificates are files that others replace while we run. New connections use what is in them; a channel opened before goes on, and
`Upstream.generation` tells when it is time for another.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from engine.keptfiles import KeptFiles, KeptFilesError
from sidecar.config import Config

CA: Final = "SIDESTEP_CONTROL_PLANE_TLS_CA"
CERT: Final = "SIDESTEP_CONTROL_PLANE_TLS_CERT"
KEY: Final = "SIDESTEP_CONTROL_PLANE_TLS_KEY"
_LOOK_EVERY_S: Final = 1.0
_LAST_CALLS_S: Final = 5.0

Options = Sequence[tuple[str, Any]]


class Upstream:
    """Opens channels to the control plane. May be used by several threads."""

    def __init__(
        self,
        address: str,
        *,
        ca: Path | None = None,
        cert: Path | None = None,
        key: Path | None = None,
        server_name: str = "",
    ) -> None:
        """`address`: host:port. `ca` None: plain text. `cert` and `key`: what the sidecar is known by. `server_name`: the name
        that the control plane's certificate must have instead of the address's."""
        self.address = address
        self._server_name = server_name
        self._paths = {name: str(path) for name, path in ((CA, ca), (CERT, cert), (KEY, key)) if path is not None}
        self._kept: KeptFiles | None = None
        self._look_at = 0.0

    def generation(self) -> int:
        """Grows whenever other certificates are in use; looks at the files at most once a second. A channel opened at another one
        is to be replaced."""
        now = time.monotonic()
        if self._kept is not None and now >= self._look_at:
            self._look_at = now + _LOOK_EVERY_S
            self._kept.look()
        return 0 if self._kept is None else self._kept.generation

    def open_async(self, options: Options) -> grpc.aio.Channel:
        """A channel for an event loop. Raises grpc.aio.AioRpcError if there are no certificates that can be used."""
        if not self._paths:
            return grpc.aio.insecure_channel(self.address, options=tuple(options))
        return grpc.aio.secure_channel(self.address, self._credentials(), options=self._options(options))

    def open(self, options: Options) -> grpc.Channel:
        """A channel for threads. Raises grpc.aio.AioRpcError if there are no certificates that can be used."""
        if not self._paths:
            return grpc.insecure_channel(self.address, tuple(options))
        return grpc.secure_channel(self.address, self._credentials(), self._options(options))

    def _credentials(self) -> grpc.ChannelCredentials:
        try:
            # Not before they are needed: a pod whose certificate is late decides with the data it has.
            self._kept = self._kept or KeptFiles(self._paths, check_files)
        except KeptFilesError as error:
            # To those who call it is one more reason why the control plane cannot be reached.
            none = grpc.aio.Metadata()
            raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, none, none, str(error)) from None
        self.generation()
        contents = self._kept.contents
        return grpc.ssl_channel_credentials(contents[CA], contents.get(KEY), contents.get(CERT))

    def _options(self, options: Options) -> Options:
        named = (("grpc.ssl_target_name_override", self._server_name),) if self._server_name else ()
        return (*options, *named)


def open_upstream(config: Config) -> Upstream:
    """The way that the settings say."""
    return Upstream(
        config.control_plane,
        ca=config.control_plane_tls_ca,
        cert=config.control_plane_tls_cert,
        key=config.control_plane_tls_key,
        server_name=config.control_plane_server_name,
    )


class Line:
    """One channel at a time, of an event loop; another one when certificates have changed."""

    def __init__(self, upstream: Upstream, options: Options) -> None:
        self._upstream = upstream
        self._options = options
        self._channel: grpc.aio.Channel | None = None
        self._generation = 0

    async def channel(self) -> grpc.aio.Channel:
        """The channel; a call on the one before it may end first, within a few seconds."""
        generation = await asyncio.to_thread(self._upstream.generation) if self._channel is not None else 0
        if self._channel is not None and generation != self._generation:
            old, self._channel = self._channel, None
            await old.close(_LAST_CALLS_S)
        if self._channel is None:
            self._channel = self._upstream.open_async(self._options)
            self._generation = self._upstream.generation()
        return self._channel

    async def close(self) -> None:
        """Closes the channel; a call in flight is cancelled."""
        if self._channel is not None:
            await self._channel.close()


def check_files(contents: Mapping[str, bytes]) -> None:
    """Raises KeptFilesError unless there are authorities, and key and certificate are a pair."""
    public = {}
    for setting, data in contents.items():
        what = "private key without a password" if setting == KEY else "certificate"
        try:
            if setting == KEY:
                found = load_pem_private_key(data, None).public_key()
            else:
                found = x509.load_pem_x509_certificates(data)[0].public_key()
        except (ValueError, TypeError):
            # What the parser says may repeat what it read.
            raise KeptFilesError(f"{setting}: holds no {what} in PEM") from None
        if setting != CA:
            public[setting] = found.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if len(set(public.values())) > 1:
        raise KeptFilesError(f"{CERT} and {KEY}: the key is not that of the certificate")
