"""The clock held against the control plane's signed time, and what is owed by a stream."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.names import Lane
from sidecar.clock import Clock
from sidecar.store.reader import Reader
from sidecar.store.writer import Writer
from sidecar.sync.confirm import Confirmations
from sidecar.sync.signedtime import SignedTime

LANE = ("acme", Lane.URGENT)


class SetClock(Clock):
    """Two clocks, set apart."""

    def __init__(self) -> None:
        super().__init__("this-boot")
        self.at, self.since_boot = 2_000_000.0, 500.0

    def wall(self) -> float:
        return self.at

    def boottime(self) -> float:
        return self.since_boot

    def passes(self, seconds: float) -> None:
        self.at += seconds
        self.since_boot += seconds


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def writer(tmp_path: Path, clock: SetClock) -> Iterator[Writer]:
    writer = Writer(tmp_path, clock=clock)
    yield writer
    writer.close()


def test_an_answer_counts_for_the_middle_of_its_way(writer: Writer, clock: SetClock) -> None:
    time = SignedTime(writer, clock)
    assert time.offset_s() is None
    asked = clock.boottime()
    clock.passes(4.0)
    time.answered(asked, clock.wall() - 2.0)
    assert time.offset_s() == pytest.approx(0.0)


def test_a_slow_answer_and_one_from_the_future_say_nothing(writer: Writer, clock: SetClock) -> None:
    time = SignedTime(writer, clock)
    asked = clock.boottime()
    clock.passes(10.5)
    time.answered(asked, clock.wall())
    time.answered(clock.boottime() + 1.0, clock.wall())
    assert time.offset_s() is None


def test_a_jump_shows_at_once_in_every_process_and_is_forgotten_once_mended(
    tmp_path: Path, writer: Writer, clock: SetClock, caplog: pytest.LogCaptureFixture
) -> None:
    time = SignedTime(writer, clock)
    reader = Reader(tmp_path, clock=clock)

    def seen() -> float | None:
        with reader.view() as view:
            return view.clock_offset_s(clock)

    assert seen() is None  # a store of before keys were pinned
    time.answered(clock.boottime(), clock.wall())
    clock.passes(60.0)
    assert seen() == pytest.approx(0.0)
    clock.at -= 3600.0
    assert seen() == time.offset_s() == pytest.approx(-3600.0)
    time.answered(clock.boottime(), clock.wall() + 3600.0)
    assert "no exemption applies" in caplog.text
    clock.at += 3600.0
    time.answered(clock.boottime(), clock.wall())
    assert "right again" in caplog.text
    assert seen() == pytest.approx(0.0)
    # A control plane whose clock was wrong is believed again, too: the last stated time counts, not the highest.
    time.answered(clock.boottime(), clock.wall() + 1e6)
    time.answered(clock.boottime(), clock.wall())
    assert seen() == pytest.approx(0.0)
    reader.close()


def test_a_lane_is_owed_something_while_an_answer_is_ahead_and_nothing_comes(writer: Writer, clock: SetClock) -> None:
    confirmations = Confirmations(writer, clock)
    asked = confirmations.answered(confirmations.ping())
    assert asked is not None
    confirmations.head(LANE, 1, 7, asked)
    clock.passes(9.0)
    assert confirmations.owed_s() == {LANE: pytest.approx(9.0)}
    confirmations.moved(LANE)
    clock.passes(2.0)
    assert confirmations.owed_s() == {LANE: pytest.approx(2.0)}
    confirmations.new_stream()
    assert confirmations.owed_s() == {}


def test_nonces_cannot_be_foreseen(writer: Writer, clock: SetClock) -> None:
    confirmations = Confirmations(writer, clock)
    nonces = [confirmations.ping() for _ in range(64)]
    assert len(set(nonces)) == 64
    assert max(nonces) > 2**56
    assert confirmations.answered(nonces[0]) is not None
    assert confirmations.answered(nonces[0]) is None
