"""Ways to an ALLOW that must stay shut, and what must not cost more than its share, over a real store."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from sidestep.v1 import resources_pb2

from engine.decide import decide
from engine.decision import Basis, Code, Decision, Outcome
from engine.facts import Facts, Posture
from engine.policy.conditions import Condition
from sidecar.clock import Clock
from sidecar.gather.device import MAX_FITTING
from sidecar.gather.gatherer import MAX_GRANTS, GatherConfig, Gatherer
from sidecar.gather.grants import parse_grant
from sidecar.store.reader import Reader
from sidecar.store.view import MAX_SUBJECT_DEVICES
from tests.conformance import requests
from tests.conformance.replica import Replica
from tests.conformance.vectors import Vector, fixture, fixture_now, merge
from tests.fakes import stock

PHONE: dict[str, str] = fixture()["tenants"]["acme"]["devices/phone"]["fingerprint"]
LAPTOP: dict[str, Any] = fixture()["tenants"]["acme"]["devices/laptop"]
"""The fixture's devices of Alice; the phone is not bound to a key."""


class Sidecar:
    """Gathers and decides over a store that holds the fixture, changed as each question wants it."""

    def __init__(self, data_dir: Path) -> None:
        self._replica = Replica(data_dir)
        self._reader = Reader(data_dir, clock=self._replica.clock)
        self._gatherer = Gatherer(GatherConfig("acme", 300.0, 3600.0))

    def close(self) -> None:
        self._reader.close()
        self._replica.close()

    def ask(self, records: dict[str, Any], request: dict[str, Any]) -> tuple[Facts, Decision]:
        """The facts of the fixture's request with these changes (JSON Merge Patch), and what is decided on them."""
        base = fixture()
        vector = Vector(
            id="attack",
            now=fixture_now(),
            records=merge(base["tenants"]["acme"], records),
            request=merge(base["request"], request),
            expect={},
            data={},
            min_revision=None,
            journal_full=False,
            deadline_passed=False,
            only="",
        )
        self._replica.change(vector)
        asked = requests.build(vector, None)
        with self._reader.view() as view:
            facts, rules, *_ = self._gatherer.gather(asked, view, vector.now_s, clock=self._replica.clock)
        return facts, decide(facts, rules)


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    running = Sidecar(tmp_path_factory.mktemp("store"))
    yield running
    running.close()


def many_devices(count: int) -> dict[str, Any]:
    """Devices of Alice whose ids sort before those of the fixture, each unlike the others."""
    return {
        f"devices/a{number:03}": {
            "subject": "alice",
            "fingerprint": {name: f"{value}-{number}" for name, value in PHONE.items() if "version" not in name},
        }
        for number in range(count)
    }


@pytest.mark.parametrize("others", [0, MAX_SUBJECT_DEVICES - 1, MAX_SUBJECT_DEVICES, MAX_SUBJECT_DEVICES + 9])
def test_no_number_of_other_devices_hides_a_blocked_one(sidecar: Sidecar, others: int) -> None:
    """The revoked phone shows its own fingerprint and an id made up; it sorts behind all the others."""
    records = many_devices(others) | {"deviceStates/phone": {"subject": "alice", "trust": "DEVICE_TRUST_REVOKED"}}
    shown = {"session": {"dpop": None}, "device": {"id": "made-up", "fingerprint": PHONE}}
    _, decision = sidecar.ask(records, {"action": {"name": "wallet.pay"}, **shown})
    assert decision.outcome is Outcome.DENY
    assert [str(reason) for reason in decision.reasons] == ["DEVICE_REVOKED phone"]


def test_no_number_of_other_devices_hides_a_blocked_key(sidecar: Sidecar) -> None:
    records = many_devices(MAX_SUBJECT_DEVICES) | {
        "deviceStates/laptop": {"subject": "alice", "trust": "DEVICE_TRUST_QUARANTINED"}
    }
    _, decision = sidecar.ask(
        records, {"action": {"name": "wallet.pay"}, "device": {"id": "other", "fingerprint": None}}
    )
    assert decision.outcome is Outcome.DENY
    assert decision.reasons[0].code is Code.DEVICE_QUARANTINED


def grant(**changes: Any) -> dict[str, Any]:
    return {
        "state": "GRANT_STATE_ACTIVE",
        "subject": "alice",
        "actions": ["*"],
        "expire_time": "now+1d",
        "ceiling": {"acr": "nist-aal2", "max_age": "3600s"},
        **changes,
    }


WEAK = {"action": {"name": "wallet.pay"}, "session": {"token": {"claims": {"acr": "nist-aal1"}}}}


def test_grants_beyond_the_bound_are_left_out_and_the_rest_still_counts(sidecar: Sidecar) -> None:
    records = {f"grants/g{number:03}": grant(condition="false") for number in range(MAX_GRANTS + 6)}
    records["grants/a-first"] = grant()
    facts, decision = sidecar.ask(records, WEAK)
    assert len(facts.grants) == MAX_GRANTS
    assert (decision.basis, decision.grant) == (Basis.EXEMPTION_GRANT, "a-first")


def test_a_role_with_very_many_grants_costs_no_more_than_the_bound(sidecar: Sidecar) -> None:
    records = {f"grants/r{number:04}": grant(subject=None, role="customer") for number in range(2000)}
    records = {name: {key: value for key, value in body.items() if value} for name, body in records.items()}
    facts, _ = sidecar.ask(records, WEAK)
    assert [held.id for held in facts.grants] == [f"r{number:04}" for number in range(MAX_GRANTS)]


def test_what_a_newer_version_adds_to_a_grant_may_be_a_bound() -> None:
    record = resources_pb2.Grant(state="GRANT_STATE_ACTIVE", subject="alice", actions=["*"])
    record.ceiling.acr = "nist-aal2"
    record.ceiling.max_age.FromSeconds(3600)
    known = record.SerializeToString()
    assert parse_grant("g", known) is not None
    in_the_grant = known + b"\xfa\x01\x01x"  # field 31
    in_its_ceiling = resources_pb2.Grant()
    in_its_ceiling.CopyFrom(record)
    in_its_ceiling.ceiling.MergeFromString(b"\xfa\x01\x01x")
    assert parse_grant("g", in_the_grant) is None
    assert parse_grant("g", in_its_ceiling.SerializeToString()) is None


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("grants/a-first", {"state": 99}),
        ("subjects/alice", {"state": 99}),
        ("deviceStates/laptop", {"subject": "alice", "trust": 99}),
        ("grantClasses/default", {"state": 99}),
    ],
    ids=["grant", "subject", "device", "class"],
)
def test_a_value_that_a_newer_version_added_is_never_an_exemption(
    sidecar: Sidecar, name: str, record: dict[str, Any]
) -> None:
    # But for the value it would be one: see the test above of grants beyond the bound.
    records: dict[str, Any] = {"grants/a-first": grant()}
    base = records.get(name) or {}
    if name == "subjects/alice":
        base = {"roles": ["customer"], "methods": ["webauthn", "totp"]}
    _, decision = sidecar.ask(records | {name: base | record}, WEAK)
    assert decision.outcome is not Outcome.ALLOW
    assert decision.basis is not Basis.EXEMPTION_GRANT


def test_a_posture_that_a_newer_version_added_is_the_tightest(sidecar: Sidecar) -> None:
    facts, _ = sidecar.ask({"postures/default": {"level": 99}}, {})
    assert facts.posture is Posture.CRITICAL


def lookalikes(count: int, **changes: Any) -> dict[str, Any]:
    """So many registrations of the laptop, as clearing cookies leaves them, none bound to its key."""
    return {
        f"devices/copy{number:02}": {
            "subject": "alice",
            "fingerprint": LAPTOP["fingerprint"],
            "validate_time": "now-60d",
            **changes,
        }
        for number in range(count)
    }


def test_devices_that_look_alike_are_considered_up_to_a_bound(sidecar: Sidecar) -> None:
    facts, _ = sidecar.ask({"devices/laptop": None, **lookalikes(MAX_FITTING + 5)}, {"session": {"dpop": None}})
    ids = [facts.device.id, *(candidate.device.id for candidate in facts.candidates)]
    assert ids == [f"copy{number:02}" for number in range(MAX_FITTING)]


def test_conditions_of_grants_are_evaluated_once_for_each_device(
    sidecar: Sidecar, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many logins, many grants with conditions and many look-alikes must not multiply beyond the bounds."""
    records: dict[str, Any] = {"devices/laptop": None, **lookalikes(MAX_SUBJECT_DEVICES)}
    for number in range(MAX_GRANTS):
        records[f"grants/g{number:02}"] = grant(condition=f"subject.roles.exists(r, r == 'none-{number}')")
    events = [{"acr": "nist-aal1", "auth_time": f"now-{minutes}m"} for minutes in range(20, 35)]
    claims = {"acr": "nist-aal1", "authentications": events}
    evaluated = []
    evaluate = Condition.evaluate

    def counting(condition: Condition, data: Mapping[str, Any]) -> bool | None:
        evaluated.append(condition.source)
        return evaluate(condition, data)

    monkeypatch.setattr(Condition, "evaluate", counting)
    request = {"action": {"name": "wallet.pay"}, "session": {"dpop": None, "token": {"claims": claims}}}
    facts, decision = sidecar.ask(records, request)
    assert len(facts.authentications) == 16
    assert decision.outcome is Outcome.STEP_UP
    assert len(evaluated) == MAX_GRANTS * MAX_FITTING


def test_the_caches_hold_nothing_over_from_other_data(sidecar: Sidecar) -> None:
    """One gatherer, the same request, the data changed beneath it and back: the answers follow the data alone."""
    phone = {"action": {"name": "wallet.pay"}, "session": {"dpop": None}, "device": {"id": None, "fingerprint": PHONE}}
    changes: list[tuple[dict[str, Any], str]] = [
        ({}, "recognised"),
        ({"keys/fp-1": None}, "unknown"),
        ({"devices/phone": {"key_id": "fp-2"}}, "recognised"),
        ({"devices/phone": {"subject": "bob"}}, "unknown"),
        ({"settings/default": {"min_similarity": 1.0}}, "recognised"),
        ({"settings/default": {"fingerprint": [{"id": "x", "kind": "KIND_EXACT", "weight": 1}]}}, "unknown"),
        ({}, "recognised"),
    ]
    for records, binding in [*changes, *reversed(changes)]:
        facts, _ = sidecar.ask(records, phone)
        assert facts.device.binding.value == binding, records


def test_a_token_is_good_as_long_as_its_key(sidecar: Sidecar) -> None:
    gone = {"keys/idp-1": None}
    cut = {"settings/default": {"issuers": [{**issuer, "max_acrs": ["nist-aal1"]} for issuer in issuers()]}}
    for _ in range(2):
        assert sidecar.ask({}, {})[1].outcome is Outcome.ALLOW
        assert sidecar.ask(gone, {})[1].outcome is Outcome.DENY
        assert sidecar.ask(cut, {})[1].outcome is Outcome.STEP_UP


def issuers() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = fixture()["tenants"]["acme"]["settings/default"]["issuers"]
    return found


@pytest.mark.parametrize("pinned", [True, False])
def test_a_clock_nothing_is_known_of_is_wrong_where_the_time_would_be_signed(tmp_path: Path, pinned: bool) -> None:
    stored = stock.Stock(tmp_path)
    stored.load()
    reader = Reader(tmp_path)
    gatherer = Gatherer(GatherConfig(stock.TENANT, 300.0, 3600.0, signed_time=pinned))
    with reader.view() as view:
        facts = gatherer.gather(stock.exempted(), view, time.time(), clock=Clock()).facts
    reader.close()
    stored.close()
    assert facts.data.clock_off is pinned
