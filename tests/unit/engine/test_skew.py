"""Which versions work together."""

from __future__ import annotations

import pytest

from engine.skew import Skew, describe, skew


@pytest.mark.parametrize(
    ("own", "other", "found"),
    [
        ("1.4.0", "1.4.0", Skew.WITHIN),
        ("1.4.0", "1.2.9", Skew.WITHIN),
        ("1.4.0", "1.6.1-rc.1+build", Skew.WITHIN),
        ("1.4.0", "1.1.0", Skew.OUTSIDE),
        ("1.4.0", "1.7.0", Skew.OUTSIDE),
        ("1.4.0", "2.4.0", Skew.OUTSIDE),
        ("1.4.0", "", Skew.UNKNOWN),
        ("1.4.0", "main", Skew.UNKNOWN),
        ("1.4.0", "1", Skew.UNKNOWN),
        ("1.4.0", "01.4.0", Skew.UNKNOWN),
        ("1.4.0", "1.4.0\n", Skew.UNKNOWN),
        ("dev", "1.4.0", Skew.UNKNOWN),
    ],
)
def test_two_minor_versions_either_way(own: str, other: str, found: Skew) -> None:
    assert skew(own, other) is found
    assert skew(other, own) is found


def test_the_window_is_told_for_people() -> None:
    assert describe("1.4.2") == "1.2 to 1.6"
    assert describe("0.1.0") == "0.0 to 0.3"
    assert describe("dev") == "any"
