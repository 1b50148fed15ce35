"""Callers: the services that may ask, how they are known, and what each of them may ask for.

A YAML file says it (setting SIDESTEP_CALLERS):

    callers:
      - name: payments
        tokens: [/run/secrets/sidestep/payments]    files, with a token on each line
        rpcs: [Evaluate, EvaluateBatch, Settle]     default: all three
        actions: ["payments.*"]                     patterns as in policies
        diagnose: false                             may have decisions explained

All tokens of a caller are valid, so that one can be replaced without a pause: add the new one, let the caller use it, take the
old one away. A token file that is not there holds no token. Of tokens, only SHA-256 hashes are kept.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import sha256
from pathlib import PurePosixPath
from typing import Annotated, Any, Final, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, ValidationError

from engine.errors import InvalidInputError, SidestepError
from engine.names import check_action_pattern
from engine.policy import problem_of
from engine.policy.source import MAX_SOURCE_BYTES, PolicyError, load
from sidecar.watched import WatchedFiles

MIN_TOKEN_BYTES: Final = 16
MAX_TOKEN_BYTES: Final = 1024
MAX_TOKEN_FILE_BYTES: Final = 64 << 10
MAX_CALLERS: Final = 1000

_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")
# Printable, without the space that would end it in a header.
_TOKEN: Final = re.compile(rb"[\x21-\x7e]+")


class CallersError(SidestepError):
    """The callers' file, or a token file it names, cannot be used. The message names file and field, and no token."""


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


def _caller_name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError("not a caller's name (lower-case letters, digits, '.', '_' and '-', at most 63)")
    return value


def _token_path(value: str) -> str:
    # Does not repeat the value: it may be a token, put where the name of its file belongs.
    if not PurePosixPath(value).is_absolute() or "\0" in value:
        raise ValueError("not an absolute path of a file")
    return value


def _pattern(value: str) -> str:
    try:
        return check_action_pattern(value, "actions")
    except InvalidInputError as error:
        raise ValueError(error.problem) from None


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, AfterValidator(_caller_name)]
    tokens: list[Annotated[str, AfterValidator(_token_path)]] = Field(min_length=1, max_length=16)
    # Settling is part of asking: nobody can settle what another asked.
    rpcs: list[Literal["Evaluate", "EvaluateBatch", "Settle"]] = Field(
        default=["Evaluate", "EvaluateBatch", "Settle"], min_length=1
    )
    actions: list[Annotated[str, AfterValidator(_pattern)]] = Field(min_length=1, max_length=1000)
    diagnose: StrictBool = False


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid")

    callers: list[_Entry] = Field(min_length=1, max_length=MAX_CALLERS)


def read_callers(path: str, files: WatchedFiles) -> Callers:
    """Reads the callers' file and the token files it names, all of them through `files`. Raises CallersError."""
    by_hash: dict[bytes, Caller] = {}
    warnings: list[str] = []
    names: set[str] = set()
    document = _read_document(path, files)
    for at, entry in enumerate(document.callers):
        place = f"{path}: callers[{at}]"
        if entry.name in names:
            raise CallersError(f"{place}.name: {entry.name} is named twice")
        names.add(entry.name)
        caller = Caller.of(entry.name, list(entry.rpcs), entry.actions, diagnose=entry.diagnose)
        for number, token_path in enumerate(entry.tokens):
            field = f"{place}.tokens[{number}]: {token_path}"
            for token in _read_tokens(token_path, field, files, warnings):
                if by_hash.setdefault(token, caller).name != caller.name:
                    raise CallersError(f"{field}: holds a token that {by_hash[token].name} has too")
    return Callers(by_hash, len(names), tuple(warnings))


def _read_document(path: str, files: WatchedFiles) -> _Document:
    try:
        found = files.read(path, MAX_SOURCE_BYTES)
        if found is None:
            raise CallersError(f"{path}: no such file")
        tree = load(found.data.decode())
    except (OSError, UnicodeDecodeError) as error:
        raise CallersError(f"{path}: {_why(error)}") from None
    except PolicyError as error:
        raise CallersError(f"{path}: {error}") from None
    try:
        return _Document.model_validate(tree.value)
    except ValidationError as error:
        problems = [problem_of(tree, detail) for detail in error.errors(include_url=False, include_input=False)]
        raise CallersError(f"{path}: {'; '.join(map(str, problems))}") from None


def _read_tokens(path: str, field: str, files: WatchedFiles, warnings: list[str]) -> list[bytes]:
    """Hashes of the tokens in a file."""
    try:
        found = files.read(path, MAX_TOKEN_FILE_BYTES)
    except OSError as error:
        raise CallersError(f"{field}: {_why(error)}") from None
    if found is None:
        warnings.append(f"{field}: there is no such file, and so no token in it")
        return []
    if found.open_to_others:
        warnings.append(f"{field}: every user of this machine may read or write it")
    tokens = []
    for number, line in enumerate(found.data.splitlines(), 1):
        token = line.strip()
        if not token:
            continue
        if not _TOKEN.fullmatch(token):
            raise CallersError(f"{field}: line {number}: a token is printable ASCII without spaces")
        if not MIN_TOKEN_BYTES <= len(token) <= MAX_TOKEN_BYTES:
            raise CallersError(f"{field}: line {number}: a token has {MIN_TOKEN_BYTES} to {MAX_TOKEN_BYTES} bytes")
        tokens.append(sha256(token).digest())
    if not tokens:
        # Perhaps somebody is just writing it. Who wants no token there removes the file.
        raise CallersError(f"{field}: holds no token")
    return tokens


def _why(error: Any) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "is not UTF-8 text"
    return str(error.strerror or error)
