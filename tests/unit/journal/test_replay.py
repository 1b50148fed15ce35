"""Deciding records again: identical where everything is known, undetermined for a named cause where it is not."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from sidestep.v1 import resources_pb2 as pb

from engine.candidate import candidate
from engine.decide import decide, decide_by, fail_safe
from engine.decision import Basis, Code, Decision, Outcome
from engine.facts import Binding, DeviceBlock, Facts, Posture
from engine.policy import parse_policy
from engine.rules import TenantRules
from sidecar.front.disclosure import Disclosure
from sidecar.gather.gatherer import _reads_resource_id
from sidecar.journal.record import VERSION, BatchRecord, Record, UnrecordedRecord, encode_record
from sidecar.journal.replay import Cause, Revision, differences, read_decision, replay
from tests.fakes.records import make_record
from tests.unit.engine.samples import PAYMENTS, compiled, facts, grant, login, policy, tenant

SETTINGS = pb.Settings()


def stored(*sources: str, version: int = 1) -> list[pb.Policy]:
    return [pb.Policy(document=parse_policy(source).document, version=version) for source in sources]


def record_of(asked: Facts, rules: TenantRules, **more: Any) -> Record:
    return make_record(facts=asked, decision=decide(asked, rules), **more)


def revision(*sources: str, tried: str | None = None) -> Revision:
    return Revision(SETTINGS, stored(*sources), None if tried is None else candidate(parse_policy(tried)))


# Reading records


def test_a_decision_is_read_back() -> None:
    record = record_of(facts(), tenant(PAYMENTS))
    assert read_decision(encode_record(record)) == record


def test_records_that_are_no_decisions_are_none() -> None:
    assert read_decision(encode_record(BatchRecord(bytes(16), 1.0, 2, 3))) is None
    assert read_decision(encode_record(UnrecordedRecord(bytes(16), 1.0, 2.0, 3))) is None
    assert read_decision(msgspec.msgpack.encode({"kind": "lease", "v": VERSION + 1})) is None


def test_a_newer_record_is_told_apart_from_a_broken_one() -> None:
    plain = msgspec.to_builtins(record_of(facts(), tenant(PAYMENTS)), builtin_types=(bytes,))
    unknown = {**plain, "decision": {**plain["decision"], "outcome": "PERHAPS"}}
    encode = msgspec.msgpack.encode
    assert read_decision(encode({**plain, "v": VERSION + 1})) is Cause.NEWER_RECORD
    assert read_decision(encode({**unknown, "v": VERSION + 1})) is Cause.NEWER_RECORD
    assert read_decision(encode(unknown)) is Cause.UNREADABLE_RECORD
    assert read_decision(b"\xc1") is Cause.UNREADABLE_RECORD
    assert read_decision(b"") is Cause.UNREADABLE_RECORD


def test_every_cause_has_a_meaning() -> None:
    assert len({cause.meaning for cause in Cause}) == len(Cause)


# Deciding again


@pytest.mark.parametrize("asked", [facts(), facts(grants=()), facts(device={"binding": Binding.UNKNOWN})], ids=str)
def test_a_decision_comes_out_identical(asked: Facts) -> None:
    record = record_of(asked, tenant(PAYMENTS))
    assert replay(record, tenant(PAYMENTS)) == record.decision
    assert revision(PAYMENTS).again(record) == record.decision


def test_observed_policies_are_decided_again_too() -> None:
    observed = PAYMENTS.replace("name: payments,", "name: next,").replace("spec:\n", "spec:\n  mode: observe\n")
    record = record_of(facts(), tenant(PAYMENTS, observed))
    assert record.decision.shadows
    assert revision(PAYMENTS, observed).again(record) == record.decision


def test_an_answer_for_want_of_time_is_given_again() -> None:
    rules = tenant(PAYMENTS)
    asked = Facts(1_700_000_000.0, "acme", "payments.transfer")
    given_up = make_record(facts=asked, decision=fail_safe(asked.action, rules, Code.DEADLINE))
    assert decide(asked, rules) != given_up.decision
    assert revision(PAYMENTS).again(given_up) == given_up.decision
    would_be = revision(PAYMENTS, tried=PAYMENTS).otherwise(given_up)
    assert isinstance(would_be, Decision)
    assert (would_be.outcome, would_be.basis) == (Outcome.STEP_UP, Basis.FAIL_SAFE)


def test_differences_are_told_field_by_field() -> None:
    record = record_of(facts(), tenant(PAYMENTS))
    edited = replace(record.decision, outcome=Outcome.STEP_UP, achieved_acr="phr")
    assert [tuple(found) for found in differences(edited, replay(record, tenant(PAYMENTS)))] == [
        ("outcome", '"STEP_UP"', '"ALLOW"'),
        ("achieved_acr", '"phr"', '"nist-aal1"'),
    ]
    assert differences(record.decision, replay(record, tenant(PAYMENTS))) == ()


def test_other_rules_make_a_difference() -> None:
    record = record_of(facts(), tenant(PAYMENTS))
    again = Revision(SETTINGS, stored(PAYMENTS, version=2)).again(record)
    assert isinstance(again, Decision)
    assert [found.field for found in differences(record.decision, again)] == ["policies"]


def test_a_policy_that_cannot_be_read_is_no_guess() -> None:
    broken = pb.Policy(document="{}", version=1)
    # Who recorded this could not read it either, and then the top requirement holds.
    record = record_of(facts(), tenant())
    assert Revision(SETTINGS, [broken]).again(record) == record.decision
    # Who recorded this could.
    newer = record_of(facts(), tenant(PAYMENTS))
    assert Revision(SETTINGS, [broken]).again(newer) is Cause.RULES_UNREADABLE
    tried = candidate(parse_policy(PAYMENTS))
    assert Revision(SETTINGS, [broken], tried).otherwise(record) is Cause.RULES_UNREADABLE


# Values that are not known


HIGH = '  triggers: [{name: t, when: "%s", require: {acr: phr, maxAge: 5m}}]'
AMOUNT = policy(HIGH % "context.amount.value > 10.0", name="amount")
LENIENT = policy("", name="lenient")
VIP = policy("  context: {vip: bool}\n" + HIGH % "!context.vip", name="vip")
RESOURCE = policy(HIGH % "resource.id == 'a'", name="resource")


def bare(**changes: Any) -> Facts:
    return facts(action="pay.now", values={}, grants=(), **changes)


def test_a_withheld_value_leaves_it_undetermined_where_it_is_read() -> None:
    record = record_of(bare(), tenant(AMOUNT), withheld=("context.amount.value",))
    assert revision(AMOUNT).again(record) is Cause.VALUE_WITHHELD
    assert revision(LENIENT, tried=AMOUNT).otherwise(record) is Cause.VALUE_WITHHELD
    assert isinstance(revision(AMOUNT, tried=policy("", name="amount")).otherwise(record), Decision)
    elsewhere = record_of(facts(values={}), tenant(PAYMENTS), withheld=("context.country",))
    assert revision(PAYMENTS, AMOUNT).again(elsewhere) == elsewhere.decision


def test_a_blocked_decision_rests_on_no_value() -> None:
    record = record_of(bare(device={"block": DeviceBlock.REVOKED}), tenant(AMOUNT), withheld=("context.amount.value",))
    assert revision(AMOUNT).again(record) == record.decision


def test_a_withheld_value_of_an_observed_policy_counts_too() -> None:
    observed = AMOUNT.replace("spec:\n", "spec:\n  mode: observe\n")
    record = record_of(bare(), tenant(LENIENT, observed), withheld=("context.amount.value",))
    assert revision(LENIENT, observed).again(record) is Cause.VALUE_WITHHELD


def test_a_grants_condition_that_reads_a_withheld_value_counts_where_grants_do() -> None:
    conditioned = facts(values={}, grants=(grant(condition="context.country == 'DE'"),))
    record = record_of(conditioned, tenant(PAYMENTS), withheld=("context.country",))
    assert revision(PAYMENTS).again(record) is Cause.VALUE_WITHHELD
    without_exemptions = policy("", name="payments", actions="payments.*")
    record = record_of(conditioned, tenant(without_exemptions), withheld=("context.country",))
    assert revision(without_exemptions).again(record) == record.decision


def test_what_no_policy_read_then_is_not_known_to_be_absent() -> None:
    record = record_of(bare(), tenant(LENIENT))
    assert revision(LENIENT, tried=VIP).otherwise(record) is Cause.VALUE_NOT_RECORDED
    assert revision(LENIENT, tried=RESOURCE).otherwise(record) is Cause.VALUE_NOT_RECORDED
    # Somebody read them: the request had none.
    for read, tried in ((VIP, VIP), (RESOURCE, RESOURCE)):
        would_be = revision(LENIENT, read, tried=tried).otherwise(record_of(bare(), tenant(LENIENT, read)))
        assert isinstance(would_be, Decision)
        assert would_be.outcome is Outcome.STEP_UP
    # What conditions can always read is always kept.
    would_be = revision(LENIENT, tried=AMOUNT).otherwise(record)
    assert isinstance(would_be, Decision)
    assert any(reason.code is Code.TRIGGER_ERROR for reason in would_be.reasons)


def test_a_grant_that_read_the_resource_kept_its_id() -> None:
    reading = facts(action="pay.now", values={"resource.id": "a"}, grants=(grant(condition="resource.id == 'a'"),))
    record = record_of(reading, tenant(LENIENT))
    would_be = revision(LENIENT, tried=RESOURCE).otherwise(record)
    assert would_be == decide(reading, TenantRules([compiled(LENIENT), compiled(RESOURCE, 0)]))
    absent = record_of(replace(reading, values={}), tenant(LENIENT))
    assert isinstance(revision(LENIENT, tried=RESOURCE).otherwise(absent), Decision)


VALUES: dict[str, list[Any]] = {
    "context.amount.value": [1.0, 100.0],
    "context.country": ["DE", "FR"],
    "context.vip": [True, False],
    "context.channel": ["app", "web"],
    "resource.type": ["account", "card"],
    "resource.id": ["a", "b"],
}
CONDITIONS = {
    "context.amount.value": "context.amount.value > 10.0",
    "context.country": "context.country != 'DE'",
    "context.vip": "!context.vip",
    "context.channel": "context.channel == 'web'",
    "resource.type": "resource.type == 'card'",
    "resource.id": "resource.id != 'a'",
}
DECLARED = {"context.vip": "vip: bool", "context.channel": "channel: string"}


@st.composite
def sources(draw: st.DrawFn, name: str) -> str:
    """A policy that may be exempted from, and reads some values."""
    read = draw(st.lists(st.sampled_from(sorted(VALUES)), max_size=2, unique=True))
    declared = {DECLARED[value] for value in read if value in DECLARED}
    declared |= set(draw(st.lists(st.sampled_from(sorted(DECLARED.values())), max_size=1)))
    triggers = "\n".join(
        f'    - {{name: t{index}, when: "{CONDITIONS[value]}", require: {{acr: phr, maxAge: 5m, waivable: true}}}}'
        for index, value in enumerate(read)
    )
    spec = "  context: {" + ", ".join(sorted(declared)) + "}\n" + (f"  triggers:\n{triggers}\n" if triggers else "")
    exemptions = PAYMENTS[PAYMENTS.index("  exemptions:") : PAYMENTS.index("  methods:")]
    return policy(spec + (exemptions.replace("nist-aal2", "phr") if draw(st.booleans()) else ""), name=name)


@settings(max_examples=80, deadline=None)
@given(
    then=st.tuples(sources("one"), sources("two")),
    tried=sources("one"),
    values=st.fixed_dictionaries({}, optional={name: st.sampled_from(some) for name, some in VALUES.items()}),
    conditions=st.lists(st.sampled_from(["", *CONDITIONS.values()]), max_size=2),
    shown=st.sets(st.sampled_from(["context.amount.*", "context.country", "context.*", "resource.type", "resource.*"])),
    blocked=st.booleans(),
)
def test_what_is_told_is_what_would_have_been(
    then: tuple[str, str], tried: str, values: dict[str, Any], conditions: list[str], shown: set[str], blocked: bool
) -> None:
    rules = TenantRules([compiled(source) for source in then])
    conditions = [text for text in conditions if "vip" not in text and "channel" not in text]
    everything = facts(
        action="pay.now",
        values=values,
        grants=tuple(
            grant(id=f"g{index}", ceiling_acr="phr", ceiling_max_age_s=60.0, condition=text)
            for index, text in enumerate(conditions)
        ),
        device={"block": DeviceBlock.REVOKED if blocked else DeviceBlock.NONE},
        authentications=(login("nist-aal1"),),
    )
    # As gather keeps them, and as a record shows them.
    kept = {name: value for name, value in values.items() if name in rules.request_variables}
    if not _reads_resource_id(rules, everything.grants):
        kept.pop("resource.id", None)
    looked_up = replace(everything, values=kept)
    recorded, withheld = Disclosure(values=sorted(shown)).facts(looked_up)
    record = make_record(facts=recorded, decision=decide(looked_up, rules), withheld=withheld)

    with_candidate = Revision(SETTINGS, stored(*then), candidate(parse_policy(tried)))
    again = with_candidate.again(record)
    assert again in (record.decision, Cause.VALUE_WITHHELD)
    if not withheld:
        assert again == record.decision

    # Had the candidate been in force, every value it reads would have been there for it.
    would_be = candidate(parse_policy(tried)).among(rules)
    truth = decide_by(everything, would_be, would_be.plan("pay.now", Posture.LOW))
    told = with_candidate.otherwise(record)
    assert told in (truth, Cause.VALUE_WITHHELD, Cause.VALUE_NOT_RECORDED)


def test_the_command_line_needs_nothing_of_a_sidecars_libraries() -> None:
    sidecars = {"lmdb", "jwt", "cachetools", "pygrpc_native", "sidecar.config", "sidecar.store"}
    code = f"import sys, controlplane.cli.main, sidecar.gather.rules; print({sidecars} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
