from __future__ import annotations

import re

import pytest

from engine.acr import AcrOrder
from engine.challenge import INVALID_TOKEN, challenge, www_authenticate
from engine.decision import Challenge, Requirement
from engine.facts import Posture, Subject
from engine.methods import Method
from engine.rules import TenantRules
from tests.unit.engine.samples import PAYMENTS, compiled, tenant

# RFC 9110 section 11.6.1: one challenge of auth-params, each a token and a quoted-string.
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_QUOTED = r'"(?:[\t \x21\x23-\x5b\x5d-\x7e]|\\[\t \x21-\x7e])*"'
_CHALLENGE = re.compile(rf"({_TOKEN}) ({_TOKEN}={_QUOTED}(?:, {_TOKEN}={_QUOTED})*)")
ANYONE = Subject(known=True)


def parameters(header: str) -> tuple[str, dict[str, str]]:
    match = _CHALLENGE.fullmatch(header)
    assert match, header
    found = re.findall(rf"({_TOKEN})=({_QUOTED})", match[2])
    assert len({name for name, _ in found}) == len(found)
    return match[1], {name: value[1:-1] for name, value in found}


def asked(requirement: Requirement, subject: Subject = ANYONE, rules: TenantRules | None = None) -> Challenge:
    rules = rules or tenant(PAYMENTS)
    return challenge(requirement, rules.plan("payments.transfer", Posture.LOW), rules, subject, 0.0)


def test_step_up_header_is_that_of_rfc_9470() -> None:
    scheme, found = parameters(www_authenticate(asked(Requirement(("phr",), 300.0))))
    assert scheme == "Bearer"
    assert found["error"] == "insufficient_user_authentication"
    assert (found["acr_values"], found["max_age"]) == ("phr", "300")
    assert found["error_description"]


def test_parameters_without_a_demand_are_left_out() -> None:
    _, found = parameters(www_authenticate(asked(Requirement(max_age_s=90.9))))
    assert "acr_values" not in found
    assert found["max_age"] == "90"
    _, found = parameters(www_authenticate(asked(Requirement(("phr",)))))
    assert "max_age" not in found


def test_invalid_token_header_is_that_of_rfc_6750_under_either_scheme() -> None:
    scheme, found = parameters(www_authenticate(INVALID_TOKEN, scheme="DPoP"))
    assert (scheme, found["error"]) == ("DPoP", "invalid_token")
    assert set(found) == {"error", "error_description"}


def test_any_acr_a_policy_may_demand_stands_safely_in_the_header() -> None:
    acr = "".join(chr(c) for c in range(0x21, 0x7F) if chr(c) not in '"\\')
    _, found = parameters(www_authenticate(asked(Requirement((acr,)))))
    assert found["acr_values"] == acr


def test_any_one_of_acr_values_is_enough_for_the_whole_requirement() -> None:
    # aal3 includes aal2: naming aal2 as well would invite an answer that does not do.
    assert asked(Requirement(("nist-aal2", "nist-aal3"))).acr_values == ("nist-aal3",)
    # phr and aal2 include neither each other nor are reached by one method here: all are named.
    assert asked(Requirement(("nist-aal2", "phr"))).acr_values == ("nist-aal2", "phr")
    # With an edge the one that dominates is named.
    rules = TenantRules([compiled(PAYMENTS)], order=AcrOrder([("phr", "nist-aal2")]))
    assert asked(Requirement(("nist-aal2", "phr")), rules=rules).acr_values == ("phr",)
    # No demanded level dominates, but a method's does.
    order = AcrOrder([("super", "nist-aal2"), ("super", "phr")])
    rules = TenantRules([compiled(PAYMENTS)], order=order, methods=[Method("totem", "super", (), 5)])
    both = asked(Requirement(("nist-aal2", "phr")), rules=rules)
    assert (both.acr_values, both.methods) == (("super",), ("totem",))
    assert asked(Requirement()).acr_values == ()


def test_methods_are_those_that_reach_the_level_strongest_first() -> None:
    assert asked(Requirement(("nist-aal2",))).methods == ("push", "totp")
    assert asked(Requirement(max_age_s=60.0)).methods == ("webauthn", "push", "totp")


def test_only_enrolled_ones_if_there_are_any() -> None:
    requirement = Requirement(("nist-aal2",))
    assert asked(requirement, Subject(known=True, methods=("totp", "sms"))).methods == ("totp",)
    assert asked(requirement, Subject(known=True, methods=("sms",))).methods == ("push", "totp")


@pytest.mark.parametrize(
    "subject", [Subject(), Subject(known=True), Subject(methods=("totp",)), Subject(known=True, methods=("x",))]
)
def test_unknown_subjects_cannot_be_told_from_those_without_a_method(subject: Subject) -> None:
    assert asked(Requirement(("nist-aal2",)), subject) == asked(Requirement(("nist-aal2",)))


def test_what_the_policys_methods_cannot_reach_is_sought_in_the_catalogue() -> None:
    assert asked(Requirement(("phrh",))).methods == ("security-key",)
    # Reached by nothing at all: the policy's own list, rather than none.
    assert asked(Requirement(("unheard-of",))).methods == ("webauthn", "push", "totp")
