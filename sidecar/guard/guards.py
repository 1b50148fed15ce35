"""The guards of a worker: `examine` before a decision, `learn` after it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from msgspec.structs import replace

from engine.decision import Decision, Outcome
from engine.facts import Binding, Facts, Finding
from engine.guards import GuardRule
from engine.plan import Plan
from engine.policy.guards import GUARDS
from sidecar.gather.gatherer import Gathered
from sidecar.guard import learn
from sidecar.guard.detect import (
    Detect,
    Detected,
    ImpossibleTravelDetector,
    InconsistentFingerprintDetector,
    ManyNetworksDetector,
    Record,
    SharedFingerprintDetector,
    canary,
)
from sidecar.guard.places import Places
from sidecar.guard.reports import Report, Reports
from sidecar.guard.seen import Fingerprints, Seen, seen
from sidecar.guard.track import SubjectTable, Track, findings
from sidecar.page import WorkerSlot, WorkerWord

ENTRIES: Final = 8192
"""Subjects, fingerprints and grants that are remembered, each."""
_PLACE: Final = {name: place for place, name in enumerate(GUARDS)}


class Examined(NamedTuple):
    """A request's facts with what the guards found, and what they go on from once it is decided."""

    gathered: Gathered
    plan: Plan | None = None
    seen: Seen | None = None
    # Of each device it may be.
    own: tuple[Track, ...] = ()


class Guards:
    """Shared by the loops of a worker; thread-safe. All it knows ends with the process.

    `entries`: how many subjects, fingerprints and grants are remembered. `places`: where addresses are. `slot`: where findings
    are counted.
    """

    def __init__(self, *, entries: int = ENTRIES, places: Places | None = None, slot: WorkerSlot | None = None) -> None:
        self._entries = entries
        self._places = places
        self._slot = slot
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Forgets everything."""
        self._subjects = SubjectTable(self._entries)
        self._fingerprints = Fingerprints()
        self._bursts = learn.Bursts(self._entries)
        self._reports = Reports()
        self._shared = SharedFingerprintDetector(self._entries)
        self._travel = ImpossibleTravelDetector(self._places)
        networks, inconsistent = ManyNetworksDetector(), InconsistentFingerprintDetector()
        self._detectors: dict[str, tuple[Detect, Record]] = {
            "shared-fingerprint": (self._shared.detect, self._shared.record),
            "many-networks": (networks.detect, networks.record),
            "impossible-travel": (self._travel.detect, self._travel.record),
            "inconsistent-fingerprint": (inconsistent.detect, inconsistent.record),
        }

    def __len__(self) -> int:
        return len(self._subjects) + len(self._shared) + len(self._bursts)

    def examine(self, gathered: Gathered, caller: str = "") -> Examined:
        """What is known of the request's subject and device, with it, as facts. To be called once per request, in the order of
        their times."""
        facts, asked = gathered.facts, gathered.asked
        plan = gathered.rules.plan(facts.action, facts.posture)
        if not plan.guards or asked is None:
            return Examined(gathered)
        with self._lock:
            shown = self._fingerprints.get(gathered.device_evidence, gathered.fingerprint)
            look = seen(asked, facts, shown)
            state = self._subjects.get(facts.tenant, asked.subject, known=facts.subject.known)
            own = tuple(state.own(device, shown) for device in look.devices)
            found: list[tuple[Finding, ...]] = []
            for device, track in zip(look.devices, own, strict=True):
                judging = state.judging(device, shown, track)
                self._detect(plan, facts, look, judging, track)
                found.append(findings(judging, facts.now))
            for rule in plan.guards:
                detector = self._detectors.get(rule.name)
                if detector is not None:
                    for track in own:
                        detector[1](rule.settings, look, track)
        if any(found):
            gathered = gathered._replace(facts=_with_findings(facts, found))
        return Examined(gathered, plan, look, own)

    def learn(self, examined: Examined, decision: Decision) -> None:
        """What the decision on an examined request shows. What is found holds from the next request on."""
        plan, look = examined.plan, examined.seen
        if plan is None or look is None:
            return
        facts = examined.gathered.facts
        with self._lock:
            for rule in plan.guards:
                settings: Any = rule.settings
                if rule.name == "impossible-travel":
                    if decision.outcome is Outcome.ALLOW:
                        for track in examined.own:
                            self._travel.allowed(settings, look, track)
                elif rule.name == "probing":
                    for track in examined.own:
                        self._raise(rule, learn.probing(settings, plan, facts, decision, track), look, track)
                elif rule.name == "exemption-burst":
                    for track in examined.own:
                        self._raise(rule, self._bursts.of_device(settings, facts, decision, track), look, track)
                    wider = self._bursts.of_grant(settings, facts, decision)
                    if wider is not None:
                        self._report(rule, wider, look, decision.grant)

    def findings(self) -> list[Report]:
        """Takes the findings since the last call, oldest first, for the report upstream; at most a thousand are kept."""
        with self._lock:
            return self._reports.drain()

    def _detect(self, plan: Plan, facts: Facts, look: Seen, judging: Sequence[Track], own: Track) -> None:
        for rule in plan.guards:
            settings: Any = rule.settings
            if rule.name == "canary":
                self._raise(rule, canary(settings, plan, facts, look), look, own)
                continue
            detector = self._detectors.get(rule.name)
            if detector is not None:
                self._raise(rule, detector[0](settings, look, judging, own), look, own)

    def _raise(self, rule: GuardRule, detected: Detected | None, look: Seen, own: Track) -> None:
        if detected is None:
            return
        code, confidence, fresh = detected
        if own.raise_(rule.name, code, confidence, look.now, rule.settings.hold_for, fresh=fresh):
            self._report(rule, detected, look)

    def _report(self, rule: GuardRule, detected: Detected, look: Seen, grant: str = "") -> None:
        device = look.devices[0]
        self._reports.add(
            Report(
                tenant=look.tenant,
                at=look.now,
                guard=rule.name,
                code=detected.code,
                confidence=detected.confidence,
                subject=look.subject,
                action=look.action,
                device=device.id if device.binding is not Binding.UNKNOWN else "",
                fingerprint=look.shown.values,
                grant=grant,
            )
        )
        if self._slot is not None:
            self._slot.add(WorkerWord.GUARD_FINDINGS, 1, _PLACE[rule.name])


def _with_findings(facts: Facts, found: list[tuple[Finding, ...]]) -> Facts:
    own, *others = found
    if not others:
        return replace(facts, guards=(*facts.guards, *own))
    candidates = tuple(
        replace(candidate, guards=(*candidate.guards, *guards))
        for candidate, guards in zip(facts.candidates, others, strict=True)
    )
    return replace(facts, guards=(*facts.guards, *own), candidates=candidates)
