"""Plays logins through the sidecar's own decision path, by their time: gather, guards, decide, over a real store.

Each login asks whether it may go on without a second factor (`signin.password`). After a wrong password the question is asked all
the same, without a session, so that the answer does not tell that it was wrong. Whoever has to step up and is who they say they
are does so, comes back with a strong authentication, and their browser is registered, as the product does it. Who took over an
account cannot. Nothing that decides sees `takeover` or `attack_ip`.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple, Self

from msgspec.structs import replace
from sidestep.v1 import decision_pb2
from sidestep.v1 import resources_pb2 as pb

from engine.decide import decide
from engine.decision import Basis, Code, Outcome
from engine.guards import PREFIX
from engine.names import Collection
from sidecar.front.servicer import DecisionServicer, Verdict
from sidecar.gather.gatherer import GatherConfig, Gathered
from sidecar.simulate.rba import Login
from sidecar.simulate.store import SimulatedClock, SimulatedStore
from sidecar.simulate.tenant import STRONG_ACR, WEAK_ACR, Identity, coordinates, fingerprint, subject

ACTION: Final = "signin.password"
STEP_UP_TAKES_S: Final = 25.0
"""From the challenge to the next question."""
_SOFT_STALE_S: Final = 7200.0
_HARD_STALE_S: Final = 86400.0


class Played(NamedTuple):
    """What one question got. `row`: of its login; `again`: asked after stepping up. `guards`: names of those raised;
    `disturbed`: without them it would have been let in."""

    row: int
    login: Login
    at: float
    again: bool
    outcome: Outcome
    basis: Basis
    guards: tuple[str, ...]
    disturbed: bool


class _Return(NamedTuple):
    """Someone comes back from stepping up."""

    at: float
    row: int
    login: Login


class Player:
    """Plays logins over a store in `folder`, for one tenant, all asking for `action`; after a wrong password for
    `refused_action` (empty: the same). To be used with `with`.

    `policies`: as YAML, by name; raises PolicyError.
    """

    def __init__(
        self,
        folder: Path,
        tenant: str,
        policies: Mapping[str, str],
        *,
        action: str = ACTION,
        refused_action: str = "",
        seed: int = 1,
    ) -> None:
        self._folder = folder
        self._tenant = tenant
        self._action = action
        self._refused_action = refused_action or action
        self._identity = Identity(seed)
        self._records = self._identity.records(tenant, policies)
        self._servicer: DecisionServicer | None = None
        self._store: SimulatedStore | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._store is not None:
            self._store.close()

    def play(self, logins: Iterable[tuple[int, Login]]) -> Iterator[Played]:
        """Asks about every login, which comes with the number of its row, when its time has come. One that is earlier than the
        one before it is asked about then."""
        returning: list[_Return] = []
        for row, login in logins:
            while returning and returning[0].at <= login.at:
                yield self._ask_again(heapq.heappop(returning))
            played = self._ask(row, login, login.at)
            yield played
            if played.outcome is Outcome.STEP_UP and login.successful and not login.takeover:
                heapq.heappush(returning, _Return(played.at + STEP_UP_TAKES_S, row, login))
        while returning:
            yield self._ask_again(heapq.heappop(returning))

    def _ask(self, row: int, login: Login, at: float) -> Played:
        store, servicer = self._opened(at)
        if login.successful:
            self._enrol(store, login.user)
        return self._decide(store, servicer, row, login, None)[0]

    def _ask_again(self, back: _Return) -> Played:
        store, servicer = self._opened(back.at)
        played, verdict = self._decide(store, servicer, back.row, back.login, store.clock.now)
        if played.outcome is Outcome.ALLOW:
            self._register(store, back.login, verdict.gathered.facts.device.id)
        return played

    def _opened(self, at: float) -> tuple[SimulatedStore, DecisionServicer]:
        """The store and what decides over it, at this time."""
        if self._store is None or self._servicer is None:
            clock = SimulatedClock(at)
            self._store = SimulatedStore(self._folder, self._tenant, self._records, clock)
            self._servicer = DecisionServicer(
                GatherConfig(self._tenant, _SOFT_STALE_S, _HARD_STALE_S), clock, diagnose=False
            )
        self._store.clock.advance(at)
        self._store.confirm()
        return self._store, self._servicer

    def _decide(
        self, store: SimulatedStore, servicer: DecisionServicer, row: int, login: Login, proved_at: float | None
    ) -> tuple[Played, Verdict]:
        now = store.clock.now
        request = self._request(row, login, now, proved_at)
        assert store.reader is not None
        with store.reader.view() as view:
            verdict = servicer.evaluate(request, "", view, now)
        assert isinstance(verdict, Verdict)  # without a request_id there is nothing to wait for
        decision = verdict.decision
        raised = (reason.clause for reason in decision.reasons if reason.code is Code.GUARD_RAISED)
        guards = tuple(dict.fromkeys(clause.removeprefix(PREFIX) for clause in raised))
        disturbed = bool(guards) and decision.outcome is not Outcome.ALLOW and _calm(verdict.gathered)
        played = Played(row, login, now, proved_at is not None, decision.outcome, decision.basis, guards, disturbed)
        return played, verdict

    def _request(self, row: int, login: Login, now: float, proved_at: float | None) -> decision_pb2.EvaluateRequest:
        request = decision_pb2.EvaluateRequest(
            subject=decision_pb2.SubjectRef(id=login.user),
            action=decision_pb2.Action(name=self._action if login.successful else self._refused_action),
            device=decision_pb2.DeviceEvidence(fingerprint=fingerprint(login)),
        )
        context = request.context
        context.ip = login.ip
        context.country = login.country
        if login.asn is not None:
            context.asn = login.asn
        attributes = context.attributes
        if (spot := coordinates(login)) is not None:
            attributes["lat"], attributes["lon"] = spot
        if browser := request.device.fingerprint.get("browser", ""):
            attributes["browser"] = browser
        if login.successful:
            session, acr = f"s{row}", WEAK_ACR if proved_at is None else STRONG_ACR
            started_at = now if proved_at is None else proved_at - STEP_UP_TAKES_S
            request.session.id = session
            request.session.last_active_time.FromSeconds(int(now))
            request.session.token = self._identity.token(login.user, session, acr, now, started_at)
        return request

    def _enrol(self, store: SimulatedStore, user: str) -> None:
        """Whoever knows a password has an account."""
        assert store.reader is not None
        with store.reader.view() as view:
            known = view.get(Collection.SUBJECTS, self._tenant, user) is not None
        if not known:
            store.put([((Collection.SUBJECTS, user), subject(self._tenant, user), None)])

    def _register(self, store: SimulatedStore, login: Login, device_id: str) -> None:
        """The browser is the person's from now on, as it looks today."""
        shown = fingerprint(login)
        if not device_id:
            whole = "\0".join((login.user, *(f"{name}={value}" for name, value in sorted(shown.items()))))
            device_id = f"d-{hashlib.blake2b(whole.encode(), digest_size=10).hexdigest()}"
        assert store.reader is not None
        with store.reader.view() as view:
            old = view.get(Collection.DEVICES, self._tenant, device_id)
        before = None if old is None else pb.Device.FromString(old)
        name = f"tenants/{self._tenant}/devices/{device_id}"
        device = self._identity.device(name, login.user, shown, store.clock.now, before)
        store.put([((Collection.DEVICES, device_id), device, old)])


def _calm(gathered: Gathered) -> bool:
    """Whether the request is let in if no guard had found anything."""
    facts = gathered.facts
    candidates = tuple(replace(candidate, guards=()) for candidate in facts.candidates)
    return decide(replace(facts, guards=(), candidates=candidates), gathered.rules).outcome is Outcome.ALLOW
