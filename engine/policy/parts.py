"""What the sections of a policy document are made of: its scalar types, and a requirement."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, WithJsonSchema, model_validator

from engine.acr import ACR_PATTERN, MAX_ACR_CHARS
from engine.durations import parse_duration
from engine.errors import InvalidInputError
from engine.names import check_action_pattern

MIN_MAX_AGE_S = 30.0
CLAUSE_PATTERN = r"^[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?$"


def _duration(value: object) -> object:
    if isinstance(value, str):
        try:
            return parse_duration(value)
        except InvalidInputError as error:
            raise ValueError(error.problem) from None
    if isinstance(value, bool | int | float):
        raise ValueError(f"{value!r} needs a unit: write 90s, 5m, 1h30m or 30d")
    return value


def checked(check: Any) -> BeforeValidator:
    """A text that `check(value, field)` does not refuse with InvalidInputError."""

    def run(value: object) -> object:
        if isinstance(value, str):
            try:
                check(value, "")
            except InvalidInputError as error:
                raise ValueError(error.problem) from None
        return value

    return BeforeValidator(run)


_DURATION_SCHEMA = {
    "type": "string",
    "pattern": r"^([0-9]+(\.[0-9]+)?(ms|s|m|h|d))+$",
    "examples": ["90s", "5m", "12h", "30d"],
}
Duration = Annotated[float, Field(ge=0), BeforeValidator(_duration), WithJsonSchema(_DURATION_SCHEMA)]
MaxAge = Annotated[float, Field(ge=MIN_MAX_AGE_S), BeforeValidator(_duration), WithJsonSchema(_DURATION_SCHEMA)]
ClauseName = Annotated[str, StringConstraints(pattern=CLAUSE_PATTERN)]
Acr = Annotated[str, StringConstraints(min_length=1, max_length=MAX_ACR_CHARS, pattern=ACR_PATTERN)]
Score = Annotated[float, Field(ge=0, le=100)]
Ratio = Annotated[float, Field(ge=0, le=1)]
ActionPattern = Annotated[str, checked(check_action_pattern)]


class Model(BaseModel):
    """Immutable, refuses unknown keys and silent conversions."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)


class Require(Model):
    """A requirement clause: what one single authentication must be."""

    acr: Acr | None = Field(None, description="Assurance level demanded.")
    max_age: MaxAge | None = Field(None, alias="maxAge", description="Longest time since that authentication, >= 30s.")
    max_idle: MaxAge | None = Field(
        None,
        alias="maxIdle",
        description="Longest inactivity of the session since, unless the user authenticated within it.",
    )
    authenticated_after: Literal["recovery", "posture-change"] | None = Field(
        None,
        alias="authenticatedAfter",
        description="The authentication must be later than the subject's last event of this kind.",
    )
    evidence: Literal["asserted", "verified"] = Field("verified", description="Least evidence accepted.")
    waivable: bool | None = Field(
        None, description="Whether a grant may waive it. Default: the base is, all else is not."
    )

    @model_validator(mode="after")
    def _something(self) -> Require:
        demands = (self.acr, self.max_age, self.max_idle, self.authenticated_after)
        if all(demand is None for demand in demands) and "waivable" in self.model_fields_set:
            raise ValueError("demands nothing: give acr, maxAge, maxIdle or authenticatedAfter")
        return self

    @property
    def empty(self) -> bool:
        """Whether it demands nothing."""
        return self.acr is None and self.max_age is None and self.max_idle is None and self.authenticated_after is None
