"""Spot checks of a pod: whose outcomes are taken, and what goes up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sidestep.v1 import decision_pb2, report_pb2

from engine.errors import InvalidInputError
from sidecar.callers import Caller
from sidecar.clock import Clock
from sidecar.front.decision_id import DecisionIds, id_text
from sidecar.front.outcomes import OutcomeTaker
from sidecar.usage.checks import (
    REPORT_S,
    AlreadyReportedError,
    Check,
    Checks,
    ChecksError,
    UnknownCheckError,
)

PASSED, FAILED = report_pb2.SPOT_CHECK_OUTCOME_PASSED, report_pb2.SPOT_CHECK_OUTCOME_FAILED
PAYMENTS = Caller.of("payments", ["ReportOutcome"], ["*"], diagnose=False)
OTHER = Caller.of("other", ["ReportOutcome"], ["*"], diagnose=False)
IDS = DecisionIds()
FIRST, SECOND = IDS.next(), IDS.next()
NOW = Clock().boottime()


def check(at: float = NOW, sample: bytes = b"s" * 16) -> Check:
    message = report_pb2.SpotCheck(tenant="acme", sample=sample, grant="g1", rate=0.5)
    return Check(message.SerializeToString(), at, "payments")


@pytest.fixture
def checks(tmp_path: Path) -> Iterator[Checks]:
    opened = Checks(tmp_path, "boot-1")
    opened.keep([(FIRST, check()), (SECOND, check())], NOW)
    yield opened
    opened.close()


def report(
    checks: Checks | None,
    decision_id: str,
    outcome: report_pb2.SpotCheckOutcome = FAILED,
    caller: Caller | None = PAYMENTS,
) -> bytes:
    request = decision_pb2.ReportOutcomeRequest(decision_id=decision_id, outcome=outcome)
    return OutcomeTaker(checks, Clock()).answer(request.SerializeToString(), caller)


def sent(checks: Checks) -> list[int]:
    return [message.outcome for _, message in checks.unsent("acme", 10)]


def test_an_outcome_goes_up_once_and_the_first_of_a_sample_counts(checks: Checks) -> None:
    assert report(checks, id_text(FIRST)) == b""
    assert report(checks, id_text(FIRST)) == b""
    assert report(checks, id_text(SECOND), PASSED) == b""
    assert sent(checks) == [FAILED]
    with pytest.raises(AlreadyReportedError):
        report(checks, id_text(FIRST), PASSED)
    checks.sent("acme", [key for key, _ in checks.unsent("acme", 10)])
    assert sent(checks) == []


def test_another_process_takes_it_too(checks: Checks, tmp_path: Path) -> None:
    # LMDB does not want one environment opened twice in a process; closing is what the death of one looks like.
    checks.close()
    again = Checks(tmp_path, "boot-1")
    report(again, id_text(FIRST))
    again.close()
    third = Checks(tmp_path, "boot-1")
    assert sent(third) == [FAILED]
    third.close()


def test_after_another_boot_nothing_is_known(checks: Checks, tmp_path: Path) -> None:
    checks.close()
    again = Checks(tmp_path, "boot-2")
    with pytest.raises(UnknownCheckError):
        report(again, id_text(FIRST))
    again.close()


def test_a_damaged_file_is_begun_anew(checks: Checks, tmp_path: Path) -> None:
    checks.close()
    (tmp_path / "env" / "data.mdb").write_bytes(b"\xff" * 8192)
    again = Checks(tmp_path, "boot-1")
    with pytest.raises(UnknownCheckError):
        report(again, id_text(FIRST))
    again.close()


@pytest.mark.parametrize("caller", [OTHER, None], ids=["another", "nobody"])
def test_a_check_of_another_caller_is_unknown(checks: Checks, caller: Caller | None) -> None:
    with pytest.raises(UnknownCheckError):
        report(checks, id_text(FIRST), caller=caller)


def test_what_was_no_spot_check_is_unknown(checks: Checks) -> None:
    with pytest.raises(UnknownCheckError):
        report(checks, id_text(IDS.next()))


def test_an_old_check_is_unknown(checks: Checks) -> None:
    late = IDS.next()
    checks.keep([(late, check(at=NOW - REPORT_S - 1.0))], NOW - REPORT_S)
    with pytest.raises(UnknownCheckError):
        report(checks, id_text(late))


@pytest.mark.parametrize(
    ("decision_id", "outcome", "field"),
    [
        ("", FAILED, "decision_id"),
        ("alice", FAILED, "decision_id"),
        (id_text(FIRST), report_pb2.SPOT_CHECK_OUTCOME_UNSPECIFIED, "outcome"),
        (id_text(FIRST), 77, "outcome"),
    ],
    ids=["none", "no id", "unspecified", "unknown"],
)
def test_bad_input_is_refused_by_its_field(
    checks: Checks, decision_id: str, outcome: report_pb2.SpotCheckOutcome, field: str
) -> None:
    with pytest.raises(InvalidInputError, match=f"^{field}: "):
        report(checks, decision_id, outcome)
    assert sent(checks) == []


def test_without_the_store_an_outcome_is_not_taken() -> None:
    with pytest.raises(ChecksError):
        report(None, id_text(FIRST))
    with pytest.raises(InvalidInputError):
        OutcomeTaker(None, Clock()).answer(b"\xff\xff", None)
