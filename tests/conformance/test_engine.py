"""Every vector against the engine: a real store, `gather` and `decide`, in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.decide import decide, fail_safe
from engine.decision import Code
from engine.durations import parse_duration
from engine.errors import InvalidInputError
from engine.escrow import Account
from engine.facts import BudgetHeld
from sidecar.gather.gatherer import GatherConfig, Gatherer, ScopeError
from sidecar.guard.buckets import RateLimitedError
from sidecar.guard.guards import Guards
from sidecar.store.errors import NotLoadedError
from sidecar.store.reader import Reader
from tests.conformance import requests
from tests.conformance.leases import leases
from tests.conformance.replica import Replica
from tests.conformance.vectors import Vector, fixture, for_runner
from tests.conformance.verdict import Verdict, differences, of_decision


class Engine:
    """What a worker does with a request, without the worker."""

    def __init__(self, data_dir: Path) -> None:
        base = fixture()
        self.replica = Replica(data_dir)
        self._reader = Reader(data_dir, clock=self.replica.clock)
        self._guards = Guards()
        self._gatherer = Gatherer(
            GatherConfig(
                default_tenant=base["default_tenant"],
                soft_stale_s=parse_duration(base["soft_stale"]),
                hard_stale_s=parse_duration(base["hard_stale"]),
                signed_time=True,
            ),
            self._held,
        )
        self._leases: dict[Account, BudgetHeld] = {}

    def close(self) -> None:
        self._reader.close()
        self.replica.close()

    def _held(self, account: Account) -> BudgetHeld | None:
        return self._leases.get(account)

    def answer(self, vector: Vector) -> Verdict | tuple[str, str]:
        """The decision, or the error as (gRPC code, field)."""
        self._guards.reset()
        for earlier in vector.before:
            self._answer(earlier)
        return self._answer(vector)

    def _answer(self, vector: Vector) -> Verdict | tuple[str, str]:
        self.replica.change(vector)
        self._leases = leases(vector)
        with self._reader.view() as view:
            tenant = vector.request.get("tenant", fixture()["default_tenant"])
            request = requests.build(vector, self.replica.head(tenant))
            try:
                if vector.deadline_passed:
                    outline = self._gatherer.outline(request, view, vector.now_s)
                    return of_decision(fail_safe(request.action.name, outline.rules, Code.DEADLINE))
                gathered = self._gatherer.gather(
                    request,
                    view,
                    vector.now_s,
                    clock=self.replica.clock,
                    journal_full=vector.journal_full,
                    behind=not self._gatherer.min_revision_reached(request, view),
                )
            except InvalidInputError as error:
                return "INVALID_ARGUMENT", error.field
            except NotLoadedError:
                return "UNAVAILABLE", ""
            except ScopeError:
                return "PERMISSION_DENIED", ""
            try:
                examined = self._guards.examine(gathered)
            except RateLimitedError:
                return "RESOURCE_EXHAUSTED", ""
            decision = decide(examined.gathered.facts, gathered.rules)
            self._guards.learn(examined, decision)
            return of_decision(decision)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    running = Engine(tmp_path_factory.mktemp("store"))
    yield running
    running.close()


@pytest.mark.parametrize("vector", for_runner("engine"), ids=lambda vector: vector.id)
def test_engine_conforms(engine: Engine, vector: Vector) -> None:
    answer = engine.answer(vector)
    if isinstance(answer, Verdict):
        assert not (found := differences(vector, answer)), "\n".join(found)
    else:
        expected = vector.expect.get("error", {})
        assert answer == (expected.get("code"), expected.get("field", ""))
