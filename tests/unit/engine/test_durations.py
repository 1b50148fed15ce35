from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.durations import MAX_DURATION_S, format_duration, parse_duration
from engine.errors import InvalidInputError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90.0),
        ("5m", 300.0),
        ("1h30m", 5400.0),
        ("30d", 2_592_000.0),
        ("250ms", 0.25),
        ("1.5h", 5400.0),
        ("0s", 0.0),
    ],
)
def test_reads_what_people_write(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "5 m", "m", "-5m", "5m!", "x5m", "5M", "1e3s", "٣m", ".5h", "5m 3s", "inf"])
def test_refuses_anything_else(text: str) -> None:
    with pytest.raises(InvalidInputError, match=r"field: .*is not a duration"):
        parse_duration(text, "field")


@pytest.mark.parametrize("text", ["9" * 400 + "d", "3652501d"])
def test_refuses_what_no_protobuf_duration_can_carry(text: str) -> None:
    with pytest.raises(InvalidInputError, match="10,000 years"):
        parse_duration(text)
    assert parse_duration("3652500d") == MAX_DURATION_S


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (0.0004, "0s"), (5400, "1h30m"), (86461.25, "1d1m1s250ms"), (-90, "-1m30s")]
)
def test_formats_the_shortest_form(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.integers(0, 10**12))
def test_what_is_formatted_reads_back(milliseconds: int) -> None:
    assert parse_duration(format_duration(milliseconds / 1000)) == pytest.approx(milliseconds / 1000, abs=1e-6)
