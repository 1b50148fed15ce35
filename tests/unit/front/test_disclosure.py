"""What records say of persons, by the settings; through the real loop where it decides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from google.protobuf.struct_pb2 import Struct
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from sidestep.v1 import decision_pb2, resources_pb2

from engine.decision import Basis, Code
from engine.facts import Candidate, Device, Facts, Grant, GrantScope, Risk
from engine.pseudonym import user_hash
from sidecar.front.disclosure import Disclosure, canonical, network_of
from tests.conformance.records import secret
from tests.fakes.desk import EVALUATE
from tests.fakes.stock import exempted, request
from tests.unit.front.rig import Rig

Rigged = Callable[..., Rig]
ALICE = user_hash(secret("tenant-1"), "alice")


@pytest.mark.parametrize(
    ("address", "network", "whole"),
    [
        ("203.0.113.77", "203.0.113.0", "203.0.113.77"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1::", "2001:db8:1:2:3:4:5:6"),
        ("2001:DB8:0:0:0:0:0:1", "2001:db8::", "2001:db8::1"),
        ("::ffff:203.0.113.77", "203.0.113.0", "203.0.113.77"),
        ("not an address", "", ""),
        ("1.2.3.4\0", "", ""),
    ],
)
def test_address_is_cut_to_its_network_or_kept_in_one_spelling(address: str, network: str, whole: str) -> None:
    assert network_of(address) == network
    assert canonical(address) == whole
    assert Disclosure().address(address) == network
    assert Disclosure(address="raw").address(address) == whole
    assert Disclosure(address="none").address(address) == ""


def test_user_is_hashed_named_or_left_out() -> None:
    key = bytes(32)
    assert Disclosure().user(key, "alice") == (user_hash(key, "alice"), "")
    assert Disclosure("raw").user(key, "alice") == (user_hash(key, "alice"), "alice")
    assert Disclosure("none").user(key, "alice") == ("", "")
    assert Disclosure().user(None, "alice") == ("", "")
    assert Disclosure("raw").user(None, "alice") == ("", "alice")


def test_hash_is_told_by_another_key_and_subject() -> None:
    disclosure = Disclosure()
    hashes = {disclosure.user(bytes([number]) * 32, subject)[0] for number in range(3) for subject in ("alice", "bob")}
    assert len(hashes) == 6
    assert all(len(value) == 32 and int(value, 16) for value in hashes)


FACTS = Facts(
    now=1.0,
    tenant="acme",
    action="a.b",
    values={
        "context.amount.value": 5.0,
        "context.amount.currency": "EUR",
        "context.country": "DE",
        "context.note": "to my sister",
        "resource.type": "account",
        "resource.id": "DE89",
    },
)


@pytest.mark.parametrize(
    ("allowed", "withheld"),
    [
        ((), tuple(FACTS.values)),
        (("context.*", "resource.*"), ()),
        (("context.*",), ("resource.type", "resource.id")),
        (("context.amount.value",), tuple(name for name in FACTS.values if name != "context.amount.value")),
        (
            ("context.amount.*", "resource.type"),
            ("context.country", "context.note", "resource.id"),
        ),
        (("context.am*", "context.country", "resource.id", "resource.type"), ("context.note",)),
    ],
)
def test_values_not_on_the_list_are_left_out_by_name(allowed: tuple[str, ...], withheld: tuple[str, ...]) -> None:
    shown, hidden = Disclosure(values=allowed).facts(FACTS)
    assert hidden == withheld
    assert shown.values == {name: value for name, value in FACTS.values.items() if name not in withheld}
    assert replace(shown, values=FACTS.values) == FACTS


def test_default_list_lets_out_what_says_little_of_a_person() -> None:
    shown, hidden = Disclosure().facts(FACTS)
    assert hidden == ("context.note", "resource.id")
    assert "sister" not in str(shown)
    assert "DE89" not in str(shown)


def test_grant_s_condition_does_not_give_the_resource_away() -> None:
    grant = Grant("g", GrantScope.SUBJECT, ("*",), "phr", 60.0, condition="resource.id == 'DE89'")
    other = replace(grant, condition="context.country == 'DE'")
    candidate = Candidate(Device(), Risk(), (grant,))
    facts = replace(FACTS, values={}, grants=(grant, other), candidates=(candidate,))
    shown, hidden = Disclosure().facts(facts)
    assert hidden == ("resource.id",)
    assert "DE89" not in str(shown)
    assert [held.condition for held in shown.grants] == ["resource.id == ''", other.condition]
    assert shown.candidates[0].grants[0].condition == "resource.id == ''"
    assert Disclosure(values=("resource.id",)).facts(facts) == (facts, ())


def context(**attributes: Any) -> decision_pb2.Context:
    values = Struct()
    values.update(attributes)
    return decision_pb2.Context(ip="203.0.113.77", attributes=values)


def test_record_follows_the_settings(rigged: Rigged) -> None:
    rig = rigged(disclosure=Disclosure("raw", "raw"))
    rig.ask(exempted())
    (record,) = rig.records()
    assert (record.user_hash, record.user_id, record.client_address) == (ALICE, "alice", "203.0.113.77")
    silent = rigged(disclosure=Disclosure("none", "none"))
    silent.ask(exempted())
    (record,) = silent.records()
    assert (record.user_hash, record.user_id, record.client_address) == ("", "", "")


def test_fail_safe_answer_tells_whom_it_was_for(rig: Rig) -> None:
    rig.ask(exempted(), within_s=0.0)
    (record,) = rig.records()
    assert record.decision.basis is Basis.FAIL_SAFE
    assert (record.user_hash, record.client_address) == (ALICE, "203.0.113.0")


def test_newest_usable_key_names_the_user(rig: Rig) -> None:
    def recorded() -> str:
        rig.ask(request("alice"))
        return rig.records()[-1].user_hash

    assert recorded() == ALICE
    rig.stock.put(
        **{
            "keys/a-newer": {"kind": "KEY_KIND_TENANT", "start_time": "now-1h"},
            "keys/b-next": {"kind": "KEY_KIND_TENANT", "start_time": "now+1h"},
            "keys/c-older": {"kind": "KEY_KIND_TENANT", "start_time": "now-2h"},
        }
    )
    assert recorded() == user_hash(secret("a-newer"), "alice")
    rig.stock.put(**{"keys/a-newer": {"kind": "KEY_KIND_TENANT", "start_time": "now-1h", "expire_time": "now-1m"}})
    assert recorded() == user_hash(secret("c-older"), "alice")


def test_decision_rests_on_values_that_are_not_recorded(rig: Rig) -> None:
    rig.stock.put(
        **{
            "policies/notes": {
                "match": {"actions": ["notes.*"]},
                "context": {"note": "string"},
                "triggers": [
                    {"name": "sister", "when": "context.note == 'to my sister'", "require": {"acr": "phr"}},
                    {"name": "rent", "when": "resource.id == 'DE89'", "require": {"acr": "phr"}},
                ],
            }
        }
    )
    rig.ask(request(action="notes.send", context=context(note="to my sister", unread="x"), resource={"id": "DE89"}))
    (record,) = rig.records()
    fired = {reason.clause for reason in record.decision.reasons if reason.code is Code.TRIGGER_FIRED}
    assert fired == {"notes/sister", "notes/rent"}
    assert set(record.withheld) == {"context.note", "resource.id"}
    assert record.facts.values == {}


def test_facts_that_decide_again_are_whole(full: Rigged) -> None:
    """Off the record a decision is taken anew, on everything, not on what would have been recorded."""
    rig = full()
    condition = {"condition": "resource.id == 'DE89'"}
    grant = {
        "subject": "alice",
        "actions": ["payments.*"],
        "ceiling": {"acr": "nist-aal2", "max_age": "3600s"},
        "state": "GRANT_STATE_ACTIVE",
        "expire_time": "2099-01-01T00:00:00Z",
    }
    rig.stock.put(**{"grants/g1": grant | condition})
    answer = rig.ask(exempted(resource={"id": "DE89"}, explain=True))
    assert "JOURNAL_FULL" in answer.explanation.reasons
    assert not any("GRANT_CONDITION" in reason for reason in answer.explanation.reasons)


# Long enough that none is part of something else by chance.
markers = st.text("abcdefghijklmnopqrstuvwxyz", min_size=12, max_size=20)


@given(
    parts=st.lists(markers, min_size=7, max_size=7, unique=True),
    octets=st.tuples(*[st.integers(101, 254)] * 4),
)
def test_nothing_a_request_says_of_a_person_is_in_its_record(
    rig_for_properties: Rig, parts: list[str], octets: tuple[int, int, int, int]
) -> None:
    subject, session, token, device, component, resource, note = parts
    address = ".".join(map(str, octets))
    asked = request(
        subject,
        session=decision_pb2.SessionEvidence(
            id=session, token=token, authentications=[resources_pb2.Authentication(acr="phr")]
        ),
        device=decision_pb2.DeviceEvidence(id=device, fingerprint={"canvas": component}),
        context=context(note=note),
        resource={"id": resource},
    )
    asked.context.ip = address
    with rig_for_properties.reader.view() as view:
        verdict = rig_for_properties.loop._servicer.evaluate(asked, "", view, 1.8e9)
    for raw in (*parts, address):
        assert raw.encode() not in verdict.record
    assert msgspec.msgpack.decode(verdict.record)["user_hash"] == user_hash(secret("tenant-1"), subject)


@pytest.fixture(scope="module")
def rig_for_properties(tmp_path_factory: pytest.TempPathFactory) -> Any:
    rig = Rig(tmp_path_factory.mktemp("rig"))
    rig.stock.put(
        **{
            "policies/notes": {
                "match": {"actions": ["payments.*"]},
                "context": {"note": "string"},
                "triggers": [
                    {"name": "both", "when": "context.note == resource.id", "require": {"acr": "phr"}},
                ],
            }
        }
    )
    yield rig
    rig.stop()


def test_values_are_recorded_where_the_list_allows(rigged: Rigged) -> None:
    rig = rigged(disclosure=Disclosure(values=("resource.id",)))
    rig.stock.put(
        **{
            "policies/rent": {
                "match": {"actions": ["rent.*"]},
                "triggers": [{"name": "rent", "when": "resource.id == 'DE89'", "require": {"acr": "phr"}}],
            }
        }
    )
    rig.desk.put(EVALUATE, request(action="rent.pay", resource={"id": "DE89"}), "one")
    rig.ended("one")
    (record,) = rig.records()
    assert record.facts.values == {"resource.id": "DE89"}
    assert record.withheld == ()
