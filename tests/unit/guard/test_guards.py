"""Detectors and their tracks: what raises a finding, whom it reaches, how long it holds, and what is reported of it."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from engine.decide import decide
from engine.decision import Basis, Decision, Outcome
from engine.facts import Device, Finding
from engine.policy.guards import GUARDS
from sidecar import page
from sidecar.gather.gatherer import Gathered
from sidecar.guard import seen
from sidecar.guard.guards import Guards
from sidecar.guard.reports import MAX_QUEUED
from sidecar.guard.track import MAX_KNOWN, MAX_UNKNOWN
from sidecar.page import Page, WorkerWord
from tests.unit.guard.asked import BOUND, LAPTOP, NOW, RECOGNISED, UNKNOWN, asked, rules
from tests.unit.guard.flood import bound, flood

NETWORKS = rules("{manyNetworks: {maxNetworks: 2, window: 1h, holdFor: 2h}}")
TRAVEL = rules("{impossibleTravel: {}}")
SHARED = rules("{sharedFingerprint: {maxSubjects: 2, window: 1h}}")


def ask(guards: Guards, gathered: Gathered) -> dict[str, Finding]:
    """One request, decided; the findings it is decided with."""
    examined = guards.examine(gathered)
    guards.learn(examined, decide(examined.gathered.facts, gathered.rules))
    return {finding.name: finding for finding in examined.gathered.facts.guards}


def network(number: int) -> bytes:
    return bytes([10, number, 0, 1])


def raise_networks(guards: Guards, **change: Any) -> Finding:
    """Brings the device over the limit of two networks at NOW."""
    for number in range(3):
        found = ask(guards, asked(NETWORKS, address=network(number), **change))
    return found["many-networks"]


def test_the_page_counts_every_guard() -> None:
    assert page.GUARDS == GUARDS


def test_without_guards_or_limits_nothing_is_remembered() -> None:
    guards = Guards()
    assert ask(guards, asked(rules())) == {}
    assert len(guards) == 0


def test_since_is_the_latest_evidence_and_stays_without_any() -> None:
    guards = Guards()
    assert raise_networks(guards).since == NOW
    assert ask(guards, asked(NETWORKS, address=network(1), at=60))["many-networks"].since == NOW
    assert ask(guards, asked(NETWORKS, address=network(8), at=90))["many-networks"].since == NOW
    assert ask(guards, asked(NETWORKS, address=network(9), at=700))["many-networks"].since == NOW + 700


def test_more_over_the_limit_is_surer() -> None:
    guards = Guards()
    first = raise_networks(guards).confidence
    assert 0.5 < first < 1.0
    assert ask(guards, asked(NETWORKS, address=network(9)))["many-networks"].confidence > first


def test_finding_holds_from_its_last_evidence() -> None:
    guards = Guards()
    raise_networks(guards)
    assert "many-networks" in ask(guards, asked(NETWORKS, address=network(2), at=7199))
    assert ask(guards, asked(NETWORKS, address=network(2), at=7200 + 7199)) == {}


def test_surer_tracks_judge_and_are_not_judged() -> None:
    for raised, told in (
        (BOUND, {BOUND, RECOGNISED, UNKNOWN}),
        (RECOGNISED, {RECOGNISED, UNKNOWN}),
        (UNKNOWN, {UNKNOWN}),
    ):
        guards = Guards()
        raise_networks(guards, device=raised)
        for device in (BOUND, RECOGNISED, UNKNOWN):
            found = ask(guards, asked(NETWORKS, device=device, address=network(2), at=1))
            assert bool(found) == (device in told), (raised.binding, device.binding)


def test_another_registered_device_is_not_reached() -> None:
    guards = Guards()
    raise_networks(guards, device=BOUND)
    assert ask(guards, asked(NETWORKS, device=replace(BOUND, id="phone"))) == {}


def test_another_unknown_device_is_reached_only_if_it_shows_no_more() -> None:
    guards = Guards()
    raise_networks(guards)
    less = {"os": "macOS"}
    assert ask(guards, asked(NETWORKS, fingerprint=less, address=network(2)))
    assert ask(guards, asked(NETWORKS, fingerprint={}, address=network(2)))
    assert ask(guards, asked(NETWORKS, fingerprint={"os": "Linux"}, address=network(2))) == {}


def test_each_device_a_request_may_be_has_its_own_findings() -> None:
    guards = Guards()
    raise_networks(guards, device=BOUND)
    twin = replace(RECOGNISED, id="twin")
    examined = guards.examine(asked(NETWORKS, device=BOUND, others=(twin,), address=network(2), at=1))
    facts = examined.gathered.facts
    assert [finding.name for finding in facts.guards] == ["many-networks"]
    assert facts.candidates[0].guards == ()


def test_unknown_devices_never_displace_registered_ones() -> None:
    guards = Guards()
    raise_networks(guards, device=BOUND)
    for number in range(3 * (MAX_KNOWN + MAX_UNKNOWN)):
        ask(guards, asked(NETWORKS, fingerprint={"canvas": str(number)}, at=1))
    assert ask(guards, asked(NETWORKS, device=BOUND, address=network(2), at=2))


def test_made_up_subjects_never_displace_known_ones() -> None:
    guards = Guards(entries=64)
    raise_networks(guards)
    for number in range(300):
        ask(guards, asked(NETWORKS, subject=f"nobody-{number}", known=False))
    assert ask(guards, asked(NETWORKS, address=network(2), at=1))


def test_subject_keeps_its_findings_when_it_becomes_known() -> None:
    guards = Guards()
    raise_networks(guards, known=False)
    assert ask(guards, asked(NETWORKS, address=network(2), at=1, known=True))


def test_a_fingerprint_is_shared_whatever_else_it_shows() -> None:
    guards = Guards()
    for number in range(2):
        assert ask(guards, asked(SHARED, subject=f"s{number}", fingerprint={**LAPTOP, "screen": str(number)})) == {}
    assert ask(guards, asked(SHARED, subject="s2"))["shared-fingerprint"].code == "SHARED_FINGERPRINT"


def test_made_up_fingerprints_never_displace_shared_ones() -> None:
    guards = Guards(entries=64)
    for number in range(2):
        ask(guards, asked(SHARED, subject=f"s{number}"))
    for number in range(300):
        ask(guards, asked(SHARED, subject="t", fingerprint={**LAPTOP, "canvas": f"x{number}"}))
    assert ask(guards, asked(SHARED, subject="s2"))


def test_subjects_of_a_fingerprint_are_forgotten_after_the_window() -> None:
    guards = Guards()
    for number in range(2):
        ask(guards, asked(SHARED, subject=f"s{number}"))
    assert ask(guards, asked(SHARED, subject="s2", at=3601)) == {}


def test_the_same_far_place_again_is_no_new_evidence() -> None:
    guards = Guards()
    ask(guards, asked(TRAVEL, device=BOUND, lat=52.5, lon=13.4))
    first = ask(guards, asked(TRAVEL, device=BOUND, lat=-33.9, lon=151.2, at=600))
    again = ask(guards, asked(TRAVEL, device=BOUND, lat=-33.9, lon=151.2, at=700))
    assert first["impossible-travel"].since == again["impossible-travel"].since == NOW + 600


def test_stated_places_and_those_of_addresses_are_not_mixed() -> None:
    class Everywhere:
        def find(self, address: bytes) -> tuple[float, float] | None:
            return {network(0): (52.5, 13.4), network(1): (-33.9, 151.2)}.get(address)

    places: Any = Everywhere()
    guards = Guards(places=places)
    assert ask(guards, asked(TRAVEL, address=network(0), lat=-33.9, lon=151.2)) == {}
    assert ask(guards, asked(TRAVEL, address=network(0), lat=-33.9, lon=151.2, at=60)) == {}
    assert ask(guards, asked(TRAVEL, address=network(1), lat=-33.9, lon=151.2, at=120))["impossible-travel"]


def test_address_the_file_does_not_know_says_nothing_and_an_unstated_one_does() -> None:
    class Berlin:
        def find(self, address: bytes) -> tuple[float, float] | None:
            return (52.5, 13.4) if address == network(0) else None

    places: Any = Berlin()
    guards = Guards(places=places)
    ask(guards, asked(TRAVEL, address=network(0)))
    assert ask(guards, asked(TRAVEL, address=network(7), at=60)) == {}
    assert ask(guards, asked(TRAVEL, address=None, at=60))["impossible-travel"].code == "LOCATION_MISSING"


def test_burst_is_measured_against_what_is_usual() -> None:
    burst = rules("{exemptionBurst: {factor: 4, window: 10m, baseline: 1h, minUses: 3}}")
    used = Decision(Outcome.ALLOW, Basis.EXEMPTION_GRANT, (), grant="g1")

    def use(guards: Guards, at: float) -> bool:
        examined = guards.examine(asked(burst, device=BOUND, at=at))
        guards.learn(examined, used)
        return any(report.guard and not report.grant for report in guards.findings())

    quiet, busy = Guards(), Guards()
    for minute in range(240):
        use(busy, minute * 60.0)  # a young device has nothing usual, and is found to burst
    assert [use(quiet, 14_400.0 + second) for second in range(6)] == [False, False, False, True, False, False]
    assert not any(use(busy, 14_400.0 + second) for second in range(6))


def test_burst_of_a_grant_is_reported_and_has_no_effect() -> None:
    burst = rules("{exemptionBurst: {minUses: 3}}")
    used = Decision(Outcome.ALLOW, Basis.EXEMPTION_GRANT, (), grant="g1")
    guards = Guards()
    for number in range(5):
        examined = guards.examine(asked(burst, subject=f"s{number}", device=BOUND))
        guards.learn(examined, used)
        assert examined.gathered.facts.guards == ()
    reports = guards.findings()
    assert {(report.guard, report.code, report.grant) for report in reports} == {
        ("exemption-burst", "GRANT_BURST", "g1")
    }


def test_new_findings_are_reported_once_and_counted(tmp_path: Path) -> None:
    held = Page.create(tmp_path / "page", 1)
    slot = held.worker(0)
    guards = Guards(slot=slot)
    raise_networks(guards, device=BOUND)
    ask(guards, asked(NETWORKS, device=BOUND, address=network(2), at=1))
    (report,) = guards.findings()
    assert (report.tenant, report.subject, report.device, report.guard, report.code, report.at) == (
        "acme",
        "alice",
        "laptop",
        "many-networks",
        "MANY_NETWORKS",
        NOW,
    )
    assert report.fingerprint == LAPTOP
    assert guards.findings() == []
    assert slot.get(WorkerWord.GUARD_FINDINGS, GUARDS.index("many-networks")) == 1
    held.close()


def test_reports_nobody_takes_are_bounded() -> None:
    guards = Guards()
    trap = rules("{canary: {actions: [pay.trap]}}")
    for number in range(MAX_QUEUED + 5):
        ask(guards, asked(trap, action="pay.trap", subject=f"s{number}"))
    reports = guards.findings()
    assert len(reports) == MAX_QUEUED
    assert reports[-1].subject == f"s{MAX_QUEUED + 4}"


def test_memory_is_bounded_however_many_keys_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flood that fills every table, and as much again: `python -m bench.guard_flood` throws ten million at the same bound.

    Of the fingerprints as they came fewer are kept than usual; test_seen.py has their bound.
    """
    monkeypatch.setattr(seen, "MAX_KEPT", 16)
    entries, whole = 24, 4 * 24 * 48
    guards = Guards(entries=entries)
    tracemalloc.start()
    try:
        flood(guards, 2 * entries, 0, whole)
        gc.collect()
        full, _ = tracemalloc.get_traced_memory()
        flood(guards, 2 * entries, whole, whole + whole // 2)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after < 1.2 * full
    assert after < bound(entries) - 2 * seen.MAX_KEPT_BYTES
    assert len(guards) <= 7 * entries


_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["alice", "bob"]),
        st.sampled_from([UNKNOWN, RECOGNISED, BOUND]),
        st.integers(0, 3),
        st.sampled_from([None, (52.5, 13.4), (-33.9, 151.2)]),
        st.sampled_from([LAPTOP, {**LAPTOP, "canvas": "c2"}, {"os": "iOS"}, {}]),
        st.integers(0, 600),
    ),
    max_size=25,
)
_EVERY = rules(
    "{manyNetworks: {maxNetworks: 1}, impossibleTravel: {}, sharedFingerprint: {maxSubjects: 1}, "
    "inconsistentFingerprint: {}, probing: {maxNearMisses: 1}, canary: {when: [{name: d, when: context.debug}]}}"
)
_VICTIM = Device(presented=True, binding=BOUND.binding, id="victims", trust=1.0)


@settings(max_examples=150, deadline=None)
@given(steps=_STEPS)
def test_nothing_done_elsewhere_disturbs_a_device(steps: list[Any]) -> None:
    """Whatever others do, and whatever is done in her name on other devices: Alice on her own is treated as if nothing was."""
    guards = Guards()
    at = 0.0
    for subject, device, place, where, fingerprint, later in steps:
        at += later
        coordinates = {} if where is None else {"lat": where[0], "lon": where[1]}
        ask(
            guards,
            asked(
                _EVERY,
                subject=subject,
                device=device,
                fingerprint=fingerprint,
                address=network(place),
                at=at,
                amount=99.0,
                debug=True,
                **coordinates,
            ),
        )
    assert ask(guards, asked(_EVERY, device=_VICTIM, lat=52.5, lon=13.4, at=at + 1)) == {}


@settings(max_examples=100, deadline=None)
@given(steps=_STEPS)
def test_equal_events_give_equal_findings(steps: list[Any]) -> None:
    def run() -> list[dict[str, Finding]]:
        guards, at, found = Guards(), 0.0, []
        for subject, device, place, _, fingerprint, later in steps:
            at += later
            found.append(
                ask(
                    guards,
                    asked(
                        _EVERY, subject=subject, device=device, fingerprint=fingerprint, address=network(place), at=at
                    ),
                )
            )
        return found

    assert run() == run()


class Attentive(Guards):
    """Looks at every request, also at those that are as before."""

    def examine(self, gathered: Gathered, caller: str = "") -> Any:
        examined = super().examine(gathered, caller)
        for table in (self._subjects._known, self._subjects._others):
            for state in table.values():
                if state.calm is not None:
                    state.calm.settle()
                    state.calm = None
        return examined


_AMOUNTS = st.sampled_from([5.0, 99.0])
_REPEATED = st.lists(
    st.tuples(_STEPS.filter(bool).map(lambda steps: steps[0]), st.integers(1, 4), _AMOUNTS), max_size=12
)


@settings(max_examples=200, deadline=None)
@given(steps=_REPEATED)
def test_looking_only_at_what_changed_finds_the_same(steps: list[Any]) -> None:
    def run(guards: Guards) -> list[dict[str, Finding]]:
        at, found = 0.0, []
        for (subject, device, place, where, fingerprint, later), times, amount in steps:
            coordinates = {} if where is None else {"lat": where[0], "lon": where[1]}
            for _ in range(times):
                at += later
                request = asked(
                    _MANY,
                    subject=subject,
                    device=device,
                    fingerprint=fingerprint,
                    address=network(place),
                    at=at,
                    amount=amount,
                    **coordinates,
                )
                examined = guards.examine(request)
                outcome = Outcome.STEP_UP if examined.gathered.facts.guards and times > 2 else Outcome.ALLOW
                guards.learn(examined, Decision(outcome, Basis.EXEMPTION_GRANT, (), grant="g"))
                found.append({finding.name: finding for finding in examined.gathered.facts.guards})
        return found

    assert run(Guards()) == run(Attentive())


_MANY = rules(
    "{manyNetworks: {maxNetworks: 2, window: 20m}, impossibleTravel: {}, sharedFingerprint: {maxSubjects: 1}, "
    "inconsistentFingerprint: {}, probing: {maxNearMisses: 3}, exemptionBurst: {minUses: 6}}"
)
