"""Who could skip what: every grant, held against the subjects it is for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

from google.protobuf.message import DecodeError
from sidestep.v1 import access_pb2
from sidestep.v1 import resources_pb2 as pb

from controlplane.grants import Terms, facts_of, read_terms
from controlplane.store import Store
from engine.classes import class_name
from engine.decision import Code
from engine.exemption import dormancy
from engine.lifecycle import State
from engine.names import SINGLETON_ID, Collection

# Grant id -> when it was last used, seconds since the epoch, of a tenant's grants that were reported to be used.
LastUsed = Callable[[str], Awaitable[Mapping[str, float]]]

_PAGE = 1_000
_SCOPES = {"subject": pb.GRANT_SCOPE_SUBJECT, "role": pb.GRANT_SCOPE_ROLE, "device": pb.GRANT_SCOPE_DEVICE}
_APPLYING = frozenset({pb.CLASS_STATE_ACTIVE, pb.CLASS_STATE_REOPENING})
# Nothing brings these back.
_OVER = frozenset({State.REVOKED, State.REJECTED})


async def not_reported(tenant: str) -> Mapping[str, float]:
    """What is known of last uses where nobody reports any."""
    return {}


class Reviewer:
    """Reads a tenant's grants and subjects, page by page. What is written meanwhile may or may not be among them."""

    def __init__(self, store: Store, last_used: LastUsed = not_reported) -> None:
        self._store = store
        self._last_used = last_used

    async def exemptions_off(self, tenant: str) -> bool:
        """Whether the tenant's kill switch is thrown."""
        value = await self._store.get(tenant, Collection.POSTURES, SINGLETON_ID)
        return value is not None and pb.Posture.FromString(value).exemptions_off

    async def entries(
        self, tenant: str, now: float, *, subject: str = "", dormant: bool = False
    ) -> AsyncIterator[access_pb2.AccessEntry]:
        """One entry per grant and subject, by grant; of a role also one without a subject, for those who have it by their token.

        Disabled subjects are left out: they are denied whatever they hold. `subject`: only of this one. `dormant`: also grants
        that waive nothing at `now`, but are neither revoked nor rejected.
        """
        terms = read_terms(await self._store.get(tenant, Collection.SETTINGS, SINGLETON_ID))
        used = await self._last_used(tenant)
        suspended = await self._suspended(tenant)
        by_role, disabled = await self._subjects(tenant)
        async for value in self._values(tenant, Collection.GRANTS):
            grant = _parsed(value)
            if grant is None:
                continue
            entry = _entry(grant, terms, used, now)
            if not entry.refusal and class_name(grant.grant_class) in suspended:
                entry.refusal = Code.CLASS_SUSPENDED.value
            if entry.refusal and not (dormant and grant.state not in _GONE):
                continue
            for holder in await self._holders(tenant, grant, by_role):
                if holder in disabled or (subject and holder not in ("", subject)):
                    continue
                of_holder = access_pb2.AccessEntry(subject=holder)
                of_holder.MergeFrom(entry)
                yield of_holder

    async def _suspended(self, tenant: str) -> set[str]:
        """Classes whose grants do not apply, because of their breaker."""
        rows = await self._store.list(tenant, Collection.GRANT_CLASSES, limit=_PAGE)
        states = {name: pb.GrantClassState.FromString(value).state for name, value in rows}
        return {name for name, state in states.items() if state not in _APPLYING}

    async def _subjects(self, tenant: str) -> tuple[Mapping[str, list[str]], set[str]]:
        """Subject ids by role, and those that are disabled."""
        by_role: dict[str, list[str]] = defaultdict(list)
        disabled = set()
        async for value in self._values(tenant, Collection.SUBJECTS):
            record = pb.Subject.FromString(value)
            subject = record.name.rpartition("/")[2]
            for role in record.roles:
                by_role[role].append(subject)
            if record.state != pb.SUBJECT_STATE_ACTIVE:
                disabled.add(subject)
        return by_role, disabled

    async def _holders(self, tenant: str, grant: pb.Grant, by_role: Mapping[str, list[str]]) -> list[str]:
        """Subject ids a grant is for; empty: whoever has the role by their token."""
        match grant.WhichOneof("scope"):
            case "subject":
                return [grant.subject]
            case "role":
                return [*by_role.get(grant.role, ()), ""]
            case "device":
                value = await self._store.get(tenant, Collection.DEVICES, grant.device)
                return [] if value is None else [pb.Device.FromString(value).subject]
        return []

    async def _values(self, tenant: str, collection: Collection) -> AsyncIterator[bytes]:
        after = ""
        while rows := await self._store.list(tenant, collection, after=after, limit=_PAGE):
            after = rows[-1][0]
            for _, value in rows:
                yield value


_GONE = frozenset(pb.GrantState.Value(f"GRANT_STATE_{state}") for state in _OVER)


def _parsed(value: bytes) -> pb.Grant | None:
    """A stored grant; None for what is none: it exempts nobody."""
    try:
        return pb.Grant.FromString(value)
    except DecodeError:
        return None


def _entry(grant: pb.Grant, terms: Terms, used: Mapping[str, float], now: float) -> access_pb2.AccessEntry:
    scope = grant.WhichOneof("scope")
    seen = facts_of(grant)
    refusal = dormancy(seen, terms.classes, now)
    entry = access_pb2.AccessEntry(
        grant=seen.id,
        grant_class=class_name(grant.grant_class) if terms.classes or grant.grant_class else "",
        actions=grant.actions,
        state=grant.state,
        refusal="" if refusal is None else refusal.value,
        owner=grant.owner,
        reason=grant.reason,
        ticket=grant.ticket,
        ceiling=grant.ceiling,
    )
    if scope is not None:
        entry.scope = _SCOPES[scope]
        entry.scope_value = getattr(grant, scope)
    for name in ("expire_time", "review_time"):
        if grant.HasField(name):
            getattr(entry, name).CopyFrom(getattr(grant, name))
    if seen.id in used:
        entry.last_use_time.FromNanoseconds(int(used[seen.id] * 1e9))
    return entry
