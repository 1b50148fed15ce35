"""Pages of lists: how large, and where the next one begins (AIP-158)."""

from __future__ import annotations

import base64
import binascii

from engine.errors import InvalidInputError

DEFAULT_PAGE = 100
MAX_PAGE = 1_000


def page_size(size: int) -> int:
    """The number of entries asked for. Raises InvalidInputError beyond the limit."""
    if not 0 <= size <= MAX_PAGE:
        raise InvalidInputError("page_size", f"{size} is not between 1 and {MAX_PAGE}")
    return size or DEFAULT_PAGE


def write_token(after: str) -> str:
    """The token of the page behind an entry."""
    return base64.urlsafe_b64encode(after.encode()).decode()


def read_token(token: str) -> str:
    """The entry a token stands for; empty: the list's beginning. Raises InvalidInputError for a token that is none."""
    try:
        return base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise bad_token() from None


def bad_token() -> InvalidInputError:
    """The error for a token that was not made here."""
    return InvalidInputError("page_token", "is not one this service gave out")
