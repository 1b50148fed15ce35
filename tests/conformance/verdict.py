"""What a vector expects, and how an answer differs from it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from sidestep.v1 import decision_pb2, resources_pb2

from engine.challenge import www_authenticate
from engine.decision import Decision, Spend
from engine.money import format_nanos
from tests.conformance.vectors import Vector, instant

_COARSE = {
    "NOT_REQUIRED": "NOTHING_REQUIRED",
    "ASSURANCE_SATISFIED": "REQUIREMENT_MET",
    "EXEMPTION_GRANT": "EXEMPTED",
    "CHALLENGE": "AUTHENTICATION_NEEDED",
    "FAIL_SAFE": "DATA_UNAVAILABLE",
}
_HEADER = re.compile(
    r'(?:Bearer|DPoP) error="(?P<error>[a-z_]+)", error_description="[^"]+"'
    r'(?:, acr_values="(?P<acr_values>[^"]+)")?(?:, max_age="(?P<max_age>\d+)")?'
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """An answer in the terms of the vectors, whichever runner it came from. None: that runner cannot see it."""

    outcome: str
    basis: str
    reasons: frozenset[str]
    achieved: str
    waived: tuple[str, ...]
    grant: str
    challenge: dict[str, Any] | str | None
    www_authenticate: str
    requirement: dict[str, Any]
    shadows: list[dict[str, str]]
    coarse: str | None = None
    spot_check: str | None = None
    spend: dict[str, Any] | None = None


def of_decision(decision: Decision) -> Verdict:
    """The engine's answer."""
    asked = decision.challenge
    challenge: dict[str, Any] | str | None = None
    if asked is not None:
        challenge = "invalid_token"
        if not asked.invalid_token:
            challenge = {"methods": list(asked.methods), "acr_values": list(asked.acr_values)}
            if asked.max_age_s is not None:
                challenge["max_age_s"] = asked.max_age_s
    demanded = decision.requirement
    return Verdict(
        outcome=decision.outcome.value,
        basis=decision.basis.value,
        reasons=frozenset(map(str, decision.reasons)),
        achieved=decision.achieved_acr,
        waived=decision.waived_acrs,
        grant=decision.grant,
        challenge=challenge,
        www_authenticate="" if asked is None else www_authenticate(asked),
        requirement=_requirement(
            list(demanded.acrs),
            demanded.max_age_s,
            demanded.authenticated_after,
            demanded.evidence.value if demanded.evidence else "",
        ),
        shadows=[
            {"policy": shadow.policy, "outcome": shadow.outcome.value, "basis": shadow.basis.value}
            for shadow in decision.shadows
        ],
        spot_check="" if decision.spot_check is None else decision.spot_check.grant,
        spend=None if decision.spend is None else _spend(decision.spend),
    )


def of_response(response: decision_pb2.EvaluateResponse, tenant: str) -> Verdict:
    """A sidecar's answer, asked for with `explain`."""
    challenge: dict[str, Any] | str | None = None
    header = ""
    if response.HasField("challenge"):
        asked = response.challenge
        header = asked.www_authenticate
        challenge = "invalid_token"
        if asked.methods or "invalid_token" not in header:
            challenge = {"methods": [method.id for method in asked.methods], "acr_values": asked.acr_values.split()}
            if asked.HasField("max_age_s"):
                challenge["max_age_s"] = asked.max_age_s
    demanded = response.requirement
    evidence = resources_pb2.Evidence.Name(demanded.evidence).removeprefix("EVIDENCE_").lower()
    return Verdict(
        outcome=decision_pb2.Outcome.Name(response.outcome).removeprefix("OUTCOME_"),
        basis=decision_pb2.Basis.Name(response.basis).removeprefix("BASIS_"),
        reasons=frozenset(response.explanation.reasons),
        achieved=response.achieved_acr,
        waived=tuple(response.waived_acrs),
        grant=response.grant.removeprefix(f"tenants/{tenant}/grants/"),
        challenge=challenge,
        www_authenticate=header,
        requirement=_requirement(
            list(demanded.acrs),
            demanded.max_age.ToTimedelta().total_seconds() if demanded.HasField("max_age") else None,
            demanded.authenticated_after.ToNanoseconds() / 1e9 if demanded.HasField("authenticated_after") else None,
            evidence if evidence != "unspecified" else "",
        ),
        shadows=[
            {
                "policy": shadow.policy,
                "outcome": decision_pb2.Outcome.Name(shadow.outcome).removeprefix("OUTCOME_"),
                "basis": decision_pb2.Basis.Name(shadow.basis).removeprefix("BASIS_"),
            }
            for shadow in response.explanation.shadows
        ],
        coarse=decision_pb2.CoarseReason.Name(response.reason).removeprefix("COARSE_REASON_"),
    )


def differences(vector: Vector, actual: Verdict) -> list[str]:
    """Every way in which the answer is not what the vector expects; empty if it conforms."""
    expect = vector.expect
    if "error" in expect:
        return [f"answered {actual.outcome} {actual.basis} instead of failing with {expect['error']['code']}"]
    challenge = expect.get("challenge")
    wanted: dict[str, Any] = {
        "outcome": expect["outcome"],
        "basis": expect["basis"],
        "reasons": frozenset(expect["reasons"]),
        "waived": tuple(expect.get("waived", ())),
        "grant": expect.get("grant", ""),
        "challenge": challenge,
        "shadows": expect.get("shadows", []),
        "achieved": expect.get("achieved", ""),
        "spend": _expected_spend(vector),
    }
    if "www_authenticate" in expect:
        wanted["www_authenticate"] = expect["www_authenticate"]
    if "requirement" in expect:
        wanted["requirement"] = _expected_requirement(vector)
    if "spot_check" in expect and actual.spot_check is not None:
        wanted["spot_check"] = expect["spot_check"]
    if actual.coarse is not None:
        wanted["coarse"] = expect.get("coarse") or _COARSE[expect["basis"]]
    found = [
        f"{name}: {_shown(getattr(actual, name))} instead of {_shown(value)}"
        for name, value in wanted.items()
        if getattr(actual, name) != value
    ]
    return found + _header_differences(challenge, actual.www_authenticate)


def _header_differences(challenge: dict[str, Any] | str | None, header: str) -> list[str]:
    """The header must say what the challenge says, in the grammar of RFC 9470 section 3 or RFC 6750 section 3."""
    if challenge is None:
        return [f"www_authenticate {header!r} without a challenge"] if header else []
    said = _HEADER.fullmatch(header)
    if said is None:
        return [f"www_authenticate {header!r} is malformed"]
    parts = (said["error"], said["acr_values"], said["max_age"])
    expected: tuple[str, str | None, str | None] = ("invalid_token", None, None)
    if isinstance(challenge, dict):
        age = challenge.get("max_age_s")
        acr_values = " ".join(challenge["acr_values"]) or None
        expected = ("insufficient_user_authentication", acr_values, None if age is None else str(age))
    return [] if parts == expected else [f"www_authenticate says {parts} instead of {expected}"]


def _requirement(acrs: list[str], max_age_s: float | None, after: float | None, evidence: str) -> dict[str, Any]:
    stated = {"acrs": acrs, "max_age_s": max_age_s, "authenticated_after": after, "evidence": evidence}
    return {name: value for name, value in stated.items() if value is not None}


def _expected_requirement(vector: Vector) -> dict[str, Any]:
    stated = dict(vector.expect["requirement"])
    if "authenticated_after" in stated:
        stated["authenticated_after"] = instant(stated["authenticated_after"], vector.now).timestamp()
    return stated


def _spend(spend: Spend) -> dict[str, Any]:
    shown: dict[str, Any] = {"uses": spend.uses, "period": spend.period}
    if spend.currency:
        shown["amount"] = format_nanos(spend.nanos, spend.currency)
    if spend.left_uses is not None:
        shown["left_uses"] = spend.left_uses
    if spend.left_nanos is not None:
        shown["left_amount"] = format_nanos(spend.left_nanos, spend.currency)
    if spend.expires_at is not None:
        shown["expires"] = spend.expires_at
    return shown


def _expected_spend(vector: Vector) -> dict[str, Any] | None:
    stated = vector.expect.get("spend")
    if stated is None:
        return None
    stated = dict(stated)
    if "expires" in stated:
        stated["expires"] = instant(stated["expires"], vector.now).timestamp()
    return stated


def _shown(value: Any) -> Any:
    return sorted(value) if isinstance(value, frozenset) else value


def matches(expect: dict[str, Any], came_to: dict[str, Any]) -> bool:
    """Whether a report came to what was expected: of a refusal how its message begins is compared, of an answer everything."""
    if "code" not in expect:
        return came_to == expect
    return came_to.get("code") == expect["code"] and str(came_to["says"]).startswith(expect["says"])
