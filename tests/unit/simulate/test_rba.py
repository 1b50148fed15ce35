"""The table of logins: what is read, what is written, and what is wrong with a file said by line and column."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from pathlib import Path

import pytest

from sidecar.simulate.rba import (
    COLUMNS,
    Login,
    LoginReader,
    LoginWriter,
    RbaError,
    Truth,
    create_text,
    open_binary,
    read_truth,
    write_truth,
)

ROW = {
    "Login Timestamp": "2020-02-03 12:43:30.772",
    "User ID": "-42",
    "Round-Trip Time [ms]": "",
    "IP Address": "192.0.2.7",
    "Country": "NO",
    "Region": "-",
    "City": "-",
    "ASN": "64500",
    "User Agent String": 'Mozilla/5.0 (X11; "odd", quoted) Firefox/81.0',
    "Browser Name and Version": "Firefox 81.0.0",
    "OS Name and Version": "Linux",
    "Device Type": "desktop",
    "Login Successful": "True",
    "Is Attack IP": "False",
    "Is Account Takeover": "False",
}


def table(*rows: dict[str, str], columns: tuple[str, ...] = COLUMNS) -> bytes:
    def line(values: list[str]) -> str:
        return ",".join('"{}"'.format(value.replace('"', '""')) for value in values)

    return "\n".join([line(list(columns)), *(line([row[column] for column in columns]) for row in rows), ""]).encode()


def read(content: bytes) -> list[Login]:
    return list(LoginReader(io.BytesIO(content)))


def test_a_row_is_read_whatever_the_order_of_the_columns() -> None:
    (login,) = read(table(ROW, columns=tuple(reversed(COLUMNS))))
    assert login == Login(
        at=1580733810.772,
        user="-42",
        rtt_ms=None,
        ip="192.0.2.7",
        country="NO",
        region="",
        city="",
        asn=64500,
        agent='Mozilla/5.0 (X11; "odd", quoted) Firefox/81.0',
        browser="Firefox 81.0.0",
        os="Linux",
        device="desktop",
        successful=True,
        attack_ip=False,
        takeover=False,
    )


@pytest.mark.parametrize("name", ["logins.csv", "logins.csv.gz"])
def test_what_is_written_is_read_again(tmp_path: Path, name: str) -> None:
    logins = read(table(ROW, ROW | {"Country": "", "ASN": "", "Round-Trip Time [ms]": "17.5"}))
    with create_text(tmp_path / name) as text:
        writer = LoginWriter(text)
        for login in logins:
            writer.write(login)
    with open_binary(tmp_path / name) as (content, _):
        assert list(LoginReader(content)) == logins
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; its first line must name the columns"),
        (table(columns=COLUMNS[1:]), "line 1: lacks the column 'Login Timestamp'"),
        (table(columns=COLUMNS[2:]), "line 1: lacks the columns 'Login Timestamp', 'User ID'"),
        (table(columns=(*COLUMNS, "ASN")), "line 1: ASN: stands there twice"),
        (table(ROW, ROW | {"Login Timestamp": "yesterday"}), "line 3: Login Timestamp: 'yesterday' is not a time"),
        (table(ROW | {"User ID": ""}), "line 2: User ID: "),
        (table(ROW | {"User ID": "a/b"}), "line 2: User ID: "),
        (table(ROW | {"Round-Trip Time [ms]": "fast"}), "line 2: Round-Trip Time [ms]: 'fast' is not a number"),
        (table(ROW | {"Country": "Norway"}), "line 2: Country: 'Norway' is not an ISO 3166-1 alpha-2 code"),
        (table(ROW | {"ASN": "-1"}), "line 2: ASN: '-1' is not an AS number"),
        (table(ROW | {"ASN": "inf"}), "line 2: ASN: 'inf' is not a number"),
        (table(ROW | {"Login Successful": "yes"}), "line 2: Login Successful: 'yes' is neither True nor False"),
        (table(ROW) + b'"one","two"\n', "line 3: has 2 fields, the header has 15"),
        (table(ROW) + b'"one\n', "line 3: unexpected end of data"),
        (table(ROW) + b"\xff\n", "can't decode byte"),
    ],
)
def test_a_bad_file_is_refused_with_line_and_column(content: bytes, message: str) -> None:
    with pytest.raises(RbaError) as refused:
        read(content)
    assert message in str(refused.value)


def test_a_packed_file_that_ends_too_early_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "logins.csv.gz"
    path.write_bytes(gzip.compress(table(*[ROW] * 2000))[:-20])
    with open_binary(path) as (content, _), pytest.raises(RbaError, match="ends within compressed data"):
        list(LoginReader(content))


@pytest.mark.parametrize(
    ("cut", "place"), [(lambda packed: packed[:12], "line 1"), (lambda packed: b"plain", "line 1"), (None, "line ")]
)
def test_a_damaged_packed_file_is_refused(tmp_path: Path, cut: Callable[[bytes], bytes] | None, place: str) -> None:
    packed = gzip.compress(table(*[ROW | {"User ID": str(number)} for number in range(2000)]))
    if cut is None:
        packed = packed[:2000] + bytes(64) + packed[2064:]
    path = tmp_path / "logins.csv.gz"
    path.write_bytes(packed if cut is None else cut(packed))
    with open_binary(path) as (content, _), pytest.raises(RbaError, match=place):
        list(LoginReader(content))


@pytest.mark.parametrize(("column", "text"), [("Round-Trip Time [ms]", "inf"), ("ASN", "1e999"), ("ASN", "NAN")])
def test_what_is_no_finite_number_is_refused(column: str, text: str) -> None:
    with pytest.raises(RbaError, match=f"{text}' is not a"):
        read(table(ROW | {column: text}))


def test_an_unfinished_file_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with create_text(tmp_path / "logins.csv") as text:
            text.write("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())


def test_the_truth_is_read_as_it_was_written() -> None:
    entries = [Truth(3, "burst", "burst-1"), Truth(9, "canary", "canary-1")]
    text = io.StringIO()
    write_truth(text, entries)
    assert list(read_truth(text.getvalue().splitlines())) == entries


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: the columns are not row, style, episode"),
        ("row,style,episode\n1,a", "line 2: has 2 fields, not 3"),
        ("row,style,episode\nx,a,b", "line 2: row: 'x' is not a number"),
        ("row,style,episode\n4,a,b\n4,a,b", "line 3: row: '4' is not a number greater than the one before"),
    ],
)
def test_a_bad_truth_is_refused(text: str, message: str) -> None:
    with pytest.raises(RbaError) as refused:
        list(read_truth(text.splitlines()))
    assert message in str(refused.value)
