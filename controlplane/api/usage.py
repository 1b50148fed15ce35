"""Usage: what sidecars may report of it, and UsageService, which tells operators what all reports come to."""
# ruff: noqa: N802 - the methods are named by the proto service

from __future__ import annotations

import time
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from sidestep.v1 import report_pb2, usage_pb2, usage_pb2_grpc
from sidestep.v1 import resources_pb2 as pb

from controlplane.actor import Permission
from controlplane.api.chains import check_chain
from controlplane.api.guard import load_control, refusal
from controlplane.api.identity import admit, begin
from controlplane.api.resources import decode
from controlplane.api.sidecars import check_sidecar, check_text
from controlplane.breakers import limits_of, read_breaker
from controlplane.changecontrol import finding_rules
from controlplane.errors import NotFoundError, RefusedError
from controlplane.store import Store
from controlplane.threat.fleet import parse_finding, settle
from engine.classes import DEFAULT_CLASS, check_class_id, class_name
from engine.errors import InvalidInputError
from engine.estimate import estimate
from engine.names import SINGLETON_ID, Collection, check_id, check_tenant, make_name, parse_parent
from engine.sketch import DistinctCount

MAX_WINDOWS = 64
MAX_OUTCOMES = 1_000
MAX_TENANTS = 64
MAX_DECISIONS = 32
MAX_GRANTS = 1_000
MAX_DRAWS = 1_000
MAX_GUARDS = 64
MAX_FINGERPRINTS = 64
MAX_DEVICES = 16
ID_BYTES = 16
KEY_BYTES = 8
_MAX_TEXT_BYTES = 64
# Without a breaker, how far back spot checks are looked at.
_WINDOW_S = 7 * 86400.0
# What a signed 64-bit column holds, with room to add up.
_MAX_COUNT = 2**53
_MAX_NANOSECONDS = 2**63 - 1


def check_usage(request: report_pb2.ReportUsageRequest) -> None:
    """Raises InvalidInputError naming the field of a report that cannot be one."""
    check_sidecar(request.sidecar, "sidecar")
    _at_most(request.windows, MAX_WINDOWS, "windows")
    _at_most(request.outcomes, MAX_OUTCOMES, "outcomes")
    for at, window in enumerate(request.windows):
        field = f"windows[{at}]"
        check_chain(window.chain, f"{field}.chain")
        if not 0 < window.number <= _MAX_COUNT:
            raise InvalidInputError(f"{field}.number", "is counted from 1")
        _check_time(window.end_time, f"{field}.end_time")
        _at_most(window.tenants, MAX_TENANTS, f"{field}.tenants")
        for place, usage in enumerate(window.tenants):
            _check_tenant_usage(usage, f"{field}.tenants[{place}]")
    for at, check in enumerate(request.outcomes):
        check_tenant(check.tenant, f"outcomes[{at}].tenant")
        _check_spot_check(check, f"outcomes[{at}]")
        if not check.outcome:
            raise InvalidInputError(f"outcomes[{at}].outcome", "is required")


def within_time(request: report_pb2.ReportUsageRequest, now: float) -> None:
    """Times of a sidecar whose clock is ahead become `now`: what lies in the future would count in every window to come, and
    never be forgotten."""
    latest_ns = int(now * 1e9)

    def limit(time: Timestamp) -> None:
        if time.ToNanoseconds() > latest_ns:
            time.FromNanoseconds(latest_ns)

    for window in request.windows:
        limit(window.end_time)
        for usage in window.tenants:
            for use in usage.grants:
                limit(use.last_time)
            for check in usage.draws:
                limit(check.draw_time)
    for check in request.outcomes:
        limit(check.draw_time)


def tenants_of(request: report_pb2.ReportUsageRequest) -> set[str]:
    """Every tenant that a report is about."""
    named = {usage.tenant for window in request.windows for usage in window.tenants}
    return named | {check.tenant for check in request.outcomes}


def _check_tenant_usage(usage: report_pb2.TenantUsage, field: str) -> None:
    check_tenant(usage.tenant, f"{field}.tenant")
    for name, items, most in (
        ("decisions", usage.decisions, MAX_DECISIONS),
        ("grants", usage.grants, MAX_GRANTS),
        ("draws", usage.draws, MAX_DRAWS),
        ("guards", usage.guards, MAX_GUARDS),
        ("fingerprints", usage.fingerprints, MAX_FINGERPRINTS),
    ):
        _at_most(items, most, f"{field}.{name}")
    for name, count in usage.decisions.items():
        check_text(name, f"{field}.decisions", _MAX_TEXT_BYTES)
        _check_count(count, f"{field}.decisions[{name}]")
    _check_count(usage.dropped, f"{field}.dropped")
    for at, use in enumerate(usage.grants):
        where = f"{field}.grants[{at}]"
        check_id(use.grant, f"{where}.grant")
        check_class_id(class_name(use.grant_class), f"{where}.grant_class")
        _check_count(use.uses, f"{where}.uses")
        _check_time(use.last_time, f"{where}.last_time")
    for at, check in enumerate(usage.draws):
        _check_spot_check(check, f"{field}.draws[{at}]")
    for at, guard in enumerate(usage.guards):
        check_text(guard.guard, f"{field}.guards[{at}].guard", _MAX_TEXT_BYTES)
        check_text(guard.code, f"{field}.guards[{at}].code", _MAX_TEXT_BYTES)
        _check_count(guard.findings, f"{field}.guards[{at}].findings")
    if usage.fingerprints and len(usage.sketch_key) != KEY_BYTES:
        raise InvalidInputError(f"{field}.sketch_key", f"must have {KEY_BYTES} bytes")
    for at, seen in enumerate(usage.fingerprints):
        _check_fingerprint(seen, f"{field}.fingerprints[{at}]")


def _check_fingerprint(seen: report_pb2.FingerprintUse, field: str) -> None:
    if len(seen.fingerprint) != ID_BYTES:
        raise InvalidInputError(f"{field}.fingerprint", f"must have {ID_BYTES} bytes")
    DistinctCount.from_bytes(seen.subjects, f"{field}.subjects")
    _at_most(seen.devices, MAX_DEVICES, f"{field}.devices")
    for place, pair in enumerate(seen.devices):
        check_id(pair.subject, f"{field}.devices[{place}].subject")
        check_id(pair.device, f"{field}.devices[{place}].device")


def _check_spot_check(check: report_pb2.SpotCheck, field: str) -> None:
    if len(check.sample) != ID_BYTES:
        raise InvalidInputError(f"{field}.sample", f"must have {ID_BYTES} bytes")
    check_id(check.grant, f"{field}.grant")
    check_class_id(class_name(check.grant_class), f"{field}.grant_class")
    # Negated, so that NaN is refused too.
    if not 0.0 < check.rate <= 1.0:
        raise InvalidInputError(f"{field}.rate", "must be above 0 and at most 1")
    _check_time(check.draw_time, f"{field}.draw_time")
    if check.outcome not in report_pb2.SpotCheckOutcome.values():
        raise InvalidInputError(f"{field}.outcome", f"{check.outcome} is not an outcome this control plane knows")


def _check_time(time: Timestamp, field: str) -> None:
    if not 0 < time.ToNanoseconds() <= _MAX_NANOSECONDS:
        raise InvalidInputError(field, "is required, and after 1970")


def _check_count(count: int, field: str) -> None:
    if count > _MAX_COUNT:
        raise InvalidInputError(field, "is not a possible number")


def _at_most(items: Any, most: int, field: str) -> None:
    if len(items) > most:
        raise InvalidInputError(field, f"more than {most}")


class UsageService(usage_pb2_grpc.UsageServiceServicer):
    """The verbs of usage.proto over a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def ListClassAbuse(
        self, request: usage_pb2.ListClassAbuseRequest, context: Any
    ) -> usage_pb2.ListClassAbuseResponse:
        """Every class that is named anywhere, by name."""
        tenant = parse_parent(request.parent)
        admit(Permission.READ, tenant)
        stored = await self._store.get(tenant, Collection.SETTINGS, SINGLETON_ID)
        settings = pb.Settings() if stored is None else decode(Collection.SETTINGS, stored)
        named = {stated.id for stated in settings.grant_classes} or {DEFAULT_CLASS}
        named |= {*limits_of(settings), *await self._store.usage.classes(tenant)}
        response = usage_pb2.ListClassAbuseResponse()
        for grant_class in sorted(named):
            response.classes.append(await self._abuse(tenant, grant_class, settings))
        return response

    async def _abuse(self, tenant: str, grant_class: str, settings: pb.Settings) -> usage_pb2.ClassAbuse:
        name = str(make_name(tenant, Collection.GRANT_CLASSES, grant_class))
        stored = await self._store.get(tenant, Collection.GRANT_CLASSES, grant_class)
        state = pb.GrantClassState(name=name, state=pb.CLASS_STATE_ACTIVE)
        if stored is not None:
            state = decode(Collection.GRANT_CLASSES, stored)
        limits = limits_of(settings).get(grant_class)
        now = time.time()
        since = now - _WINDOW_S
        if limits is not None:
            since = read_breaker(None if stored is None else state).counts_from(limits, now)
        checks = await self._store.usage.checks(tenant, grant_class, since)
        found = estimate(checks.samples)
        breaker = next((each for each in settings.breakers if class_name(each.grant_class) == grant_class), None)
        return usage_pb2.ClassAbuse(
            grant_class=grant_class,
            state=state,
            draws=checks.draws,
            passed=checks.passed,
            failed=checks.failed,
            abandoned=checks.abandoned,
            rate=found.rate,
            lower=found.lower,
            upper=found.upper,
            breaker=breaker,
        )

    async def ListFindings(
        self, request: usage_pb2.ListFindingsRequest, context: Any
    ) -> usage_pb2.ListFindingsResponse:
        """The newest first."""
        tenant = parse_parent(request.parent)
        admit(Permission.READ, tenant)
        return usage_pb2.ListFindingsResponse(findings=await self._store.findings.list(tenant, settled=request.all))

    async def SettleFinding(
        self, request: usage_pb2.SettleFindingRequest, context: Any
    ) -> usage_pb2.SettleFindingResponse:
        """Applies or dismisses an open finding. A repetition of what failed half-way does the rest."""
        tenant, finding_id = parse_finding(request.name, "name")
        note = begin(Permission.WRITE, tenant, "finding.settle", request.name, reason=request.reason)
        if request.state not in (usage_pb2.FINDING_STATE_APPLIED, usage_pb2.FINDING_STATE_DISMISSED):
            raise InvalidInputError("state", "must be FINDING_STATE_APPLIED or FINDING_STATE_DISMISSED")
        if not request.reason.strip():
            raise InvalidInputError("reason", "must not be empty")
        finding = await self._store.findings.get(tenant, finding_id)
        if finding is None:
            raise NotFoundError(request.name)
        if finding.state != usage_pb2.FINDING_STATE_OPEN:
            raise RefusedError(f"{request.name}: was settled by {finding.actor}")
        apply = request.state == usage_pb2.FINDING_STATE_APPLIED
        note = note._replace(action="finding.apply" if apply else "finding.dismiss")
        if not apply and (rules := finding_rules(await load_control(self._store, tenant))):
            raise refusal(request.name, rules)
        changed = await settle(self._store, tenant, finding, note, apply=apply)
        return usage_pb2.SettleFindingResponse(finding=finding, changed=changed)
