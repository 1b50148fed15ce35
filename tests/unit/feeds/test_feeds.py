"""Feed formats, merging and expiry."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sidestep.v1 import resources_pb2 as pb

from controlplane.api.resources import check
from controlplane.feeds import FORMATS, FeedSignal, Problem, detect, expiry_on_grid, merge, parse, to_signal
from engine.errors import InvalidInputError


def read(text: str, feed_format: str | None = None, score: int = 50) -> list[FeedSignal | Problem]:
    return list(parse(text.splitlines(keepends=True), feed_format, score=score))


def test_ipsum() -> None:
    text = "# IPsum\n# comment\n\n203.0.113.1\t1\n203.0.113.2\t8\n2001:db8::1 3  # noted\n"
    assert read(text) == [
        FeedSignal("ip", "203.0.113.1/32", 30),
        FeedSignal("ip", "203.0.113.2/32", 100),
        FeedSignal("ip", "2001:db8::1/128", 50),
    ]


def test_plain_list() -> None:
    text = "; drop list\n203.0.113.0/24 ; SBL1\n198.51.100.7\n::ffff:198.51.100.8\n2001:db8::/32 # net\n"
    assert read(text, score=70) == [
        FeedSignal("ip", "203.0.113.0/24", 70),
        FeedSignal("ip", "198.51.100.7/32", 70),
        FeedSignal("ip", "198.51.100.8/32", 70),
        FeedSignal("ip", "2001:db8::/32", 70),
    ]


def test_csv_columns_in_any_order_with_defaults() -> None:
    text = 'score,Value,kind,confidence,expires\n90,AS64500,asn,80,2030-01-01\n,de,COUNTRY,,1900000000\n5,"203.0.113.0/24",,,\n'
    assert read(text, score=40) == [
        FeedSignal("asn", "64500", 90, 80, 1893456000.0),
        FeedSignal("country", "DE", 40, None, 1900000000.0),
        FeedSignal("ip", "203.0.113.0/24", 5, None, None),
    ]
    assert read("value\nalice\n203.0.113.1\n")[1] == FeedSignal("ip", "203.0.113.1/32", 50)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("203.0.113.1\t3", "ipsum"),
        ("203.0.113.1 # three", "list"),
        ("203.0.113.0/24", "list"),
        ("2001:db8::1\t3", "ipsum"),
        ("kind,value", "csv"),
        ("value", "csv"),
    ],
)
def test_formats_are_detected(line: str, expected: str) -> None:
    assert detect(line) == expected


@pytest.mark.parametrize(
    ("feed_format", "line", "reason"),
    [
        ("ipsum", "203.0.113.1", "1 fields"),
        ("ipsum", "203.0.113.1\t0", "count"),
        ("ipsum", "203.0.113.1\t-1", "count"),
        ("ipsum", "203.0.113.1\t٣", "count"),
        ("ipsum", "203.0.113.300\t3", "value"),
        ("list", "203.0.113.1/24", "host bits"),
        ("list", "0.0.0.0/0", "every address"),
        ("list", "::ffff:0:0/96", "every address"),
        ("list", "example.com", "value"),
        ("list", "x" * 2000, "longer than"),
        ("csv", "ip,203.0.113.1", "2 fields, the header 5"),
        ("csv", "mac,aa,1,,", "kind"),
        ("csv", "ip,203.0.113.1,101,,", "score"),
        ("csv", "ip,203.0.113.1,1.5,,", "score"),
        ("csv", "ip,203.0.113.1,1,-1,", "confidence"),
        ("csv", "ip,203.0.113.1,1,,soon", "expires"),
        ("csv", "ip,203.0.113.1,1,,nan", "expires"),
        ("csv", "asn,AS1.5,1,,", "AS number"),
        ("csv", "asn,4294967296,1,,", "AS number"),
        ("csv", "country,DEU,1,,", "country"),
        ("csv", "subject,a/b,1,,", "value"),
        ("csv", "subject,,1,,", "value"),
        ("csv", 'subject,"a,1,,', "CSV"),
    ],
)
def test_a_bad_line_is_a_problem_and_the_rest_is_read(feed_format: str, line: str, reason: str) -> None:
    good = {"ipsum": "203.0.113.9\t3", "list": "203.0.113.9", "csv": "ip,203.0.113.9,50,,"}[feed_format]
    header = "kind,value,score,confidence,expires\n" if feed_format == "csv" else "# feed\n"
    before, problem, after = read(f"{header}{good}\n{line}\n{good}\n", feed_format)
    assert isinstance(before, FeedSignal)
    assert before == after
    assert isinstance(problem, Problem)
    assert problem.line == 3
    assert reason in problem.reason
    assert problem.text == line[:80]


@pytest.mark.parametrize(
    "header",
    ["kind,score", "kind,value,colour", "value,value", 'value,"x'],
    ids=["no value", "unknown", "twice", "quote"],
)
def test_an_unusable_header_refuses_the_file(header: str) -> None:
    with pytest.raises(InvalidInputError, match=r"header|line"):
        read(header + "\n203.0.113.1\n", "csv")


def test_bad_parameters_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="format"):
        read("203.0.113.1", "xml")
    with pytest.raises(InvalidInputError, match="score"):
        read("203.0.113.1", score=101)


def test_an_empty_feed_says_nothing() -> None:
    assert read("") == read("# only\n\n;comments\n") == []


def test_lines_are_read_one_by_one() -> None:
    def endless() -> Iterator[str]:
        while True:
            yield "203.0.113.1\n"

    feed = parse(endless())
    assert [next(feed) for _ in range(3)] == [FeedSignal("ip", "203.0.113.1/32", 50)] * 3


def test_merging_takes_the_stricter_of_each() -> None:
    signals = [
        FeedSignal("ip", "203.0.113.1/32", 40, 50, 100.0),
        FeedSignal("ip", "203.0.113.2/32", 10),
        FeedSignal("ip", "203.0.113.1/32", 30, 60, 200.0),
        FeedSignal("ip", "203.0.113.2/32", 20, 5, 5.0),
    ]
    assert merge(signals) == [FeedSignal("ip", "203.0.113.1/32", 40, 60, 200.0), FeedSignal("ip", "203.0.113.2/32", 20)]


def test_repeated_imports_share_an_expiry() -> None:
    ttl = 7 * 86400.0
    expiries = {expiry_on_grid(now, ttl) for now in range(1_800_000_000, 1_800_000_000 + 86400, 600)}
    assert len(expiries) <= 2


@given(st.floats(0, 4e9), st.floats(1, 1e8))
def test_a_signal_lives_at_least_its_ttl_and_at_most_a_quarter_longer(now: float, ttl: float) -> None:
    lives = expiry_on_grid(now, ttl) - now
    assert ttl * 0.999999 - 1e-6 <= lives <= ttl + max(60.0, ttl / 4) + 1


@given(st.lists(st.text(max_size=40), max_size=20), st.sampled_from([None, *FORMATS]))
def test_whatever_a_feed_holds_every_signal_read_is_one_the_control_plane_accepts(
    lines: list[str], feed_format: str | None
) -> None:
    try:
        items = list(parse(lines, feed_format))
    except InvalidInputError:
        return
    for item in items:
        if isinstance(item, FeedSignal):
            check(pb.Resource(signal=to_signal("acme", "feed", item, 2e9)))


@given(
    st.sampled_from(["ip", "asn", "country", "subject", "device", "session"]),
    st.one_of(
        st.ip_addresses().map(str), st.integers(0, 2**33).map(str), st.sampled_from(["de", "US"]), st.text(max_size=130)
    ),
    st.text("0123456789.-", max_size=4),
)
def test_every_csv_row_is_refused_or_acceptable(kind: str, value: str, score: str) -> None:
    for item in parse(["kind,value,score", f"{kind},{value},{score}"]):
        if isinstance(item, FeedSignal):
            check(pb.Resource(signal=to_signal("acme", "feed", item, 2e9)))
