"""A reported authentication: what its proof shows, and which session and device it counts for (ReportAuthentication)."""

from __future__ import annotations

from typing import NamedTuple

import msgspec
from sidestep.v1 import decision_pb2, report_pb2, resources_pb2

from engine.errors import InvalidInputError
from engine.facts import Authentication, Binding, Device, DeviceBlock, Evidence, Subject
from engine.names import Collection, Lane, check_id, check_tenant
from engine.registration import counts_for_device, strong, unfit_to_register
from sidecar.gather.device import DeviceEvidence, DeviceRecogniser, observe
from sidecar.gather.dpop import DpopInput
from sidecar.gather.gatherer import ScopeError
from sidecar.gather.jws import JwsError, decode_object, split
from sidecar.gather.request import MAX_TOKEN_CHARS, check_fingerprint
from sidecar.gather.tenant import Secret, Tenant, TenantCache, moment, urgent_cursor
from sidecar.gather.tokens import TokenVerifier
from sidecar.local.store import KEEP_S, ReportedAuthentication
from sidecar.store.errors import NotLoadedError
from sidecar.store.view import ReadView

MAX_JTI_BYTES = 256
_CACHE_BYTES = 1 << 20
_CACHED = 64


class Reported(NamedTuple):
    """An authentication that may be recorded. `until`: when its jti may be forgotten. `up`: what the control plane is told."""

    tenant: str
    subject: str
    jti: str
    until: float
    event: ReportedAuthentication
    up: report_pb2.ReportedAuthentication


class _ProofClaims(msgspec.Struct):
    jti: str = ""
    auth_time: float | None = None
    acr: str = ""
    amr: tuple[str, ...] = ()


class ProofReader:
    """Reads reports. Holds caches; not thread-safe."""

    def __init__(self, default_tenant: str) -> None:
        self._default_tenant = default_tenant
        self._tenants = TenantCache()
        self._tokens = TokenVerifier(_CACHE_BYTES)
        self._devices = DeviceRecogniser(_CACHED, _CACHED)

    def whom(self, request: decision_pb2.ReportAuthenticationRequest) -> tuple[str, str]:
        """Tenant and subject of a report. Raises InvalidInputError."""
        tenant = check_tenant(request.tenant, "tenant") if request.tenant else self._default_tenant
        if not tenant:
            raise InvalidInputError("tenant", "is required: this sidecar has no default tenant")
        return tenant, check_id(request.subject.id, "subject.id")

    def read(self, request: decision_pb2.ReportAuthenticationRequest, view: ReadView, now: float) -> Reported:
        """Verifies a report by one view of the data. Raises InvalidInputError naming the field and, for the token, what is wrong
        with it; NotLoadedError, ScopeError."""
        tenant_id, subject = self.whom(request)
        _check(request)
        tenant = self._tenant(view, tenant_id)
        dpop = request.dpop
        result = self._tokens.verify(
            tenant.ring,
            request.token,
            now,
            subject=subject,
            session=request.session_id,
            dpop=DpopInput(dpop.proof, dpop.http_method, dpop.http_uri) if dpop.proof else None,
        )
        if result.token is None:
            raise InvalidInputError("token", result.detail)
        proved = result.token
        claims, kid = _claims(request.token)
        at = _authenticated_at(claims, now + tenant.ring.clock_skew_s)
        rule = tenant.ring.rule(proved.issuer)
        shown = DeviceEvidence(
            request.device.id,
            request.device.fingerprint,
            result.proof_jkt if proved.jkt else "",
            request.device.SerializeToString(),
        )
        device = self._devices.recognise(view, tenant_id, tenant, subject, shown, now)[0]
        up = report_pb2.ReportedAuthentication(tenant=tenant_id, subject=subject, token=request.token)
        up.report_time.FromNanoseconds(int(now * 1e9))
        acr = "" if rule is None else tenant.ring.capped(rule, claims.acr)
        if device.binding is not Binding.UNKNOWN and device.block is DeviceBlock.NONE:
            # Of an older one nobody can say where it was made; it counts in its session all the same.
            if counts_for_device(at, now, tenant.register_within_s):
                up.device = device.id
        elif request.register:
            login = Authentication(acr, at, Evidence.VERIFIED, claims.amr, proved.issuer)
            _check_fit(login, view, tenant_id, subject, tenant, now)
            _register(up, request, view, tenant, shown, device, now)
        event = ReportedAuthentication(
            acr=acr,
            amr=claims.amr,
            at=at,
            issuer=proved.issuer,
            kid=kid,
            until=at + KEEP_S,
            session=proved.session or request.session_id,
            session_proved=bool(proved.session),
            device=up.device,
            registering=up.register,
        )
        until = proved.expires_at + tenant.ring.clock_skew_s
        return Reported(tenant_id, subject, claims.jti, until, event, up)

    def _tenant(self, view: ReadView, tenant_id: str) -> Tenant:
        cursor = urgent_cursor(view, tenant_id)
        if cursor is None or view.cursor(tenant_id, Lane.BULK) is None:
            scope = view.scope()
            if scope is not None and tenant_id not in scope:
                raise ScopeError(f"tenant {tenant_id!r} is not followed by this sidecar")
            raise NotLoadedError(f"tenant {tenant_id!r} was never synced")
        return self._tenants.get(view, tenant_id, cursor)


def _check(request: decision_pb2.ReportAuthenticationRequest) -> None:
    if not request.token:
        raise InvalidInputError("token", "is required: the proof of the authentication")
    for field, text in (("token", request.token), ("dpop.proof", request.dpop.proof)):
        if len(text) > MAX_TOKEN_CHARS:
            raise InvalidInputError(field, f"longer than {MAX_TOKEN_CHARS} bytes")
    if request.session_id:
        check_id(request.session_id, "session_id")
    if request.device.id:
        check_id(request.device.id, "device.id")
    elif request.register:
        raise InvalidInputError("device.id", "is required to register the device under it")
    check_fingerprint(request.device)


def _claims(token: str) -> tuple[_ProofClaims, str]:
    """What of a verified token makes it a proof, and the id of the key that signed it."""
    try:
        jws = split(token)
        claims = decode_object(jws.payload, _ProofClaims)
    except JwsError:
        raise InvalidInputError("token", "malformed") from None
    if not claims.jti:
        raise InvalidInputError("token", "missing_jti")
    if len(claims.jti.encode()) > MAX_JTI_BYTES:
        raise InvalidInputError("token", f"its jti is longer than {MAX_JTI_BYTES} bytes")
    return claims, jws.header.kid


def _authenticated_at(claims: _ProofClaims, latest: float) -> float:
    if claims.auth_time is None:
        raise InvalidInputError("token", "missing_auth_time")
    if not 0 < claims.auth_time <= latest:
        raise InvalidInputError("token", "impossible_auth_time")
    return claims.auth_time


def _check_fit(
    login: Authentication, view: ReadView, tenant_id: str, subject_id: str, tenant: Tenant, now: float
) -> None:
    """Raises InvalidInputError unless the login may register a device, as far as this sidecar knows."""
    record = resources_pb2.Subject()
    record.ParseFromString(view.get(Collection.SUBJECTS, tenant_id, subject_id) or b"")
    subject = Subject(
        recovered_at=moment(record.recover_time, record.HasField("recover_time")),
        sim_changed_at=moment(record.sim_change_time, record.HasField("sim_change_time")),
        authenticator_changed_at=moment(record.authenticator_change_time, record.HasField("authenticator_change_time")),
    )
    rules = tenant.rules
    problem = unfit_to_register(
        login.at or 0.0,
        now,
        tenant.register_within_s,
        subject,
        moment(record.device_register_time, record.HasField("device_register_time")),
        is_strong=strong(login, subject, now, rules.top.acr, rules.cool_off_s, rules.order),
    )
    if problem:
        raise InvalidInputError("token", problem)


def _register(
    up: report_pb2.ReportedAuthentication,
    request: decision_pb2.ReportAuthenticationRequest,
    view: ReadView,
    tenant: Tenant,
    shown: DeviceEvidence,
    device: Device,
    now: float,
) -> None:
    """Adds to the report what the device is to be registered with. Raises InvalidInputError."""
    if device.block is not DeviceBlock.NONE:
        raise InvalidInputError("register", "a blocked device of the subject is not ruled out")
    if view.get(Collection.DEVICES, up.tenant, request.device.id) is not None:
        raise InvalidInputError("device.id", "is registered already, and what is shown does not look like it")
    if not (shown.fingerprint or shown.jkt):
        raise InvalidInputError("device.fingerprint", "is required to register the device, or a token bound to its key")
    if shown.fingerprint:
        key_id, secret = _newest(tenant.fingerprint_keys, now)
        observed = observe(shown.fingerprint, tenant.catalogue, secret)
        up.components.update(observed.components)
        up.versions.update(observed.versions)
        up.key_id = key_id
    up.device, up.register, up.jkt = request.device.id, True, shown.jkt


def _newest(keys: dict[str, Secret], now: float) -> tuple[str, Secret]:
    usable = [
        (float("-inf") if secret.start_at is None else secret.start_at, key_id)
        for key_id, secret in keys.items()
        if secret.usable(now)
    ]
    if not usable:
        raise InvalidInputError("device.fingerprint", "the tenant has no usable FINGERPRINT key to hash it with")
    key_id = max(usable)[1]
    return key_id, keys[key_id]
