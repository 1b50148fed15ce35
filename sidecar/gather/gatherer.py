"""`gather(request, view, now) -> Facts`: everything a decision depends on, looked up in one read view and normalised."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain
from math import inf
from typing import NamedTuple

from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp
from sidestep.v1 import decision_pb2, resources_pb2

from engine import risk
from engine.clockoffset import MAX_OFFSET_S
from engine.errors import SidestepError
from engine.escrow import Account
from engine.facts import (
    Authentication,
    Binding,
    BudgetHeld,
    Candidate,
    Data,
    Evidence,
    Facts,
    Finding,
    Grant,
    GrantScope,
    Risk,
    Session,
    Signal,
    Staleness,
    Subject,
    TokenState,
)
from engine.names import SIGNAL_KINDS, Collection, Lane
from engine.rules import TenantRules
from sidecar.clock import Clock
from sidecar.gather.classes import SOUND
from sidecar.gather.device import DeviceEvidence, DeviceRecogniser
from sidecar.gather.grants import day_of, drawn, parse_grant, spot_draw
from sidecar.gather.reported import ReportedLately, names_session, of_session, on_device, still_trusted
from sidecar.gather.request import Checked, check, seconds
from sidecar.gather.suspects import findings, parse_suspects
from sidecar.gather.tenant import Tenant, TenantCache, moment, urgent_cursor
from sidecar.gather.tokens import TokenFault, TokenResult, TokenVerifier
from sidecar.guard.buckets import Limits
from sidecar.local.store import ReportedAuthentication
from sidecar.store.errors import NotLoadedError
from sidecar.store.view import Cursor, ReadView

_SCOPES = {"s": GrantScope.SUBJECT, "r": GrantScope.ROLE, "d": GrantScope.DEVICE}
_FAULTS = {TokenFault.INVALID: TokenState.INVALID, TokenFault.MISMATCH: TokenState.MISMATCH}
_RESOURCE_ID = "resource.id"
MAX_GRANTS = 64
MAX_ROLES = 64


class ScopeError(SidestepError):
    """The tenant is not one this sidecar follows."""


@dataclass(frozen=True, slots=True)
class GatherConfig:
    """`default_tenant`: for requests that name none, may be empty. Ages of the data in seconds: above `soft_stale_s` no
    exemption applies, above `hard_stale_s` the top requirement does."""

    default_tenant: str
    soft_stale_s: float
    hard_stale_s: float
    # Whether the control plane states its time under signature, so that this machine's clock can be held against it.
    signed_time: bool = False


# What is held of an account's budget; None: no slice was ever granted.
Holdings = Callable[[Account], BudgetHeld | None]


class _Loaded(NamedTuple):
    """What one read view says of a tenant as a whole: looked up once for all calls that share the view."""

    urgent: Cursor
    bulk: Cursor
    age_s: float | None
    clock_off: bool
    tenant: Tenant
    # Kinds of which there is any signal.
    signal_kinds: frozenset[str]


class Gathered(NamedTuple):
    """The facts, the rules to decide them by, and the tenant secret in use, if there is one.

    For the guards also what the facts were made of: the checked request, and the device evidence in it, encoded and as it came;
    and the tenant's rate limits.
    """

    facts: Facts
    rules: TenantRules
    secret: bytes | None
    asked: Checked | None = None
    device_evidence: bytes = b""
    limits: Limits | None = None
    fingerprint: Mapping[str, str] = {}


class Gatherer:
    """Makes facts. One per worker loop: it holds caches, and is not thread-safe.

    `holdings` tells what the loop holds of budgets; without it no grant with a budget applies. `reported`: what was reported in
    this pod lately; None: nothing is known of that.
    """

    def __init__(
        self, config: GatherConfig, holdings: Holdings | None = None, reported: ReportedLately | None = None
    ) -> None:
        self._config = config
        self._reported = reported
        self._holdings = holdings
        self._tenants = TenantCache()
        self._tokens = TokenVerifier()
        self._devices = DeviceRecogniser()
        self._signal_kinds: dict[str, tuple[Cursor, frozenset[str]]] = {}
        self._view: ReadView | None = None
        self._loaded: dict[str, _Loaded] = {}

    def gather(
        self,
        request: decision_pb2.EvaluateRequest,
        view: ReadView,
        now: float,
        *,
        clock: Clock,
        journal_full: bool = False,
        behind: bool = False,
    ) -> Gathered:
        """Facts of a request at `now`. `behind`: its min_revision was not reached in time.

        Raises InvalidInputError naming a field, NotLoadedError if the tenant was never synced, ScopeError if it is not
        followed.
        """
        asked = check(request, self._config.default_tenant)
        tenant_id = asked.tenant
        cursor, bulk, age_s, clock_off, tenant, signal_kinds = self._look_up(view, tenant_id, clock)
        token = self._verify(asked, tenant, now)
        session_id = (token.token.session if token and token.token else "") or asked.session
        stored = view.get(Collection.SUBJECTS, tenant_id, asked.subject)
        subject = _subject(stored, token)
        shown = DeviceEvidence(
            asked.device,
            request.device.fingerprint,
            token.proof_jkt if token else "",
            request.device.SerializeToString(),
        )
        device, *others = self._devices.recognise(view, tenant_id, tenant, asked.subject, shown, now)
        lately = () if self._reported is None else self._reported(tenant_id, asked.subject, now)
        if lately:
            lately = still_trusted(lately, tenant.ring)
            device, *others = (on_device(each, lately, tenant.rules, subject, now) for each in (device, *others))
        guards: tuple[Finding, ...] = ()
        if stored is not None and device.binding is not Binding.BOUND and (suspects := parse_suspects(stored)):
            ruled_out = partial(self._devices.rules_out, view, tenant_id, tenant, shown, now)
            guards = findings(suspects, ruled_out, now)
        readable = tenant.rules.request_variables
        values = {name: value for name, value in asked.values.items() if name in readable}
        secret = tenant.secret(now)
        grants = self._find_grants(view, asked, subject, device.id, tenant, now)
        candidates = tuple(
            Candidate(
                other,
                _risk(view, signal_kinds, asked, session_id, other.id, now),
                self._find_grants(view, asked, subject, other.id, tenant, now),
                guards,
            )
            for other in others
        )
        possible = (grants, *(candidate.grants for candidate in candidates))
        if _RESOURCE_ID in values and not _reads_resource_id(tenant.rules, chain.from_iterable(possible)):
            del values[_RESOURCE_ID]
        facts = Facts(
            now=now,
            tenant=tenant_id,
            action=asked.action,
            data=Data(
                cursor.epoch,
                cursor.revision,
                bulk.epoch,
                bulk.revision,
                age_s,
                self._staleness(age_s),
                behind,
                clock_off,
            ),
            posture=tenant.posture,
            posture_changed_at=tenant.posture_changed_at,
            exemptions_off=tenant.exemptions_off,
            journal_full=journal_full,
            subject=subject,
            device=device,
            session=_session(view, request.session, asked, session_id, token, now + tenant.rules.clock_skew_s),
            authentications=_authentications(request.session, session_id, token)
            + _reported_in(lately, session_id, token),
            risk=_risk(view, signal_kinds, asked, session_id, device.id, now),
            grants=grants,
            candidates=candidates,
            values=values,
            guards=guards,
            amount=asked.amount if _counts_amounts(chain.from_iterable(possible)) else None,
        )
        return Gathered(facts, tenant.rules, secret, asked, shown.encoded, tenant.limits, shown.fingerprint)

    def outline(self, request: decision_pb2.EvaluateRequest, view: ReadView, now: float) -> Gathered:
        """The rules a request would be decided by, and facts that know nothing but the
        revisions: for fail-safe answers. Raises as `gather`."""
        asked = check(request, self._config.default_tenant)
        cursor, bulk = _cursors(view, asked.tenant)
        tenant = self._tenants.get(view, asked.tenant, cursor)
        data = Data(cursor.epoch, cursor.revision, bulk.epoch, bulk.revision)
        return Gathered(Facts(now, asked.tenant, asked.action, data), tenant.rules, tenant.secret(now))

    def min_revision_reached(self, request: decision_pb2.EvaluateRequest, view: ReadView) -> bool:
        """Whether the data is at least as new as the caller asks (urgent lane). True if it asks nothing."""
        if not request.HasField("min_revision"):
            return True
        cursor = urgent_cursor(view, request.tenant or self._config.default_tenant)
        wanted = request.min_revision
        return cursor is not None and (cursor.epoch, cursor.revision) >= (wanted.epoch, wanted.revision)

    def _look_up(self, view: ReadView, tenant_id: str, clock: Clock) -> _Loaded:
        if view is not self._view:
            self._view = view
            self._loaded.clear()
        loaded = self._loaded.get(tenant_id)
        if loaded is None:
            urgent, bulk = _cursors(view, tenant_id)
            tenant = self._tenants.get(view, tenant_id, urgent)
            kinds = self._kinds(view, tenant_id, bulk)
            clock_off = self._config.signed_time and _is_off(view.clock_offset_s(clock))
            loaded = _Loaded(urgent, bulk, view.age_s(tenant_id, clock), clock_off, tenant, kinds)
            self._loaded[tenant_id] = loaded
        return loaded

    def _kinds(self, view: ReadView, tenant: str, bulk: Cursor) -> frozenset[str]:
        held = self._signal_kinds.get(tenant)
        if held is None or held[0] != bulk:
            held = (bulk, frozenset(kind for kind in SIGNAL_KINDS if view.has_signals(tenant, kind)))
            self._signal_kinds[tenant] = held
        return held[1]

    def _staleness(self, age_s: float | None) -> Staleness:
        if age_s is None or age_s > self._config.hard_stale_s:
            return Staleness.HARD
        return Staleness.SOFT if age_s > self._config.soft_stale_s else Staleness.FRESH

    def _verify(self, asked: Checked, tenant: Tenant, now: float) -> TokenResult | None:
        if not asked.token:
            return None
        return self._tokens.verify(
            tenant.ring, asked.token, now, subject=asked.subject, session=asked.session, dpop=asked.dpop
        )

    def _find_grants(
        self, view: ReadView, asked: Checked, subject: Subject, device_id: str, tenant: Tenant, now: float
    ) -> tuple[Grant, ...]:
        ids = view.grant_ids(asked.tenant, "s", asked.subject, MAX_GRANTS)
        for role in subject.roles:
            ids += view.grant_ids(asked.tenant, "r", role, MAX_GRANTS - len(ids))
        if device_id:
            ids += view.grant_ids(asked.tenant, "d", device_id, MAX_GRANTS - len(ids))
        grants = []
        secret, classes = tenant.secret(now), tenant.classes
        for grant_id in ids:
            value = view.get(Collection.GRANTS, asked.tenant, grant_id)
            grant = None if value is None else parse_grant(grant_id, value)
            if grant is not None:
                draw = spot_draw(secret, asked.tenant, asked.subject, device_id, grant_id, day_of(now))
                held = None
                if grant.budget is not None and self._holdings is not None:
                    held = self._holdings(Account(asked.tenant, grant_id, asked.subject))
                grants.append(drawn(grant, draw, held, classes.get(grant.grant_class, SOUND)))
        return tuple(grants)


def _cursors(view: ReadView, tenant: str) -> tuple[Cursor, Cursor]:
    urgent, bulk = urgent_cursor(view, tenant), view.cursor(tenant, Lane.BULK)
    if urgent is None or bulk is None:
        scope = view.scope()
        if scope is not None and tenant not in scope:
            raise ScopeError(f"tenant {tenant!r} is not followed by this sidecar")
        raise NotLoadedError(f"tenant {tenant!r} was never synced")
    return urgent, bulk


def _subject(stored: bytes | None, token: TokenResult | None) -> Subject:
    proved = token.token if token else None
    claimed = proved.roles if proved else ()
    cut = proved is None or proved.roles_cut
    if stored is None:
        return Subject(roles=claimed, roles_partial=cut or not claimed)
    return _parse_subject(stored, claimed, cut)


@lru_cache(4096)
def _parse_subject(value: bytes, claimed: tuple[str, ...], cut: bool) -> Subject:
    """A stored subject, with the roles a token claims for it. `cut`: it may have others."""
    record = resources_pb2.Subject()
    record.ParseFromString(value)
    roles = tuple(dict.fromkeys((*record.roles, *claimed)))
    return Subject(
        known=True,
        disabled=record.state != resources_pb2.SUBJECT_STATE_ACTIVE,
        roles=roles[:MAX_ROLES],
        roles_partial=cut or len(roles) > MAX_ROLES,
        methods=tuple(record.methods),
        recovered_at=moment(record.recover_time, record.HasField("recover_time")),
        failed_attempts=record.failed_attempts,
        sim_changed_at=moment(record.sim_change_time, record.HasField("sim_change_time")),
        authenticator_changed_at=moment(record.authenticator_change_time, record.HasField("authenticator_change_time")),
    )


def _reads_resource_id(rules: TenantRules, grants: Iterable[Grant]) -> bool:
    """Whether any condition reads the resource's id, which may name a person's account and is otherwise left out."""
    return rules.reads_resource_id or any(_RESOURCE_ID in grant.condition for grant in grants)


def _counts_amounts(grants: Iterable[Grant]) -> bool:
    return any(grant.budget is not None and grant.budget.counts_amounts for grant in grants)


def _session(
    view: ReadView,
    shown: decision_pb2.SessionEvidence,
    asked: Checked,
    session_id: str,
    token: TokenResult | None,
    latest: float,
) -> Session:
    """`latest`: a time after it is impossible, and as good as none."""
    verified = token.token if token else None
    # A token overrides what the caller asserts.
    started_at = verified.started_at if verified else None
    if token is None:
        started_at = _asserted_time(shown.start_time, "session.start_time", latest)
    active_at = _asserted_time(shown.last_active_time, "session.last_active_time", latest)
    issued_at = verified.issued_at if verified else None
    if issued_at is not None:
        active_at = issued_at if active_at is None else max(active_at, issued_at)
    revoked = bool(session_id) and view.get(Collection.REVOKED_SESSIONS, asked.tenant, session_id) is not None
    if asked.session and asked.session != session_id:
        revoked |= view.get(Collection.REVOKED_SESSIONS, asked.tenant, asked.session) is not None
    return Session(
        # A token alone does not name a session: what has no id cannot be revoked.
        presented=bool(session_id or asked.session),
        revoked=revoked,
        token=_token_state(token),
        token_detail=token.detail if token else "",
        proved=bool(verified and verified.jkt and token and token.proof_jkt == verified.jkt),
        started_at=started_at,
        last_active_at=active_at,
    )


def _asserted_time(timestamp: Timestamp, field: str, latest: float = inf) -> float | None:
    """A time the caller states, in whole seconds; None for none, also for the epoch itself, which is how an unset one looks."""
    at = seconds(timestamp, field)
    return at if 0.0 < at <= latest else None


def _token_state(token: TokenResult | None) -> TokenState:
    if token is None:
        return TokenState.ABSENT
    return TokenState.VERIFIED if token.fault is None else _FAULTS[token.fault]


def _authentications(
    shown: decision_pb2.SessionEvidence, session_id: str, token: TokenResult | None
) -> tuple[Authentication, ...]:
    """The token's, verified; without a token the caller's word, which needs a session to belong to."""
    if token is not None:
        if token.token is None:
            return ()
        return tuple(
            Authentication(event.acr, event.at, Evidence.VERIFIED, event.amr, event.issuer)
            for event in token.token.authentications
        )
    if not session_id:
        return ()
    return tuple(
        Authentication(
            event.acr,
            _asserted_time(event.auth_time, "session.authentications.auth_time"),
            Evidence.ASSERTED,
            tuple(event.amr),
            event.issuer,
        )
        for event in shown.authentications
    )


def _reported_in(
    lately: tuple[ReportedAuthentication, ...], session_id: str, token: TokenResult | None
) -> tuple[Authentication, ...]:
    """What was reported of the session. With a token that does not hold, nothing is."""
    if not lately or (token is not None and token.token is None):
        return ()
    return of_session(lately, session_id, proved=names_session(token.token if token else None, session_id))


def _risk(view: ReadView, kinds: frozenset[str], asked: Checked, session_id: str, device_id: str, now: float) -> Risk:
    """Only kinds of which there are signals are looked up; of the others nothing can be known or hidden."""
    tenant = asked.tenant
    found: list[Signal] = []
    unchecked: list[str] = []
    if asked.address is None:
        unchecked.append("network")
    elif "ip" in kinds:
        _add(found, "network", view.ip_signals(tenant, asked.address), now)
    asn = "" if asked.asn is None else str(asked.asn)
    for kind, value in (
        ("asn", asn),
        ("country", asked.country),
        ("subject", asked.subject),
        ("device", device_id),
        ("session", session_id),
    ):
        if kind not in kinds:
            continue
        if value:
            _add(found, kind, view.signals(tenant, kind, value), now)
        else:
            unchecked.append(kind)
    if not found and not unchecked:
        return _NO_RISK
    return risk.combine(found, unchecked)


_NO_RISK = risk.combine(())


def _add(found: list[Signal], kind: str, records: list[bytes], now: float) -> None:
    for value in records:
        record = resources_pb2.Signal()
        try:
            record.ParseFromString(value)
        except DecodeError:
            found.append(Signal(kind, 100.0))
            continue
        expire_at = moment(record.expire_time, record.HasField("expire_time"))
        if expire_at is None or now < expire_at:
            confidence = record.confidence if record.HasField("confidence") else 100
            found.append(Signal(kind, risk.weighted(record.score, confidence), record.source))


def _is_off(offset_s: float | None) -> bool:
    """Whether the clock is too far from the control plane's. Not known is no better."""
    return offset_s is None or not abs(offset_s) <= MAX_OFFSET_S
