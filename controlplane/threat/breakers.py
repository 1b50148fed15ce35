"""Runs the breakers of classes of grants: every state follows from the spot checks and the state before it.

Every replica may do so. A state is committed on condition that it is still the one it was made from, so of two replicas one wins
and the other finds nothing to do.
"""

from __future__ import annotations

import logging
import time

from sidestep.v1 import resources_pb2 as pb

from controlplane.actor import system
from controlplane.api.resources import decode, encode
from controlplane.audit import Note
from controlplane.breakers import limits_of, read_breaker, write_breaker
from controlplane.errors import ConflictError
from controlplane.store import Store, Write
from engine.breaker import Breaker, Limits, Phase, advance
from engine.estimate import Estimate, estimate
from engine.names import SINGLETON_ID, Collection, make_name

_LOG = logging.getLogger(__name__)


async def run_breakers(store: Store, tenant: str, now: float | None = None) -> list[str]:
    """Advances every breaker of the tenant; returns the classes whose state changed. Raises StoreError."""
    now = time.time() if now is None else now
    settings = await store.get(tenant, Collection.SETTINGS, SINGLETON_ID)
    if settings is None:
        return []
    changed = []
    for grant_class, limits in limits_of(decode(Collection.SETTINGS, settings)).items():
        if await _advance(store, tenant, grant_class, limits, now):
            changed.append(grant_class)
    return changed


async def _advance(store: Store, tenant: str, grant_class: str, limits: Limits, now: float) -> bool:
    stored = await store.get(tenant, Collection.GRANT_CLASSES, grant_class)
    record: pb.GrantClassState | None = None if stored is None else decode(Collection.GRANT_CLASSES, stored)
    before = read_breaker(record)
    checks = await store.usage.checks(tenant, grant_class, before.counts_from(limits, now))
    found = estimate(checks.samples)
    after = advance(before, limits, found, now)
    if after == before:
        return False
    reason = _reason(before, after, limits, found)
    name = str(make_name(tenant, Collection.GRANT_CLASSES, grant_class))
    written = write_breaker(name, after, limits, reason)
    written.update_time.FromNanoseconds(int(now * 1e9))
    write = Write(Collection.GRANT_CLASSES, grant_class, encode(written))
    note = Note(system(), f"class.{after.phase.value}", name, reason=reason)
    try:
        expect = {(int(Collection.GRANT_CLASSES), grant_class): stored}
        await store.commit(tenant, [write], expect=expect, audit=note)
    except ConflictError:
        return False  # another replica, or a person, was first
    if after.phase is Phase.SUSPENDED:
        _LOG.warning("%s: %s", name, reason)
    else:
        _LOG.info("%s: %s", name, reason)
    return True


def _reason(before: Breaker, after: Breaker, limits: Limits, found: Estimate) -> str:
    seen = (
        f"{found.rate:.2%} of {found.samples} spot checks failed or were given up ({found.lower:.2%}-{found.upper:.2%})"
    )
    if after.phase is Phase.SUSPENDED:
        return f"suspended: {seen}, the limit is {limits.max_rate:.2%}"
    if before.phase is Phase.SUSPENDED:
        return f"reopens: {limits.reopen_after_s:g} s or more have passed since it was suspended"
    if after.phase is Phase.HALF_OPEN:
        return f"step {after.step + 1} of {len(limits.steps)}: {seen}"
    if before.phase is Phase.HALF_OPEN:
        return f"active again: {seen}"
    return "active for a whole window"
