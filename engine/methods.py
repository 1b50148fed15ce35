"""The catalogue of ways to authenticate."""

from __future__ import annotations

from typing import NamedTuple


class Method(NamedTuple):
    """A method: the acr it reaches, the RFC 8176 amr it yields, its strength rank (greater is stronger)."""

    id: str
    acr: str
    amr: tuple[str, ...]
    rank: int


# Levels: NIST SP 800-63B-4. Passkeys on hardware are phishing-resistant with a hardware key (phrh), synced ones phr; codes
# and pushes count with the password that precedes them as multi-factor (AAL2); SMS is a restricted authenticator there.
DEFAULT_CATALOGUE: tuple[Method, ...] = (
    Method("security-key", "phrh", ("hwk", "user", "pop"), 100),
    Method("webauthn", "phr", ("swk", "user", "pop"), 90),
    Method("push", "nist-aal2", ("mfa", "swk"), 60),
    Method("totp", "nist-aal2", ("mfa", "otp"), 50),
    Method("sms", "nist-aal2", ("mfa", "sms"), 30),
    Method("email", "nist-aal1", ("otp",), 20),
    Method("password", "nist-aal1", ("pwd",), 10),
)
