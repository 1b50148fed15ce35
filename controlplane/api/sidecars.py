"""What a sidecar calls itself. Raises InvalidInputError naming the field."""

from __future__ import annotations

from controlplane.identity.sidecars import WITNESS
from engine.errors import InvalidInputError

MAX_SIDECAR_BYTES = 253


def check_sidecar(name: str, field: str) -> None:
    """A name operators will see: 1 to 253 bytes (the longest host name) without control characters."""
    if not name:
        raise InvalidInputError(field, "must not be empty")
    if name.startswith(WITNESS):
        raise InvalidInputError(field, f"must not begin with {WITNESS!r}")
    check_text(name, field, MAX_SIDECAR_BYTES)


def check_text(text: str, field: str, max_bytes: int) -> None:
    """Text that may be shown and logged; it may be empty."""
    if len(text.encode()) > max_bytes:
        raise InvalidInputError(field, f"longer than {max_bytes} bytes")
    if not text.isprintable():
        raise InvalidInputError(field, "has a control character")
