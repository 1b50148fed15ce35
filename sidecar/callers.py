"""Callers: the services that may ask, how they are known, and what each of them may ask for.

A YAML file says it (setting SIDESTEP_CALLERS):

    callers:
      - name: payments
        tokens: [/run/secrets/sidestep/payments]    files, with a token on each line
        rpcs: [Evaluate, EvaluateBatch, Settle, ReportOutcome]     default: these; ReportAuthentication besides
        actions: ["payments.*"]                     patterns as in policies
        diagnose: false                             may have decisions explained

All tokens of a caller are valid, so that one can be replaced without a pause: add the new one, let the caller use it, take the
old one away. A token file that is not there holds no token. Of tokens, only SHA-256 hashes are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool

from engine.errors import InvalidInputError
from engine.names import check_action_pattern
from engine.tokenfiles import TokenFilesError, check_holder_name, check_token_path, read_document, read_holders
from engine.watched import WatchedFiles

MAX_CALLERS: Final = 1000

# The callers' file, or a token file it names, cannot be used. The message names file and field, and no token.
CallersError = TokenFilesError


@dataclass(frozen=True, slots=True)
class Caller:
    """One service, by the name that logs and records give it. `diagnose`: may have decisions explained."""

    name: str
    rpcs: frozenset[str]
    diagnose: bool
    # Its action patterns, apart: those without `*`, and what those with one begin with.
    exact: frozenset[str]
    prefixes: tuple[str, ...]

    @classmethod
    def of(cls, name: str, rpcs: list[str], actions: list[str], *, diagnose: bool) -> Caller:
        """With checked patterns."""
        exact = frozenset(pattern for pattern in actions if not pattern.endswith("*"))
        prefixes = tuple(pattern[:-1] for pattern in actions if pattern.endswith("*"))
        return cls(name, frozenset(rpcs), diagnose, exact, prefixes)

    def may_ask_about(self, action: str) -> bool:
        """Whether one of its patterns covers the action: `engine.names.action_matches`, but of all of them at once."""
        return action in self.exact or action.startswith(self.prefixes)


class Callers(NamedTuple):
    """Everyone who may call. Not to be changed: read by several threads."""

    # By SHA-256 of the token.
    by_hash: dict[bytes, Caller]
    # How many they are; each may have several tokens, or none yet.
    size: int
    # What is no fault but ought to be known.
    warnings: tuple[str, ...]


def _pattern(value: str) -> str:
    try:
        return check_action_pattern(value, "actions")
    except InvalidInputError as error:
        raise ValueError(error.problem) from None


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, AfterValidator(check_holder_name)]
    tokens: list[Annotated[str, AfterValidator(check_token_path)]] = Field(min_length=1, max_length=16)
    # Settling is part of asking: nobody can settle what another asked.
    rpcs: list[Literal["Evaluate", "EvaluateBatch", "Settle", "ReportOutcome", "ReportAuthentication"]] = Field(
        default=["Evaluate", "EvaluateBatch", "Settle", "ReportOutcome"], min_length=1
    )
    actions: list[Annotated[str, AfterValidator(_pattern)]] = Field(min_length=1, max_length=1000)
    diagnose: StrictBool = False


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid")

    callers: list[_Entry] = Field(min_length=1, max_length=MAX_CALLERS)


def read_callers(path: str, files: WatchedFiles) -> Callers:
    """Reads the callers' file and the token files it names, all of them through `files`. Raises CallersError."""
    warnings: list[str] = []
    entries = read_document(path, files, _Document).callers
    by_hash = read_holders(f"{path}: callers", entries, files, warnings)
    callers = {
        entry.name: Caller.of(entry.name, list(entry.rpcs), entry.actions, diagnose=entry.diagnose) for entry in entries
    }
    return Callers({token: callers[entry.name] for token, entry in by_hash.items()}, len(callers), tuple(warnings))
