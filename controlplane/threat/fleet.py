"""Finds fingerprints that are in too many hands, over all pods together: each pod may have seen too few to notice.

What it does of itself reaches (subject, device) pairs alone, and only asks for a strong authentication; it needs sidecars that
agree: two that each saw several subjects with the fingerprint. Where sidecars have certificates, two are two identities.
Whether the devices are to be blocked is for a person to say.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from sidestep.v1 import resources_pb2 as pb
from sidestep.v1 import usage_pb2

from controlplane.actor import system
from controlplane.api.resources import decode, encode
from controlplane.audit import Note
from controlplane.errors import ChangedError, ConflictError
from controlplane.identity.sidecars import WITNESS
from controlplane.store import Store, Write
from controlplane.store.usage import Shared
from engine.errors import InvalidInputError
from engine.names import Collection, check_id, check_tenant, make_name
from engine.sketch import union

GUARD: Final = "shared-fingerprint"
"""What the finding counts as in decisions."""
MIN_SIDECARS: Final = 2
MAX_SUSPECTS: Final = 8
DISMISSED_S: Final = 30 * 86400.0
# A sidecar agrees that saw at least so many subjects; sketches tell such small numbers exactly.
_SEVERAL: Final = 1.5
_ATTEMPTS: Final = 3

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FleetLimits:
    """`subjects`: distinct subjects with one fingerprint, over the fleet, from which it is found. `window_s`: in which they are
    counted. `hold_s`: how long what is done about a pair lasts. `authenticated`: only witnesses count that a certificate proves,
    which one pod cannot be two of."""

    subjects: int = 20
    window_s: float = 86400.0
    hold_s: float = 7 * 86400.0
    authenticated: bool = False


async def find_shared(store: Store, tenant: str, limits: FleetLimits, now: float | None = None) -> list[str]:
    """Looks at what was reported; returns the ids of new findings, which have had their effect. Raises StoreError."""
    now = time.time() if now is None else now
    new = []
    for (key, fingerprint), shared in sorted((await store.usage.shared(tenant, now - limits.window_s)).items()):
        if limits.authenticated:
            proved = {name: seen for name, seen in shared.subjects.items() if name.startswith(WITNESS)}
            shared = shared._replace(subjects=proved)
        agreeing = sorted(name for name, seen in shared.subjects.items() if seen.estimate() >= _SEVERAL)
        subjects = union(shared.subjects.values()).estimate()
        # Rounded: a sketch of few items is exact but for its fractions.
        if len(agreeing) < MIN_SIDECARS or round(subjects) < limits.subjects:
            continue
        finding_id = f"{key.hex()[:8]}-{fingerprint.hex()}"
        if await _note(store, tenant, finding_id, shared, agreeing, subjects, limits, now):
            new.append(finding_id)
    return new


async def _note(
    store: Store,
    tenant: str,
    finding_id: str,
    shared: Shared,
    agreeing: list[str],
    subjects: float,
    limits: FleetLimits,
    now: float,
) -> bool:
    """Keeps the finding up to date, and acts on pairs it did not know of. Whether it is new."""
    known = await store.findings.get(tenant, finding_id)
    settled = known is not None and known.state != usage_pb2.FINDING_STATE_OPEN
    if known is not None and settled and now - known.last_time.ToNanoseconds() / 1e9 < DISMISSED_S:
        return False
    finding = usage_pb2.FleetFinding(
        name=f"tenants/{tenant}/findings/{finding_id}",
        state=usage_pb2.FINDING_STATE_OPEN,
        subjects=subjects,
        sidecars=agreeing,
        devices=[usage_pb2.FleetDevice(subject=subject, device=device) for subject, device in shared.devices],
    )
    finding.last_time.FromNanoseconds(int(now * 1e9))
    told = set()
    if known is not None and not settled:
        finding.first_time.CopyFrom(known.first_time)
        told = {(pair.subject, pair.device) for pair in known.devices}
        if (known.devices, known.sidecars, known.subjects) == (finding.devices, finding.sidecars, finding.subjects):
            return False
    else:
        finding.first_time.FromNanoseconds(int(now * 1e9))
        _LOG.warning("%s: %.0f subjects, over sidecars %s", finding.name, subjects, ", ".join(agreeing[:8]))
    for subject, device in shared.devices:
        if (subject, device) not in told:
            await suspect(store, tenant, subject, device, finding.name, limits, now)
    try:
        await store.findings.put(tenant, finding_id, finding, known)
    except ChangedError:
        return False  # another replica, or a person, was first
    return known is None or settled


async def suspect(
    store: Store, tenant: str, subject: str, device: str, why: str, limits: FleetLimits, now: float
) -> bool:
    """Marks a device of a subject as suspect, so that guards ask for an authentication after `now`. False: no such subject, it is
    marked already, or too many of its devices are."""

    def mark(record: pb.Subject) -> bool:
        live = [each for each in record.suspects if each.expire_time.ToNanoseconds() / 1e9 > now]
        if len(live) >= MAX_SUSPECTS or any(each.device == device for each in live):
            return False
        made = pb.SuspectDevice(device=device, guard=GUARD)
        made.since_time.FromNanoseconds(int(now * 1e9))
        made.expire_time.FromNanoseconds(int((now + limits.hold_s) * 1e9))
        _keep(record, (*live, made))
        return True

    return await _change(store, tenant, subject, mark, Note(system(), "device.suspect", "", reason=f"{device}: {why}"))


async def clear(store: Store, tenant: str, subject: str, device: str, note: Note) -> bool:
    """Takes the mark back. False: there was none."""

    def unmark(record: pb.Subject) -> bool:
        left = [each for each in record.suspects if each.device != device]
        if len(left) == len(record.suspects):
            return False
        _keep(record, left)
        return True

    return await _change(store, tenant, subject, unmark, note)


def _keep(record: pb.Subject, suspects: Iterable[pb.SuspectDevice]) -> None:
    kept = list(suspects)
    record.ClearField("suspects")
    record.suspects.extend(kept)


async def _change(store: Store, tenant: str, subject: str, change: Callable[[pb.Subject], bool], note: Note) -> bool:
    key = (int(Collection.SUBJECTS), subject)
    name = str(make_name(tenant, Collection.SUBJECTS, subject))
    for _ in range(_ATTEMPTS):
        stored = await store.get(tenant, *key)
        if stored is None:
            return False
        record = decode(Collection.SUBJECTS, stored)
        if not change(record):
            return False
        write = Write(*key, encode(record))
        try:
            await store.commit(tenant, [write], expect={key: stored}, audit=note._replace(name=name))
        except ConflictError:
            continue
        return True
    return False


def parse_finding(name: str, field: str) -> tuple[str, str]:
    """Tenant and id of a finding's name. Raises InvalidInputError."""
    parts = name.split("/")
    if len(parts) != 4 or (parts[0], parts[2]) != ("tenants", "findings"):
        raise InvalidInputError(field, "is not of the form tenants/{tenant}/findings/{finding}")
    return check_tenant(parts[1], field), check_id(parts[3], field)


def digest_of_finding(finding: usage_pb2.FleetFinding) -> bytes:
    """SHA-256 of what somebody who dismisses an open finding has to have seen: since when, and which devices."""
    seen = usage_pb2.FleetFinding(first_time=finding.first_time, devices=finding.devices)
    return sha256(seen.SerializeToString(deterministic=True)).digest()


async def settle(store: Store, tenant: str, finding: usage_pb2.FleetFinding, note: Note, *, apply: bool) -> int:
    """What a person decided on a finding: quarantines its devices for their subjects, or takes back what was done of itself.
    A repetition of what failed half-way does the rest. Returns how many devices changed. Raises StoreError, ChangedError."""
    changed = await _settle_devices(store, tenant, finding, note, apply=apply)
    known = usage_pb2.FleetFinding()
    known.CopyFrom(finding)
    finding.state = usage_pb2.FINDING_STATE_APPLIED if apply else usage_pb2.FINDING_STATE_DISMISSED
    finding.actor, finding.reason = note.actor.name, note.reason
    await store.findings.put(tenant, finding.name.rpartition("/")[2], finding, known)
    return changed


async def _settle_devices(
    store: Store, tenant: str, finding: usage_pb2.FleetFinding, note: Note, *, apply: bool
) -> int:
    changed = 0
    for pair in finding.devices:
        if apply:
            changed += await _quarantine(store, tenant, pair, note)
        else:
            changed += await clear(store, tenant, pair.subject, pair.device, note)
    return changed


async def _quarantine(store: Store, tenant: str, pair: usage_pb2.FleetDevice, note: Note) -> bool:
    """False: the device is not registered for the subject, or is blocked already."""
    key = (int(Collection.DEVICE_STATES), pair.device)
    device = await store.get(tenant, Collection.DEVICES, pair.device)
    if device is None or decode(Collection.DEVICES, device).subject != pair.subject:
        return False
    for _ in range(_ATTEMPTS):
        stored = await store.get(tenant, *key)
        name = str(make_name(tenant, Collection.DEVICE_STATES, pair.device))
        record = pb.DeviceState(name=name, subject=pair.subject)
        if stored is not None:
            record = decode(Collection.DEVICE_STATES, stored)
        if stored is not None and record.trust != pb.DEVICE_TRUST_ACTIVE:
            return False
        record.trust, record.reason = pb.DEVICE_TRUST_QUARANTINED, note.reason
        record.update_time.GetCurrentTime()
        expect = {key: stored, (int(Collection.DEVICES), pair.device): device}
        try:
            await store.commit(tenant, [Write(*key, encode(record))], expect=expect, audit=note._replace(name=name))
        except ConflictError:
            continue
        return True
    return False
