from __future__ import annotations

import pytest
from sidestep.v1 import resources_pb2

from engine import names
from engine.errors import InvalidInputError
from engine.names import Collection, Lane


def test_collections_and_lanes_equal_those_of_the_api() -> None:
    assert {f"COLLECTION_{c.name}": int(c) for c in Collection} | {"COLLECTION_UNSPECIFIED": 0} == dict(
        resources_pb2.Collection.items()
    )
    assert {f"LANE_{lane.name}": int(lane) for lane in Lane} | {"LANE_UNSPECIFIED": 0} == dict(
        resources_pb2.Lane.items()
    )
    assert {f"SIGNAL_KIND_{kind.upper()}" for kind in names.SIGNAL_KINDS} | {"SIGNAL_KIND_UNSPECIFIED"} == set(
        resources_pb2.SignalKind.keys()
    )


def test_lanes_also_of_unknown_collections() -> None:
    lanes = [names.lane_of(number) for number in (-1, 0, 1, 63, 64, 127, 128)]
    assert lanes == [None, None, Lane.URGENT, Lane.URGENT, Lane.BULK, Lane.BULK, None]
    assert {names.lane_of(c) for c in Collection} == {Lane.URGENT, Lane.BULK}
    assert set(names.SEGMENTS) == set(Collection)


@pytest.mark.parametrize("tenant", ["a", "acme", "a-1", "0", "a" * 63])
def test_tenants(tenant: str) -> None:
    assert names.check_tenant(tenant) == tenant


@pytest.mark.parametrize("tenant", ["", "-a", "a-", "A", "a_b", "a" * 64, "a/b", "a\n"])
def test_bad_tenants(tenant: str) -> None:
    with pytest.raises(InvalidInputError, match="tenant"):
        names.check_tenant(tenant)


@pytest.mark.parametrize("value", ["x", "user@example.com", "é" * 64, "a" * 128, "a b", "a:b"])
def test_ids(value: str) -> None:
    assert names.check_id(value, "subject.id") == value


@pytest.mark.parametrize("value", ["", "a" * 129, "é" * 65, "a/b", "a~b", "a\0", "a\n", "\x7f"])
def test_bad_ids(value: str) -> None:
    with pytest.raises(InvalidInputError, match=r"subject\.id"):
        names.check_id(value, "subject.id")


@pytest.mark.parametrize("action", ["", ".", "a.", ".a", "a..b", "a b", "a*", "é", "a" * 129, "a\n"])
def test_bad_actions(action: str) -> None:
    with pytest.raises(InvalidInputError):
        names.check_action(action, "action.name")


@pytest.mark.parametrize("pattern", ["*", "pay", "pay.*", "a.b-c_d.*"])
def test_patterns(pattern: str) -> None:
    assert names.check_action_pattern(pattern, "p") == pattern


@pytest.mark.parametrize("pattern", ["", "pay*", "*.pay", "pay.*.x", "..*", ".*", "pay..*", "**"])
def test_bad_patterns(pattern: str) -> None:
    with pytest.raises(InvalidInputError):
        names.check_action_pattern(pattern, "p")


def test_what_patterns_cover() -> None:
    assert names.action_matches("*", "a.b")
    assert names.action_matches("pay.*", "pay.out.now")
    assert not names.action_matches("pay.*", "pay")
    assert not names.action_matches("pay.*", "payments.x")
    assert names.action_matches("pay", "pay")
    assert not names.action_matches("pay", "pay.x")


def test_names_round_trip() -> None:
    text = "tenants/acme/deviceStates/d1"
    assert str(names.parse_name(text)) == text
    assert names.parse_parent("tenants/acme") == "acme"
    signal = "tenants/acme/signals/" + names.signal_id("ip", "203.0.113.0/24", "ipsum")
    assert names.parse_name(signal).id == "ip~203.0.113.0_24~ipsum"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "tenants/acme",
        "tenants/ACME/devices/d",
        "tenants/acme/nothing/d",
        "tenants/acme/devices/",
        "tenants/acme/devices/a/b",
        "tenants/acme/settings/other",
        "tenants/acme/signals/ip",
        "tenants/acme/signals/mac~x~feed",
        "tenants/acme/signals/ip~1.2.3.4_32~BAD",
        "tenant/acme/devices/d",
    ],
)
def test_bad_names(name: str) -> None:
    with pytest.raises(InvalidInputError):
        names.parse_name(name)


@pytest.mark.parametrize("parent", ["", "acme", "tenants/", "tenants/a/b", "tenant/a"])
def test_bad_parents(parent: str) -> None:
    with pytest.raises(InvalidInputError):
        names.parse_parent(parent)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("203.0.113.7", "203.0.113.7/32"),
        (" 203.0.113.0/24 ", "203.0.113.0/24"),
        ("2001:DB8::/32", "2001:db8::/32"),
        ("::ffff:203.0.113.0/120", "203.0.113.0/24"),
        ("0.0.0.0/0", "0.0.0.0/0"),
    ],
)
def test_prefixes_become_canonical(text: str, canonical: str) -> None:
    assert names.canonical_prefix(text) == canonical


@pytest.mark.parametrize("text", ["", "203.0.113.1/24", "300.1.1.1", "x", "203.0.113.0/33", "2001:db8::1/32"])
def test_bad_prefixes(text: str) -> None:
    with pytest.raises(InvalidInputError, match="value"):
        names.canonical_prefix(text)


@pytest.mark.parametrize("source", ["", "IPsum", "a" * 33, "a b", "a~b"])
def test_bad_sources(source: str) -> None:
    with pytest.raises(InvalidInputError):
        names.check_source(source, "source")
