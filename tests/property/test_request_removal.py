"""Leaving something out of a request never turns a withheld ALLOW into ALLOW (DESIGN section 8, docs/adr/0004).

Every field, sub-field, list element and map entry of evidence is removed, one at a time, from random requests about random store
contents. What is meant, and left out here by name:

- `session.token`, where a policy accepts the caller's word instead of it;
- `session.id`, where it contradicts the token: of two contradicting statements either alone is consistent;
- `session.dpop` beside a token that is not bound to a key, where the proof shows that a blocked device is in use: without the
  proof the fingerprint may rule that device out;
- `units` and `nanos` of an amount, which are one number together.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st
from sidestep.v1 import decision_pb2

from engine.challenge import www_authenticate
from engine.decision import Basis, Code, Decision, Outcome
from engine.errors import InvalidInputError
from engine.facts import DeviceBlock, Evidence
from tests.property.world import Answer, Replica, World, requests, worlds

_INSTRUCTIONS = frozenset({"tenant", "request_id", "min_revision", "explain"})
QUICK = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    made = Replica(Path(tmp_path_factory.mktemp("store")))
    yield made
    made.close()


def removals(message: Message, path: str = "") -> Iterator[tuple[str, Message]]:
    """Copies of the message with one thing less, each with the path of that thing."""
    for field, value in message.ListFields():
        if not path and field.name in _INSTRUCTIONS:
            continue
        where = f"{path}.{field.name}" if path else field.name
        without = _copy(message)
        without.ClearField(field.name)
        yield where, without
        entries = field.message_type is not None and field.message_type.GetOptions().map_entry
        if entries:
            for key in value:
                yield f"{where}[{key}]", _with(message, field, lambda held, key=key: held.pop(key))
                if isinstance(value[key], Message):
                    for inner, smaller in removals(value[key], f"{where}[{key}]"):
                        yield inner, _with(message, field, lambda held, k=key, s=smaller: held[k].CopyFrom(s))
        elif isinstance(value, Message):
            for inner, smaller in removals(value, where):
                yield inner, _with(message, field, lambda held, s=smaller: held.CopyFrom(s))
        elif field.is_repeated:
            for index, element in enumerate(value):
                yield f"{where}[{index}]", _with(message, field, lambda held, i=index: held.pop(i))
                if isinstance(element, Message):
                    for inner, smaller in removals(element, f"{where}[{index}]"):
                        yield inner, _with(message, field, lambda held, i=index, s=smaller: held[i].CopyFrom(s))


def _copy(message: Message) -> Any:
    copied = type(message)()
    copied.CopyFrom(message)
    return copied


def _with(message: Message, field: FieldDescriptor, change: Any) -> Message:
    copied = _copy(message)
    change(getattr(copied, field.name))
    return copied  # type: ignore[no-any-return]


def ask(replica: Replica, request: Any) -> Answer | None:
    """None: the request is refused, which allows nothing."""
    try:
        return replica.ask(request)
    except InvalidInputError:
        return None


def allows(answer: Answer | None) -> bool:
    return answer is not None and answer.decision.outcome is Outcome.ALLOW


def accepts_the_callers_word(answer: Answer) -> bool:
    """Whether the policies let this through without any proof."""
    if answer.decision.basis is Basis.EXEMPTION_GRANT:
        thresholds = answer.rules.plan(answer.facts.action, answer.facts.posture).thresholds
        return thresholds is not None and not thresholds.session_verified
    return answer.decision.requirement.evidence in (None, Evidence.ASSERTED)


def is_meant(path: str, before: Answer, after: Answer) -> bool:
    """Whether this removal is one of the exceptions above."""
    if path == "session.token":
        return accepts_the_callers_word(after)
    if path == "session.id":
        return before.facts.session.token_detail == "session_mismatch"
    if path.startswith("session.dpop"):
        return not before.facts.session.proved and before.facts.device.block in (
            DeviceBlock.QUARANTINED,
            DeviceBlock.REVOKED,
        )
    return path in ("context.amount.units", "context.amount.nanos")


def check_removals(replica: Replica, world: World, request: decision_pb2.EvaluateRequest) -> None:
    replica.hold(world)
    before = ask(replica, request)
    if before is None or allows(before):
        return
    for path, less in removals(request):
        after = ask(replica, less)
        if after is not None and allows(after):
            assert is_meant(path, before, after), (path, before.decision.reasons, after.decision)


@QUICK
@given(world=worlds(), request=requests())
def test_leaving_something_out_never_helps(
    replica: Replica, world: World, request: decision_pb2.EvaluateRequest
) -> None:
    check_removals(replica, world, request)


@pytest.mark.parametrize("basis", [basis for basis in Basis if basis is not Basis.FAIL_SAFE])
def test_the_strategies_reach_every_basis(replica: Replica, basis: Basis) -> None:
    def reaches(pair: tuple[World, decision_pb2.EvaluateRequest]) -> bool:
        replica.hold(pair[0])
        answer = ask(replica, pair[1])
        return answer is not None and answer.decision.basis is basis

    search = settings(max_examples=3000, deadline=None, phases=[Phase.generate], database=None)
    assert reaches(find(st.tuples(worlds(), requests()), reaches, settings=search))


def test_removals_reach_every_part_of_a_request() -> None:
    request = decision_pb2.EvaluateRequest(tenant="acme", request_id="r", explain=True)
    request.min_revision.revision = 5
    request.subject.id = "alice"
    request.context.attributes["channel"] = "web"
    request.session.authentications.add(acr="phr", amr=["pwd", "otp"]).auth_time.seconds = 5
    request.device.fingerprint["os"] = "macOS"
    assert [path for path, _ in removals(request)] == [
        "subject",
        "subject.id",
        "context",
        "context.attributes",
        "context.attributes.fields",
        "context.attributes.fields[channel]",
        "context.attributes.fields[channel].string_value",
        "session",
        "session.authentications",
        "session.authentications[0]",
        "session.authentications[0].acr",
        "session.authentications[0].amr",
        "session.authentications[0].amr[0]",
        "session.authentications[0].amr[1]",
        "session.authentications[0].auth_time",
        "session.authentications[0].auth_time.seconds",
        "device",
        "device.fingerprint",
        "device.fingerprint[os]",
    ]
    assert request.session.authentications[0].acr == "phr"
    assert all(less != request for _, less in removals(request))


def well_formed(decision: Decision) -> bool:
    """What every answer must be, whatever was asked."""
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(decision), type=Decision) == decision
    assert decision.reasons
    assert all(isinstance(reason.code, Code) for reason in decision.reasons)
    if decision.outcome is Outcome.ALLOW:
        assert decision.basis in (Basis.NOT_REQUIRED, Basis.ASSURANCE_SATISFIED, Basis.EXEMPTION_GRANT)
        assert bool(decision.grant) == (decision.basis is Basis.EXEMPTION_GRANT)
    elif decision.outcome is Outcome.STEP_UP:
        assert decision.challenge is not None
        assert decision.challenge.methods
    if decision.challenge is not None:
        assert www_authenticate(decision.challenge).isascii()
    return True


@st.composite
def wire_bytes(draw: st.DrawFn) -> bytes:
    """Any bytes at all, or an encoded request with a few bytes changed, cut out or put in."""
    if draw(st.booleans()):
        return draw(st.binary(max_size=300))
    raw = bytearray(draw(requests()).SerializeToString())
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, max(0, len(raw) - 1)))
        raw[place : place + draw(st.integers(0, 2))] = draw(st.binary(max_size=3))
    return bytes(raw)


@settings(parent=QUICK, max_examples=60)
@given(world=worlds(), raw=wire_bytes())
def test_any_bytes_are_answered_or_refused(replica: Replica, world: World, raw: bytes) -> None:
    replica.hold(world)
    request = decision_pb2.EvaluateRequest()
    try:
        request.ParseFromString(raw)
    except DecodeError:
        return
    answer = ask(replica, request)
    assert answer is None or well_formed(answer.decision)
