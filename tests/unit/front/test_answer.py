from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sidestep.v1 import decision_pb2, resources_pb2

from engine.challenge import INVALID_TOKEN
from engine.decision import Basis, Challenge, Check, Code, Decision, Outcome, Reason, Requirement, Shadow
from engine.explain import Explanation, FactorReport, Step
from engine.facts import Data, Evidence, Facts, Session
from engine.methods import Method
from engine.rules import TenantRules
from sidecar.front.answer import BASES, OUTCOMES, Answers, batch_error, batch_result
from sidecar.front.decision_id import DecisionIds, id_text

RULES = TenantRules(
    (), methods=[Method("webauthn", "phr", ("hwk", "user"), 9), Method("totp", "nist-aal2", ("otp",), 5)]
)
REQUIREMENT = Requirement(("phr", "nist-aal2"), 300.5, None, 1_700_000_000.25, Evidence.VERIFIED)
CHALLENGE = Challenge(("webauthn", "totp"), ("phr",), 300)
DATA = Data(epoch=3, revision=42, bulk_epoch=3, bulk_revision=7, age_s=1.25)
ID = DecisionIds().next()


def decision(outcome: Outcome = Outcome.STEP_UP, basis: Basis = Basis.CHALLENGE, **fields: Any) -> Decision:
    return Decision(outcome, basis, (Reason(Code.ACR_UNMET, "payments/base"),), **fields)


def encode(made: Decision, facts: Facts | None = None, answers: Answers | None = None, **options: Any) -> Any:
    facts = facts or Facts(0.0, "acme", "payments.transfer", data=DATA)
    encoded = (answers or Answers()).encode(ID, facts, options.get("rules", RULES), made, options.get("explanation"))
    return decision_pb2.EvaluateResponse.FromString(encoded)


def test_everything_is_told() -> None:
    made = decision(requirement=REQUIREMENT, achieved_acr="nist-aal1", challenge=CHALLENGE)
    message = encode(made)
    assert message.decision_id == id_text(ID)
    assert (message.outcome, message.basis) == (decision_pb2.OUTCOME_STEP_UP, decision_pb2.BASIS_CHALLENGE)
    assert list(message.requirement.acrs) == ["phr", "nist-aal2"]
    assert message.requirement.max_age.ToMilliseconds() == 300_500
    assert message.requirement.authenticated_after.ToMilliseconds() == 1_700_000_000_250
    assert message.requirement.evidence == resources_pb2.EVIDENCE_VERIFIED
    assert message.achieved_acr == "nist-aal1"
    assert [(method.id, method.acr, list(method.amr)) for method in message.challenge.methods] == [
        ("webauthn", "phr", ["hwk", "user"]),
        ("totp", "nist-aal2", ["otp"]),
    ]
    assert message.challenge.acr_values == "phr"
    assert message.challenge.max_age_s == 300
    assert message.challenge.www_authenticate.endswith('acr_values="phr", max_age="300"')
    assert (message.data.urgent.epoch, message.data.urgent.revision) == (3, 42)
    assert (message.data.bulk.epoch, message.data.bulk.revision) == (3, 7)
    assert message.data.age.ToMilliseconds() == 1250
    assert not message.HasField("explanation")


def test_bytes_are_those_of_the_message_and_no_more() -> None:
    made = decision(requirement=REQUIREMENT, challenge=CHALLENGE, grant="g1", waived_acrs=("nist-aal2",))
    encoded = Answers().encode(ID, Facts(0.0, "acme", "a", data=DATA), RULES, made, None)
    message = decision_pb2.EvaluateResponse.FromString(encoded)
    assert message.SerializeToString(deterministic=True) == encoded


@given(
    st.integers(1, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.none() | st.floats(0, 1e10),
)
def test_any_data_version_reads_back(epoch: int, revision: int, bulk_epoch: int, bulk: int, age: float | None) -> None:
    facts = Facts(0.0, "acme", "a", data=Data(epoch, revision, bulk_epoch, bulk, age))
    message = encode(decision(), facts)
    assert (message.data.urgent.epoch, message.data.urgent.revision) == (epoch, revision)
    assert (message.data.bulk.epoch, message.data.bulk.revision) == (bulk_epoch, bulk)
    assert message.data.HasField("age") == (age is not None)
    if age is not None:
        assert message.data.age.seconds + message.data.age.nanos / 1e9 == pytest.approx(age, abs=1.1e-3)


def test_decision_on_no_data_has_no_data_version() -> None:
    assert not encode(decision(), Facts(0.0, "acme", "a")).HasField("data")


@pytest.mark.parametrize(
    ("basis", "challenge", "reason"),
    [
        (Basis.NOT_REQUIRED, None, decision_pb2.COARSE_REASON_NOTHING_REQUIRED),
        (Basis.ASSURANCE_SATISFIED, None, decision_pb2.COARSE_REASON_REQUIREMENT_MET),
        (Basis.EXEMPTION_GRANT, None, decision_pb2.COARSE_REASON_EXEMPTED),
        (Basis.CHALLENGE, CHALLENGE, decision_pb2.COARSE_REASON_AUTHENTICATION_NEEDED),
        (Basis.BLOCKED, None, decision_pb2.COARSE_REASON_BLOCKED),
        (Basis.BLOCKED, INVALID_TOKEN, decision_pb2.COARSE_REASON_SESSION_INVALID),
        (Basis.FAIL_SAFE, CHALLENGE, decision_pb2.COARSE_REASON_DATA_UNAVAILABLE),
    ],
)
def test_reason_is_as_coarse_as_a_caller_may_know(basis: Basis, challenge: Challenge | None, reason: int) -> None:
    assert encode(decision(basis=basis, challenge=challenge)).reason == reason


def test_every_outcome_and_basis_has_its_number() -> None:
    assert {outcome: decision_pb2.Outcome.Name(number) for outcome, number in OUTCOMES.items()} == {
        outcome: f"OUTCOME_{outcome.value}" for outcome in Outcome
    }
    assert {basis: decision_pb2.Basis.Name(number) for basis, number in BASES.items()} == {
        basis: f"BASIS_{basis.value}" for basis in Basis
    }


def test_grant_is_told_by_its_full_name() -> None:
    assert encode(decision(Outcome.ALLOW, Basis.EXEMPTION_GRANT, grant="g1")).grant == "tenants/acme/grants/g1"


def test_broken_token_is_told_as_rfc_6750_does() -> None:
    made = decision(Outcome.DENY, Basis.BLOCKED, challenge=INVALID_TOKEN)
    assert 'error="invalid_token"' in encode(made).challenge.www_authenticate


def test_scheme_is_dpop_where_a_key_was_proved() -> None:
    facts = Facts(0.0, "acme", "a", session=Session(proved=True))
    answers = Answers()
    assert encode(decision(challenge=CHALLENGE), answers=answers).challenge.www_authenticate.startswith("Bearer ")
    assert encode(decision(challenge=CHALLENGE), facts, answers).challenge.www_authenticate.startswith("DPoP ")


def test_what_is_kept_follows_rules_and_tenant() -> None:
    answers = Answers()
    first = encode(decision(challenge=CHALLENGE, grant="g"), answers=answers)
    changed = TenantRules((), methods=[Method("totp", "nist-aal2", ("otp", "mfa"), 5)])
    second = encode(decision(challenge=CHALLENGE, grant="g"), answers=answers, rules=changed)
    assert [method.id for method in first.challenge.methods] == ["webauthn", "totp"]
    assert [(method.id, list(method.amr)) for method in second.challenge.methods] == [("totp", ["otp", "mfa"])]
    other = encode(decision(challenge=CHALLENGE, grant="g"), Facts(0.0, "globex", "a"), answers)
    assert other.grant == "tenants/globex/grants/g"


def test_explanation_is_told_whole() -> None:
    explanation = Explanation(
        (Step(1, "policies", "payments@1"),),
        (FactorReport("device", False, (Check("device.trust", False, "0.5", "0.85"),)),),
        ("ACR_UNMET payments/base",),
        "a fresh authentication",
        ("payments@1",),
        (Shadow("next@2", Outcome.DENY, Basis.BLOCKED),),
    )
    told = encode(decision(), explanation=explanation).explanation
    assert (told.steps[0].step, told.steps[0].title, told.steps[0].detail) == (1, "policies", "payments@1")
    (report,) = told.factors
    assert (report.factor, report.passed) == ("device", False)
    assert (report.checks[0].name, report.checks[0].measured, report.checks[0].threshold) == (
        "device.trust",
        "0.5",
        "0.85",
    )
    assert list(told.reasons) == ["ACR_UNMET payments/base"]
    assert told.smallest_change == "a fresh authentication"
    assert list(told.policies) == ["payments@1"]
    assert (told.shadows[0].policy, told.shadows[0].outcome) == ("next@2", decision_pb2.OUTCOME_DENY)


@given(st.lists(st.binary(max_size=300) | st.tuples(st.integers(1, 16), st.text(max_size=300)), max_size=20))
def test_places_of_a_batch_put_end_to_end_are_the_message(places: list[Any]) -> None:
    results, encoded = [], b""
    for place in places:
        if isinstance(place, bytes):
            response = decision_pb2.EvaluateResponse(decision_id=place.hex())
            results.append(decision_pb2.EvaluateBatchResult(response=response))
            encoded += batch_result(response.SerializeToString())
        else:
            error = decision_pb2.BatchError(code=place[0], message=place[1])
            results.append(decision_pb2.EvaluateBatchResult(error=error))
            encoded += batch_error(*place)
    assert decision_pb2.EvaluateBatchResponse.FromString(encoded) == decision_pb2.EvaluateBatchResponse(results=results)
