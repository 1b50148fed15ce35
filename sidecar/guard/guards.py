"""The guards and rate limits of a worker: `examine` before a decision, `learn` after it."""

from __future__ import annotations

import threading
from typing import Any, Final, NamedTuple

import msgspec
from msgspec.structs import replace

from engine.decision import Basis, Decision, Outcome
from engine.facts import Binding, Facts, Finding
from engine.guards import GuardRule
from engine.plan import Plan
from engine.policy.guards import GUARDS, ExemptionBurst, ImpossibleTravel, Probing, SharedFingerprint
from sidecar.gather.gatherer import Gathered
from sidecar.gather.request import Checked
from sidecar.guard import learn
from sidecar.guard.detect import (
    Detect,
    Detected,
    ImpossibleTravelDetector,
    InconsistentFingerprintDetector,
    ManyNetworksDetector,
    Record,
    SharedFingerprintDetector,
    Traps,
)
from sidecar.guard.limiter import Limiter
from sidecar.guard.places import Places
from sidecar.guard.reports import Report, Reports
from sidecar.guard.seen import NOTHING, Fingerprints, Seen, Shown, place_of, seen
from sidecar.guard.track import Calm, SubjectState, SubjectTable, Track, findings
from sidecar.page import WorkerSlot, WorkerWord

ENTRIES: Final = 8192
"""Subjects, fingerprints, grants and keys of each rate limit that are remembered, each."""
_MAX_PROGRAMS: Final = 1024
# Looked up once: a member of an enumeration takes as long as several comparisons.
_UNKNOWN: Final = Binding.UNKNOWN
_ALLOW: Final = Outcome.ALLOW
_EXEMPTION: Final = Basis.EXEMPTION_GRANT
_PLACE: Final = {name: place for place, name in enumerate(GUARDS)}


class _Program(NamedTuple):
    """What a plan's guards come down to: what runs before a decision, and what after it."""

    plan: Plan
    before: tuple[tuple[GuardRule, Any, Detect, Record], ...]
    traps: tuple[GuardRule, Traps] | None
    shared: SharedFingerprint | None
    travel: ImpossibleTravel | None
    burst: tuple[GuardRule, ExemptionBurst] | None
    probing: tuple[GuardRule, Probing] | None
    # What shows the same again need not be looked at. Conditions of traps may read what is not compared.
    calming: bool


class Examined(msgspec.Struct, frozen=True, eq=False, gc=False):
    """A request's facts with what the guards found, and what they go on from once it is decided."""

    gathered: Gathered
    program: _Program | None = None
    seen: Seen | None = None
    # Of each device it may be: its own track, and those it was judged by.
    own: tuple[Track, ...] = ()
    judging: tuple[list[Track], ...] = ()
    # All is as it was before, and `seen` is None.
    calm: Calm | None = None


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
        self._limiter = Limiter(self._entries, self._slot)
        self._bursts = learn.Bursts(self._entries)
        self._reports = Reports()
        self._shared = SharedFingerprintDetector(self._entries)
        self._travel = ImpossibleTravelDetector(self._places)
        networks, inconsistent = ManyNetworksDetector(), InconsistentFingerprintDetector()
        self._programs: dict[int, _Program] = {}
        self._detectors: dict[str, tuple[Detect, Record]] = {
            "shared-fingerprint": (self._shared.detect, self._shared.record),
            "many-networks": (networks.detect, networks.record),
            "impossible-travel": (self._travel.detect, self._travel.record),
            "inconsistent-fingerprint": (inconsistent.detect, inconsistent.record),
        }

    def __len__(self) -> int:
        return len(self._subjects) + len(self._shared) + len(self._bursts) + len(self._limiter)

    def examine(self, gathered: Gathered, caller: str = "") -> Examined:
        """What is known of the request's subject and device, with it, as facts. `caller`: the asking service's name.

        To be called once per request, in the order of their times. Raises RateLimitedError over a hard rate limit; such a
        request is not looked at any further.
        """
        facts, asked, limits = gathered.facts, gathered.asked, gathered.limits
        plan = gathered.rules.plan(facts.action, facts.posture)
        if asked is None or not (plan.guards or limits is not None):
            return Examined(gathered)
        with self._lock:
            unknown = facts.device.binding is _UNKNOWN
            shown = self._shown(gathered) if unknown else NOTHING
            if limits is not None:
                exceeded = self._limiter.take(limits, gathered, asked.subject, shown, caller)
                if exceeded:
                    facts = replace(facts, rate_limited=exceeded)
                    gathered = gathered._replace(facts=facts)
                if not plan.guards:
                    return Examined(gathered)
            program = self._programs.get(id(plan)) or self._compile(plan)
            state = self._subjects.get(facts.tenant, asked.subject, known=facts.subject.known)
            calm = state.calm
            if calm is not None:
                if _as_before(calm, gathered, asked, program) and not (unknown and self._is_shared(program, gathered)):
                    calm.at = facts.now
                    return Examined(gathered, program, None, (calm.track,), calm=calm)
                calm.settle()
                state.calm = None
            if not unknown:
                shown = self._shown(gathered)
            return self._look_into(gathered, seen(asked, facts, shown), state, program)

    def _is_shared(self, program: _Program, gathered: Gathered) -> bool:
        """Whether others show an unknown device's fingerprint too: that alone may change while it shows what it did. If not, it
        is remembered."""
        if program.shared is None:
            return False
        look = self._look(gathered)
        if self._shared.detect(program.shared, look) is not None:
            return True
        self._shared.record(program.shared, look)
        return False

    def _look_into(self, gathered: Gathered, look: Seen, state: SubjectState, program: _Program) -> Examined:
        facts, shown = gathered.facts, look.shown
        own = tuple([state.own(device, shown) for device in look.devices])
        judging = tuple([state.judging(device, shown, track) for device, track in zip(look.devices, own, strict=True)])
        found: list[tuple[Finding, ...]] = []
        for track, tracks in zip(own, judging, strict=True):
            for rule, settings, detect, _ in program.before:
                detected = detect(settings, look, tracks, track)
                if detected is not None:
                    self._raise(rule, detected, look, track)
            if program.traps is not None:
                detected = program.traps[1].sprung(facts, look)
                if detected is not None:
                    self._raise(program.traps[0], detected, look, track)
            found.append(findings(tracks, facts.now))
        for track in own:
            for _, settings, _, record in program.before:
                record(settings, look, track)
        if state.single and program.calming and not own[0].findings:
            state.calm = _calm(look, own[0], program, gathered.device_evidence)
        if any(found):
            gathered = gathered._replace(facts=_with_findings(facts, found))
        return Examined(gathered, program, look, own, judging)

    def learn(self, examined: Examined, decision: Decision) -> None:
        """What the decision on an examined request shows. What is found holds from the next request on."""
        program = examined.program
        if program is None:
            return
        if program.travel is not None and decision.outcome is _ALLOW:
            calm = examined.calm
            # Most are at home already.
            if calm is None or not calm.home:
                with self._lock:
                    self._settle_in(program.travel, examined)
        if program.burst is not None and decision.basis is _EXEMPTION:
            with self._lock:
                self._learn(*program.burst, examined, program.plan, decision)
        if program.probing is not None:
            rule, settings = program.probing
            if learn.near_miss(settings, program.plan, examined.gathered.facts, decision):
                with self._lock:
                    self._learn(rule, settings, examined, program.plan, decision)

    def _settle_in(self, settings: Any, examined: Examined) -> None:
        """It was let through where it is."""
        calm, look = examined.calm, examined.seen
        if look is not None:
            answered = any(finding.name == "impossible-travel" for finding in examined.gathered.facts.guards)
            for track, tracks in zip(examined.own, examined.judging, strict=True):
                self._travel.allowed(settings, look, track, tracks, answered)
        elif calm is not None and not calm.home:
            calm.settle()
            self._travel.allowed(settings, self._look(examined.gathered), calm.track, [calm.track], answered=False)
            calm.home = True

    def _learn(self, rule: GuardRule, settings: Any, examined: Examined, plan: Plan, decision: Decision) -> None:
        facts = examined.gathered.facts
        look = examined.seen or self._look(examined.gathered)
        burst = rule.name == "exemption-burst"
        for track in examined.own:
            if burst:
                detected = self._bursts.of_device(settings, facts, decision, track)
            else:
                detected = learn.probing(settings, plan, facts, decision, track)
            if detected is not None:
                self._raise(rule, detected, look, track)
        wider = self._bursts.of_grant(settings, facts, decision) if burst else None
        if wider is not None:
            self._report(rule, wider, look, decision.grant)

    def findings(self) -> list[Report]:
        """Takes the findings since the last call, oldest first, for the report upstream; at most a thousand are kept."""
        with self._lock:
            return self._reports.drain()

    def _look(self, gathered: Gathered) -> Seen:
        assert gathered.asked is not None
        return seen(gathered.asked, gathered.facts, self._shown(gathered))

    def _shown(self, gathered: Gathered) -> Shown:
        return self._fingerprints.get(gathered.device_evidence, gathered.fingerprint)

    def _compile(self, plan: Plan) -> _Program:
        """Kept by the plan's id, which stays its own as the program holds it."""
        if len(self._programs) >= _MAX_PROGRAMS:
            self._programs.clear()
        rules = {rule.name: rule for rule in plan.guards}

        def settings(name: str) -> Any:
            return rules[name].settings if name in rules else None

        def both(name: str) -> tuple[GuardRule, Any] | None:
            return (rules[name], rules[name].settings) if name in rules else None

        canary = rules.get("canary")
        program = self._programs[id(plan)] = _Program(
            plan,
            tuple(
                (rule, rule.settings, *self._detectors[rule.name])
                for rule in plan.guards
                if rule.name in self._detectors
            ),
            None if canary is None else (canary, Traps(settings("canary"), plan)),
            settings("shared-fingerprint"),
            settings("impossible-travel"),
            both("exemption-burst"),
            both("probing"),
            not plan.canaries,
        )
        return program

    def _raise(self, rule: GuardRule, detected: Detected, look: Seen, own: Track) -> None:
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


def _calm(look: Seen, own: Track, program: _Program, evidence: bytes) -> Calm | None:
    """None: what it shows has to be looked at each time. Traps that are actions may be sprung by the next one."""
    device = look.devices[0]
    if len(look.devices) > 1 or look.address is None:
        return None
    for place in (own.place, own.place_of_address):
        if place is not None and place.at != look.now:
            return None
    if own.place is not None and look.place is None:
        return None
    return Calm(own, program, device.id, device.binding, evidence, look.address, look.place, look.now)


def _as_before(calm: Calm, gathered: Gathered, asked: Checked, program: _Program) -> bool:
    facts, device = gathered.facts, gathered.facts.device
    return (
        calm.program is program
        and calm.evidence == gathered.device_evidence
        and calm.address == asked.address
        and calm.device_id == device.id
        and calm.binding is device.binding
        and not facts.candidates
        and not calm.track.findings
        and (calm.place == place_of(asked))
        and facts.now >= calm.at
        and (program.traps is None or not program.traps[1].names(asked, facts))
    )


def _with_findings(facts: Facts, found: list[tuple[Finding, ...]]) -> Facts:
    own, *others = found
    if not others:
        return replace(facts, guards=(*facts.guards, *own))
    candidates = tuple(
        replace(candidate, guards=(*candidate.guards, *guards))
        for candidate, guards in zip(facts.candidates, others, strict=True)
    )
    return replace(facts, guards=(*facts.guards, *own), candidates=candidates)
