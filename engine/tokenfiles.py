"""Who may call, as files say it: a YAML document that names callers and the files that hold their bearer tokens.

The sidecar's callers and the control plane's operators are both read by this. All tokens of one of them are valid, so that
one can be replaced without a pause. Of tokens, only SHA-256 hashes are kept.
"""

from __future__ import annotations

import re
from hashlib import sha256
from pathlib import PurePosixPath
from typing import Any, Final, Protocol, TypeVar

from pydantic import BaseModel, ValidationError

from engine.errors import SidestepError
from engine.policy import problem_of
from engine.policy.source import MAX_SOURCE_BYTES, PolicyError, load
from engine.watched import WatchedFiles

MIN_TOKEN_BYTES: Final = 16
MAX_TOKEN_BYTES: Final = 1024
MAX_TOKEN_FILE_BYTES: Final = 64 << 10

_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")
# Printable, without the space that would end it in a header.
_TOKEN: Final = re.compile(rb"[\x21-\x7e]+")
_SCHEME: Final = "bearer "
_SCHEME_LENGTH: Final = len(_SCHEME)
_MAX_HEADER: Final = _SCHEME_LENGTH + MAX_TOKEN_BYTES

_Document = TypeVar("_Document", bound=BaseModel)


class TokenFilesError(SidestepError):
    """The document, or a token file it names, cannot be used. The message names file and field, and no token."""


class _Named(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def tokens(self) -> list[str]: ...


_Entry = TypeVar("_Entry", bound=_Named)


def check_holder_name(value: str) -> str:
    """Returns the name of a caller or operator, or raises ValueError."""
    if not is_holder_name(value):
        raise ValueError("not a name (lower-case letters, digits, '.', '_' and '-', at most 63)")
    return value


def is_holder_name(value: str) -> bool:
    """Whether a caller or operator may have this name."""
    return _NAME.fullmatch(value) is not None


def check_token_path(value: str) -> str:
    """Returns the path of a token file, or raises ValueError, which does not repeat it: it may be a token, put where the name
    of its file belongs.
    """
    if not PurePosixPath(value).is_absolute() or "\0" in value:
        raise ValueError("not an absolute path of a file")
    return value


def bearer_hash(header: str) -> bytes | None:
    """SHA-256 of the token in an `authorization` header; None if there is none (RFC 6750 section 2.1).

    The scheme's case does not matter (RFC 9110 section 11.1).
    """
    if header[:_SCHEME_LENGTH].lower() == _SCHEME and len(header) <= _MAX_HEADER and header.isascii():
        return sha256(header[_SCHEME_LENGTH:].encode()).digest()
    return None


def read_document(path: str, files: WatchedFiles, model: type[_Document]) -> _Document:
    """Reads the document through `files`. Raises TokenFilesError naming every field at fault."""
    try:
        found = files.read(path, MAX_SOURCE_BYTES)
        if found is None:
            raise TokenFilesError(f"{path}: no such file")
        tree = load(found.data.decode())
    except (OSError, UnicodeDecodeError) as error:
        raise TokenFilesError(f"{path}: {_why(error)}") from None
    except PolicyError as error:
        raise TokenFilesError(f"{path}: {error}") from None
    try:
        return model.model_validate(tree.value)
    except ValidationError as error:
        problems = [problem_of(tree, detail) for detail in error.errors(include_url=False, include_input=False)]
        raise TokenFilesError(f"{path}: {'; '.join(map(str, problems))}") from None


def read_holders(place: str, entries: list[_Entry], files: WatchedFiles, warnings: list[str]) -> dict[bytes, _Entry]:
    """The entries by the hashes of their tokens, read through `files`. A token file that is not there holds no token.

    `place` names the list in errors (`/etc/callers.yaml: callers`); what is no fault but ought to be known is added to
    `warnings`. Raises TokenFilesError, also for a name or a token given twice.
    """
    by_hash: dict[bytes, _Entry] = {}
    names: set[str] = set()
    for at, entry in enumerate(entries):
        if entry.name in names:
            raise TokenFilesError(f"{place}[{at}].name: {entry.name} is named twice")
        names.add(entry.name)
        for number, token_path in enumerate(entry.tokens):
            field = f"{place}[{at}].tokens[{number}]: {token_path}"
            for token in _read_tokens(token_path, field, files, warnings):
                if by_hash.setdefault(token, entry).name != entry.name:
                    raise TokenFilesError(f"{field}: holds a token that {by_hash[token].name} has too")
    return by_hash


def _read_tokens(path: str, field: str, files: WatchedFiles, warnings: list[str]) -> list[bytes]:
    """Hashes of the tokens in a file."""
    try:
        found = files.read(path, MAX_TOKEN_FILE_BYTES)
    except OSError as error:
        raise TokenFilesError(f"{field}: {_why(error)}") from None
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
            raise TokenFilesError(f"{field}: line {number}: a token is printable ASCII without spaces")
        if not MIN_TOKEN_BYTES <= len(token) <= MAX_TOKEN_BYTES:
            raise TokenFilesError(f"{field}: line {number}: a token has {MIN_TOKEN_BYTES} to {MAX_TOKEN_BYTES} bytes")
        tokens.append(sha256(token).digest())
    if not tokens:
        # Perhaps somebody is just writing it. Who wants no token there removes the file.
        raise TokenFilesError(f"{field}: holds no token")
    return tokens


def _why(error: Any) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "is not UTF-8 text"
    return str(error.strerror or error)
