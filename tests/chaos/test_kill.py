"""SIGKILL of agent, worker and supervisor at random moments, during snapshots and a stream of deltas (DESIGN section 8)."""

from __future__ import annotations

import random
import statistics
import sys
import threading
import time
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
from sidestep.v1 import decision_pb2, resources_pb2

from engine.names import Lane
from sidecar import child
from tests.chaos import world
from tests.chaos.account import recorded
from tests.chaos.ledger import Inspector, Ledger, inspecting
from tests.chaos.pod import Plane, Pod, pass_time
from tests.chaos.traffic import Operators, Service, asking, misused_grants, writing
from tests.fakes.otlp import OtlpReceiver
from tests.fakes.stock import TENANT
from tests.processes import until

# Everything competes for the same cores here: one restart may take this many times what most take.
SLOWER = 4.0
WITHIN_S = 30.0
NOT_LOADED = ("never synced", "nothing was written yet")


@dataclass
class Kill:
    """One blow: whom it hit, when, and whether during a snapshot."""

    roles: tuple[str, ...]
    at: float
    in_transfer: bool
    # How long the supervisor waits before it starts the worker again.
    pause_s: float
    # When answers flowed again and the killed were back.
    over_at: float


@dataclass
class Chaos:
    """Everything that runs, and what was done to it."""

    rng: random.Random
    plane: Plane
    pod: Pod
    ledger: Ledger
    inspector: Inspector
    service: Service
    kills: list[Kill] = field(default_factory=list)
    # Those before anything was loaded, when there are no answers yet.
    early: list[Kill] = field(default_factory=list)
    tenants: int = 0
    loaded_at: float = 0.0
    _deaths: int = 0

    def strike(self, *roles: str) -> None:
        """Kills, inspects at once, and waits until answers flow and the killed are back."""
        if "supervisor" in roles:
            assert self.pod.metric("sidestep_journal_lost_total") == 0
        before = {role: self.pod.child(role) for role in roles if role != "supervisor"}
        in_transfer = self.pod.staging()
        at, pause_s = time.monotonic(), 0.0
        if "supervisor" in roles:
            self.pod.kill_supervisor()
            self.pod.start()
            self._deaths = 0
        else:
            self.pod.kill(*roles)
            if "worker" in roles:
                pause_s = _pause_s(self._deaths)
                self._deaths += 1
        self.inspector.inspect()
        for role, pid in before.items():
            until(partial(self._is_back, role, pid), f"{role} to return", WITHIN_S)
        moment = time.monotonic()
        until(lambda: self.service.answered_since(moment), f"answers after {roles}; {self.pod.log()}", WITHIN_S)
        self.kills.append(Kill(roles, at, in_transfer, pause_s, time.monotonic()))

    def count(self) -> int:
        """How many processes were killed."""
        return sum(len(kill.roles) for kill in (*self.early, *self.kills))

    def gaps_s(self, *roles: str) -> list[float]:
        """How long answers stopped when exactly these were killed, less the supervisor's pause."""
        hits = [kill for kill in self.kills if kill.roles == roles]
        return [self.service.longest_gap_s(kill.at, kill.over_at) - kill.pause_s for kill in hits]

    def wait_for_transfer(self) -> bool:
        """Waits until a snapshot is coming in. False: none came."""
        try:
            return bool(until(self.pod.staging, "a snapshot", 3.0))
        except AssertionError:
            return False

    def wait_for_burst(self) -> None:
        """Waits until an agent that was away applies what it missed: one delta after another, as fast as it can."""
        pause = threading.Event()
        before = self.inspector.revision(TENANT, Lane.URGENT)
        deadline = time.monotonic() + 2.0
        while self.inspector.revision(TENANT, Lane.URGENT) == before and time.monotonic() < deadline:
            pause.wait(0.0002)

    def add_tenant(self) -> None:
        """A new tenant: two snapshots, for each of which the whole live generation is copied."""
        self.tenants += 1
        name = f"tenants/t{self.tenants}/subjects/s1"
        self.plane.put(resources_pb2.Resource(subject=resources_pb2.Subject(name=name, state="SUBJECT_STATE_ACTIVE")))

    def force_resync(self, operators: Operators) -> None:
        """The agent dies, falls behind, and the log is compacted before it is back: both big lanes are sent anew."""
        self.strike_without_waiting("agent")
        seen = dict(operators.acknowledged)
        until(lambda: all(operators.acknowledged[lane] > seen[lane] for lane in seen), "writes that the agent misses")
        self.plane.kill()
        self.ledger.compact(database_is_closed=True)
        self.plane.start()

    def _is_back(self, role: str, killed: int | None) -> bool:
        return self.pod.child(role) not in (None, killed)

    def strike_without_waiting(self, role: str) -> None:
        """As `strike`, but lets things go on meanwhile."""
        at, in_transfer = time.monotonic(), self.pod.staging()
        self.pod.kill(role)
        self.inspector.inspect()
        self.kills.append(Kill((role,), at, in_transfer, 0.0, time.monotonic()))


def _pause_s(deaths: int) -> float:
    """How long the supervisor waits before it starts a process again that died so often before."""
    if deaths == 0:
        return 0.0
    return min(child._BACKOFF_LAST_S, child._BACKOFF_FIRST_S * 2.0**deaths)


@pytest.mark.timeout(180)
def test_data_and_answers_survive_sigkill_at_any_moment(tmp_path: Path) -> None:
    _survive(tmp_path, kills=16, devices=10_000)


@pytest.mark.e2e
def test_data_and_answers_survive_sigkill_at_any_moment_for_long(tmp_path: Path) -> None:
    _survive(tmp_path, kills=150, devices=60_000)


def _survive(tmp_path: Path, *, kills: int, devices: int, seed: int | None = None) -> None:
    seed = random.randrange(2**32) if seed is None else seed
    sys.stdout.write(f"seed {seed}\n")
    with OtlpReceiver() as receiver, Plane(tmp_path / "cp") as plane:
        for resource in world.resources():
            plane.put(resource)
        plane.load(TENANT, [world.device(number) for number in range(devices)])
        ledger = Ledger(plane.database)
        ledger.absorb()
        endpoint = f"http://{receiver.endpoint}"
        # It comes back once a worker was heard to say that nothing is loaded: sooner, the load might be over before.
        plane.kill()
        with (
            Pod(
                tmp_path / "data", plane.address, SIDESTEP_JOURNAL_SINK="otlp", OTEL_EXPORTER_OTLP_ENDPOINT=endpoint
            ) as pod,
            inspecting(pod.data_dir, ledger, TENANT) as inspector,
            asking(pod.address) as service,
        ):
            chaos = Chaos(random.Random(seed), plane, pod, ledger, inspector, service)
            until(lambda: _unloaded(service), "a worker without data", WITHIN_S)
            plane.start()
            _first_load(chaos)
            with writing(plane, seed, devices, service.has_used) as operators:
                chaos.loaded_at = time.monotonic()
                while chaos.count() < kills:
                    _round(chaos, operators, kills)
                service.wait_for_answers(100, WITHIN_S)
            inspector.wait_for_convergence(WITHIN_S)
            assert pod.metric("sidestep_journal_lost_total") == 0
            service.wait_for_answers(20, WITHIN_S)
            service.stop()
            assert pod.stop() == 0
        _report(chaos)
        _judge(chaos, operators, set(receiver.decision_ids()) | recorded(pod.data_dir / "journal").decisions)


def _first_load(chaos: Chaos) -> None:
    """The agent and the worker die while the very first snapshots come in. Ends with a new supervisor, which owes no pause."""
    for roles in (("agent",), ("worker",), ("agent", "worker")):
        if not chaos.wait_for_transfer():
            break
        pass_time(chaos.rng, 0.3)
        at, in_transfer = time.monotonic(), chaos.pod.staging()
        chaos.pod.kill(*roles)
        chaos.inspector.inspect()
        chaos.early.append(Kill(roles, at, in_transfer, 0.0, time.monotonic()))
    chaos.inspector.wait_for_convergence(WITHIN_S)
    chaos.pod.kill_supervisor()
    chaos.pod.start()
    chaos.service.wait_for_answers(10, WITHIN_S)


def _round(chaos: Chaos, operators: Operators, kills: int) -> None:
    """Ten blows, in an order and at moments drawn anew each time; fewer if there are enough by then."""
    blows: list[tuple[str, ...]] = [("agent",), ("worker",), ("agent", "worker"), ("agent",), ("worker",), ("agent",)]
    chaos.rng.shuffle(blows)
    for number, roles in enumerate(blows):
        if number % 2 == 0:
            chaos.add_tenant()
            if chaos.wait_for_transfer():
                pass_time(chaos.rng, 0.12)
        elif "agent" in roles:
            chaos.wait_for_burst()
            pass_time(chaos.rng, 0.003)
        else:
            pass_time(chaos.rng, 0.4)
        chaos.strike(*roles)
        if chaos.count() >= kills:
            return
    chaos.force_resync(operators)
    chaos.wait_for_transfer()
    chaos.strike("agent")
    chaos.wait_for_transfer()
    chaos.strike("worker")
    pass_time(chaos.rng, 0.4)
    chaos.strike("supervisor")


def _unloaded(service: Service) -> list[float]:
    """When a worker said that nothing was loaded yet."""
    return [at for at, said in service.refusals if any(words in said for words in NOT_LOADED)]


def _report(chaos: Chaos) -> None:
    struck = [*chaos.early, *chaos.kills]
    gaps = {role: chaos.gaps_s(role) for role in ("agent", "worker", "supervisor")}
    shown = {role: f"{statistics.median(all_):.2f}/{max(all_):.2f}" for role, all_ in gaps.items() if all_}
    inspector, service = chaos.inspector, chaos.service
    sys.stdout.write(
        f"{chaos.count()} kills, {sum(kill.in_transfer for kill in struck)} times during a snapshot; "
        f"{inspector.inspections} inspections and {inspector.glances} glances, {len(inspector.revisions)} revisions in "
        f"{len(inspector.generations)} generations; {len(service.answers)} answers, {len(service.refusals)} refused; "
        f"seconds without an answer (median/most): {shown}\n"
    )


def _judge(chaos: Chaos, operators: Operators, recorded: set[str]) -> None:
    service, kills = chaos.service, chaos.kills
    assert service.problems == []
    assert misused_grants(service.answers, operators.lives) == []
    lost = [answer for answer in service.answers if answer.response.decision_id not in recorded]
    assert lost == [], f"{len(lost)} of {len(service.answers)} answered decisions are recorded nowhere"
    # What a restart takes on this machine and under this load is measured where one was due.
    restart_s = max(1.0, statistics.median(chaos.gaps_s("worker")))
    assert max(chaos.gaps_s("agent")) < restart_s, "an agent's death is not noticed by callers"
    for roles in (("worker",), ("agent", "worker"), ("supervisor",)):
        assert max(chaos.gaps_s(*roles), default=0.0) < SLOWER * restart_s
    between = [service.longest_gap_s(kill.over_at, after.at) for kill, after in pairwise(kills)]
    assert max(between) < restart_s, "answers stopped though nobody was killed but the control plane"
    # A worker that starts over loaded data never says that there is none, as the first ones did.
    assert max(_unloaded(service)) < chaos.loaded_at
    # And it was put to the test at all.
    used = {
        answer.response.grant
        for answer in service.answers
        if answer.response.basis == decision_pb2.BASIS_EXEMPTION_GRANT
    }
    assert len(used) >= len(kills) // 3, f"{len(used)} grants were used over {len(kills)} kills"
    assert sum(kill.in_transfer for kill in (*chaos.early, *kills)) >= len(kills) // 6
    assert len(chaos.inspector.generations) >= len(kills) // 6
    assert len(chaos.inspector.revisions) >= len(kills)
