"""What a client's certificate says of it. That its authority signed it, TLS has checked; everything else is read here."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes


@dataclass(frozen=True, slots=True)
class Certificate:
    """A client's certificate. `names`: its subject alternative names as they are written in files, `spiffe://...` and other URIs
    first, then `dns:host` in lower case. `fingerprint`: SHA-256, lower-case hexadecimal. `issuer`: as in RFC 4514.
    `expires_at`: Unix seconds."""

    names: tuple[str, ...]
    serial: int
    issuer: str
    fingerprint: str
    expires_at: float


def certificate_of(context: Any) -> Certificate | None:
    """The client's certificate of a call; None: there is none, or it cannot be read."""
    pems = context.auth_context().get("x509_pem_cert")
    return _read(bytes(pems[0])) if pems else None


@lru_cache(maxsize=16_384)
def _read(pem: bytes) -> Certificate | None:
    try:
        found = x509.load_pem_x509_certificate(pem)
        names = _names(found)
        issuer = found.issuer.rfc4514_string()
    except ValueError:
        return None
    fingerprint = found.fingerprint(hashes.SHA256()).hex()
    expires_at = found.not_valid_after_utc.timestamp()
    return Certificate(names, found.serial_number, issuer, fingerprint, expires_at)


def _names(found: x509.Certificate) -> tuple[str, ...]:
    try:
        stated = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    uris = stated.get_values_for_type(x509.UniformResourceIdentifier)
    hosts = stated.get_values_for_type(x509.DNSName)
    # What could be confused with another name, or spoil a line of a log, is no name.
    named = (*uris, *(f"dns:{host.lower()}" for host in hosts))
    return tuple(name for name in named if name.isascii() and name.isprintable() and " " not in name)


def short(names: tuple[str, ...]) -> str:
    """Names for a message."""
    told = ", ".join(names[:3]) or "no name"
    return told[:300]
