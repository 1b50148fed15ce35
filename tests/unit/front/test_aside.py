"""Calls that write to a disk keep no decision waiting, however long the disk takes."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from engine.errors import InvalidInputError
from sidecar.callers import Caller
from sidecar.front.aside import MAX_WAITING
from sidecar.front.methods import OTHERS, OtherCall
from sidecar.front.transport import StatusCode
from tests.fakes.desk import EVALUATE
from tests.fakes.stock import satisfied
from tests.processes import until
from tests.unit.front.rig import Rig


class Disk:
    """Writes nothing until it is let."""

    def __init__(self) -> None:
        self.writes = threading.Event()
        self.error: Exception | None = None

    def answer(self, payload: bytes, caller: Caller | None) -> bytes:
        assert self.writes.wait(20)
        if self.error is not None:
            raise self.error
        return b"written " + payload


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def slow(tmp_path: Path, disk: Disk) -> Rig:
    return Rig(tmp_path, others=[OtherCall("Slow", 1000, disk.answer)])


def test_decisions_are_made_while_a_report_is_written(slow: Rig, disk: Disk) -> None:
    slow.start()
    try:
        slow.desk.put(OTHERS, b"one", "report")
        for number in range(5):
            slow.desk.put(EVALUATE, satisfied(), number)
        slow.ended(*range(5))
        assert "report" not in slow.desk.order
        disk.writes.set()
        slow.ended("report")
        assert slow.desk.answers["report"] == b"written one"
    finally:
        disk.writes.set()
        slow.stop()


def test_what_goes_wrong_is_told_by_the_table_of_errors(slow: Rig, disk: Disk) -> None:
    disk.error = InvalidInputError("token", "is not one")
    disk.writes.set()
    slow.start()
    try:
        slow.desk.put(OTHERS, b"", "report")
        assert slow.failure("report") == (StatusCode.INVALID_ARGUMENT, "token: is not one")
    finally:
        slow.stop()


def test_no_more_than_so_many_reports_wait(slow: Rig, disk: Disk) -> None:
    slow.start()
    try:
        for number in range(MAX_WAITING + 1):
            slow.desk.put(OTHERS, b"%d" % number, number)
        assert slow.failure(MAX_WAITING)[0] is StatusCode.RESOURCE_EXHAUSTED
        disk.writes.set()
        slow.ended(*range(MAX_WAITING))
        assert [slow.desk.answers[number] for number in range(MAX_WAITING)] == [
            b"written %d" % number for number in range(MAX_WAITING)
        ]
    finally:
        disk.writes.set()
        slow.stop()


def test_a_report_that_is_being_written_is_answered_before_the_loop_ends(slow: Rig, disk: Disk) -> None:
    slow.start()
    try:
        slow.desk.put(OTHERS, b"last", "report")
        until(lambda: slow.loop._aside.waiting == 1, "the report to be taken")
        slow.desk.drain(0.0)
        disk.writes.set()
        slow.ended("report")
    finally:
        disk.writes.set()
        slow.stop()
