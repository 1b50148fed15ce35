"""Registering a device by what was seen of it: raw component values become keyed hashes and version ordinals here.

The same rules as in a sidecar, which hashes what a request shows: engine.fingerprint, the tenant's catalogue of components,
and a FINGERPRINT key. Raw values are forgotten.
"""

from __future__ import annotations

from sidestep.v1 import resources_pb2 as pb

from controlplane.api.links import records
from controlplane.api.resources import decode
from controlplane.store import Store
from engine.errors import InvalidInputError
from engine.fingerprint import DEFAULT_CATALOGUE, Kind, hash_component, parse_version
from engine.names import SINGLETON_ID, Collection

_KINDS = {pb.FingerprintComponent.KIND_EXACT: Kind.EXACT, pb.FingerprintComponent.KIND_VERSION: Kind.VERSION}


class FingerprintHasher:
    """Hashes fingerprints with one tenant's newest usable key, as it was when loaded."""

    def __init__(self, kinds: dict[str, Kind], key_id: str, secret: bytes) -> None:
        self._kinds = kinds
        self._key_id = key_id
        self._secret = secret

    @classmethod
    async def load(cls, store: Store, tenant: str, now: float) -> FingerprintHasher:
        """Reads the tenant's components and keys."""
        value = await store.get(tenant, Collection.SETTINGS, SINGLETON_ID)
        settings = decode(Collection.SETTINGS, value) if value is not None else pb.Settings()
        kinds = {component.id: _KINDS[component.kind] for component in settings.fingerprint}
        newest: tuple[int, str, bytes] | None = None
        async for key_id, stored in records(store, tenant, Collection.KEYS):
            key: pb.Key = decode(Collection.KEYS, stored)
            if key.kind == pb.KEY_KIND_FINGERPRINT and _usable(key, now):
                candidate = (key.start_time.ToNanoseconds(), key_id, key.secret)
                newest = max(newest or candidate, candidate)
        _, key_id, secret = newest or (0, "", b"")
        return cls(kinds or {component.id: component.kind for component in DEFAULT_CATALOGUE}, key_id, secret)

    def hash(self, device: pb.Device, field: str) -> list[str]:
        """Turns `device.fingerprint`, if there is one, into components, versions and key_id. Returns warnings.

        Raises InvalidInputError if the tenant has no usable key, or a version is not a number.
        """
        if not device.fingerprint:
            return []
        if not self._secret:
            raise InvalidInputError(f"{field}.fingerprint", "the tenant has no usable FINGERPRINT key to hash it with")
        warnings = []
        for name, value in sorted(device.fingerprint.items()):
            kind = self._kinds.get(name)
            if kind is None:
                warnings.append(f"{field}.fingerprint[{name}]: not among the tenant's components; left out")
            elif kind is Kind.EXACT:
                device.components[name] = hash_component(self._secret, name, value)
            elif (ordinal := parse_version(value)) is not None:
                device.versions[name] = ordinal
            else:
                raise InvalidInputError(f"{field}.fingerprint[{name}]", f"{value[:64]!r} does not begin with a number")
        device.key_id = self._key_id
        device.ClearField("fingerprint")
        return warnings


def _usable(key: pb.Key, now: float) -> bool:
    now_ns = int(now * 1e9)
    started = not key.HasField("start_time") or key.start_time.ToNanoseconds() <= now_ns
    return started and not (key.HasField("expire_time") and key.expire_time.ToNanoseconds() <= now_ns)
