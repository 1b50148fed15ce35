"""The policy document (DESIGN section 5): what its author writes, typed.

Durations are strings such as `5m` or `30d` and become seconds. Unknown keys are refused. `json_schema()` gives editors the same
rules.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from engine.errors import InvalidInputError
from engine.names import check_id, check_tenant
from engine.policy.guards import CanaryCondition, Guards
from engine.policy.parts import (
    CLAUSE_PATTERN,
    Acr,
    ActionPattern,
    ClauseName,
    Duration,
    MaxAge,
    Model,
    Ratio,
    Require,
    Score,
    checked,
)

MAX_TRIGGERS = 52  # their bits must fit a CEL int, several policies together
_ATTRIBUTE = re.compile(r"[a-z_][a-z0-9_]{0,62}")
RESERVED_ATTRIBUTES = frozenset({"amount", "asn", "country"})


class Trigger(Model):
    """A named condition that adds a requirement. A condition that cannot be evaluated fires."""

    name: ClauseName
    when: str = Field(min_length=1, max_length=2000, description="CEL, boolean.")
    require: Require

    @model_validator(mode="after")
    def _demands(self) -> Trigger:
        if self.require.empty:
            raise ValueError("a trigger must require something: acr, maxAge, maxIdle or authenticatedAfter")
        return self


class Ceiling(Model):
    """The most a grant may waive: clauses up to this acr, with a maxAge no shorter than this."""

    acr: Acr
    max_age: MaxAge = Field(alias="maxAge")


class MinAcrWithin(Model):
    """An authentication at this level within this time."""

    acr: Acr
    within: Duration


class IdentityThreshold(Model):
    """Identity factor: what was proved on this device or in this session since the last account recovery."""

    min_acr_within: MinAcrWithin = Field(alias="minAcrWithin")
    max_failures: Annotated[int, Field(ge=0)] = Field(
        5, alias="maxFailures", description="Most failed authentications since the last success."
    )


class DeviceThreshold(Model):
    """Device factor."""

    min_trust: Annotated[float, Field(gt=0, le=1)] = Field(
        alias="minTrust", description="0-1; a key proof is 1, a fingerprint its similarity."
    )
    revalidate_every: Duration = Field(
        alias="revalidateEvery", description="Longest time since a strong authentication confirmed the device."
    )
    revalidate_jitter: Annotated[float, Field(ge=0, le=0.5)] = Field(
        0.2,
        alias="revalidateJitter",
        description="Each device comes due up to this share of revalidateEvery earlier, always by the same.",
    )
    half_life: MaxAge | None = Field(
        None, alias="halfLife", description="Trust halves with every such time since the device was last validated."
    )


class SessionThreshold(Model):
    """Session factor."""

    max_age: Duration = Field(alias="maxAge", description="Longest time since the session began.")
    max_idle: Duration = Field(alias="maxIdle", description="Longest inactivity.")
    evidence: Literal["asserted", "verified"] = Field("verified", description="`verified` demands a valid token.")
    proof_of_possession: bool = Field(False, alias="proofOfPossession", description="Demands a DPoP proof (RFC 9449).")


class RiskThreshold(Model):
    """Risk factor."""

    max_score: Score = Field(alias="maxScore", description="Highest combined score, inclusive.")


class Exemptions(Model):
    """What a grant must find before it may waive anything. Every factor has to be stated."""

    ceiling: Ceiling
    recognised_ceiling: Ceiling | None = Field(
        None,
        alias="recognisedCeiling",
        description="Ceiling for a device recognised without a key proof. Absent: no exemption for those.",
    )
    identity: IdentityThreshold
    device: DeviceThreshold
    session: SessionThreshold
    risk: RiskThreshold
    spot_check_rate: Ratio = Field(
        0.0, alias="spotCheckRate", description="Share of exemptions challenged all the same."
    )


class TighterIdentity(Model):
    """Overrides for a posture; the tighter value counts."""

    min_acr_within: MinAcrWithin | None = Field(None, alias="minAcrWithin", description="Demanded in addition.")
    max_failures: Annotated[int, Field(ge=0)] | None = Field(None, alias="maxFailures")


class TighterDevice(Model):
    """Overrides for a posture; the tighter value counts."""

    min_trust: Annotated[float, Field(gt=0, le=1)] | None = Field(None, alias="minTrust")
    revalidate_every: Duration | None = Field(None, alias="revalidateEvery")
    bound: bool = Field(False, description="Only devices with a key proof.")


class TighterSession(Model):
    """Overrides for a posture; the tighter value counts."""

    max_age: Duration | None = Field(None, alias="maxAge")
    max_idle: Duration | None = Field(None, alias="maxIdle")
    proof_of_possession: bool = Field(False, alias="proofOfPossession")


class TighterRisk(Model):
    """Overrides for a posture; the tighter value counts."""

    max_score: Score | None = Field(None, alias="maxScore")


class TighterExemptions(Model):
    """What a posture changes about exemptions. It can only tighten."""

    enabled: bool = True
    ceiling: Ceiling | None = Field(None, description="Holds beside the policy's own: the lowest counts.")
    identity: TighterIdentity | None = None
    device: TighterDevice | None = None
    session: TighterSession | None = None
    risk: TighterRisk | None = None
    spot_check_rate: Ratio | None = Field(None, alias="spotCheckRate")


class PostureOverlay(Model):
    """What holds from this posture upward."""

    exemptions: TighterExemptions | None = None
    require: Require | None = None

    @model_validator(mode="after")
    def _demands(self) -> PostureOverlay:
        if self.require is not None and self.require.empty:
            raise ValueError("require demands nothing: give acr, maxAge, maxIdle or authenticatedAfter")
        return self


class Postures(Model):
    """Overlays by level; a higher posture includes the lower ones."""

    ELEVATED: PostureOverlay | None = None
    HIGH: PostureOverlay | None = None
    CRITICAL: PostureOverlay | None = None


class Match(Model):
    """Which actions the policy is about."""

    actions: list[ActionPattern] = Field(
        min_length=1, max_length=100, description="`payments.transfer`, `payments.*` or `*`."
    )


class Spec(Model):
    """The policy proper."""

    mode: Literal["enforce", "observe"] = Field(
        "enforce", description="`observe`: decided and recorded beside the live answer, never enforced."
    )
    replaces: ClauseName | None = Field(None, description="With `observe`: the live policy this one would replace.")
    match: Match
    profile: Literal["nist-aal1", "nist-aal2", "nist-aal3"] | None = Field(
        None,
        description="Adds NIST SP 800-63B-4 reauthentication times: AAL1 30d, AAL2 24h/1h idle, AAL3 12h/15m idle.",
    )
    context: dict[str, Literal["string", "double", "int", "bool"]] = Field(
        default_factory=dict,
        description="Request attributes that conditions read as `context.NAME`, with their CEL types.",
    )
    require: Require = Field(default_factory=lambda: Require.model_validate({}), description="The base requirement.")
    triggers: list[Trigger] = Field(default_factory=list, max_length=MAX_TRIGGERS)
    exemptions: Exemptions | None = Field(None, description="Absent: no exemption.")
    methods: list[ClauseName] = Field(
        default_factory=list, description="Acceptable for the challenge. Empty: any of the tenant's."
    )
    posture: Postures = Field(default_factory=Postures)
    guards: Guards | None = Field(None, description="What betrays abuse, and what it then takes. Absent: no guards.")

    @property
    def canary_conditions(self) -> list[CanaryCondition]:
        """Those of the canary guard, if it is on."""
        canary = self.guards.canary if self.guards is not None else None
        return canary.when if canary is not None and canary.enabled else []

    @model_validator(mode="after")
    def _consistent(self) -> Spec:
        names = [trigger.name for trigger in self.triggers]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ValueError(f"trigger names must differ: {', '.join(doubled)}")
        if self.replaces is not None and self.mode != "observe":
            raise ValueError("replaces goes with mode: observe")
        for name in self.context:
            if not _ATTRIBUTE.fullmatch(name) or name in RESERVED_ATTRIBUTES:
                raise ValueError(f"context.{name}: not a free lower-case name")
        return self


class Metadata(Model):
    """Which policy this is."""

    name: ClauseName
    tenant: Annotated[str, checked(check_tenant)]
    description: str = Field("", max_length=2000)
    labels: dict[str, str] = Field(default_factory=dict)


class PolicyDocument(Model):
    """A whole policy."""

    api_version: Literal["sidestep.dev/v1"] = Field(alias="apiVersion")
    kind: Literal["Policy"]
    metadata: Metadata
    spec: Spec


def check_policy_name(name: str, field: str) -> str:
    """Returns a policy name, or raises InvalidInputError."""
    if not re.fullmatch(CLAUSE_PATTERN, name):
        raise InvalidInputError(
            field, f"{name!r} is not a policy name (lower-case letters, digits and hyphens, at most 64)"
        )
    return check_id(name, field)


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a policy document."""
    schema = PolicyDocument.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Sidestep policy", **schema}
