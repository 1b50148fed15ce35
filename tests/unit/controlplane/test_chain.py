"""What is believed of a chain: numbers only rise, a contradiction is kept in mind, anchors are thinned."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sidestep.v1 import report_pb2

from controlplane.store.chain import ANCHOR_EVERY_S, ChainState

HEADS = {records: bytes([records % 256]) * 32 for records in range(1, 1000)} | {0: b""}


def report(records: int, at: float = 1.0, head: bytes | None = None, **more: Any) -> report_pb2.JournalChain:
    chain = report_pb2.JournalChain(
        chain="w0-0192f3c4a1b2", records=records, head=HEADS[records] if head is None else head, **more
    )
    chain.report_time.FromNanoseconds(int(at * 1e9))
    return chain


def state(*reports: report_pb2.JournalChain) -> ChainState:
    believed = ChainState("pod-1", "w0-0192f3c4a1b2", 100.0, 100.0)
    for index, each in enumerate(reports):
        believed.take(each, 100.0 + index)
    return believed


def test_a_newer_report_that_says_more_is_taken_over() -> None:
    believed = state(report(10, 1, settled=4), report(20, 2, settled=15, quarantined=1, spooled=5, unrecorded=3))
    assert (believed.records, believed.head, believed.settled) == (20, HEADS[20], 15)
    assert (believed.quarantined, believed.spooled, believed.unrecorded, believed.conflicts) == (1, 5, 3, 0)
    assert (believed.first_report_at, believed.last_report_at, believed.head_at) == (100.0, 101.0, 101.0)


def test_repeating_a_report_changes_only_when_it_was_last_made() -> None:
    first = report(10, 1, settled=4)
    once, twice = state(first), state(first, first)
    once.last_report_at = twice.last_report_at
    assert once == twice


@pytest.mark.parametrize(
    "bad",
    [
        report(9, 2, settled=4),
        report(10, 2, head=b"x" * 32, settled=4),
        # An earlier time does not excuse another hash.
        report(10, 0.5, head=b"x" * 32, settled=4),
    ],
    ids=["fewer", "other hash", "other hash, older"],
)
def test_a_contradiction_is_counted_and_the_earlier_kept(bad: report_pb2.JournalChain) -> None:
    believed = state(report(10, 1, settled=4), bad)
    assert (believed.records, believed.head, believed.settled, believed.conflicts) == (10, HEADS[10], 4, 1)


def test_a_contradiction_that_is_repeated_is_counted_once() -> None:
    bad = report(9, 2)
    assert state(report(10, 1), bad, bad).conflicts == 1
    bad = report(10, 2, head=b"x" * 32)
    assert state(report(10, 1), bad, bad).conflicts == 1


def test_a_report_that_was_overtaken_is_no_contradiction() -> None:
    believed = state(report(20, 2, settled=15), report(10, 1, settled=4))
    assert (believed.records, believed.settled, believed.conflicts) == (20, 15, 0)


def test_a_clock_that_was_ahead_once_does_not_excuse_what_comes_later() -> None:
    ahead = report(10, 1e9, settled=4)
    assert state(ahead, report(9, 101, settled=4)).conflicts == 1
    believed = state(ahead, report(8, 101, settled=8, ended=True))
    assert (believed.settled, believed.lost) == (10, 2)


def test_fewer_settled_than_before_is_no_contradiction_and_takes_nothing_back() -> None:
    believed = state(report(10, 1, settled=4), report(12, 2, settled=3))
    assert (believed.records, believed.settled, believed.conflicts) == (12, 4, 0)


def test_what_an_ended_chain_no_longer_has_is_lost() -> None:
    believed = state(report(10, 1, settled=4), report(8, 2, settled=8, lost=1, ended=True))
    assert (believed.records, believed.settled, believed.lost, believed.conflicts) == (10, 10, 3, 1)
    believed.take(report(8, 3, settled=8, lost=1, ended=True), 110.0)
    assert (believed.settled, believed.lost) == (10, 3)


def test_a_chain_that_may_still_deliver_has_lost_nothing_yet() -> None:
    for chain in (report(8, 2, settled=8), report(8, 2, settled=7, ended=True), report(8, 0.5, settled=8, ended=True)):
        believed = state(report(10, 1), chain)
        assert (believed.settled, believed.lost) == (chain.settled, 0)


def test_at_most_one_anchor_a_minute_is_kept_and_fewer_of_an_old_chain() -> None:
    believed = ChainState("pod-1", "w0-0192f3c4a1b2", 0.0, 0.0)
    kept = [
        second for second in range(100, 3700, 5) if believed.take(report(second // 5, second), float(second)).anchor
    ]
    assert kept[0] == 100
    assert all(later - earlier == ANCHOR_EVERY_S for earlier, later in pairwise(kept))
    assert not believed.take(report(800, 4000), believed.anchored_at + 59.0).anchor
    month = 30 * 86_400.0
    believed.anchored_at = month
    assert not believed.take(report(801, month), month + month / 550).anchor
    assert believed.take(report(802, month + 1), month + month / 450).anchor


@given(
    st.lists(
        st.tuples(
            st.integers(0, 30), st.integers(0, 30), st.integers(1, 9), st.booleans(), st.sampled_from([b"", b"x" * 32])
        )
    )
)
def test_nothing_is_ever_taken_back(reports: list[tuple[int, int, int, bool, bytes]]) -> None:
    believed = state()
    before: tuple[Any, ...] = ()
    for records, settled, at, ended, head in reports:
        taken = report(records, at, head=(head or HEADS[records]) if records else b"", settled=min(settled, records))
        taken.ended = ended
        believed.take(taken, 100.0)
        after = (believed.records, believed.settled, believed.lost, believed.ended, believed.conflicts)
        assert not before or all(new >= old for new, old in zip(after, before, strict=True))
        assert believed.settled <= believed.records
        before = after
