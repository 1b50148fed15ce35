"""The feed formats.

- `ipsum`: an address and the number of blocklists that name it, separated by white space. Score: `ipsum_score`.
- `list`: one address or CIDR prefix a line; every one gets the given score.
- `csv`: a header row naming some of `kind, value, score, confidence, expires` in any order; `value` must be among them.
  `kind` defaults to `ip`, `score` to the given score; `expires` is ISO 8601 or Unix seconds.

In all of them blank lines and lines that begin with `#` or `;` are skipped, and `#` after white space begins a comment
(not in CSV).
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from itertools import chain
from typing import NamedTuple

from engine.errors import InvalidInputError
from engine.names import SIGNAL_KINDS, canonical_prefix, check_id

FORMATS = ("ipsum", "list", "csv")
CSV_COLUMNS = ("kind", "value", "score", "confidence", "expires")
MAX_ASN = 2**32 - 1
_MAX_LINE = 1024
_SHOWN = 80
_COMMENT = re.compile(r"\s[#;].*$")
_COUNTRY = re.compile(r"[A-Z]{2}")
_IPSUM_LINE = re.compile(r"[0-9A-Fa-f.:]+\s+\d+")
_FAR_FUTURE = 253402300799.0  # 9999-12-31T23:59:59Z, the last second a protobuf Timestamp can hold


class FeedSignal(NamedTuple):
    """What one line says. `score` and `confidence` are 0-100; `expire_at` is Unix seconds; None: not said."""

    kind: str
    value: str
    score: int
    confidence: int | None = None
    expire_at: float | None = None


class Problem(NamedTuple):
    """A line that was refused. `line` counts from 1; `text` is cut to 80 characters."""

    line: int
    text: str
    reason: str


class _Row(NamedTuple):
    line: int
    text: str


def parse(lines: Iterable[str], feed_format: str | None = None, *, score: int = 50) -> Iterator[FeedSignal | Problem]:
    """Reads a feed, in order, in constant memory.

    `feed_format` is one of FORMATS, or None to detect it from the first line that counts. `score` (0-100) is for lines
    that carry none. Raises InvalidInputError if the format is unknown or a CSV header unusable: then no line means a thing.
    """
    if not 0 <= score <= 100:
        raise InvalidInputError("score", f"{score} is not between 0 and 100")
    rows = _rows(lines)
    first = next(rows, None)
    if first is None:
        return
    feed_format = feed_format or detect(first.text)
    rows = chain([first], rows)
    if feed_format == "csv":
        yield from _parse_csv(rows, score)
    elif feed_format == "ipsum":
        yield from _parse_each(rows, _ipsum_signal)
    elif feed_format == "list":
        yield from _parse_each(rows, lambda text: FeedSignal("ip", feed_prefix(_uncomment(text)), score))
    else:
        raise InvalidInputError("format", f"{feed_format!r} is none of {', '.join(FORMATS)}")


def detect(line: str) -> str:
    """The format of a feed by its first line that is neither blank nor a comment."""
    if "value" in (cell.strip().lower() for cell in line.split(",")):
        return "csv"
    return "ipsum" if _IPSUM_LINE.fullmatch(_uncomment(line)) else "list"


def ipsum_score(count: int) -> int:
    """The score of an address that `count` blocklists name: 20 + 10 for each, at most 100 (so 100 from 8 lists on)."""
    return min(100, 20 + 10 * count)


def feed_prefix(text: str) -> str:
    """An address or prefix in canonical form. Raises InvalidInputError, also for a prefix that covers every address."""
    prefix = canonical_prefix(text)
    if prefix.endswith("/0"):
        raise InvalidInputError("value", f"{prefix} covers every address")
    return prefix


def check_value(kind: str, text: str) -> str:
    """The canonical value of a signal of this kind. Raises InvalidInputError."""
    if kind not in SIGNAL_KINDS:
        raise InvalidInputError("kind", f"{kind!r} is none of {', '.join(SIGNAL_KINDS)}")
    if kind == "ip":
        return feed_prefix(text)
    if kind == "asn":
        digits = text.upper().removeprefix("AS")
        if not (digits.isascii() and digits.isdigit() and int(digits) <= MAX_ASN):
            raise InvalidInputError("value", f"{text!r} is not an AS number")
        return str(int(digits))
    if kind == "country":
        if not _COUNTRY.fullmatch(text.upper()):
            raise InvalidInputError("value", f"{text!r} is not an ISO 3166-1 alpha-2 country code")
        return text.upper()
    return check_id(text, "value")


def _rows(lines: Iterable[str]) -> Iterator[_Row]:
    for number, line in enumerate(lines, start=1):
        text = line.strip().lstrip("\ufeff")
        if text and text[0] not in "#;":
            yield _Row(number, text)


def _uncomment(text: str) -> str:
    return _COMMENT.sub("", text).strip()


def _parse_each(rows: Iterable[_Row], read: Callable[[str], FeedSignal]) -> Iterator[FeedSignal | Problem]:
    for row in rows:
        try:
            if len(row.text) > _MAX_LINE:
                raise InvalidInputError("line", f"longer than {_MAX_LINE} characters")
            yield read(row.text)
        except InvalidInputError as error:
            yield Problem(row.line, row.text[:_SHOWN], str(error))


def _ipsum_signal(text: str) -> FeedSignal:
    fields = _uncomment(text).split()
    if len(fields) != 2:
        raise InvalidInputError("line", f"has {len(fields)} fields, not an address and a count")
    address, count = fields
    if not (count.isascii() and count.isdigit() and len(count) <= 9 and int(count) > 0):
        raise InvalidInputError("count", f"{count[:_SHOWN]!r} is not a count of lists")
    return FeedSignal("ip", feed_prefix(address), ipsum_score(int(count)))


def _parse_csv(rows: Iterator[_Row], score: int) -> Iterator[FeedSignal | Problem]:
    header = next(rows)
    columns = [cell.strip().lower() for cell in _cells(header.text)]
    unknown = [column for column in columns if column not in CSV_COLUMNS]
    if unknown or "value" not in columns or len(set(columns)) != len(columns):
        what = f"unknown column {unknown[0][:_SHOWN]!r}" if unknown else "no or a repeated column"
        raise InvalidInputError(
            "header", f"line {header.line}: {what}; a header names some of {', '.join(CSV_COLUMNS)}, with value"
        )

    def read(text: str) -> FeedSignal:
        cells = _cells(text)
        if len(cells) != len(columns):
            raise InvalidInputError("line", f"has {len(cells)} fields, the header {len(columns)}")
        row = {column: cell.strip() for column, cell in zip(columns, cells, strict=True)}
        kind = row.get("kind", "").lower() or "ip"
        return FeedSignal(
            kind,
            check_value(kind, row["value"]),
            score if not row.get("score") else _percent("score", row["score"]),
            None if not row.get("confidence") else _percent("confidence", row["confidence"]),
            None if not row.get("expires") else _instant("expires", row["expires"]),
        )

    yield from _parse_each(rows, read)


def _cells(text: str) -> list[str]:
    try:
        return next(csv.reader([text], strict=True))
    except csv.Error as error:
        raise InvalidInputError("line", f"not CSV: {error}") from None


def _percent(field: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 3 and int(text) <= 100):
        raise InvalidInputError(field, f"{text[:_SHOWN]!r} is not a whole number from 0 to 100")
    return int(text)


def _instant(field: str, text: str) -> float:
    try:
        at = float(text)
    except ValueError:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            raise InvalidInputError(field, f"{text[:_SHOWN]!r} is neither an ISO 8601 time nor Unix seconds") from None
        # A feed that names no zone means UTC.
        at = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if not (math.isfinite(at) and 0 <= at <= _FAR_FUTURE):
        raise InvalidInputError(field, f"{text[:_SHOWN]!r} is out of range")
    return at
