"""Requests in which leaving something out once helped, each with the reason why it no longer does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sidestep.v1 import decision_pb2, resources_pb2

from engine.decision import Basis, Outcome
from engine.names import Collection
from tests.property.test_request_removal import ask, check_removals
from tests.property.world import (
    DEVICES,
    EXEMPTIONS,
    FINGERPRINTS,
    KEYS,
    NOT_VALIDATED,
    NOW,
    Records,
    Replica,
    World,
    alice,
    grants,
    policy,
    proof,
    timestamp,
    token,
    usual,
)


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    made = Replica(Path(tmp_path_factory.mktemp("store")))
    yield made
    made.close()


def world(require: dict[str, Any], urgent: Records | None = None, bulk: Records | None = None) -> World:
    spec = {"match": {"actions": ["*"]}, "require": require, "exemptions": EXEMPTIONS}
    policies: Records = {(Collection.POLICIES, "p"): policy("p", json.dumps(spec))}
    subject: Records = {(Collection.SUBJECTS, "alice"): alice()}
    return World({**KEYS, **policies, **subject, **(urgent or {})}, bulk or {})


def request() -> decision_pb2.EvaluateRequest:
    asked = decision_pb2.EvaluateRequest(tenant="acme")
    asked.CopyFrom(usual())
    asked.tenant, asked.subject.id, asked.action.name = "acme", "alice", "pay.now"
    return asked


def outcome(replica: Replica, asked: decision_pb2.EvaluateRequest) -> Outcome | None:
    answer = ask(replica, asked)
    return None if answer is None else answer.decision.outcome


def by_device(name: str) -> Records:
    return {(Collection.GRANTS, f"by-{name}"): grants()[Collection.GRANTS, f"by-{name}"]}


def test_a_revoked_session_cannot_be_left_unnamed(replica: Replica) -> None:
    """A token without `sid` did count as a session: without `session.id` nothing could be looked up as revoked."""
    revoked: Records = {
        (Collection.REVOKED_SESSIONS, "s1"): resources_pb2.RevokedSession(subject="alice").SerializeToString()
    }
    asked = request()
    asked.session.token = token("no session")
    asked.session.ClearField("dpop")
    held = world({"acr": "phr"}, revoked)
    check_removals(replica, held, asked)
    assert outcome(replica, asked) is Outcome.DENY
    asked.session.ClearField("id")
    assert outcome(replica, asked) is Outcome.STEP_UP
    asked.session.id = "s2"
    assert outcome(replica, asked) is Outcome.ALLOW


def test_an_impossible_last_activity_is_as_good_as_none(replica: Replica) -> None:
    """It did hide the token's `iat`, which counts if no activity is stated."""
    asked = request()
    asked.session.last_active_time.CopyFrom(timestamp(NOW + 60))
    held = world({"acr": "nist-aal2"}, by_device("laptop"), DEVICES)
    check_removals(replica, held, asked)
    assert outcome(replica, asked) is Outcome.ALLOW


@pytest.mark.parametrize("part", ["auth_time", "auth_time.seconds"])
def test_an_assertion_without_a_time_is_no_better_than_one_in_the_future(replica: Replica, part: str) -> None:
    asked = request()
    asked.session.ClearField("token")
    asked.session.ClearField("dpop")
    event = asked.session.authentications.add(acr="nist-aal2")
    event.auth_time.CopyFrom(timestamp(NOW + 60))
    held = world({"acr": "nist-aal2", "evidence": "asserted"})
    check_removals(replica, held, asked)
    assert outcome(replica, asked) is Outcome.STEP_UP
    if part == "auth_time":
        event.ClearField("auth_time")
    else:
        event.auth_time.ClearField("seconds")
    assert outcome(replica, asked) is Outcome.STEP_UP


def test_half_a_time_is_no_kinder_time(replica: Replica) -> None:
    """Without its nanos a time half a second beyond the clock skew became a possible one."""
    asked = request()
    asked.session.ClearField("token")
    asked.session.ClearField("dpop")
    asked.session.authentications.add(acr="nist-aal2").auth_time.CopyFrom(timestamp(NOW + 30.5))
    check_removals(replica, world({"acr": "nist-aal2", "evidence": "asserted"}), asked)


def test_of_two_devices_that_look_alike_either_may_be_meant(replica: Replica) -> None:
    """Leaving out the fonts, where the two differ, did turn the better match, not validated lately, into the worse, which is."""
    asked = request()
    asked.session.ClearField("dpop")
    asked.device.fingerprint["audio"] = "changed"
    bulk = {**DEVICES, (Collection.DEVICES, "laptop"): NOT_VALIDATED}
    held = world({"acr": "nist-aal2"}, by_device("twin"), bulk)
    check_removals(replica, held, asked)
    answer = ask(replica, asked)
    assert answer is not None
    assert (answer.decision.basis, answer.decision.grant) == (Basis.EXEMPTION_GRANT, "by-twin")
    assert answer.facts.device.id == "laptop"
    assert [candidate.device.id for candidate in answer.facts.candidates] == ["twin"]


def test_a_proof_of_one_device_does_not_hide_the_fingerprint_of_another(replica: Replica) -> None:
    asked = request()
    asked.session.dpop.proof = proof("phone", asked.session.token)
    held = world({"acr": "nist-aal2"}, by_device("laptop"), DEVICES)
    check_removals(replica, held, asked)
    answer = ask(replica, asked)
    assert answer is not None
    assert answer.decision.grant == "by-laptop"
    assert answer.facts.device.id == "phone"


def test_a_device_that_shows_too_little_to_be_ruled_out_is_blocked(replica: Replica) -> None:
    """Blocks hold for all devices the evidence fits, before any candidate is looked at."""
    state = resources_pb2.DeviceState(subject="alice", trust=resources_pb2.DEVICE_TRUST_QUARANTINED)
    asked = request()
    asked.session.token = token("strong")
    asked.session.ClearField("dpop")
    asked.device.fingerprint.update(FINGERPRINTS["twin"])
    held = world({"acr": "phr"}, {(Collection.DEVICE_STATES, "laptop"): state.SerializeToString()}, DEVICES)
    check_removals(replica, held, asked)
    assert outcome(replica, asked) is Outcome.DENY
