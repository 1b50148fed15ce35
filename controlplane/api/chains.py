"""The names of journal chains."""

from __future__ import annotations

import re

from engine.errors import InvalidInputError

_CHAIN = re.compile(r"w(0|[1-9][0-9]{0,2})-[0-9a-f]{12}")


def check_chain(chain: str, field: str) -> None:
    """A chain's name: a worker, and when it started. Raises InvalidInputError."""
    if not _CHAIN.fullmatch(chain):
        raise InvalidInputError(field, "is not the name of a worker's chain (example: w0-0192f3c4a1b2)")
