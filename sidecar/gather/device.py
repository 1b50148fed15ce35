"""Which of the subject's devices is in use, and whether a blocked one might be.

Recognition looks at every device registered for the subject, whatever id the request names: leaving the id out must not lead
to a kinder answer. An id counts by itself only for a device registered without components. A blocked device counts as in
use unless the evidence rules it out (docs/adr/0003-blocked-devices.md).
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import msgspec
from cachetools import LRUCache
from google.protobuf.message import DecodeError
from sidestep.v1 import resources_pb2

from engine.facts import Authentication, Binding, Device, DeviceBlock, Evidence
from engine.fingerprint import Catalogue, Comparison, Kind, Observed, hash_component, parse_version
from engine.names import Collection
from sidecar.gather.tenant import Secret, Tenant, moment
from sidecar.store.view import ReadView

# Trust in a device that was registered without components and is named by its id alone.
ID_ONLY_TRUST = 0.5
# Of how many devices that one fingerprint fits are considered: every further one costs a decision of its own.
MAX_FITTING = 8
_NOTHING_SEEN = Observed({}, {})
_BLOCKS = {
    resources_pb2.DEVICE_TRUST_REVOKED: DeviceBlock.REVOKED,
}


class Profile(msgspec.Struct, frozen=True, eq=False):
    """A registered device, parsed. Equal to itself alone: it stands for exactly the bytes it was parsed from."""

    id: str
    subject: str
    registered: Observed
    key_id: str
    jkt: str
    validated_at: float | None
    authentications: tuple[Authentication, ...]

    @property
    def bare(self) -> bool:
        """Registered without components: its id is all there is to compare."""
        return not self.registered.components and not self.registered.versions


class DeviceEvidence(NamedTuple):
    """What the request shows of a device. `jkt`: the key whose possession was proved, empty if none. `encoded`: id and
    fingerprint as they came, to recognise the same evidence again."""

    id: str
    fingerprint: Mapping[str, str]
    jkt: str
    encoded: bytes

    @property
    def presented(self) -> bool:
        """Whether it shows anything."""
        return bool(self.id or self.fingerprint or self.jkt)


class _Match(NamedTuple):
    bound: bool
    similarity: float
    excluded: bool


class DeviceRecogniser:
    """Compares devices. One per worker loop; caches parsed profiles and what evidence hashes to; not thread-safe."""

    def __init__(self, profiles: int = 4096, observations: int = 4096) -> None:
        self._profiles: LRUCache[tuple[str, bytes], Profile] = LRUCache(profiles)
        self._observed: LRUCache[tuple[Catalogue, bytes, bytes], Observed] = LRUCache(observations)
        self._compared: LRUCache[tuple[Catalogue, Profile, bytes, bytes], Comparison] = LRUCache(observations)

    def recognise(
        self, view: ReadView, tenant_id: str, tenant: Tenant, subject: str, shown: DeviceEvidence, now: float
    ) -> tuple[Device, ...]:
        """The devices the evidence fits, as facts, the likeliest first, at most MAX_FITTING; one unknown or blocked device if
        it fits none or does not rule a blocked one out."""
        blocked = view.blocked_devices(tenant_id, subject)
        ids = view.subject_devices(tenant_id, subject) if shown.presented or blocked else []
        if not ids and not blocked:
            return (Device(presented=shown.presented),)
        fitting: list[tuple[_Match, Profile]] = []
        matches: dict[str, _Match] = {}
        # The blocked ones always: no number of other devices may hide one of them.
        for device_id in dict.fromkeys((*blocked, *ids)):
            profile = self._profile(view, tenant_id, device_id)
            if profile is None or profile.subject != subject:
                continue
            match = self._match(profile, tenant, shown, now)
            matches[device_id] = match
            if device_id in blocked:
                continue
            if match.bound or (match.similarity > 0.0 and match.similarity >= self._least(profile, tenant)):
                fitting.append((match, profile))
        fitting.sort(key=lambda fit: fit[0][:2], reverse=True)
        block, blocked_id = self._block(
            view, tenant_id, shown, blocked, matches, bound_elsewhere=bool(fitting) and fitting[0][0].bound
        )
        if block is not DeviceBlock.NONE:
            return (Device(presented=shown.presented, id=blocked_id, block=block),)
        latest = now + tenant.rules.clock_skew_s
        secret = tenant.secret(now)
        return tuple(
            _device(match, profile, latest, revalidate_draw(secret, tenant_id, profile.id))
            for match, profile in fitting[:MAX_FITTING]
        ) or (Device(presented=shown.presented),)

    def rules_out(
        self, view: ReadView, tenant_id: str, tenant: Tenant, shown: DeviceEvidence, now: float, device_id: str
    ) -> bool:
        """Whether the evidence shows that it is not this device: by a component that cannot have changed."""
        profile = self._profile(view, tenant_id, device_id)
        return profile is not None and not profile.bare and self._match(profile, tenant, shown, now).excluded

    def _least(self, profile: Profile, tenant: Tenant) -> float:
        return ID_ONLY_TRUST if profile.bare else tenant.catalogue.min_similarity

    def _match(self, profile: Profile, tenant: Tenant, shown: DeviceEvidence, now: float) -> _Match:
        if profile.jkt and profile.jkt == shown.jkt:
            return _Match(True, 1.0, False)
        if profile.bare:
            same = shown.id == profile.id
            return _Match(False, ID_ONLY_TRUST if same and not profile.jkt else 0.0, bool(shown.id) and not same)
        secret = tenant.fingerprint_keys.get(profile.key_id)
        if secret is None or not secret.usable(now):
            # Without its key a profile can neither be recognised nor ruled out.
            return _Match(False, 0.0, False)
        comparison = self._compare(profile, tenant.catalogue, shown, secret)
        return _Match(False, comparison.similarity, comparison.excluded)

    def _compare(self, profile: Profile, catalogue: Catalogue, shown: DeviceEvidence, secret: Secret) -> Comparison:
        """Both sides are compared by value: the catalogue by identity, since a change of settings makes a new one."""
        key = (catalogue, profile, shown.encoded, secret.key)
        compared = self._compared.get(key)
        if compared is None:
            compared = catalogue.compare(profile.registered, self._observe(shown, catalogue, secret))
            self._compared[key] = compared
        return compared

    def _block(
        self,
        view: ReadView,
        tenant_id: str,
        shown: DeviceEvidence,
        blocked: list[str],
        matches: dict[str, _Match],
        *,
        bound_elsewhere: bool,
    ) -> tuple[DeviceBlock, str]:
        """The gravest block that the evidence does not rule out."""
        found, found_id = DeviceBlock.NONE, ""
        for device_id in blocked:
            match = matches.get(device_id) or _Match(False, 0.0, bool(shown.id) and shown.id != device_id)
            if not match.bound and (bound_elsewhere or match.excluded):
                continue
            likely = match.bound or match.similarity > 0.0 or shown.id == device_id
            block = self._standing(view, tenant_id, device_id) if likely else DeviceBlock.NOT_EXCLUDED
            if block is DeviceBlock.REVOKED:
                return block, device_id
            if found is not DeviceBlock.QUARANTINED:
                found, found_id = block, device_id
        return found, found_id

    def _standing(self, view: ReadView, tenant_id: str, device_id: str) -> DeviceBlock:
        value = view.get(Collection.DEVICE_STATES, tenant_id, device_id)
        state = resources_pb2.DeviceState()
        if value is not None:
            state.ParseFromString(value)
        return _BLOCKS.get(state.trust, DeviceBlock.QUARANTINED)

    def _profile(self, view: ReadView, tenant_id: str, device_id: str) -> Profile | None:
        value = view.get(Collection.DEVICES, tenant_id, device_id)
        if value is None:
            return None
        key = (device_id, value)
        profile = self._profiles.get(key)
        if profile is None:
            try:
                profile = _parse(device_id, value)
            except DecodeError:
                return None
            self._profiles[key] = profile
        return profile

    def _observe(self, shown: DeviceEvidence, catalogue: Catalogue, secret: Secret) -> Observed:
        if not shown.fingerprint:
            return _NOTHING_SEEN
        key = (catalogue, shown.encoded, secret.key)
        observed = self._observed.get(key)
        if observed is None:
            observed = self._observed[key] = observe(shown.fingerprint, catalogue, secret)
        return observed


def observe(fingerprint: Mapping[str, str], catalogue: Catalogue, secret: Secret) -> Observed:
    """A fingerprint as it came, normalised with a tenant secret. What is not among the components is left out."""
    components: dict[str, bytes] = {}
    versions: dict[str, int] = {}
    for name, value in fingerprint.items():
        component = catalogue.components.get(name)
        if component is None:
            continue
        if component.kind is Kind.EXACT:
            components[name] = hash_component(secret.key, name, value)
        elif (ordinal := parse_version(value)) is not None:
            versions[name] = ordinal
    return Observed(components, versions)


@lru_cache(8192)
def revalidate_draw(secret: bytes | None, tenant: str, device_id: str) -> float:
    """Uniform in [0, 1), always the same for a device while the tenant's secret is. Without a usable secret 1: as early as can
    be."""
    if secret is None:
        return 1.0
    digest = hmac.digest(secret, b"revalidate\0" + f"{tenant}\0{device_id}".encode(), "sha256")
    return int.from_bytes(digest[:6], "big") / 2**48


def _device(match: _Match, profile: Profile, latest: float, draw: float) -> Device:
    """The device as facts. `latest`: a time after it is impossible, and as good as none."""
    validated_at = profile.validated_at
    if validated_at is not None and validated_at > latest:
        validated_at = None
    return Device(
        presented=True,
        binding=Binding.BOUND if match.bound else Binding.RECOGNISED,
        id=profile.id,
        trust=match.similarity,
        validated_at=validated_at,
        authentications=profile.authentications,
        revalidate_draw=draw,
    )


def _parse(device_id: str, value: bytes) -> Profile:
    device = resources_pb2.Device()
    device.ParseFromString(value)
    return Profile(
        id=device_id,
        subject=device.subject,
        registered=Observed(dict(device.components), dict(device.versions)),
        key_id=device.key_id,
        jkt=device.jkt,
        validated_at=moment(device.validate_time, device.HasField("validate_time")),
        authentications=tuple(
            Authentication(
                event.acr,
                moment(event.auth_time, event.HasField("auth_time")),
                Evidence.VERIFIED,
                tuple(event.amr),
                event.issuer,
            )
            for event in device.authentications
        ),
    )
