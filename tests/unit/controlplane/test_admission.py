"""Who may begin a stream, and when the others are told to come back."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, suppress

import pytest

from controlplane.api.admission import Admission, Slots
from controlplane.errors import OverloadedError


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_so_many_a_second_are_let_in_and_a_pause_saves_up_one_second_at_most() -> None:
    clock = Clock()
    admission = Admission(max_streams=1_000, per_second=10, now=clock)

    with ExitStack() as streams:

        def admitted(tries: int) -> int:
            before = admission.open
            for _ in range(tries):
                with suppress(OverloadedError):
                    streams.enter_context(admission.admit())
            return admission.open - before

        clock.now = 100.0
        assert admitted(50) == 10
        clock.now += 0.5
        assert admitted(50) == 5
        assert admission.refused["rate"] == 85
    assert admission.open == 0


def test_a_whole_fleet_is_asked_to_come_back_within_the_time_it_takes_to_admit_it() -> None:
    clock = Clock()
    admission = Admission(max_streams=100_000, per_second=100, now=clock)
    waits = []
    for _ in range(3_100):
        try:
            with admission.admit():
                pass
        except OverloadedError as error:
            waits.append(error.retry_after_s)
    # 3,000 turned away need 30 s. The last of them are spread over all of it, and none waits longer than sidecars would.
    assert len(waits) == 3_000
    assert 20 < max(waits) <= 31
    assert min(waits) >= 1
    # A herd that has gone elsewhere is forgotten.
    clock.now += 1_000
    for _ in range(100):
        with admission.admit():
            pass
    with pytest.raises(OverloadedError) as raised, admission.admit():
        raise AssertionError("one too many")
    assert raised.value.retry_after_s <= 5.01


def test_a_stream_that_ended_makes_room() -> None:
    admission = Admission(max_streams=1, per_second=100)
    with admission.admit(), pytest.raises(OverloadedError, match="too many sidecars are connected"), admission.admit():
        raise AssertionError("one too many")
    with admission.admit():
        pass
    assert admission.refused["full"] == 1


def test_slots_go_round_in_the_order_of_asking() -> None:
    slots = Slots(1)
    first, second, third = (asyncio.Event() for _ in range(3))
    assert slots.take(first)
    assert not slots.take(second)
    assert not slots.take(third)
    slots.give()
    assert (second.is_set(), third.is_set()) == (True, False)
    # Who was woken, and has gone meanwhile, passes the turn on.
    slots.leave(second)
    assert third.is_set()
    assert slots.take(third)
