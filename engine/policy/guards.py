"""The `guards` section of a policy: what betrays abuse, and what it then takes to go on (docs/guards.md).

A guard that several policies of an action switch on has the strictest of their settings: `strictest`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Annotated, Any, ClassVar, Final, Literal, TypeVar

from pydantic import Field, StringConstraints, model_validator

from engine.names import check_action, check_id
from engine.policy.parts import Acr, ClauseName, Duration, MaxAge, Model, Ratio, checked

MAX_COUNT: Final = 32
"""Most that a limit on distinct things may be: as many are remembered, for each of many."""
_Id = Annotated[str, checked(check_id)]
_Action = Annotated[str, checked(check_action)]
_Component = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_-]{1,64}$")]
# `macOS`, or of a version `<13`, `<=13`, `>200`, `>=200`.
_Value = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^(?:[<>]=?[0-9]{1,10}|[^<>].*)$")]
_Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]


class GuardRequire(Model):
    """What a raised guard demands. Always verified, never waivable."""

    acr: Acr
    max_age: MaxAge | None = Field(None, alias="maxAge", description="Longest time since that authentication, >= 30s.")


class Guard(Model):
    """What every guard has."""

    # How a field is tightened by another policy's value: min, max, or all of both.
    tightened: ClassVar[dict[str, Callable[..., Any]]] = {}

    enabled: bool = True
    min_confidence: Ratio = Field(
        0.5, alias="minConfidence", description="Findings less sure than this change nothing."
    )
    require: GuardRequire | None = Field(None, description="Absent: the tenant's top requirement.")
    cleared_by: Literal["authentication", "expiry"] = Field(
        "authentication",
        alias="clearedBy",
        description="`authentication`: one at the required level after the finding restores normal treatment of its session. "
        "`expiry`: nothing but time does, maxAge holds throughout, and no exemption applies.",
    )
    hold_for: Annotated[Duration, Field(ge=60, le=30 * 86400)] = Field(
        86400.0, alias="holdFor", description="How long a finding lasts after what last gave rise to it."
    )


class SharedFingerprint(Guard):
    """One fingerprint used with many subjects, none of whom has it as a device."""

    tightened: ClassVar = {"max_subjects": min, "window": max}

    max_subjects: _Count = Field(4, alias="maxSubjects")
    window: Duration = 86400.0
    components: list[_Component] = Field(
        ["os", "platform", "canvas", "webgl"],
        min_length=1,
        max_length=16,
        description="What makes fingerprints the same. One that lacks any of these counts as found.",
    )


class ManyNetworks(Guard):
    """A subject's device seen on many networks."""

    tightened: ClassVar = {"max_networks": min, "window": max, "prefix4": max, "prefix6": max}

    max_networks: _Count = Field(12, alias="maxNetworks")
    window: Duration = 86400.0
    prefix4: Literal[8, 16, 24] = Field(16, description="Bits of an IPv4 address that name its network.")
    prefix6: Literal[32, 40, 48, 56, 64] = Field(32, description="Bits of an IPv6 address that name its network.")


class ImpossibleTravel(Guard):
    """A subject's device here and, soon after, too far away."""

    tightened: ClassVar = {"max_speed": min, "tolerance": min, "familiar_for": min}

    max_speed: Annotated[float, Field(ge=50, le=100_000)] = Field(1000.0, alias="maxSpeedKmh", description="km/h")
    tolerance: Annotated[float, Field(ge=0, le=5000)] = Field(
        300.0, alias="toleranceKm", description="Distance that says nothing: places of addresses are guesses."
    )
    familiar_for: Duration = Field(
        7 * 86400.0,
        alias="familiarFor",
        description="A place where the device was let through before is no leap for so long: someone switching a VPN.",
    )


class Probing(Guard):
    """Many requests that only just fail one threshold, or stay just below a trigger's amount."""

    tightened: ClassVar = {"max_near_misses": min, "window": max, "within": max}

    max_near_misses: _Count = Field(5, alias="maxNearMisses")
    window: Duration = 3 * 86400.0
    within: Annotated[float, Field(gt=0, le=0.5)] = Field(
        0.05, description="How near is near, as a share of the limit."
    )


class CanaryCondition(Model):
    """A condition no honest client meets. One that cannot be evaluated is not met."""

    name: ClauseName
    when: str = Field(min_length=1, max_length=2000, description="CEL, boolean.")


class Canary(Guard):
    """Traps: whoever touches one is not honest."""

    when: list[CanaryCondition] = Field(default_factory=list, max_length=16)
    subjects: list[_Id] = Field(default_factory=list, max_length=256)
    devices: list[_Id] = Field(default_factory=list, max_length=256)
    actions: list[_Action] = Field(default_factory=list, max_length=256)

    @model_validator(mode="after")
    def _something(self) -> Canary:
        if self.enabled and not (self.when or self.subjects or self.devices or self.actions):
            raise ValueError("catches nothing: give when, subjects, devices or actions")
        names = [condition.name for condition in self.when]
        if len(set(names)) < len(names):
            raise ValueError("names of conditions must differ")
        return self


class ExemptionBurst(Guard):
    """A device that uses exemptions far more often than it did so far. Of a grant the same is reported, without effect."""

    tightened: ClassVar = {"factor": min, "window": min, "baseline": max, "min_uses": min}

    factor: Annotated[float, Field(gt=1, le=1000)] = Field(8.0, description="Times its usual rate.")
    window: Annotated[Duration, Field(ge=10)] = Field(600.0, description="Over which the present rate is measured.")
    baseline: Annotated[Duration, Field(ge=600)] = Field(7 * 86400.0, description="Over which the usual rate is.")
    min_uses: Annotated[int, Field(ge=1, le=10_000)] = Field(
        10, alias="minUses", description="Fewer within the window are never a burst."
    )

    @model_validator(mode="after")
    def _longer(self) -> ExemptionBurst:
        if self.baseline < 2 * self.window:
            raise ValueError("baseline must be at least twice as long as window")
        return self


_IMPOSSIBLE: Final[list[dict[str, str]]] = [
    {"os": "iOS", "platform": "Win32"},
    {"os": "macOS", "platform": "Win32"},
    {"os": "Android", "platform": "Win32"},
    {"os": "Android", "platform": "MacIntel"},
    {"os": "Android", "platform": "iPhone"},
    {"os": "Windows", "platform": "MacIntel"},
    {"os": "Windows", "platform": "iPhone"},
    {"os": "Linux", "platform": "Win32"},
]


class InconsistentFingerprint(Guard):
    """Components of a fingerprint that cannot belong together."""

    impossible: list[Annotated[dict[_Component, _Value], Field(min_length=2, max_length=8)]] = Field(
        _IMPOSSIBLE,
        max_length=64,
        description="Combinations no device has: exact values, or bounds of a version (`<13`). A combination that what is "
        "shown does not rule out counts as found.",
    )


class Guards(Model):
    """Guards by name; absent ones are off."""

    shared_fingerprint: SharedFingerprint | None = Field(None, alias="sharedFingerprint")
    many_networks: ManyNetworks | None = Field(None, alias="manyNetworks")
    impossible_travel: ImpossibleTravel | None = Field(None, alias="impossibleTravel")
    probing: Probing | None = None
    canary: Canary | None = None
    exemption_burst: ExemptionBurst | None = Field(None, alias="exemptionBurst")
    inconsistent_fingerprint: InconsistentFingerprint | None = Field(None, alias="inconsistentFingerprint")

    def enabled(self) -> dict[str, Guard]:
        """Those switched on, by their names in decisions: `shared-fingerprint`."""
        found = ((field.replace("_", "-"), getattr(self, field)) for field in type(self).model_fields)
        return {name: guard for name, guard in found if guard is not None and guard.enabled}


GUARDS: Final = tuple(field.replace("_", "-") for field in Guards.model_fields)
"""Names of all guards, as decisions cite them."""

_G = TypeVar("_G", bound=Guard)


def strictest(guards: Sequence[_G]) -> _G:
    """One guard as strict as all of them together: the tightest of each setting, all of each list."""
    first, *others = guards
    if not others:
        return first
    tighten: dict[str, Callable[..., Any]] = {"min_confidence": min, "hold_for": max, **first.tightened}
    changed: dict[str, Any] = {}
    for field, value in first:
        values = [value, *(getattr(other, field) for other in others)]
        if field in tighten:
            changed[field] = tighten[field](values)
        elif isinstance(value, list):
            every = list(chain.from_iterable(values))
            changed[field] = [item for place, item in enumerate(every) if item not in every[:place]]
    return first.model_copy(update=changed)
