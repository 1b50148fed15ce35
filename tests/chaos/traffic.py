"""Load during chaos: services that ask, and operators that write. Both keep notes, which are judged afterwards."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple
from uuid import UUID

import grpc
from sidestep.v1 import decision_pb2, decision_pb2_grpc, resources_pb2

from tests.chaos import world
from tests.chaos.pod import CHANNEL_OPTIONS, Plane
from tests.fakes.stock import TENANT, exempted, request, satisfied

_PAUSE_S = 0.008
# Writes while a grant waits to be used: longer than any restart.
_MOST_IN_BETWEEN = 200
_DEADLINE_S = 2.0
_BASES = {
    decision_pb2.OUTCOME_ALLOW: {
        decision_pb2.BASIS_NOT_REQUIRED,
        decision_pb2.BASIS_ASSURANCE_SATISFIED,
        decision_pb2.BASIS_EXEMPTION_GRANT,
    },
    decision_pb2.OUTCOME_STEP_UP: {decision_pb2.BASIS_CHALLENGE, decision_pb2.BASIS_FAIL_SAFE},
    decision_pb2.OUTCOME_DENY: {decision_pb2.BASIS_BLOCKED},
}


class Answer(NamedTuple):
    """One answer: who was asked about, what came back, when (time.monotonic())."""

    subject: str
    response: decision_pb2.EvaluateResponse
    at: float


class Service:
    """Asks a sidecar without a break, in a thread. `asking` runs one."""

    def __init__(self, address: str) -> None:
        self.answers: list[Answer] = []
        # When (time.monotonic()), and what was said.
        self.refusals: list[tuple[float, str]] = []
        self.problems: list[str] = []
        self._address = address
        self._questions = [
            exempted(),
            request("mallory"),
            satisfied(),
            exempted(),
            request("mallory", "browse.items"),
            request("bob"),
        ]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="service")

    def answered_since(self, moment: float) -> bool:
        """Whether there is an answer to a question asked after a moment."""
        return bool(self.answers) and self.answers[-1].at - _PAUSE_S > moment

    def has_used(self, grant: str) -> bool:
        """Whether one of the latest answers was an exemption by this grant."""
        return any(answer.response.grant == grant for answer in self.answers[-50:])

    def wait_for_answers(self, count: int, within_s: float) -> None:
        """Waits for so many more answers."""
        deadline = time.monotonic() + within_s
        wanted = len(self.answers) + count
        pause = threading.Event()
        while len(self.answers) < wanted:
            assert time.monotonic() < deadline, f"no {count} answers within {within_s} s; {self.problems[:3]}"
            pause.wait(0.01)

    def longest_gap_s(self, begin: float, end: float) -> float:
        """The longest time without an answer within a span of time."""
        moments = [begin, *(answer.at for answer in self.answers if begin < answer.at < end), end]
        return max(after - before for before, after in pairwise(moments))

    def start(self) -> None:
        """Begins to ask."""
        self._thread.start()

    def stop(self) -> None:
        """Asks no more."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with grpc.insecure_channel(self._address, options=CHANNEL_OPTIONS) as channel:
            stub = decision_pb2_grpc.DecisionServiceStub(channel)  # type: ignore[no-untyped-call]
            number = 0
            while not self._stop.wait(_PAUSE_S):
                question = self._questions[number % len(self._questions)]
                number += 1
                try:
                    response = stub.Evaluate(question, timeout=_DEADLINE_S)
                except grpc.RpcError as error:
                    self.refusals.append((time.monotonic(), error.details() or ""))
                    # The worker is gone, or nothing is loaded yet. Nothing else may happen to a sound question.
                    if error.code() is not grpc.StatusCode.UNAVAILABLE:
                        self.problems.append(repr(error))
                    continue
                self._take(question.subject.id, response)

    def _take(self, subject: str, response: decision_pb2.EvaluateResponse) -> None:
        self.answers.append(Answer(subject, response, time.monotonic()))
        problem = _malformed(response) or _wrong(subject, response)
        if problem:
            self.problems.append(f"{problem}: {response}")


def _malformed(response: decision_pb2.EvaluateResponse) -> str:
    if UUID(response.decision_id).version != 7:
        return "not a UUIDv7"
    if response.basis not in _BASES.get(response.outcome, ()):
        return "the basis does not go with the outcome"
    challenged = bool(response.challenge.www_authenticate)
    if challenged is not (response.outcome == decision_pb2.OUTCOME_STEP_UP):
        return "a challenge and a step-up go together"
    if not response.data.urgent.epoch or not response.reason:
        return "no revision or no reason"
    return ""


def _wrong(subject: str, response: decision_pb2.EvaluateResponse) -> str:
    """What no state of the data can ever give: Mallory was disabled from the beginning, and only Alice is ever exempt."""
    if subject == "mallory" and response.outcome != decision_pb2.OUTCOME_DENY:
        return "a disabled subject was not denied"
    if subject != "mallory" and response.outcome == decision_pb2.OUTCOME_DENY:
        return "a sound subject was denied"
    if subject == "bob" and response.basis == decision_pb2.BASIS_EXEMPTION_GRANT:
        return "an exemption without a grant"
    return ""


@contextmanager
def asking(address: str) -> Iterator[Service]:
    """A service that asks until the block ends."""
    service = Service(address)
    service.start()
    try:
        yield service
    finally:
        service.stop()


@dataclass
class Life:
    """When a grant was in force: not at `after` or any revision before, and not from `before` on."""

    after: int
    before: int | None = None


@dataclass
class Operators:
    """Write to the control plane without a break, each lane from a thread of its own. `writing` runs them."""

    plane: Plane
    seed: int
    devices: int
    pause_s: float = 0.02
    # Whether a grant was used: it stays until it was, within reason. None: it goes after a while in any case.
    used: Callable[[str], bool] | None = None
    lives: dict[str, Life] = field(default_factory=dict)
    acknowledged: dict[str, int] = field(default_factory=lambda: {"urgent": 0, "bulk": 0})
    # What was acknowledged last of each device; None: deleted.
    held: dict[int, int | None] = field(default_factory=dict)
    failures: list[BaseException] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._guarded, args=(work,), name=f"operator {work.__name__}")
            for work in (self._urgent, self._bulk)
        ]

    def start(self) -> None:
        """Begin to write."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Finish what is being written, and no more. Raises what went wrong."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        if self.failures:
            raise self.failures[0]

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self.failures.append(error)

    def _urgent(self) -> None:
        """A grant appears, other things happen, it is revoked; and so on. The only writer of this lane."""
        rng = random.Random(self.seed + 1)
        head = max(place[1] for lane_id, place in self.plane.heads(TENANT).items() if lane_id[1] == 1)
        number = 0
        while not self._stop.is_set():
            number += 1
            name = f"tenants/{TENANT}/grants/chaos-{number}"
            life = self.lives[name] = Life(after=head)
            self._put(world.grant(number, active=True))
            least = rng.randrange(4, 12)
            for written in range(least if self.used is None else _MOST_IN_BETWEEN):
                if self.used is not None and written >= least and self.used(name):
                    break
                self._put(world.trust(rng.randrange(self.devices), quarantined=rng.random() < 0.5))
                self._stop.wait(self.pause_s)
            head = life.before = self._put(world.grant(number, active=False))
            self._stop.wait(self.pause_s)

    def _put(self, resource: resources_pb2.Resource) -> int:
        revision = self.plane.put(resource).revision.revision
        self.acknowledged["urgent"] += 1
        return revision

    def _bulk(self) -> None:
        """Devices change, vanish and come back. The only writer of this lane."""
        rng = random.Random(self.seed + 2)
        version = 0
        while not self._stop.wait(self.pause_s):
            version += 1
            number = rng.randrange(self.devices)
            if rng.random() < 0.2 and self.held.get(number, 0) is not None:
                self.plane.delete(world.device(number).name)
                self.held[number] = None
            else:
                self.plane.put(resources_pb2.Resource(device=world.device(number, version)))
                self.held[number] = version
            self.acknowledged["bulk"] += 1


@contextmanager
def writing(plane: Plane, seed: int, devices: int, used: Callable[[str], bool] | None = None) -> Iterator[Operators]:
    """Operators that write until the block ends."""
    operators = Operators(plane, seed, devices, used=used)
    operators.start()
    try:
        yield operators
    finally:
        operators.stop()


def misused_grants(answers: list[Answer], lives: dict[str, Life]) -> list[str]:
    """Exemptions by a grant that was not in force at the revision they were decided on."""
    wrong = []
    for answer in answers:
        if answer.response.basis != decision_pb2.BASIS_EXEMPTION_GRANT:
            continue
        life = lives[answer.response.grant]
        revision = answer.response.data.urgent.revision
        if not life.after < revision or (life.before is not None and revision >= life.before):
            wrong.append(f"{answer.response.grant} {life} was used at {revision}")
    return wrong
