"""Login records with the columns of the RBA data set (Wiefling et al., "Pump Up Password Security!", ACM TOPS 2022).

Files are CSV with a header; columns may stand in any order and others beside them. `.gz` is read and written too. Rows are read
and written one at a time, so a file of any length takes the same memory.
"""

from __future__ import annotations

import csv
import errno
import gzip
import io
import math
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Final, NamedTuple

from engine.errors import InvalidInputError, SidestepError
from engine.names import check_id

COLUMNS: Final = (
    "Login Timestamp",
    "User ID",
    "Round-Trip Time [ms]",
    "IP Address",
    "Country",
    "Region",
    "City",
    "ASN",
    "User Agent String",
    "Browser Name and Version",
    "OS Name and Version",
    "Device Type",
    "Login Successful",
    "Is Attack IP",
    "Is Account Takeover",
)
INDEX: Final = "index"
"""Written first; optional when read."""
_UNKNOWN = frozenset({"", "-", "nan", "NaN", "None"})
_TRUTH = {"true": True, "1": True, "false": False, "0": False}
_MAX_ASN = 2**32 - 1
_BAD_PACKING = (EOFError, gzip.BadGzipFile, zlib.error)
_COUNTRY = re.compile(r"[A-Z]{2}")


class RbaError(SidestepError):
    """The file is not such a table. `line` counts from 1, 0: the whole file; `column`: its header, or empty; `file`: its name,
    or empty."""

    def __init__(self, line: int, column: str, problem: str, file: str = "") -> None:
        place = ": ".join(filter(None, (file, f"line {line}" if line else "", column)))
        super().__init__(f"{place}: {problem}" if place else problem)
        self.line = line
        self.column = column
        self.problem = problem


class Login(NamedTuple):
    """One attempt to log in. What is not known is empty or None.

    `at`: seconds since the Unix epoch. `browser`, `os`: name and version, `Chrome 86.0.4240`. `attack_ip`: the address is one
    that attacks came from before; `takeover`: someone else got into the account.
    """

    at: float
    user: str
    rtt_ms: float | None
    ip: str
    country: str
    region: str
    city: str
    asn: int | None
    agent: str
    browser: str
    os: str
    device: str
    successful: bool
    attack_ip: bool
    takeover: bool


class LoginReader:
    """Reads logins from an open binary file. Iterating raises RbaError with line and column."""

    def __init__(self, raw: IO[bytes]) -> None:
        text = io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")
        self._rows = csv.reader(text, strict=True)
        try:
            header = next(self._rows, None)
        except (csv.Error, UnicodeDecodeError) as error:
            raise RbaError(1, "", f"is not CSV in UTF-8: {error}") from None
        except _BAD_PACKING as error:
            raise RbaError(1, "", f"is not packed as its name says, or damaged: {error}") from None
        if header is None:
            raise RbaError(0, "", "is empty; its first line must name the columns")
        missing = [column for column in COLUMNS if column not in header]
        if missing:
            raise RbaError(1, "", f"lacks the column{'s' if len(missing) > 1 else ''} {', '.join(map(repr, missing))}")
        twice = [column for column in COLUMNS if header.count(column) > 1]
        if twice:
            raise RbaError(1, twice[0], "stands there twice")
        self._places = [header.index(column) for column in COLUMNS]
        self._width = len(header)

    def __iter__(self) -> Iterator[Login]:
        while True:
            try:
                row = next(self._rows, None)
            except (csv.Error, UnicodeDecodeError) as error:
                raise RbaError(self._rows.line_num, "", str(error)) from None
            except _BAD_PACKING as error:
                raise RbaError(self._rows.line_num, "", f"ends within compressed data: {error}") from None
            if row is None:
                return
            if not row:
                continue
            line = self._rows.line_num
            if len(row) != self._width:
                raise RbaError(line, "", f"has {len(row)} fields, the header has {self._width}")
            yield _login(line, [row[place] for place in self._places])


def _login(line: int, fields: list[str]) -> Login:
    stamp, user, rtt, ip, country, region, city, asn, agent, browser, os_, device, successful, attack, takeover = fields
    try:
        check_id(user, "")
    except InvalidInputError as error:
        raise RbaError(line, "User ID", error.problem) from None
    return Login(
        at=_time(line, stamp),
        user=user,
        rtt_ms=_number(line, "Round-Trip Time [ms]", rtt),
        ip=_known(ip),
        country=_country(line, country),
        region=_known(region),
        city=_known(city),
        asn=_asn(line, asn),
        agent=agent,
        browser=_known(browser),
        os=_known(os_),
        device=_known(device),
        successful=_flag(line, "Login Successful", successful),
        attack_ip=_flag(line, "Is Attack IP", attack),
        takeover=_flag(line, "Is Account Takeover", takeover),
    )


def _known(text: str) -> str:
    return "" if text in _UNKNOWN else text


def _time(line: int, text: str) -> float:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise RbaError(line, "Login Timestamp", f"{text!r} is not a time such as 2020-02-03 12:43:30.772") from None
    return (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp()


def _number(line: int, column: str, text: str) -> float | None:
    if text in _UNKNOWN:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise RbaError(line, column, f"{text!r} is not a number")
    return number


def _country(line: int, text: str) -> str:
    code = _known(text)
    if code and not _COUNTRY.fullmatch(code):
        raise RbaError(line, "Country", f"{text!r} is not an ISO 3166-1 alpha-2 code in upper case")
    return code


def _asn(line: int, text: str) -> int | None:
    number = _number(line, "ASN", text)
    if number is None:
        return None
    if not (0 <= number <= _MAX_ASN and number == int(number)):
        raise RbaError(line, "ASN", f"{text!r} is not an AS number")
    return int(number)


def _flag(line: int, column: str, text: str) -> bool:
    flag = _TRUTH.get(text.lower())
    if flag is None:
        raise RbaError(line, column, f"{text!r} is neither True nor False")
    return flag


class LoginWriter:
    """Writes logins, header first, numbered from 0."""

    def __init__(self, text: IO[str]) -> None:
        self._rows = csv.writer(text, lineterminator="\n")
        self._rows.writerow((INDEX, *COLUMNS))
        self.count = 0

    def write(self, login: Login) -> None:
        """Appends one."""
        at = datetime.fromtimestamp(login.at, UTC).replace(tzinfo=None).isoformat(" ", "milliseconds")
        rtt = "" if login.rtt_ms is None else f"{login.rtt_ms:.1f}"
        asn = "" if login.asn is None else login.asn
        fields = (at, login.user, rtt, login.ip, login.country, login.region or "-", login.city or "-", asn, *login[8:])
        self._rows.writerow((self.count, *fields))
        self.count += 1


@contextmanager
def open_binary(path: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """The file's content, and the file itself, whose position tells how much of it is done. Raises OSError."""
    with path.open("rb") as raw:
        if path.suffix == ".gz":
            with gzip.open(raw) as unpacked:
                yield unpacked, raw  # type: ignore[misc]  # typeshed: GzipFile is no IO[bytes]
        else:
            yield raw, raw


@contextmanager
def create_text(path: Path) -> Iterator[IO[str]]:
    """A new text file that takes the name only once it is whole. The same text gives the same bytes, packed too."""
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "its folder does not exist", str(path))
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as raw:
            if path.suffix == ".gz":
                packed = gzip.GzipFile("", "wb", 6, raw, mtime=0)
                with packed, io.TextIOWrapper(packed, encoding="utf-8", newline="") as text:
                    yield text
            else:
                with io.TextIOWrapper(raw, encoding="utf-8", newline="") as text:
                    yield text
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


class Truth(NamedTuple):
    """What a made-up login was: the one in this row, counted from 0, belongs to this attack."""

    row: int
    style: str
    episode: str


TRUTH_COLUMNS: Final = Truth._fields


def write_truth(text: IO[str], entries: Iterable[Truth]) -> None:
    """Writes what belongs to attacks, in the order of the logins."""
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(TRUTH_COLUMNS)
    rows.writerows(entries)


def read_truth(text: Iterable[str]) -> Iterator[Truth]:
    """The entries, in rising order of row. Raises RbaError."""
    rows = csv.reader(text, strict=True)
    try:
        header = next(rows, [])
        if tuple(header) != TRUTH_COLUMNS:
            raise RbaError(1, "", f"the columns are not {', '.join(TRUTH_COLUMNS)}")
        last = -1
        for row in rows:
            if len(row) != len(TRUTH_COLUMNS):
                raise RbaError(rows.line_num, "", f"has {len(row)} fields, not {len(TRUTH_COLUMNS)}")
            if not row[0].isdecimal() or int(row[0]) <= last:
                raise RbaError(rows.line_num, "row", f"{row[0]!r} is not a number greater than the one before")
            last = int(row[0])
            yield Truth(last, row[1], row[2])
    except (csv.Error, UnicodeDecodeError) as error:
        raise RbaError(rows.line_num, "", str(error)) from None
