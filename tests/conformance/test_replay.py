"""Every vector's decision, recorded and read back, is decided again to the very same, by rules built from stored records."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sidestep.v1 import resources_pb2 as pb

from engine.decision import Decision
from engine.names import SINGLETON_ID, Collection
from sidecar.front.disclosure import Disclosure
from sidecar.journal.record import Record, decode_record
from sidecar.journal.replay import Cause, Revision, differences
from tests.conformance.records import build
from tests.conformance.test_privacy import Recording
from tests.conformance.vectors import Vector, fixture, fixture_now, for_runner, vectors

EVERYTHING = Disclosure("hash", "truncated", ("context.*", "resource.id", "resource.type"))


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recording]:
    running = Recording(tmp_path_factory.mktemp("store"), EVERYTHING)
    yield running
    running.close()


@pytest.fixture(scope="module")
def reserved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recording]:
    running = Recording(tmp_path_factory.mktemp("store"), Disclosure())
    yield running
    running.close()


def revision(vector: Vector, tenant: str) -> Revision:
    """The rules as the control plane would tell them."""
    base = fixture()
    if tenant == base["default_tenant"]:
        records = build(tenant, vector.records, vector.now)
    else:
        records = build(tenant, base["tenants"][tenant], fixture_now())
    settings = pb.Settings.FromString(records.get((Collection.SETTINGS, SINGLETON_ID), b""))
    policies = [pb.Policy.FromString(value) for (kind, _), value in records.items() if kind == Collection.POLICIES]
    return Revision(settings, policies)


def recorded(recording: Recording, vector: Vector) -> Record | None:
    _, verdict = recording.decide(vector)
    if verdict is None:
        return None
    record = decode_record(verdict.record)
    assert isinstance(record, Record)
    return record


@pytest.mark.parametrize("vector", for_runner("engine"), ids=lambda vector: vector.id)
def test_decision_replays_identically(everything: Recording, vector: Vector) -> None:
    record = recorded(everything, vector)
    if record is None:
        return
    again = revision(vector, record.facts.tenant).again(record)
    assert isinstance(again, Decision), again
    assert differences(record.decision, again) == ()
    assert record.facts.data.revision > 0


def test_what_is_withheld_is_never_guessed(reserved: Recording) -> None:
    causes: dict[str, Any] = {}
    identical = 0
    for vector in vectors():
        record = recorded(reserved, vector)
        if record is None:
            continue
        again = revision(vector, record.facts.tenant).again(record)
        if isinstance(again, Cause):
            assert again is Cause.VALUE_WITHHELD
            assert record.withheld
            causes[vector.id] = again
        else:
            assert again == record.decision, vector.id
            identical += 1
    # Most replay with the default settings, and some cannot.
    assert causes
    assert identical > 10 * len(causes)
