"""The control plane's own certificate, and the authorities whose clients it believes: from files, replaced without a restart."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from engine.keptfiles import KeptFiles, KeptFilesError

CERT: Final = "SIDESTEP_CP_TLS_CERT"
KEY: Final = "SIDESTEP_CP_TLS_KEY"
CLIENT_CA: Final = "SIDESTEP_CP_TLS_CLIENT_CA"
LOOK_EVERY_S: Final = 1.0


class ServerCertificates:
    """What TLS listeners present and believe. New connections get what is in the files; those there are stay as they are."""

    def __init__(self, cert: str, key: str, client_ca: str = "") -> None:
        """Reads the files. Raises KeptFilesError."""
        paths = {CERT: cert, KEY: key} | ({CLIENT_CA: client_ca} if client_ca else {})
        self._kept = KeptFiles(paths, check_certificates)
        self._configuration = self._configure()

    def credentials(self, on_handshake: Callable[[], None], *, require_client: bool) -> grpc.ServerCredentials:
        """Credentials of one listener. `on_handshake` is called as each connection begins, in a thread of gRPC's."""
        used = self._configuration

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            nonlocal used
            on_handshake()
            current = self._configuration
            if current is used:
                return None
            used = current
            return current

        return grpc.dynamic_ssl_server_credentials(
            used,
            fetch,  # type: ignore[arg-type]  # None is a documented answer: no change
            require_client_authentication=require_client,
        )

    def authorities(self) -> list[x509.Certificate]:
        """Those whose clients are believed."""
        return x509.load_pem_x509_certificates(self._kept.contents.get(CLIENT_CA, b""))

    @property
    def problem(self) -> str:
        """Why the files as they are cannot be used; empty: they are in use."""
        return self._kept.problem

    async def follow(self) -> None:
        """Takes new files up, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await self.look()

    async def look(self) -> None:
        """Takes new files up, if there are any."""
        if await asyncio.to_thread(self._kept.look):
            self._configuration = self._configure()

    def _configure(self) -> grpc.ServerCertificateConfiguration:
        contents = self._kept.contents
        return grpc.ssl_server_certificate_configuration([(contents[KEY], contents[CERT])], contents.get(CLIENT_CA))


def check_certificates(contents: Mapping[str, bytes]) -> None:
    """Raises KeptFilesError unless key and certificate are a pair, and the authorities are certificates."""
    public = {}
    for setting, data in contents.items():
        try:
            if setting == KEY:
                found = load_pem_private_key(data, None).public_key()
            else:
                found = x509.load_pem_x509_certificates(data)[0].public_key()
        except (ValueError, TypeError):
            # What the parser says may repeat what it read.
            what = "private key without a password" if setting == KEY else "certificate"
            raise KeptFilesError(f"{setting}: holds no {what} in PEM") from None
        if setting != CLIENT_CA:
            public[setting] = found.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if len(set(public.values())) > 1:
        raise KeptFilesError(f"{CERT} and {KEY}: the key is not that of the certificate")
