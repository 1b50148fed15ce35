"""Change control at the admin API: a guarded change without a second person is refused, whichever way it comes."""

from __future__ import annotations

from typing import Any

from sidestep.v1 import resources_pb2 as pb

from controlplane.api.resources import decode
from controlplane.changecontrol import Change, concerns, guarded
from controlplane.errors import RefusedError
from controlplane.store import Store
from engine.names import SINGLETON_ID, Collection, Name


async def load_control(store: Store, tenant: str) -> pb.ChangeControl:
    """What the tenant's settings guard."""
    value = await store.get(tenant, Collection.SETTINGS, SINGLETON_ID)
    if value is None:
        return pb.ChangeControl()
    control: pb.ChangeControl = decode(Collection.SETTINGS, value).change_control
    return control


async def guards(
    store: Store, control: pb.ChangeControl, name: Name, stored: bytes | None, after: Any | None, now: float
) -> list[str]:
    """The rules by which a write of a record needs a second person. `after` None: it is deleted."""
    if not concerns(control, name.collection) or (stored is None and after is None):
        return []
    before = None if stored is None else decode(name.collection, stored)
    twin = owner = None
    if name.collection is Collection.DEVICES:
        value = await store.get(name.tenant, Collection.DEVICE_STATES, name.id)
        twin = None if value is None else decode(Collection.DEVICE_STATES, value)
        # Whose it was: the suspicion is about that subject.
        device = before if before is not None else after
        assert device is not None
        value = await store.get(name.tenant, Collection.SUBJECTS, device.subject)
        owner = None if value is None else decode(Collection.SUBJECTS, value)
    return guarded(control, Change(name.collection, before, after, twin, owner), now)


def refusal(name: Name | str, rules: list[str]) -> RefusedError:
    """The error for a guarded write."""
    return RefusedError(f"{name}: {' and '.join(rules)} of the settings: needs a second person, propose it instead")
