"""A worker's counts: what is recorded is noted by the loops, and added up now and then by the worker's main thread.

Of fingerprints only those in several hands are told, as keyed hashes and sketches. Their sketches go on for an hour, whatever the
window, since who is seen with one is seen one after the other; the control plane merges what comes again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
from cachetools import LRUCache
from sidestep.v1 import report_pb2

from engine.classes import DEFAULT_CLASS
from engine.decision import Basis, Decision, Outcome, SpotCheck
from engine.facts import Binding, Facts
from engine.sketch import DistinctCount, HeavyHitters, item_hash, sketch_key
from sidecar.clock import Clock
from sidecar.gather.grants import day_of
from sidecar.guard.reports import Report
from sidecar.usage.checks import Check, Checks, ChecksError
from sidecar.usage.windows import write_window

WINDOW_S: Final = 10.0
MAX_NOTES: Final = 8_192
"""Decisions noted and not added up yet; beyond that they are only counted as dropped."""
MAX_TENANTS: Final = 64
MAX_GRANTS: Final = 1_000
MAX_DRAWS: Final = 1_000
MAX_GUARDS: Final = 64
MAX_FINGERPRINTS: Final = 64
MAX_DEVICES: Final = 16
_FOLLOWED: Final = 256
_HASHES: Final = 4_096
_HOUR_S: Final = 3600.0
# So few subjects are told exactly by a sketch.
_SEVERAL: Final = 1.5
_LOG_EVERY_S: Final = 60.0

_CAME_TO: Final = {(outcome, basis): f"{outcome.value} {basis.value}" for outcome in Outcome for basis in Basis}
_sketch_key = lru_cache(64)(sketch_key)
_item_hash = lru_cache(8_192)(item_hash)

_log = logging.getLogger(__name__)


class Recorded(NamedTuple):
    """What a recorded decision is noted by."""

    decision_id: bytes
    facts: Facts
    decision: Decision
    subject: str
    caller: str
    secret: bytes | None
    fingerprint: Mapping[str, str]
    # The device evidence that the fingerprint is part of, encoded as it came.
    evidence: bytes


class _Fingerprint:
    """Who was seen with one fingerprint, since the hour began."""

    __slots__ = ("changed", "devices", "subjects")

    def __init__(self) -> None:
        self.subjects = DistinctCount()
        self.devices: dict[tuple[str, str], None] = {}
        self.changed = False


class _Tenant:
    """One tenant's open window."""

    def __init__(self) -> None:
        self.decisions: dict[str, int] = {}
        # Uses, class and last time, by grant.
        self.grants: dict[str, tuple[int, str, float]] = {}
        self.draws: dict[bytes, report_pb2.SpotCheck] = {}
        self.guards: dict[tuple[str, str], int] = {}
        self.dropped = 0


class Collector:
    """`note` is for the loops, `follow` and `close` for one thread. `directory`: of the windows. `findings`: takes what guards
    found since it was last asked. `checks` None: outcomes of spot checks cannot be reported, which has been logged."""

    def __init__(
        self,
        directory: Path,
        chain: str,
        clock: Clock,
        *,
        findings: Callable[[], Sequence[Report]],
        checks: Checks | None = None,
        window_s: float = WINDOW_S,
    ) -> None:
        self._directory = directory
        self._chain = chain
        self._clock = clock
        self._findings = findings
        self._checks = checks
        self._window_s = window_s
        self._notes: deque[tuple[Recorded, report_pb2.SpotCheck | None]] = deque(maxlen=MAX_NOTES)
        self._lock = threading.Lock()
        self._lost = 0
        self._number = 0
        self._began_at = clock.wall()
        self._due = time.monotonic() + window_s
        self._tenants: dict[str, _Tenant] = {}
        self._hour = -1
        self._hashes: LRUCache[tuple[bytes, bytes], bytes] = LRUCache(_HASHES)
        self._seen: dict[tuple[str, bytes], HeavyHitters[bytes, _Fingerprint]] = {}
        # Fingerprints of the window that is being written. What it has no room for waits for the next.
        self._told: list[_Fingerprint] = []
        self._log_at = 0.0

    def note(self, recorded: Iterable[Recorded]) -> None:
        """Notes decisions whose records are in the journal, before they are answered."""
        checks = []
        for each in recorded:
            check = None
            if each.decision.spot_check is not None:
                check = spot_check_message(each.facts, each.decision.spot_check)
                kept = Check(check.SerializeToString(), self._clock.boottime(), each.caller)
                checks.append((each.decision_id, kept))
            if len(self._notes) >= MAX_NOTES:
                with self._lock:
                    self._lost += 1
            self._notes.append((each, check))
        if checks and self._checks is not None:
            try:
                self._checks.keep(checks, self._clock.boottime())
            except ChecksError as error:
                self._complain(f"outcomes of spot checks cannot be taken: {error}")

    def follow(self) -> None:
        """Adds up what was noted, and ends the window when it is time to. To be called often."""
        while self._notes:
            self._add(*self._notes.popleft())
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + self._window_s
            self._end()

    def close(self) -> None:
        """Ends the open window."""
        while self._notes:
            self._add(*self._notes.popleft())
        self._end()

    def _end(self) -> None:
        for found in self._findings():
            usage = self._tenant(found.tenant)
            if usage is not None:
                _count(usage.guards, (found.guard, found.code), usage, MAX_GUARDS)
        window = self._window()
        if window is None:
            return
        try:
            if not write_window(self._directory, window):
                return  # counts on
        except OSError as error:
            self._complain(f"counts of usage cannot be written: {error.strerror}")
            return
        self._number = window.number
        self._began_at = self._clock.wall()
        self._tenants.clear()
        for seen in self._told:
            seen.changed = False

    def _window(self) -> report_pb2.UsageWindow | None:
        self._told.clear()
        with self._lock:
            lost, self._lost = self._lost, 0
        names = {*self._tenants, *(tenant for tenant, _ in self._seen)}
        window = report_pb2.UsageWindow(chain=self._chain, number=self._number + 1)
        window.start_time.FromNanoseconds(int(self._began_at * 1e9))
        window.end_time.FromNanoseconds(int(self._clock.wall() * 1e9))
        for name in sorted(names):
            usage = self._tenants.get(name) or _Tenant()
            told = report_pb2.TenantUsage(tenant=name, decisions=usage.decisions, dropped=usage.dropped + lost)
            lost = 0
            told.draws.extend(usage.draws.values())
            for grant, (uses, grant_class, last_at) in usage.grants.items():
                use = told.grants.add(grant=grant, grant_class=grant_class, uses=uses)
                use.last_time.FromNanoseconds(int(last_at * 1e9))
            for (guard, code), count in usage.guards.items():
                told.guards.add(guard=guard, code=code, findings=count)
            self._tell_fingerprints(name, told)
            if len(told.ListFields()) > 1:
                window.tenants.append(told)
        return window if window.tenants else None

    def _tell_fingerprints(self, tenant: str, told: report_pb2.TenantUsage) -> None:
        # Under two keys while they are rotated: the one that more was seen with.
        keyed = [(len(heavy), key, heavy) for (name, key), heavy in self._seen.items() if name == tenant]
        if not keyed:
            return
        _, key, heavy = max(keyed, key=lambda each: each[:2])
        for fingerprint, _, seen in heavy.items():
            if len(told.fingerprints) == MAX_FINGERPRINTS:
                break
            if seen.changed and seen.subjects.estimate() >= _SEVERAL:
                use = told.fingerprints.add(fingerprint=fingerprint, subjects=seen.subjects.to_bytes())
                self._told.append(seen)
                for subject, device in seen.devices:
                    use.devices.add(subject=subject, device=device)
        if told.fingerprints:
            told.sketch_key = blake2b(key, digest_size=8, person=b"sketch-key-id").digest()

    def _add(self, each: Recorded, check: report_pb2.SpotCheck | None) -> None:
        usage = self._tenant(each.facts.tenant)
        if usage is None:
            return
        decision = each.decision
        came_to = _CAME_TO[decision.outcome, decision.basis]
        usage.decisions[came_to] = usage.decisions.get(came_to, 0) + 1
        if decision.basis is Basis.EXEMPTION_GRANT:
            uses, _, last_at = usage.grants.get(decision.grant, (0, "", 0.0))
            if uses or len(usage.grants) < MAX_GRANTS:
                usage.grants[decision.grant] = (uses + 1, _class_of(each), max(last_at, each.facts.now))
            else:
                usage.dropped += 1
        if check is not None:
            if check.sample in usage.draws or len(usage.draws) < MAX_DRAWS:
                usage.draws[check.sample] = check
            else:
                usage.dropped += 1
        if each.fingerprint and each.secret is not None:
            self._see(each, each.secret)

    def _see(self, each: Recorded, secret: bytes) -> None:
        facts = each.facts
        hour = int(facts.now // _HOUR_S)
        if hour != self._hour:
            self._hour = hour
            self._seen.clear()
        key = _sketch_key(secret)
        heavy = self._seen.get((facts.tenant, key))
        if heavy is None:
            if len(self._seen) >= MAX_TENANTS:
                return
            heavy = self._seen[facts.tenant, key] = HeavyHitters(_FOLLOWED)
        # Evidence that comes again, encoded as it came, need not be hashed again; in another order it is only hashed once more.
        known = (key, each.evidence)
        fingerprint = self._hashes.get(known)
        if fingerprint is None:
            fingerprint = self._hashes[known] = fingerprint_hash(key, each.fingerprint)
        seen = heavy.count(fingerprint, _Fingerprint)
        seen.subjects.add(_item_hash(key, each.subject))
        seen.changed = True
        device = facts.device
        # Who proved a key is not to be disturbed.
        if device.binding is Binding.RECOGNISED and len(seen.devices) < MAX_DEVICES:
            seen.devices[each.subject, device.id] = None

    def _tenant(self, name: str) -> _Tenant | None:
        usage = self._tenants.get(name)
        if usage is None and len(self._tenants) < MAX_TENANTS:
            usage = self._tenants[name] = _Tenant()
        return usage

    def _complain(self, text: str) -> None:
        """At most once a minute."""
        now = time.monotonic()
        if now >= self._log_at:
            self._log_at = now + _LOG_EVERY_S
            _log.error("usage: %s", text)


def spot_check_message(facts: Facts, check: SpotCheck) -> report_pb2.SpotCheck:
    """A spot check as it is reported. Its sample is the same for all draws of one subject, device and grant on one day, and says
    nothing about them: the draw is a keyed hash."""
    day = day_of(facts.now)
    content = msgspec.msgpack.encode((facts.tenant, check.grant, day, check.draw))
    message = report_pb2.SpotCheck(
        tenant=facts.tenant,
        sample=blake2b(content, digest_size=16, person=b"spot-check").digest(),
        grant=check.grant,
        grant_class=check.grant_class,
        rate=check.rate,
    )
    message.draw_time.FromNanoseconds(int(facts.now * 1e9))
    return message


def fingerprint_hash(key: bytes, fingerprint: Mapping[str, str]) -> bytes:
    """16 bytes, the same in every pod of the tenant."""
    content = msgspec.msgpack.encode(sorted(fingerprint.items()))
    return blake2b(content, digest_size=16, key=key).digest()


def _class_of(each: Recorded) -> str:
    facts = each.facts
    every = (*facts.grants, *(grant for candidate in facts.candidates for grant in candidate.grants))
    return next((grant.grant_class for grant in every if grant.id == each.decision.grant), DEFAULT_CLASS)


def _count(counts: dict[tuple[str, str], int], key: tuple[str, str], usage: _Tenant, most: int) -> None:
    if key in counts or len(counts) < most:
        counts[key] = counts.get(key, 0) + 1
    else:
        usage.dropped += 1
