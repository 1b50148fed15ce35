"""What a worker counts, and what of it leaves the pod."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from sidestep.v1 import report_pb2

from engine.decision import Basis, Code, Decision, Outcome, Reason, SpotCheck
from engine.facts import Binding, Device, Facts, Grant, GrantScope
from engine.sketch import DistinctCount
from sidecar.clock import Clock
from sidecar.guard.reports import Report
from sidecar.usage import collector as module
from sidecar.usage.checks import Checks
from sidecar.usage.collector import MAX_FINGERPRINTS, Collector, Recorded, fingerprint_hash, spot_check_message
from sidecar.usage.windows import MAX_FILES, read_window, remove, waiting, write_window

CHAIN = "w0-0192f3c4a1b2"
NOW = 1_772_366_400.0
SECRET = b"t" * 32
LAPTOP = {"os": "macOS", "canvas": "c1"}
STEP_UP = Decision(Outcome.STEP_UP, Basis.CHALLENGE, (Reason(Code.NO_GRANT),))
EXEMPTED = Decision(Outcome.ALLOW, Basis.EXEMPTION_GRANT, (Reason(Code.GRANT_APPLIED, "g1"),), grant="g1")
DRAWN = Decision(
    Outcome.STEP_UP,
    Basis.CHALLENGE,
    (Reason(Code.SPOT_CHECK, "g1"),),
    spot_check=SpotCheck("g1", "partners", 0.25, 0.125),
)


def facts(**more: Any) -> Facts:
    grant = Grant("g1", GrantScope.SUBJECT, ("*",), "nist-aal2", 3600.0, True, grant_class="partners")
    return Facts(NOW, "acme", "payments.transfer", grants=(grant,), **more)


def recorded(decision: Decision = STEP_UP, subject: str = "alice", **more: Any) -> Recorded:
    fingerprint = more.pop("fingerprint", {})
    secret = more.pop("secret", SECRET)
    return Recorded(
        subject.encode().rjust(16),
        facts(**more),
        decision,
        subject,
        "payments",
        secret,
        fingerprint,
        str(fingerprint).encode(),
    )


class Counting:
    """A collector, and the windows it leaves."""

    def __init__(self, folder: Path, **more: Any) -> None:
        self.folder = folder / "usage"
        self.reports: list[Report] = []
        self.collector = Collector(self.folder, CHAIN, Clock(), findings=self._found, **more)

    def _found(self) -> Sequence[Report]:
        found, self.reports = self.reports, []
        return found

    def window(self) -> report_pb2.TenantUsage:
        self.collector.close()
        (path,) = waiting(self.folder)
        window = read_window(path)
        assert window is not None
        remove([path])
        (usage,) = window.tenants
        return usage


@pytest.fixture
def counting(tmp_path: Path) -> Counting:
    return Counting(tmp_path)


def test_decisions_and_uses_are_counted(counting: Counting) -> None:
    counting.collector.note([recorded(), recorded(EXEMPTED), recorded(EXEMPTED)])
    usage = counting.window()
    assert dict(usage.decisions) == {"STEP_UP CHALLENGE": 1, "ALLOW EXEMPTION_GRANT": 2}
    (use,) = usage.grants
    assert (use.grant, use.grant_class, use.uses, use.last_time.seconds) == ("g1", "partners", 2, int(NOW))


def test_nothing_happened_nothing_is_written(counting: Counting) -> None:
    counting.collector.close()
    assert waiting(counting.folder) == []


def test_windows_are_numbered_and_count_once(counting: Counting) -> None:
    for number in (1, 2):
        counting.collector.note([recorded()])
        counting.collector.close()
        (path,) = waiting(counting.folder)
        window = read_window(path)
        assert window is not None
        assert (window.chain, window.number, dict(window.tenants[0].decisions)) == (
            CHAIN,
            number,
            {"STEP_UP CHALLENGE": 1},
        )
        remove([path])


def test_a_window_that_cannot_be_written_counts_on(counting: Counting) -> None:
    counting.folder.parent.mkdir(exist_ok=True)
    counting.folder.write_text("in the way")
    counting.collector.note([recorded()])
    counting.collector.close()
    counting.folder.unlink()
    counting.collector.note([recorded()])
    assert dict(counting.window().decisions) == {"STEP_UP CHALLENGE": 2}


def test_only_so_many_windows_wait(tmp_path: Path) -> None:
    (tmp_path / "usage").mkdir()
    for number in range(MAX_FILES):
        (tmp_path / "usage" / f"{CHAIN}-{number:012d}.window").touch()
    assert not write_window(tmp_path / "usage", report_pb2.UsageWindow(chain=CHAIN, number=MAX_FILES))


def test_draws_of_a_day_are_one_sample(counting: Counting) -> None:
    counting.collector.note([recorded(DRAWN), recorded(DRAWN)])
    (check,) = counting.window().draws
    assert (check.grant, check.grant_class, check.rate, check.outcome) == ("g1", "partners", 0.25, 0)


def test_samples_differ_by_draw_and_day() -> None:
    drawn = DRAWN.spot_check
    assert drawn is not None
    other = SpotCheck("g1", "partners", 0.25, 0.126)
    tomorrow = Facts(NOW + 86400.0, "acme", "payments.transfer")
    samples = {
        spot_check_message(facts(), drawn).sample,
        spot_check_message(facts(), other).sample,
        spot_check_message(tomorrow, drawn).sample,
    }
    assert len(samples) == 3


def test_a_spot_check_is_kept_for_its_outcome(tmp_path: Path) -> None:
    checks = Checks(tmp_path / "checks", "boot-1")
    counting = Counting(tmp_path, checks=checks)
    drawn = recorded(DRAWN)
    counting.collector.note([drawn, recorded(subject="bob")])
    checks.report(drawn.decision_id, "payments", report_pb2.SPOT_CHECK_OUTCOME_PASSED, Clock().boottime())
    ((_, message),) = checks.unsent("acme", 10)
    assert message.sample == counting.window().draws[0].sample
    checks.close()


def test_a_fingerprint_in_one_hand_stays_in_the_pod(counting: Counting) -> None:
    counting.collector.note([recorded(fingerprint=LAPTOP)] * 5)
    assert not counting.window().fingerprints


def test_a_fingerprint_in_several_hands_is_told_by_a_sketch(counting: Counting) -> None:
    phone = Device(presented=True, binding=Binding.RECOGNISED, id="phone")
    bound = Device(presented=True, binding=Binding.BOUND, id="laptop")
    counting.collector.note(
        [
            recorded(subject="alice", fingerprint=LAPTOP, device=phone),
            recorded(subject="bob", fingerprint=LAPTOP, device=bound),
            recorded(subject="carol", fingerprint=LAPTOP),
        ]
    )
    usage = counting.window()
    (told,) = usage.fingerprints
    assert round(DistinctCount.from_bytes(told.subjects).estimate()) == 3
    # Whoever proved a key is not to be disturbed.
    assert [(pair.subject, pair.device) for pair in told.devices] == [("alice", "phone")]
    assert len(usage.sketch_key) == 8
    encoded = usage.SerializeToString()
    assert b"macOS" not in encoded
    assert b"carol" not in encoded


def test_who_is_seen_one_after_the_other_is_told_together(counting: Counting) -> None:
    counting.collector.note([recorded(subject="alice", fingerprint=LAPTOP)])
    counting.window()
    counting.collector.note([recorded(subject="bob", fingerprint=LAPTOP)])
    (told,) = counting.window().fingerprints
    assert round(DistinctCount.from_bytes(told.subjects).estimate()) == 2
    # What has not changed is not told again.
    counting.collector.note([recorded()])
    assert not counting.window().fingerprints


def test_what_a_window_has_no_room_for_is_told_by_the_next(counting: Counting) -> None:
    """Or whoever shows enough fingerprints of their own hides another."""
    names = [f"c{number}" for number in range(MAX_FINGERPRINTS + 1)]
    counting.collector.note(
        [recorded(subject=who, fingerprint={"canvas": name}) for name in names for who in ("alice", "bob")]
    )
    first = {use.fingerprint for use in counting.window().fingerprints}
    assert len(first) == MAX_FINGERPRINTS
    counting.collector.note([recorded()])
    (last,) = counting.window().fingerprints
    assert last.fingerprint not in first


def test_without_a_tenant_key_no_fingerprint_is_told(counting: Counting) -> None:
    counting.collector.note([recorded(subject=name, fingerprint=LAPTOP, secret=None) for name in ("alice", "bob")])
    assert not counting.window().fingerprints


def test_pods_agree_on_what_a_fingerprint_is_called() -> None:
    key = b"k" * 32
    assert fingerprint_hash(key, LAPTOP) == fingerprint_hash(key, dict(reversed(LAPTOP.items())))
    assert fingerprint_hash(key, LAPTOP) != fingerprint_hash(key, LAPTOP | {"canvas": "c2"})


def test_findings_of_guards_are_counted(counting: Counting) -> None:
    counting.reports = [Report("acme", NOW, "canary", "ACTION", 1.0, "alice", "payments.x")] * 2
    (guard,) = counting.window().guards
    assert (guard.guard, guard.code, guard.findings) == ("canary", "ACTION", 2)


def test_memory_is_bounded(counting: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_NOTES", 100)
    for number in range(1_000):
        counting.collector.note([recorded(subject=f"s{number}", fingerprint={"canvas": str(number)})])
        if number % 100 == 99:
            counting.collector.follow()
    usage = counting.window()
    assert sum(usage.decisions.values()) == 1_000
    assert usage.ByteSize() < 100_000
