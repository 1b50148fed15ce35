"""The control plane's branch of the error tree. `api/errors.py` maps it to gRPC codes, once."""

from __future__ import annotations

from controlplane.counters import Refused
from engine.errors import SidestepError


class SettingsError(SidestepError):
    """A setting is unknown, missing or malformed; the message names it."""


class StoreError(SidestepError):
    """The database cannot be reached or written now: locked, full, damaged, gone. Nothing of the call was kept."""


class SchemaError(SidestepError):
    """The database is not Sidestep's, or was made by a newer version."""


class NotFoundError(SidestepError):
    """There is no such record; `problem` says so."""

    def __init__(self, name: str, problem: str = "not found") -> None:
        super().__init__(f"{name}: {problem}")
        self.name = name


class ChangedError(SidestepError):
    """What was read has changed meanwhile, so what was made of it was not written."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name}: has changed meanwhile")


class ConflictError(SidestepError):
    """A record does not hold what the writer expected; nothing was written."""

    def __init__(self, tenant: str, collection: int, record_id: str) -> None:
        super().__init__(f"tenants/{tenant}: record {record_id!r} of collection {collection} has changed meanwhile")
        self.tenant = tenant
        self.collection = collection
        self.record_id = record_id


class ShrinkError(SidestepError):
    """An import would remove more of a collection than it may without force."""


class CompactedError(SidestepError):
    """The change log no longer holds every change after a revision; only a snapshot leads on from there."""

    def __init__(self, tenant: str, lane: int, after: int) -> None:
        super().__init__(f"tenants/{tenant}: the log of lane {lane} no longer reaches back to revision {after}")
        self.tenant = tenant
        self.lane = lane
        self.after = after


class SigningError(StoreError):
    """Nothing can be signed now: whoever holds the keys does not answer. Like a database out of reach, it may pass."""


class DamagedError(SidestepError):
    """Stored data contradicts its own digest."""


class OverloadedError(SidestepError):
    """Too much at once; try again after `retry_after_s` seconds (with jitter)."""

    def __init__(self, what: str, retry_after_s: float) -> None:
        super().__init__(f"{what}; try again in about {retry_after_s:g} s")
        self.retry_after_s = retry_after_s


class StalledError(SidestepError):
    """A sidecar does not acknowledge what it was sent."""


class DrainingError(SidestepError):
    """This process is about to stop; another one serves."""

    def __init__(self) -> None:
        super().__init__("the control plane is shutting down; connect again")


class ScopeError(SidestepError):
    """The caller's identity does not cover a tenant."""

    def __init__(self, tenant: str) -> None:
        super().__init__(f"tenants/{tenant}: out of scope for this caller")
        self.tenant = tenant


class UnidentifiedError(SidestepError):
    """No certificate came with the connection of a sidecar."""

    def __init__(self) -> None:
        super().__init__("sidecars are known by a client certificate here, and none came with this connection")


class IdentityError(SidestepError):
    """A certificate gives nothing: it is revoked or expired, or no tenant is mapped to it. `why` is a label of counters."""

    def __init__(self, why: Refused, problem: str) -> None:
        super().__init__(problem)
        self.why = why


class ScopeChangedError(SidestepError):
    """The tenants of a running stream are no longer those of its sidecar; a new stream gets the new ones."""

    def __init__(self) -> None:
        super().__init__("the tenants of this sidecar have changed; connect again")


class NameTakenError(SidestepError):
    """The certificate is not that of the sidecar of this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"sidecar {name}: the name, or what is kept under it, belongs to another identity")
        self.name = name


class RefusedError(SidestepError):
    """A rule forbids it as things stand: a wrong transition, a missing second person. The message names the rule."""


class UnauthenticatedError(SidestepError):
    """No operator's token came with the call."""

    def __init__(self) -> None:
        super().__init__("an operator's token is needed: authorization: Bearer TOKEN")


class ForbiddenError(SidestepError):
    """The operator may not do this, or not for this tenant."""
