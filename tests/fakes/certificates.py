"""Certificates made for one test: an authority, and what it signs for loopback, as PEM files in a folder."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Identity(NamedTuple):
    """Files of a key and its certificate."""

    key: Path
    certificate: Path


class Authority:
    """Signs certificates that are valid for a day."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        authority = x509.BasicConstraints(ca=True, path_length=None)
        self.certificate = folder / f"{name}.pem"
        self.certificate.write_bytes(_pem(self._signed(self._name, self._key, (authority, True))))

    def issue(
        self, name: str, *, host: str = "localhost", uris: Sequence[str] = (), valid_s: float = 86400.0
    ) -> Identity:
        """A key and certificate for a server at that host (127.0.0.1 is `localhost`), or for a client. `uris`: its names
        instead of the host. `valid_s`: for how long from now; negative: it has expired."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in uris]
        if not names:
            names.append(x509.DNSName(host))
        if host == "localhost" and not uris:
            names.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
        files = Identity(self._folder / f"{name}.key", self._folder / f"{name}.pem")
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        certificate = self._signed(subject, key, (x509.SubjectAlternativeName(names), False), valid_s)
        # As a whole each, as those do it who replace what is in use.
        for path, content in ((files.key, private), (files.certificate, _pem(certificate))):
            staged = path.with_name(f".{path.name}")
            staged.write_bytes(content)
            staged.replace(path)
        return files

    def revoke(self, *revoked: Identity, signed_by: Authority | None = None) -> Path:
        """A file with the list of what is revoked."""
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateRevocationListBuilder().issuer_name(self._name).last_update(now)
        builder = builder.next_update(now + datetime.timedelta(days=1))
        for identity in revoked:
            serial = x509.load_pem_x509_certificate(identity.certificate.read_bytes()).serial_number
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
            builder = builder.add_revoked_certificate(entry)
        path = self._folder / "revoked.crl"
        signer = (signed_by or self)._key
        path.write_bytes(builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        return path

    def _signed(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        extension: tuple[x509.ExtensionType, bool],
        valid_s: float = 86400.0,
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(seconds=valid_s))
            .add_extension(*extension)
            .sign(self._key, hashes.SHA256())
        )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
