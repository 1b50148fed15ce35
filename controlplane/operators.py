"""Operators: who may administer the control plane, how they are known, and what each of them may do.

A YAML file says it (setting SIDESTEP_CP_OPERATORS):

    operators:
      - name: alice
        tokens: [/run/secrets/sidestep/alice]      files, with a token on each line
        tenants: [acme]                             or "*": all
        permissions: [read, write]                  default: read

Files are read again when they change. Files that cannot be used change nothing: whom it knew before it goes on knowing.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from controlplane.actor import RESERVED, Actor, Permission
from engine.errors import InvalidInputError
from engine.names import check_tenant
from engine.tokenfiles import (
    TokenFilesError,
    bearer_hash,
    check_holder_name,
    check_token_path,
    read_document,
    read_holders,
)
from engine.watched import WatchedFiles

_LOG = logging.getLogger(__name__)

SETTING: Final = "SIDESTEP_CP_OPERATORS"
MAX_OPERATORS: Final = 1000
LOOK_EVERY_S: Final = 1.0
"""How often it is looked whether a file has changed."""


def _operator_name(value: str) -> str:
    if value.casefold() in RESERVED:
        raise ValueError("is the name of nobody in particular")
    return check_holder_name(value)


def _tenant(value: str) -> str:
    try:
        return check_tenant(value, "tenants")
    except InvalidInputError as error:
        raise ValueError(error.problem) from None


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, AfterValidator(_operator_name)]
    tokens: list[Annotated[str, AfterValidator(check_token_path)]] = Field(min_length=1, max_length=16)
    tenants: (
        Literal["*"] | Annotated[list[Annotated[str, AfterValidator(_tenant)]], Field(min_length=1, max_length=1000)]
    )
    permissions: list[Literal["read", "write", "approve"]] = Field(default=["read"], min_length=1)

    def actor(self) -> Actor:
        tenants = None if self.tenants == "*" else frozenset(self.tenants)
        return Actor(self.name, True, tenants, frozenset(map(Permission, self.permissions)))


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid")

    operators: list[_Entry] = Field(min_length=1, max_length=MAX_OPERATORS)


class Operators:
    """The operators that a file names. For one event loop."""

    def __init__(self, path: str) -> None:
        """Reads the files. Raises TokenFilesError if they cannot be used: at the start nobody was known before."""
        self._path = path
        self._warnings: list[str] = []
        self._problem = ""
        self._files = WatchedFiles()
        self._by_hash, self._size = self._read(self._files)

    def actor(self, authorization: str) -> Actor | None:
        """Whose token is in an `authorization` header."""
        token = bearer_hash(authorization)
        return None if token is None else self._by_hash.get(token)

    def describe(self) -> dict[str, object]:
        """What health tells: how many they are, and whether the files cannot be used as they are now."""
        return {"operators": self._size, "operators_unusable": bool(self._problem)}

    async def follow(self) -> None:
        """Reads the files again whenever they change, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await self.look()

    async def look(self) -> None:
        """Reads the files again if they have changed."""
        if not await asyncio.to_thread(self._files.changed):
            return
        self._files = files = WatchedFiles()
        try:
            read = await asyncio.to_thread(self._read, files)
        except TokenFilesError as error:
            if str(error) != self._problem:
                self._problem = str(error)
                _LOG.error("%s: %s; those who might call before still may", SETTING, error)
            return
        if self._problem or read[0] != self._by_hash:
            _LOG.info("operators: %d, their tokens: %d", read[1], len(read[0]))
        self._problem = ""
        self._by_hash, self._size = read

    def _read(self, files: WatchedFiles) -> tuple[dict[bytes, Actor], int]:
        warnings: list[str] = []
        entries = read_document(self._path, files, _Document).operators
        by_hash: dict[bytes, Any] = read_holders(f"{self._path}: operators", entries, files, warnings)
        if warnings != self._warnings:
            for warning in warnings:
                _LOG.warning("%s: %s", SETTING, warning)
            self._warnings = warnings
        return {token: entry.actor() for token, entry in by_hash.items()}, len(entries)
