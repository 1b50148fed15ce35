"""Types of columns that keep and refuse the same on every database."""

from __future__ import annotations

import math
from typing import Any

from sqlalchemy import BigInteger, Dialect, Double, Text
from sqlalchemy.types import TypeDecorator, TypeEngine

from engine.errors import InvalidInputError

_MAX_INT = 2**63 - 1


class Name(TypeDecorator[str]):
    """Text that is compared as bytes, so `ORDER BY` is the order of its UTF-8 encoding.

    Raises InvalidInputError for what PostgreSQL cannot keep (NUL), and what is no text at all (half of a surrogate pair).
    """

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """SQLite compares as bytes unless told otherwise; PostgreSQL by the rules of a language."""
        return dialect.type_descriptor(Text(collation="C") if dialect.name == "postgresql" else Text())

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Checks what goes in."""
        if value is None:
            return None
        if "\0" in value:
            raise InvalidInputError("text", "must not contain a NUL character")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InvalidInputError("text", "is no valid Unicode") from None
        return value


class Int64(TypeDecorator[int]):
    """A signed integer of 64 bits. Raises InvalidInputError for a greater one."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: int | None, dialect: Dialect) -> int | None:
        """Checks what goes in."""
        if value is not None and not -_MAX_INT - 1 <= value <= _MAX_INT:
            raise InvalidInputError("number", f"{value} does not fit into 64 bits")
        return value


class Real(TypeDecorator[float]):
    """A finite number. Raises InvalidInputError for infinity and for what is no number."""

    impl = Double
    cache_ok = True

    def process_bind_param(self, value: float | None, dialect: Dialect) -> float | None:
        """Checks what goes in."""
        if value is not None and not math.isfinite(value):
            raise InvalidInputError("number", f"{value} is not finite")
        return value
