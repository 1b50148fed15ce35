"""No record of any vector holds raw personal data, as long as the settings are the default ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sidestep.v1 import decision_pb2

from engine.decision import Code
from engine.durations import parse_duration
from engine.errors import SidestepError
from engine.pseudonym import user_hash
from sidecar.front.disclosure import Disclosure, network_of
from sidecar.front.servicer import DecisionServicer, Verdict
from sidecar.gather.gatherer import GatherConfig
from sidecar.journal.record import Record, decode_record
from sidecar.store.reader import Reader
from tests.conformance import records, requests
from tests.conformance.replica import Replica
from tests.conformance.vectors import Vector, fixture, for_runner, vectors

# Ids from the registry, which administrators choose. Where a device or a grant is called like a person, it stays so.
_REGISTERED = ("facts.device.id", "facts.grants[].id", "facts.candidates[].device.id", "facts.candidates[].grants[].id")
_CITED = ("decision.grant", "decision.spot_check.grant", "decision.reasons[].clause", "decision.policies[]")

_WITHOUT_A_KEY = frozenset(
    f"5-grants::spot-check-{case}"
    for case in ("without-a-tenant-key", "with-an-expired-tenant-key", "of-nobody-needs-no-key")
) | {
    "5-class-breaker::without-a-key-there-is-no-draw",
    "5-device-trust::revalidation-without-a-tenant-key",
    "5-device-trust::revalidation-without-a-tenant-key-in-time",
}


class Recording:
    """Decides vectors and shows what is recorded of them."""

    def __init__(self, data_dir: Path, disclosure: Disclosure) -> None:
        base = fixture()
        self._replica = Replica(data_dir)
        self._reader = Reader(data_dir, clock=self._replica.clock)
        config = GatherConfig(
            base["default_tenant"], parse_duration(base["soft_stale"]), parse_duration(base["hard_stale"])
        )
        self._servicer = DecisionServicer(config, self._replica.clock, diagnose=False, disclosure=disclosure)

    def decide(self, vector: Vector) -> tuple[decision_pb2.EvaluateRequest, Verdict | None]:
        """None: the vector ends in an error, and nothing is recorded."""
        self._replica.change(vector)
        request = requests.build(vector, self._replica.head(vector.request.get("tenant", fixture()["default_tenant"])))
        with self._reader.view() as view:
            try:
                if vector.deadline_passed:
                    return request, self._servicer.give_up(request, "", view, vector.now_s, Code.DEADLINE)
                return request, self._servicer.evaluate(
                    request, "", view, vector.now_s, journal_full=vector.journal_full
                )
            except SidestepError:
                return request, None

    def close(self) -> None:
        self._reader.close()
        self._replica.close()


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recording]:
    running = Recording(tmp_path_factory.mktemp("store"), Disclosure())
    yield running
    running.close()


@pytest.fixture(scope="module")
def frank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recording]:
    running = Recording(
        tmp_path_factory.mktemp("store"), Disclosure("raw", "raw", ("context.*", "resource.id", "resource.type"))
    )
    yield running
    running.close()


def texts(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a record, keys included, with its place."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield f"{path}{{}}", key
            yield from texts(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from texts(item, f"{path}[]")
    elif isinstance(value, str):
        yield path, value


def personal(request: decision_pb2.EvaluateRequest) -> set[str]:
    """What the request says that must not be recorded as it is."""
    session, context = request.session, request.context
    said = {request.subject.id, session.id, session.token, session.dpop.proof, request.device.id, context.ip}
    said |= {*session.token.split("."), *request.device.fingerprint.values(), request.resource.id}
    said |= {value.string_value for value in context.attributes.fields.values()}
    return said - {""}


def leaks(request: decision_pb2.EvaluateRequest, record: bytes) -> list[tuple[str, str]]:
    found = []
    for path, text in texts(msgspec.msgpack.decode(record)):
        if path in _REGISTERED + _CITED or path in ("user_hash", "client_address"):
            continue
        # Short ones are part of anything: `8` processors.
        found += [(path, raw) for raw in personal(request) if raw == text or (len(raw) > 3 and raw in text)]
    return found


@pytest.mark.parametrize("vector", for_runner("engine"), ids=lambda vector: vector.id)
def test_record_says_nothing_raw(recording: Recording, vector: Vector) -> None:
    request, verdict = recording.decide(vector)
    if verdict is None:
        return
    record = decode_record(verdict.record)
    assert isinstance(record, Record)
    assert leaks(request, verdict.record) == []
    key = "globex-1" if request.tenant == "globex" else "tenant-1"
    hashed = user_hash(records.secret(key), request.subject.id)
    assert record.user_hash == ("" if vector.id in _WITHOUT_A_KEY else hashed)
    assert record.user_id == ""
    assert record.client_address == network_of(request.context.ip)
    assert record.decision == verdict.decision


def test_what_the_settings_let_out_is_what_was_found_missing(frank: Recording) -> None:
    """The check can fail: with everything let out, it finds subjects, addresses, resources and attributes."""
    places: set[str] = set()
    for vector in vectors():
        request, verdict = frank.decide(vector)
        if verdict is not None:
            places |= {path for path, _ in leaks(request, verdict.record)}
            record = decode_record(verdict.record)
            assert isinstance(record, Record)
            assert record.withheld == ()
            assert record.facts == verdict.gathered.facts
            assert record.user_id == request.subject.id
    assert {"user_id", "facts.values.resource.id", "facts.grants[].condition"} <= places
