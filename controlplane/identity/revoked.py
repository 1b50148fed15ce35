"""Certificates that no longer hold although they have not expired: a file (SIDESTEP_CP_REVOKED), read again when it changes.

revoked:
  - fingerprint: 6d1c...                                  SHA-256 of the certificate, hexadecimal
  - serial: 4f:09:...                                     hexadecimal, with the issuer as RFC 4514 writes it
    issuer: CN=authority
  - name: spiffe://example.org/ns/payments/sa/api         every certificate with this name
crls: [/etc/sidestep/authority.crl]                       X.509 revocation lists in PEM (RFC 5280), signed by a client authority
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Final

from cryptography import x509
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from controlplane.identity.peer import Certificate
from engine.tokenfiles import TokenFilesError, check_token_path, read_document
from engine.watched import WatchedFiles

SETTING: Final = "SIDESTEP_CP_REVOKED"
MAX_ENTRIES: Final = 10_000
_MAX_CRL_BYTES: Final = 32 << 20
_HEX: Final = re.compile(r"[0-9a-fA-F]{1,2}(:?[0-9a-fA-F]{2})*")


def _hex(value: str) -> str:
    if not _HEX.fullmatch(value) or len(value) > 128:
        raise ValueError("is not hexadecimal")
    return value.replace(":", "").lower()


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    fingerprint: Annotated[str, AfterValidator(_hex)] | None = None
    serial: Annotated[str, AfterValidator(_hex)] | None = None
    issuer: str | None = None
    name: str | None = None

    @model_validator(mode="after")
    def _one(self) -> _Entry:
        given = [self.fingerprint is not None, self.serial is not None, self.name is not None]
        if sum(given) != 1:
            raise ValueError("give one of `fingerprint`, `serial` with `issuer`, and `name`")
        if (self.serial is None) != (self.issuer is None):
            raise ValueError("`serial` and `issuer` go together: other authorities may use the same number")
        if self.fingerprint is not None and len(self.fingerprint) != 64:
            raise ValueError("fingerprint: SHA-256 has 64 hexadecimal digits")
        return self


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid")

    revoked: list[_Entry] = Field(default=[], max_length=MAX_ENTRIES)
    crls: list[Annotated[str, AfterValidator(check_token_path)]] = Field(default=[], max_length=16)


class Revoked:
    """One reading of the file and the lists it names."""

    def __init__(self, path: str, files: WatchedFiles, authorities: Sequence[x509.Certificate]) -> None:
        """Raises TokenFilesError, also for a list that no authority signed."""
        document = read_document(path, files, _Document)
        self._fingerprints = {entry.fingerprint for entry in document.revoked if entry.fingerprint}
        self._names = {entry.name for entry in document.revoked if entry.name}
        self._serials = {(entry.issuer, int(entry.serial, 16)) for entry in document.revoked if entry.serial}
        for number, crl in enumerate(document.crls):
            self._take(_read_crl(crl, f"{path}: crls[{number}]: {crl}", files, authorities))

    def __len__(self) -> int:
        return len(self._fingerprints) + len(self._names) + len(self._serials)

    def holds(self, certificate: Certificate) -> bool:
        """Whether a certificate is revoked."""
        return (
            certificate.fingerprint in self._fingerprints
            or (certificate.issuer, certificate.serial) in self._serials
            or not self._names.isdisjoint(certificate.names)
        )

    def _take(self, crl: x509.CertificateRevocationList) -> None:
        issuer = crl.issuer.rfc4514_string()
        self._serials.update((issuer, entry.serial_number) for entry in crl)


def _read_crl(
    path: str, field: str, files: WatchedFiles, authorities: Sequence[x509.Certificate]
) -> x509.CertificateRevocationList:
    try:
        found = files.read(path, _MAX_CRL_BYTES)
        if found is None:
            raise TokenFilesError(f"{field}: no such file")
        crl = x509.load_pem_x509_crl(found.data)
    except OSError as error:
        raise TokenFilesError(f"{field}: {error.strerror or error}") from None
    except ValueError:
        raise TokenFilesError(f"{field}: is no revocation list in PEM") from None
    for authority in authorities:
        if authority.subject != crl.issuer:
            continue
        try:
            if crl.is_signature_valid(authority.public_key()):  # type: ignore[arg-type]
                return crl
        except (TypeError, ValueError):
            continue
    raise TokenFilesError(f"{field}: is not signed by an authority of the clients")
