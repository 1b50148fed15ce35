"""Leaving something out of a request never sheds a guard or a rate limit, whatever came before.

As tests/property/test_request_removal.py, with a history: the same earlier requests, then the request, or the request with one
thing less. Traps are left out: they are sprung by what is there alone (docs/guards.md).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st
from sidestep.v1 import decision_pb2, resources_pb2

from engine.decide import decide
from engine.decision import Code, Outcome
from engine.errors import InvalidInputError
from engine.names import Collection
from engine.policy.guards import GUARDS
from sidecar.guard.buckets import RateLimitedError
from sidecar.guard.guards import Guards
from tests.property.test_request_removal import is_meant, removals
from tests.property.world import EXEMPTIONS, NOW, Answer, Replica, World, policy, requests, worlds

_GUARDED = json.dumps(
    {
        "match": {"actions": ["*"]},
        "context": {"lat": "double", "lon": "double"},
        "exemptions": EXEMPTIONS,
        "guards": {
            "sharedFingerprint": {"maxSubjects": 1, "components": ["os", "canvas"], "require": {"acr": "nist-aal1"}},
            "manyNetworks": {"maxNetworks": 1, "require": {"acr": "nist-aal1"}},
            "impossibleTravel": {"require": {"acr": "nist-aal1"}},
            "probing": {"maxNearMisses": 1, "within": 0.5, "require": {"acr": "nist-aal1"}},
            "exemptionBurst": {"minUses": 1, "require": {"acr": "nist-aal1"}},
            "inconsistentFingerprint": {
                "impossible": [{"os": "Android", "browser": "safari"}],
                "require": {"acr": "nist-aal1"},
            },
        },
    },
    sort_keys=True,
)
_LIMITS = resources_pb2.RateLimits(
    subject=resources_pb2.RateLimit(per_second=0.001, burst=3, hard_factor=1000),
    device=resources_pb2.RateLimit(per_second=0.001, burst=3, hard_factor=1000),
)
_GAPS = st.sampled_from([0.0, 5.0, 3600.0])
_PLACES = st.sampled_from([None, (52.5, 13.4), (-33.9, 151.2)])


@st.composite
def _asked(draw: st.DrawFn) -> decision_pb2.EvaluateRequest:
    request = draw(requests())
    place = draw(_PLACES)
    if place is not None:
        request.context.attributes.update({"lat": place[0], "lon": place[1]})
    return request


_HISTORIES = st.lists(st.tuples(_asked(), _GAPS), max_size=6)


def guarded(world: World, *, limited: bool) -> World:
    urgent = dict(world.urgent)
    urgent[Collection.POLICIES, "guarded"] = policy("guarded", _GUARDED)
    if limited:
        changed = resources_pb2.Settings()
        for key, value in urgent.items():
            if key[0] == Collection.SETTINGS:
                changed.ParseFromString(value)
                changed.rate_limits.CopyFrom(_LIMITS)
                urgent[key] = changed.SerializeToString()
                break
    return World(urgent, world.bulk)


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    made = Replica(Path(tmp_path_factory.mktemp("store")))
    yield made
    made.close()


def answer(
    replica: Replica,
    history: list[tuple[decision_pb2.EvaluateRequest, float]],
    request: decision_pb2.EvaluateRequest,
) -> Answer | None:
    """What the request gets after the history, which ends at NOW. None: it is refused."""
    guards = Guards(entries=64)
    now = NOW - sum(gap for _, gap in history)
    found: Answer | None = None
    for asked, gap in (*history, (request, 0.0)):
        try:
            examined = guards.examine(replica.gather(asked, now))
        except (InvalidInputError, RateLimitedError):
            found = None
        else:
            facts, rules, *_ = examined.gathered
            decision = decide(facts, rules)
            guards.learn(examined, decision)
            found = Answer(decision, facts, rules)
        now += gap
    return found


def answered(before: Answer, after: Answer) -> bool:
    """Whether every guard that was raised is raised after the removal too, only on a device for which this session has already
    answered it."""
    raised = {reason.clause for reason in before.decision.reasons if reason.code is Code.GUARD_RAISED}
    still = {reason.clause for reason in after.decision.reasons if reason.code is Code.GUARD_RAISED}
    return bool(raised) and raised <= still


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(world=worlds(), limited=st.booleans(), history=_HISTORIES, request=_asked())
def test_leaving_something_out_sheds_no_guard(
    replica: Replica,
    world: World,
    limited: bool,
    history: list[tuple[decision_pb2.EvaluateRequest, float]],
    request: decision_pb2.EvaluateRequest,
) -> None:
    replica.hold(guarded(world, limited=limited))
    before = answer(replica, history, request)
    if before is None or before.decision.outcome is Outcome.ALLOW:
        return
    for path, less in removals(request):
        after = answer(replica, history, less)
        if after is not None and after.decision.outcome is Outcome.ALLOW:
            assert is_meant(path, before, after) or answered(before, after), (path, before.decision.reasons, after)


@pytest.mark.parametrize("name", [name for name in GUARDS if name not in ("canary", "exemption-burst")])
def test_the_strategies_raise_every_guard(replica: Replica, name: str) -> None:
    def raises(
        drawn: tuple[World, list[tuple[decision_pb2.EvaluateRequest, float]], decision_pb2.EvaluateRequest],
    ) -> bool:
        replica.hold(guarded(drawn[0], limited=False))
        found = answer(replica, drawn[1], drawn[2])
        return found is not None and any(
            reason.code is Code.GUARD_RAISED and reason.clause == f"guard/{name}" for reason in found.decision.reasons
        )

    search = settings(max_examples=2000, deadline=None, phases=[Phase.generate], database=None)
    assert raises(find(st.tuples(worlds(), _HISTORIES, _asked()), raises, settings=search))
