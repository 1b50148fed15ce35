"""Program `sidestep-webhook-certificate`: makes the webhook's certificate, and replaces it before it expires.

The chart runs it before and after an install or upgrade, and then again and again. Each certificate has an authority of its own,
whose key is thrown away once it has signed: nobody can make a second one. A replacement comes in two steps, so that no pod is
refused in between: first the API server is told to trust the old and the new authority, then the Secret gets the new certificate,
which running injectors read from disk.
"""

from __future__ import annotations

import argparse
import base64
import datetime
import sys
import time
from typing import Any, Final, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from controlplane.injector.kubernetes import ChangedError, Kubernetes, KubernetesError

_SERVER: Final = "https://kubernetes.default.svc"
_ATTEMPTS: Final = 5
_UNITS: Final = {"d": 86_400, "h": 3_600}
# Clocks of nodes differ.
_EARLIER: Final = datetime.timedelta(minutes=5)
_MAX_AUTHORITIES: Final = 4


class Pair(NamedTuple):
    """A certificate, its key, and the authorities to trust, newest first; all PEM."""

    certificate: bytes
    key: bytes
    authorities: bytes


def main() -> None:
    """Exit code 0: the certificate holds; 1: the Kubernetes API refused or could not be reached; 2: wrong arguments."""
    parser = argparse.ArgumentParser(
        prog="sidestep-webhook-certificate", description="Makes and replaces the webhook's certificate."
    )
    parser.add_argument("--namespace", required=True, help="namespace of the Secret")
    parser.add_argument("--secret", required=True, help="name of the Secret: tls.crt, tls.key, ca.crt")
    parser.add_argument("--webhook", required=True, help="name of the MutatingWebhookConfiguration")
    parser.add_argument("--name", required=True, help="DNS name of the webhook's Service")
    parser.add_argument(
        "--validity", default="90d", type=_seconds, help="how long a certificate is valid (default: 90d)"
    )
    parser.add_argument("--server", default=_SERVER, help=f"URL of the Kubernetes API (default: {_SERVER})")
    arguments = parser.parse_args()
    try:
        with Kubernetes(arguments.server, arguments.namespace) as kubernetes:
            said = ensure(kubernetes, arguments.secret, arguments.webhook, arguments.name, arguments.validity)
    except KubernetesError as error:
        sys.exit(f"sidestep-webhook-certificate: {error}")
    sys.stdout.write(f"{said}\n")


def ensure(kubernetes: Kubernetes, secret: str, webhook: str, name: str, validity_s: int) -> str:
    """Leaves a certificate that holds for a while, and an API server that trusts it; says what it did. Raises KubernetesError."""
    for attempt in range(1, _ATTEMPTS + 1):
        found = kubernetes.secret(secret)
        now = datetime.datetime.now(datetime.UTC)
        pair = _read(found)
        if pair is not None and holds(pair, name, now):
            told = kubernetes.trust(webhook, pair.authorities)
            return "the certificate holds" + ("" if told else "; there is no webhook yet")
        made = make(name, datetime.timedelta(seconds=validity_s), now, pair.authorities if pair else b"")
        try:
            told = kubernetes.trust(webhook, made.authorities)
            data = {"tls.crt": made.certificate, "tls.key": made.key, "ca.crt": made.authorities}
            kubernetes.put_secret(secret, data, found)
        except ChangedError:
            # Another one of us was faster: its certificate may do. What the webhook was told goes with the next round.
            if attempt == _ATTEMPTS:
                raise
            time.sleep(0.1 * attempt)
            continue
        return "a new certificate" + ("" if told else "; there is no webhook yet")
    raise AssertionError("unreachable")


def holds(pair: Pair, name: str, now: datetime.datetime) -> bool:
    """Whether a certificate is for a name, signed by the first of its authorities, and has more than a third of its time left."""
    try:
        certificate = x509.load_pem_x509_certificate(pair.certificate)
        key = serialization.load_pem_private_key(pair.key, None)
        authority = x509.load_pem_x509_certificates(pair.authorities)[0]
        certificate.verify_directly_issued_by(authority)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, TypeError, IndexError, InvalidSignature, x509.ExtensionNotFound):
        return False
    if name not in names.get_values_for_type(x509.DNSName) or key.public_key() != certificate.public_key():
        return False
    lifetime = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    return certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc - lifetime / 3


def make(name: str, validity: datetime.timedelta, now: datetime.datetime, trusted: bytes = b"") -> Pair:
    """A new certificate by a new authority; authorities trusted before stay so until they expire."""
    authority_key = ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name[:40]} {now:%Y-%m-%dT%H:%M:%SZ}")])
    authority = (
        _builder(issuer, issuer, authority_key.public_key(), now, validity)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    certificate = (
        _builder(subject, issuer, key.public_key(), now, validity)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(_usage(digital_signature=True), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    older = [old for old in _certificates(trusted) if old.not_valid_after_utc > now]
    pem = serialization.Encoding.PEM
    return Pair(
        certificate.public_bytes(pem),
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
        b"".join(one.public_bytes(pem) for one in [authority, *older][:_MAX_AUTHORITIES]),
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: datetime.datetime,
    validity: datetime.timedelta,
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder(issuer, subject, key, x509.random_serial_number())
    return builder.not_valid_before(now - _EARLIER).not_valid_after(now + validity)


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _certificates(pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem) if pem else []
    except ValueError:
        return []


def _read(secret: dict[str, Any] | None) -> Pair | None:
    try:
        data = {key: base64.b64decode(value) for key, value in ((secret or {}).get("data") or {}).items()}
        return Pair(data["tls.crt"], data["tls.key"], data["ca.crt"])
    except (KeyError, ValueError):
        return None


def _seconds(text: str) -> int:
    if text[-1:] not in _UNITS or not text[:-1].isascii() or not text[:-1].isdigit() or int(text[:-1]) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration (examples: 90d, 2160h)")
    return int(text[:-1]) * _UNITS[text[-1]]


if __name__ == "__main__":
    main()
