"""Which sidecar calls, and what it may see: by its certificate where sidecars have one, else by its word.

A certificate gives the scope (controlplane.identity.mapping). A sidecar's name is what it says of itself, shown to
operators and the key of its journal and its leases; the first certificate identity that uses a name keeps it, until the
control plane has forgotten the sidecar. Where the mapping finds a `pod` in the certificate, that is the only name it may use.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from cryptography import x509

from controlplane.counters import Counters, Refused
from controlplane.errors import IdentityError, NameTakenError, ScopeError, UnidentifiedError
from controlplane.identity import mapping, revoked
from controlplane.identity.mapping import Mapped, Mapping
from controlplane.identity.peer import Certificate, certificate_of, short
from controlplane.identity.revoked import Revoked
from controlplane.store import Store
from engine.tokenfiles import TokenFilesError
from engine.watched import WatchedFiles

LOOK_EVERY_S: Final = 1.0
WITNESS: Final = "identity:"
"""What a witness begins with that a certificate proves; no sidecar may be called so."""
_NAMES_FOR_S: Final = 30.0
_MAX_NAMES: Final = 65_536
_LOG_EVERY_S: Final = 1.0

_FAULTS: Final = {Refused.REVOKED: "is revoked", Refused.EXPIRED: "has expired"}

_LOG = logging.getLogger(__name__)


class Caller(NamedTuple):
    """A sidecar. `scope`: its tenants; None: all. `identity`: the name in its certificate; empty: nothing proves who it is."""

    name: str
    scope: frozenset[str] | None
    identity: str = ""
    certificate: Certificate | None = None
    # What it must call itself; None: as it likes.
    pod: str | None = None

    @property
    def witness(self) -> str:
        """What it counts as where several must agree. Pods that share an identity are one: any of them could speak for all."""
        return f"{WITNESS}{self.identity}" if self.identity else self.name

    def check(self, tenant: str) -> None:
        """Raises ScopeError for a tenant that is not its own."""
        if self.scope is not None and tenant not in self.scope:
            raise ScopeError(tenant)


class Identities:
    """What the files say: the mapping and the revocations. For one event loop."""

    def __init__(
        self, mapping_path: str, revoked_path: str, authorities: Callable[[], Sequence[x509.Certificate]]
    ) -> None:
        """`mapping_path` empty: sidecars have no certificates. Raises TokenFilesError."""
        self._mapping_path = mapping_path
        self._revoked_path = revoked_path
        self._authorities = authorities
        self._files = WatchedFiles()
        self._mapping, self._revoked = self._read(self._files)
        self._problem = ""
        self.generation = 0
        """Grows whenever other answers may follow."""

    @property
    def required(self) -> bool:
        """Whether a sidecar needs a certificate."""
        return self._mapping is not None

    def map(self, certificate: Certificate) -> Mapped | None:
        """What a certificate means for a sidecar."""
        return None if self._mapping is None else self._mapping.read(certificate)

    def fault(self, certificate: Certificate) -> Refused | None:
        """Why a certificate does not hold (any more), whoever has it."""
        if self._revoked is not None and self._revoked.holds(certificate):
            return Refused.REVOKED
        return Refused.EXPIRED if certificate.expires_at <= time.time() else None

    def describe(self) -> dict[str, object]:
        """What health tells."""
        if not self.required:
            return {"sidecars": "not authenticated"}
        return {"sidecars": "by certificate", "sidecars_unusable": bool(self._problem)}

    async def look(self) -> bool:
        """Reads the files again if they have changed; whether other answers may follow."""
        if not (self._mapping_path or self._revoked_path) or not await asyncio.to_thread(self._files.changed):
            return False
        self._files = files = WatchedFiles()
        try:
            read = await asyncio.to_thread(self._read, files)
        except TokenFilesError as error:
            if str(error) != self._problem:
                self._problem = str(error)
                _LOG.error("%s; what was read before stays in force", error)
            return False
        self._problem = ""
        self._mapping, self._revoked = read
        self.generation += 1
        return True

    def _read(self, files: WatchedFiles) -> tuple[Mapping | None, Revoked | None]:
        # Which setting named the file at fault.
        at = mapping.SETTING
        try:
            mapped = Mapping(self._mapping_path, files) if self._mapping_path else None
            at = revoked.SETTING
            denied = Revoked(self._revoked_path, files, self._authorities()) if self._revoked_path else None
        except TokenFilesError as error:
            raise TokenFilesError(f"{at}: {error}") from None
        return mapped, denied


class Sidecars:
    """Knows the sidecar of a call. `bound`: tenants beyond which none may go; None: none."""

    def __init__(
        self, store: Store, identities: Identities | None, bound: frozenset[str] | None, counters: Counters
    ) -> None:
        self._store = store
        self._identities = identities if identities is not None and identities.required else None
        self._bound = bound
        self._counters = counters
        # Whose a name is, and until when that need not be looked up again.
        self._names: OrderedDict[str, tuple[str, float]] = OrderedDict()
        self._claiming = asyncio.Lock()
        self._unlogged: dict[Refused, int] = {}
        self._log_at = 0.0

    @property
    def authenticated(self) -> bool:
        """Whether sidecars have certificates, and two of them are two only if their identities differ."""
        return self._identities is not None

    async def admit(self, context: Any, name: str) -> Caller:
        """The sidecar that calls, and calls itself `name`. Raises UnidentifiedError, IdentityError, NameTakenError,
        StoreError."""
        caller = self.identify(context)._replace(name=name)
        if not caller.identity:
            return caller
        foreign = caller.pod is not None and caller.pod != name
        if foreign or await self._owner(name, caller.identity) != caller.identity:
            raise self._refused(Refused.NAME_TAKEN, NameTakenError(name), caller.identity)
        return caller

    def identify(self, context: Any) -> Caller:
        """The sidecar that calls, whatever it calls itself. Raises UnidentifiedError, IdentityError."""
        self._counters.call(str(context.peer()))
        if self._identities is None:
            return Caller("", self._bound)
        certificate = certificate_of(context)
        if certificate is None:
            raise self._refused(Refused.NO_CERTIFICATE, UnidentifiedError(), "")
        try:
            return self.judge(certificate)
        except IdentityError as error:
            raise self._refused(error.why, error, short(certificate.names)) from None

    def judge(self, certificate: Certificate) -> Caller:
        """What a certificate is good for now. Raises IdentityError, not counted."""
        assert self._identities is not None
        told = short(certificate.names)
        fault = self._identities.fault(certificate)
        if fault is not None:
            raise IdentityError(fault, f"the certificate of {told} {_FAULTS[fault]}")
        mapped = self._identities.map(certificate)
        scope = None if mapped is None else self._bounded(mapped.tenants)
        if mapped is None or scope == frozenset():
            raise IdentityError(Refused.UNMAPPED, f"no tenant is mapped to a certificate of {told}")
        return Caller("", scope, mapped.identity, certificate, mapped.pod)

    async def check_owner(self, caller: Caller, name: str) -> None:
        """Raises NameTakenError, counted, if what a sidecar of that name left belongs to another identity than the caller's."""
        if name != caller.name and caller.identity and await self._known(name) not in ("", caller.identity):
            raise self._refused(Refused.NAME_TAKEN, NameTakenError(name), caller.identity)

    def refuse_tenant(self, caller: Caller, tenant: str) -> None:
        """Raises ScopeError, counted, for a tenant that is not the caller's own."""
        try:
            caller.check(tenant)
        except ScopeError as error:
            raise self._refused(Refused.OUT_OF_SCOPE, error, caller.identity or caller.name) from None

    def _bounded(self, tenants: frozenset[str] | None) -> frozenset[str] | None:
        if tenants is None or self._bound is None:
            return self._bound if tenants is None else tenants
        return tenants & self._bound

    async def _known(self, name: str) -> str:
        """Whose a name is; empty: nobody's."""
        known = self._names.get(name)
        if known is not None and known[1] > time.monotonic():
            return known[0]
        return await self._store.sidecar_identity(name)

    async def _owner(self, name: str, identity: str) -> str:
        """Whose a name is; the caller's from here on if it was nobody's."""
        known = self._names.get(name)
        if known is not None and known[1] > time.monotonic():
            return known[0]
        async with self._claiming:
            owner = await self._store.sidecar_identity(name)
            if not owner:
                owner = identity
                await self._store.claim_sidecar(name, identity)
            self._names[name] = (owner, time.monotonic() + _NAMES_FOR_S)
            self._names.move_to_end(name)
            if len(self._names) > _MAX_NAMES:
                self._names.popitem(last=False)
        return owner

    def _refused(self, why: Refused, error: Exception, whom: str) -> Exception:
        """Counts a refusal and logs it, at most one line a second; returns the error."""
        self._counters.refuse(why)
        self._unlogged[why] = self._unlogged.get(why, 0) + 1
        now = time.monotonic()
        if now >= self._log_at:
            counts = ", ".join(f"{count} {reason}" for reason, count in sorted(self._unlogged.items()))
            _LOG.warning("refused calls of sidecars: %s; the last one: %s", counts, whom or "without a certificate")
            self._unlogged.clear()
            self._log_at = now + _LOG_EVERY_S
        return error
