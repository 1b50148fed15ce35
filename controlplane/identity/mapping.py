"""Which sidecars may follow which tenants: a file that maps the names in their certificates to tenants (SIDESTEP_CP_SIDECARS).

    sidecars:
      - match: spiffe://example.org/ns/{namespace}/sa/{account}
        tenants: ["{namespace}"]
      - match: spiffe://example.org/ns/payments/pod/{pod}      `pod`: the sidecar must call itself so
        tenants: [acme, acme-test]
      - match: dns:{pod}.sidecars.example.org
        tenants: "*"                                            all of SIDESTEP_CP_SYNC_SCOPE

The first entry that matches one of a certificate's names counts; a certificate that none matches, or whose entry gives
no possible tenant, is refused. The file is read again when it changes.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from controlplane.identity.pattern import Pattern, fill, placeholders_of
from controlplane.identity.peer import Certificate
from engine.errors import InvalidInputError
from engine.names import check_tenant
from engine.tokenfiles import read_document
from engine.watched import WatchedFiles

SETTING: Final = "SIDESTEP_CP_SIDECARS"
POD: Final = "pod"
MAX_ENTRIES: Final = 1000


class Mapped(NamedTuple):
    """What a certificate means. `identity`: the name that matched. `tenants` None: all. `pod`: what the sidecar must be
    called; None: as it likes."""

    identity: str
    tenants: frozenset[str] | None
    pod: str | None


def _pattern(value: str) -> str:
    Pattern(value)
    return value


def _template(value: str) -> str:
    try:
        check_tenant(fill(value, dict.fromkeys(placeholders_of(value), "x")), "tenants")
    except InvalidInputError as error:
        raise ValueError(error.problem) from None
    return value


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    match: Annotated[str, AfterValidator(_pattern)]
    tenants: (
        Literal["*"] | Annotated[list[Annotated[str, AfterValidator(_template)]], Field(min_length=1, max_length=1000)]
    )

    @model_validator(mode="after")
    def _known(self) -> _Entry:
        unknown = {name for tenant in self.tenants for name in placeholders_of(tenant)} - Pattern(
            self.match
        ).placeholders
        if unknown:
            raise ValueError(f"tenants: {{{min(unknown)}}} is no placeholder of match")
        return self


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid")

    sidecars: list[_Entry] = Field(min_length=1, max_length=MAX_ENTRIES)


class Mapping:
    """One reading of the file."""

    def __init__(self, path: str, files: WatchedFiles) -> None:
        """Raises TokenFilesError naming the file and every field at fault."""
        entries = read_document(path, files, _Document).sidecars
        self._entries: list[tuple[Pattern, Any]] = [(Pattern(entry.match), entry.tenants) for entry in entries]

    def __len__(self) -> int:
        return len(self._entries)

    def read(self, certificate: Certificate) -> Mapped | None:
        """What the certificate means; None: nothing."""
        for pattern, tenants in self._entries:
            for name in certificate.names:
                values = pattern.read(name)
                if values is None:
                    continue
                scope = None if tenants == "*" else _possible(fill(tenant, values) for tenant in tenants)
                # What gives nothing is no scope: it must not pass for an empty one.
                return Mapped(name, scope, values.get(POD)) if scope is None or scope else None
        return None


def _possible(tenants: Any) -> frozenset[str]:
    found = set()
    for tenant in tenants:
        try:
            found.add(check_tenant(tenant))
        except InvalidInputError:
            continue
    return frozenset(found)
