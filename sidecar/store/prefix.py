"""IP prefixes as signal ids spell them: the canonical text of `engine.names.canonical_prefix`, `/` written `_`."""

from __future__ import annotations

import ipaddress
import socket
from typing import Literal

_LOW_IPV6 = bytes(10)


def address_text(packed: bytes) -> str:
    """The text of 4 or 16 bytes as `ipaddress` writes it."""
    if len(packed) == 4:
        return socket.inet_ntop(socket.AF_INET, packed)
    if packed.startswith(_LOW_IPV6):  # inet_ntop would write the last four bytes of these in dotted form
        return str(ipaddress.IPv6Address(packed))
    return socket.inet_ntop(socket.AF_INET6, packed)


def parse_prefix(text: str) -> tuple[Literal[4, 6], int]:
    """Family and length of `203.0.113.0_24`. Raises ValueError unless that is how the prefix is spelled."""
    address, _, digits = text.partition("_")
    family: Literal[4, 6] = 6 if ":" in address else 4
    try:
        packed = socket.inet_pton(socket.AF_INET6 if family == 6 else socket.AF_INET, address)
    except OSError:
        raise ValueError(text) from None
    length = int(digits) if digits.isascii() and digits.isdigit() else -1
    host_bits = len(packed) * 8 - length
    if length < 0 or host_bits < 0 or int.from_bytes(packed, "big") & ((1 << host_bits) - 1):
        raise ValueError(text)
    if text != f"{address_text(packed)}_{length}":
        raise ValueError(text)
    return family, length
