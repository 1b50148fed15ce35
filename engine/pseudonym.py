"""Pseudonyms: what the audit trail says instead of a subject's id."""

from __future__ import annotations

import hmac

HASH_BYTES = 16


def user_hash(secret: bytes, subject: str) -> str:
    """The `user.hash` of a subject: the first 16 bytes of HMAC-SHA-256 under a tenant secret, as 32 hexadecimal digits.

    The same subject has the same hash as long as the secret is in use, and another one in every tenant. Without the secret it
    cannot be found by trying ids.
    """
    return hmac.digest(secret, b"user.hash\0" + subject.encode(), "sha256")[:HASH_BYTES].hex()
