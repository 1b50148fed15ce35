"""What is known of a tenant as a whole: its rules, keys, fingerprint settings and posture, rebuilt only when they change."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp
from sidestep.v1 import resources_pb2

from engine import fingerprint
from engine.acr import AcrOrder
from engine.facts import Posture
from engine.names import SINGLETON_ID, Collection, Lane
from engine.plan import Policy
from engine.policy import PolicyError
from engine.registration import DEFAULT_REGISTER_WITHIN_S
from engine.rules import TenantRules, compile_policy
from sidecar.gather.classes import ClassStanding, class_standing
from sidecar.gather.keyring import IssuerKey, IssuerRule, KeyRing
from sidecar.gather.rules import acr_order, clock_skew_s, register_within_s, tenant_rules
from sidecar.guard.buckets import DEFAULT_HARD_FACTOR, SLOWEST_PER_S, Limit, Limits
from sidecar.store.view import Cursor, ReadView

_log = logging.getLogger(__name__)
_M = TypeVar("_M", bound=Message)
_POSTURES = {
    resources_pb2.POSTURE_LEVEL_LOW: Posture.LOW,
    resources_pb2.POSTURE_LEVEL_ELEVATED: Posture.ELEVATED,
    resources_pb2.POSTURE_LEVEL_HIGH: Posture.HIGH,
    resources_pb2.POSTURE_LEVEL_CRITICAL: Posture.CRITICAL,
}
_KINDS = {
    resources_pb2.FingerprintComponent.KIND_EXACT: fingerprint.Kind.EXACT,
    resources_pb2.FingerprintComponent.KIND_VERSION: fingerprint.Kind.VERSION,
}


class Secret(NamedTuple):
    """A tenant secret and when it may be used: from start_at (inclusive) to expire_at (exclusive)."""

    key: bytes
    start_at: float | None
    expire_at: float | None

    def usable(self, now: float) -> bool:
        """Whether it may be used at `now`."""
        return (self.start_at is None or now >= self.start_at) and (self.expire_at is None or now < self.expire_at)


class Tenant(NamedTuple):
    """One tenant at one urgent revision."""

    rules: TenantRules
    ring: KeyRing
    catalogue: fingerprint.Catalogue
    fingerprint_keys: dict[str, Secret]
    # Newest first.
    secrets: tuple[Secret, ...]
    posture: Posture
    posture_changed_at: float | None
    exemptions_off: bool
    # How classes of grants stand; those without a record are sound.
    classes: dict[str, ClassStanding]
    limits: Limits | None = None
    register_within_s: float = DEFAULT_REGISTER_WITHIN_S

    def secret(self, now: float) -> bytes | None:
        """The newest tenant secret that may be used at `now`: for the spot-check draw and `user.hash`."""
        for secret in self.secrets:
            if secret.usable(now):
                return secret.key
        return None


class TenantCache:
    """Tenants by their urgent cursor. One per worker loop; not thread-safe.

    Most urgent changes are grants, revocations and states, so after a new revision the few records a Tenant is made of are
    compared byte by byte, and what did not change is kept: compiled policies, parsed keys, and with the key ring every token
    verified by it.
    """

    def __init__(self) -> None:
        self._current: dict[str, tuple[Cursor, Tenant]] = {}
        self._parts: dict[str, dict[str, tuple[object, object]]] = {}

    def get(self, view: ReadView, tenant: str, cursor: Cursor) -> Tenant:
        """The tenant as of `cursor`, which is the urgent cursor of `view`."""
        held = self._current.get(tenant)
        if held is not None and held[0] == cursor:
            return held[1]
        built = self._build(view, tenant)
        self._current[tenant] = (cursor, built)
        return built

    def _build(self, view: ReadView, tenant: str) -> Tenant:
        parts = self._parts.setdefault(tenant, {})
        settings_bytes = view.get(Collection.SETTINGS, tenant, SINGLETON_ID) or b""
        policy_rows = tuple(view.scan(Collection.POLICIES, tenant))
        key_rows = tuple(view.scan(Collection.KEYS, tenant))
        settings = _kept(parts, "settings", settings_bytes, lambda: _settings(settings_bytes))
        order = _kept(parts, "order", settings_bytes, lambda: acr_order(settings))
        compiled = _kept(parts, "policies", policy_rows, lambda: self._policies(parts, policy_rows))
        rules = _kept(parts, "rules", (settings_bytes, policy_rows), lambda: tenant_rules(settings, compiled, order))
        ring, fingerprint_keys, secrets = _kept(
            parts, "keys", (settings_bytes, key_rows), lambda: _keys(settings, order, key_rows)
        )
        catalogue = _kept(parts, "catalogue", settings_bytes, lambda: _catalogue(settings))
        limits = _kept(parts, "limits", settings_bytes, lambda: _limits(settings))
        posture, changed_at, off = _posture(view.get(Collection.POSTURES, tenant, SINGLETON_ID))
        classes = {name: class_standing(value) for name, value in view.scan(Collection.GRANT_CLASSES, tenant)}
        within_s = register_within_s(settings)
        return Tenant(
            rules, ring, catalogue, fingerprint_keys, secrets, posture, changed_at, off, classes, limits, within_s
        )

    def _policies(
        self, parts: dict[str, tuple[object, object]], rows: tuple[tuple[str, bytes], ...]
    ) -> tuple[Policy, ...] | None:
        """The compiled policies, or None if one cannot be compiled: then none may be trusted to be the whole rule."""
        policies = []
        wanted = {f"policy {record_id}" for record_id, _ in rows}
        for name in [name for name in parts if name.startswith("policy ") and name not in wanted]:
            del parts[name]
        for record_id, value in rows:
            try:
                record = _parse(resources_pb2.Policy, value)
                policy = _kept(
                    parts,
                    f"policy {record_id}",
                    value,
                    lambda r=record: compile_policy(r.document, r.version),  # type: ignore[misc]
                )
            except (PolicyError, DecodeError) as error:
                _log.error("policy %s cannot be used, the top requirement holds everywhere: %s", record_id, error)
                return None
            policies.append(policy)
        return tuple(policies)


_V = TypeVar("_V")


def _kept(parts: dict[str, tuple[object, object]], name: str, source: object, build: Callable[[], _V]) -> _V:
    held = parts.get(name)
    if held is not None and held[0] == source:
        return held[1]  # type: ignore[return-value]
    value = build()
    parts[name] = (source, value)
    return value


def _parse(kind: type[_M], value: bytes) -> _M:
    message = kind()
    message.ParseFromString(value)
    return message


def moment(timestamp: Timestamp, present: bool) -> float | None:
    """A stored timestamp as seconds since the epoch, or None if absent."""
    return timestamp.seconds + timestamp.nanos / 1e9 if present else None


def _settings(value: bytes) -> resources_pb2.Settings:
    return _parse(resources_pb2.Settings, value)


def _keys(
    settings: resources_pb2.Settings, order: AcrOrder, rows: Iterable[tuple[str, bytes]]
) -> tuple[KeyRing, dict[str, Secret], tuple[Secret, ...]]:
    issuer_keys = []
    fingerprint_keys = {}
    secrets = []
    for key_id, value in rows:
        key = _parse(resources_pb2.Key, value)
        start_at = moment(key.start_time, key.HasField("start_time"))
        expire_at = moment(key.expire_time, key.HasField("expire_time"))
        if key.kind == resources_pb2.KEY_KIND_ISSUER:
            issuer_keys.append(IssuerKey(key_id, key.issuer, key.jwk, start_at, expire_at))
        elif key.kind == resources_pb2.KEY_KIND_FINGERPRINT and key.secret:
            fingerprint_keys[key_id] = Secret(key.secret, start_at, expire_at)
        elif key.kind == resources_pb2.KEY_KIND_TENANT and key.secret:
            secrets.append(Secret(key.secret, start_at, expire_at))
    secrets.sort(key=lambda secret: float("-inf") if secret.start_at is None else secret.start_at, reverse=True)
    issuers = [
        IssuerRule(i.issuer, frozenset(i.audiences), tuple(i.max_acrs), frozenset(i.algorithms))
        for i in settings.issuers
    ]
    ring = KeyRing(issuers, issuer_keys, clock_skew_s(settings), order.implies)
    for problem in ring.problems:
        _log.warning("issuer or key left out: %s", problem)
    return ring, fingerprint_keys, tuple(secrets)


def _catalogue(settings: resources_pb2.Settings) -> fingerprint.Catalogue:
    components = tuple(
        fingerprint.Component(c.id, _KINDS[c.kind], c.weight, c.must_match, c.max_rise)
        for c in settings.fingerprint
        if c.kind in _KINDS and c.weight > 0
    )
    minimum = settings.min_similarity if settings.HasField("min_similarity") else fingerprint.DEFAULT_MIN_SIMILARITY
    return fingerprint.Catalogue(components or fingerprint.DEFAULT_CATALOGUE, minimum)


def _limits(settings: resources_pb2.Settings) -> Limits | None:
    """None: no limit at all, which costs nothing."""
    if not settings.HasField("rate_limits"):
        return None
    stated = settings.rate_limits
    limits = Limits(
        *(_limit(getattr(stated, kind)) if stated.HasField(kind) else None for kind in ("subject", "device", "caller"))
    )
    return limits if any(limits) else None


def _limit(stated: resources_pb2.RateLimit) -> Limit:
    """The control plane refuses what cannot be; what is stored all the same becomes the strictest that can."""
    factor = stated.hard_factor if stated.HasField("hard_factor") else DEFAULT_HARD_FACTOR
    return Limit(
        stated.per_second if stated.per_second > 0 else SLOWEST_PER_S,
        max(1, stated.burst),
        factor if factor >= 1 else 1.0,
    )


def _posture(value: bytes | None) -> tuple[Posture, float | None, bool]:
    """No record is an explicit default: LOW, exemptions on. An unknown level is CRITICAL."""
    if value is None:
        return Posture.LOW, None, False
    posture = _parse(resources_pb2.Posture, value)
    changed_at = moment(posture.update_time, posture.HasField("update_time"))
    return _POSTURES.get(posture.level, Posture.CRITICAL), changed_at, posture.exemptions_off


def urgent_cursor(view: ReadView, tenant: str) -> Cursor | None:
    """Where the tenant's urgent lane stands."""
    return view.cursor(tenant, Lane.URGENT)


def check_record(collection: int, record_id: str, value: bytes) -> None:
    """Whether this version can serve a record: for the store's writer, before it applies a change.

    Raises PolicyError, InvalidInputError or DecodeError saying why not.
    """
    if collection == Collection.POLICIES:
        policy = _parse(resources_pb2.Policy, value)
        compile_policy(policy.document, policy.version)
    elif collection == Collection.SETTINGS:
        settings = _parse(resources_pb2.Settings, value)
        AcrOrder((edge.higher, edge.lower) for edge in settings.acr_edges)
    elif collection == Collection.KEYS:
        _parse(resources_pb2.Key, value)
    elif collection == Collection.GRANTS:
        _parse(resources_pb2.Grant, value)
