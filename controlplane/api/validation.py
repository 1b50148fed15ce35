"""What a record must satisfy before it is stored: the rules that resources.proto states in its comments.

`check` looks at one record alone; rules that span records are in links.py. Every refusal is an InvalidInputError naming the
field (`grant.ceiling.max_age`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import singledispatch
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from sidestep.v1 import resources_pb2 as pb

from controlplane.api.budgets import check_budget
from controlplane.api.jwk import check_jwk
from controlplane.api.limits import check_rate_limits
from controlplane.breakers import check_breakers, check_class_state
from controlplane.changecontrol import MAX_LIFETIME_S, MIN_LIFETIME_S
from engine.acr import AcrOrder, check_acr
from engine.classes import MAX_APPROVALS, MAX_CLASSES, check_class_id
from engine.cooloff import MAX_COOL_OFF_S
from engine.errors import InvalidInputError
from engine.names import (
    MAX_ID_BYTES,
    SIGNAL_KINDS,
    Name,
    canonical_prefix,
    check_action_pattern,
    check_id,
    signal_id,
)
from engine.policy import PolicyError, check_condition
from engine.registration import MAX_REGISTER_WITHIN_S, MIN_REGISTER_WITHIN_S

MIN_MAX_AGE_S = 30
MAX_SKEW_S = 300
SUBJECT_EVENTS = ("recover_time", "sim_change_time", "authenticator_change_time")
SUBJECT_PROVED = ("strong_authentication_time", "device_register_time")
# Of settings, in seconds.
_SPANS = {
    "cool_off": (0.0, MAX_COOL_OFF_S),
    "clock_skew": (0.0, MAX_SKEW_S),
    "device_register_within": (MIN_REGISTER_WITHIN_S, MAX_REGISTER_WITHIN_S),
}
MAX_TEXT_BYTES = 1024
MAX_ITEMS = 256
MAX_AUTHENTICATIONS = 8
MAX_COMPONENTS = 32
COMPONENT_BYTES = 16
MAX_COMPONENT_BYTES = 512
SECRET_BYTES = 32
MAX_ASN = 2**32 - 1
ALGORITHMS = ("ES256", "EdDSA", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_JKT_CHARS = 43
# 0001-01-01 to 9999-12-31 and -10,000 to 10,000 years: the ranges of the well-known types.
_TIMESTAMP_RANGE = (-62135596800, 253402300799)
_DURATION_LIMIT = 315576000000
_MAX_NANOS = 999_999_999


@singledispatch
def check(record: Message, name: Name, field: str) -> None:
    """Raises InvalidInputError if the record may not be stored; `field` is what errors call it."""
    raise InvalidInputError(field, f"no rule for {type(record).__name__}")


@check.register
def _policy(record: pb.Policy, name: Name, field: str) -> None:
    # The document itself is checked where it is compiled (resources.complete).
    if not record.source.strip():
        raise InvalidInputError(f"{field}.source", "must not be empty")


@check.register
def _grant(record: pb.Grant, name: Name, field: str) -> None:
    _enum(pb.GrantState, record.state, f"{field}.state")
    scope = record.WhichOneof("scope")
    if scope is None:
        raise InvalidInputError(f"{field}.subject", "a grant is for exactly one subject, role or device")
    check_id(getattr(record, scope), f"{field}.{scope}")
    if not record.actions:
        raise InvalidInputError(f"{field}.actions", "at least one action pattern is required")
    for where, pattern in _unique(record.actions, f"{field}.actions"):
        check_action_pattern(pattern, where)
    _interval(record, field, expire_required=True)
    if not record.HasField("ceiling"):
        raise InvalidInputError(f"{field}.ceiling", "is required")
    _requirement(record.ceiling, f"{field}.ceiling", max_age_required=True)
    if record.condition:
        try:
            check_condition(record.condition)
        except PolicyError as error:
            raise InvalidInputError(f"{field}.condition", describe(error)) from None
    if record.HasField("budget"):
        check_budget(record.budget, f"{field}.budget")
    for text in ("reason", "owner", "ticket", "state_reason"):
        _text(getattr(record, text), f"{field}.{text}")
    if record.grant_class:
        check_class_id(record.grant_class, f"{field}.grant_class")
    _time(record, "review_time", field)


@check.register
def _subject(record: pb.Subject, name: Name, field: str) -> None:
    _enum(pb.SubjectState, record.state, f"{field}.state")
    for where, role in _unique(record.roles, f"{field}.roles"):
        check_id(role, where)
    for where, method in _unique(record.methods, f"{field}.methods"):
        check_id(method, where)
    for event in (*SUBJECT_EVENTS, *SUBJECT_PROVED):
        _time(record, event, field)


@check.register
def _device_state(record: pb.DeviceState, name: Name, field: str) -> None:
    check_id(record.subject, f"{field}.subject")
    _enum(pb.DeviceTrust, record.trust, f"{field}.trust")
    _text(record.reason, f"{field}.reason")


@check.register
def _revoked_session(record: pb.RevokedSession, name: Name, field: str) -> None:
    if record.subject:
        check_id(record.subject, f"{field}.subject")
    _text(record.reason, f"{field}.reason")
    _time(record, "revoke_time", field)
    _time(record, "expire_time", field, required=True)
    if record.HasField("revoke_time") and record.revoke_time.ToNanoseconds() >= record.expire_time.ToNanoseconds():
        raise InvalidInputError(f"{field}.expire_time", "must be later than revoke_time")


@check.register
def _key(record: pb.Key, name: Name, field: str) -> None:
    _enum(pb.KeyKind, record.kind, f"{field}.kind")
    _interval(record, field, expire_required=False)
    if record.kind == pb.KEY_KIND_ISSUER:
        if record.secret:
            raise InvalidInputError(f"{field}.secret", "an issuer key is public and has none")
        if not record.issuer:
            raise InvalidInputError(f"{field}.issuer", "must not be empty")
        _text(record.issuer, f"{field}.issuer")
        check_jwk(record.jwk, name.id, f"{field}.jwk")
        return
    for public in ("issuer", "jwk"):
        if getattr(record, public):
            raise InvalidInputError(f"{field}.{public}", "only an issuer key has one")
    if record.secret and len(record.secret) != SECRET_BYTES:
        raise InvalidInputError(f"{field}.secret", f"has {len(record.secret)} bytes, not {SECRET_BYTES}")


@check.register
def _posture(record: pb.Posture, name: Name, field: str) -> None:
    _enum(pb.PostureLevel, record.level, f"{field}.level")
    _text(record.reason, f"{field}.reason")


@check.register
def _settings(record: pb.Settings, name: Name, field: str) -> None:
    for index, edge in enumerate(record.acr_edges):
        check_acr(edge.higher, f"{field}.acr_edges[{index}].higher")
        check_acr(edge.lower, f"{field}.acr_edges[{index}].lower")
    try:
        AcrOrder((edge.higher, edge.lower) for edge in record.acr_edges)
    except InvalidInputError as error:
        raise InvalidInputError(f"{field}.acr_edges", error.problem) from None
    _issuers(record.issuers, f"{field}.issuers")
    for where, method in _unique_messages(record.methods, f"{field}.methods", "id"):
        check_id(method.id, f"{where}.id")
        check_acr(method.acr, f"{where}.acr")
        for inner, amr in _unique(method.amr, f"{where}.amr"):
            _required(amr, inner)
    _components(record.fingerprint, f"{field}.fingerprint")
    # Negated, so that NaN is refused too.
    if record.HasField("min_similarity") and not 0 < record.min_similarity <= 1:
        raise InvalidInputError(f"{field}.min_similarity", f"{record.min_similarity} is not above 0 and at most 1")
    if record.HasField("top_requirement"):
        _requirement(record.top_requirement, f"{field}.top_requirement", max_age_required=True)
    if record.HasField("risk_ceiling"):
        _percent(record.risk_ceiling, f"{field}.risk_ceiling")
    check_rate_limits(record.rate_limits, f"{field}.rate_limits")
    if record.change_control.HasField("proposal_lifetime"):
        where = f"{field}.change_control.proposal_lifetime"
        wait_s = _seconds(record.change_control.proposal_lifetime, where)
        if not MIN_LIFETIME_S <= wait_s <= MAX_LIFETIME_S:
            raise InvalidInputError(where, f"{wait_s:g} s is not between {MIN_LIFETIME_S:g} s and {MAX_LIFETIME_S:g} s")
    for span, (least_s, most_s) in _SPANS.items():
        if record.HasField(span):
            span_s = _seconds(getattr(record, span), f"{field}.{span}")
            if not least_s <= span_s <= most_s:
                raise InvalidInputError(
                    f"{field}.{span}", f"{span_s:g} s is not between {least_s:.0f} s and {most_s:.0f} s"
                )
    _grant_classes(record.grant_classes, f"{field}.grant_classes")
    check_breakers(record.breakers, f"{field}.breakers")


@check.register
def _class_state(record: pb.GrantClassState, name: Name, field: str) -> None:
    check_class_state(record, name.id, field)
    _text(record.reason, f"{field}.reason")
    _time(record, "since_time", field, required=True)


def _grant_classes(classes: Sequence[pb.GrantClass], field: str) -> None:
    if len(classes) > MAX_CLASSES:
        raise InvalidInputError(field, f"more than {MAX_CLASSES}")
    for where, stated in _unique_messages(classes, field, "id"):
        check_class_id(stated.id, f"{where}.id")
        if not stated.HasField("ceiling"):
            raise InvalidInputError(f"{where}.ceiling", "is required")
        _requirement(stated.ceiling, f"{where}.ceiling", max_age_required=True)
        if not stated.HasField("max_validity"):
            raise InvalidInputError(f"{where}.max_validity", "is required: no grant is for ever")
        _positive(stated.max_validity, f"{where}.max_validity")
        if stated.HasField("review_every"):
            _positive(stated.review_every, f"{where}.review_every")
        if stated.approvals > MAX_APPROVALS:
            raise InvalidInputError(f"{where}.approvals", f"{stated.approvals} is more than {MAX_APPROVALS}")
        for index, scope in enumerate(stated.scopes):
            _enum(pb.GrantScope, scope, f"{where}.scopes[{index}]")


def _positive(value: Duration, field: str) -> None:
    seconds = _seconds(value, field)
    if seconds <= 0:
        raise InvalidInputError(field, f"{seconds:g} s is not above 0")


@check.register
def _device(record: pb.Device, name: Name, field: str) -> None:
    check_id(record.subject, f"{field}.subject")
    if len(record.components) + len(record.versions) > MAX_COMPONENTS:
        raise InvalidInputError(f"{field}.components", f"more than {MAX_COMPONENTS} with the versions")
    for component, digest in record.components.items():
        check_id(component, f"{field}.components")
        if len(digest) != COMPONENT_BYTES:
            raise InvalidInputError(
                f"{field}.components[{component}]", f"has {len(digest)} bytes, not {COMPONENT_BYTES} (a keyed hash)"
            )
    for component in record.versions:
        check_id(component, f"{field}.versions")
    _fingerprint(record, f"{field}.fingerprint")
    if record.key_id:
        check_id(record.key_id, f"{field}.key_id")
    elif record.components:
        raise InvalidInputError(f"{field}.key_id", "is required with components: which key were they hashed with?")
    if record.jkt and (len(record.jkt) != _JKT_CHARS or not record.jkt.replace("-", "a").replace("_", "a").isalnum()):
        raise InvalidInputError(f"{field}.jkt", "is not an RFC 7638 SHA-256 thumbprint (43 characters of base64url)")
    _time(record, "create_time", field)
    _time(record, "validate_time", field)
    if len(record.authentications) > MAX_AUTHENTICATIONS:
        raise InvalidInputError(f"{field}.authentications", f"more than {MAX_AUTHENTICATIONS}")
    for index, authentication in enumerate(record.authentications):
        where = f"{field}.authentications[{index}]"
        _text(authentication.acr, f"{where}.acr")
        _text(authentication.issuer, f"{where}.issuer")
        for inner, amr in _unique(authentication.amr, f"{where}.amr"):
            _required(amr, inner)
        _time(authentication, "auth_time", where)


@check.register
def _signal(record: pb.Signal, name: Name, field: str) -> None:
    _enum(pb.SignalKind, record.kind, f"{field}.kind")
    kind = SIGNAL_KINDS[record.kind - 1]
    _signal_value(kind, record.value, f"{field}.value")
    if name.id != signal_id(kind, record.value, record.source):
        expected = Name(name.tenant, name.collection, signal_id(kind, record.value, record.source))
        raise InvalidInputError(
            f"{field}.name", f"{name.id!r} does not agree with kind, value and source ({expected.id!r})"
        )
    _percent(record.score, f"{field}.score")
    if record.HasField("confidence"):
        _percent(record.confidence, f"{field}.confidence")
    _time(record, "expire_time", field, required=True)


def describe(error: PolicyError) -> str:
    """A policy's problems in one line: the first, and how many more there are."""
    if not error.problems:
        return str(error)
    first = error.problems[0]
    place = f"line {first.line}, column {first.column}: " if first.line else ""
    path = f"{first.path}: " if first.path else ""
    more = f" (and {len(error.problems) - 1} more)" if len(error.problems) > 1 else ""
    return f"{place}{path}{first.message}{more}"


def _signal_value(kind: str, value: str, field: str) -> None:
    if kind == "ip":
        canonical = canonical_prefix(value, field)
        if value != canonical:
            raise InvalidInputError(field, f"{value!r} is not canonical; write {canonical!r}")
    elif kind == "asn":
        if not (
            value.isascii()
            and value.isdigit()
            and len(value) <= 10
            and value == str(int(value))
            and int(value) <= MAX_ASN
        ):
            raise InvalidInputError(field, f"{value[:64]!r} is not a decimal AS number")
    elif kind == "country":
        if not (len(value) == 2 and value.isascii() and value.isalpha() and value.isupper()):
            raise InvalidInputError(field, f"{value[:64]!r} is not an upper-case ISO 3166-1 alpha-2 code")
    else:
        check_id(value, field)


def _fingerprint(record: pb.Device, field: str) -> None:
    if record.fingerprint and (record.components or record.versions or record.key_id):
        raise InvalidInputError(field, "excludes components, versions and key_id, which are made from it")
    if len(record.fingerprint) > MAX_COMPONENTS:
        raise InvalidInputError(field, f"more than {MAX_COMPONENTS} components")
    for component, value in record.fingerprint.items():
        check_id(component, field)
        if not 0 < len(value.encode()) <= MAX_COMPONENT_BYTES:
            raise InvalidInputError(f"{field}[{component}]", f"has not between 1 and {MAX_COMPONENT_BYTES} bytes")


def _issuers(issuers: Sequence[pb.Issuer], field: str) -> None:
    for where, issuer in _unique_messages(issuers, field, "issuer"):
        _required(issuer.issuer, f"{where}.issuer")
        if not issuer.audiences:
            raise InvalidInputError(f"{where}.audiences", "at least one is required")
        for inner, audience in _unique(issuer.audiences, f"{where}.audiences"):
            _required(audience, inner)
        for inner, acr in _unique(issuer.max_acrs, f"{where}.max_acrs"):
            check_acr(acr, inner)
        for inner, algorithm in _unique(issuer.algorithms, f"{where}.algorithms"):
            if algorithm not in ALGORITHMS:
                raise InvalidInputError(inner, f"{algorithm[:64]!r} is none of {', '.join(ALGORITHMS)}")


def _components(components: Sequence[pb.FingerprintComponent], field: str) -> None:
    if len(components) > MAX_COMPONENTS:
        raise InvalidInputError(field, f"more than {MAX_COMPONENTS}")
    for where, component in _unique_messages(components, field, "id"):
        check_id(component.id, f"{where}.id")
        _enum(pb.FingerprintComponent.Kind, component.kind, f"{where}.kind")
        if not 0 < component.weight <= 1000:
            raise InvalidInputError(f"{where}.weight", f"{component.weight} is not between 1 and 1000")
        if component.max_rise and component.kind != pb.FingerprintComponent.KIND_VERSION:
            raise InvalidInputError(f"{where}.max_rise", "only a version component may rise")


def _requirement(requirement: pb.Requirement, field: str, *, max_age_required: bool) -> None:
    check_acr(requirement.acr, f"{field}.acr")
    if requirement.HasField("max_age"):
        max_age_s = _seconds(requirement.max_age, f"{field}.max_age")
        if max_age_s < MIN_MAX_AGE_S:
            raise InvalidInputError(f"{field}.max_age", f"{max_age_s:g} s is less than {MIN_MAX_AGE_S} s")
    elif max_age_required:
        raise InvalidInputError(f"{field}.max_age", "is required")
    if requirement.evidence not in pb.Evidence.values():
        raise InvalidInputError(f"{field}.evidence", f"{requirement.evidence} is not a value of Evidence")


def _interval(record: pb.Grant | pb.Key, field: str, *, expire_required: bool) -> None:
    _time(record, "start_time", field)
    _time(record, "expire_time", field, required=expire_required)
    both = record.HasField("start_time") and record.HasField("expire_time")
    if both and record.start_time.ToNanoseconds() >= record.expire_time.ToNanoseconds():
        raise InvalidInputError(f"{field}.expire_time", "must be later than start_time")


def _time(record: Message, attribute: str, field: str, *, required: bool = False) -> None:
    if not record.HasField(attribute):
        if required:
            raise InvalidInputError(f"{field}.{attribute}", "is required")
        return
    value: Timestamp = getattr(record, attribute)
    if not (_TIMESTAMP_RANGE[0] <= value.seconds <= _TIMESTAMP_RANGE[1] and 0 <= value.nanos <= _MAX_NANOS):
        raise InvalidInputError(f"{field}.{attribute}", "is not a valid time")


def _seconds(value: Duration, field: str) -> float:
    same_sign = value.seconds == 0 or value.nanos == 0 or (value.seconds < 0) == (value.nanos < 0)
    if abs(value.seconds) > _DURATION_LIMIT or abs(value.nanos) > _MAX_NANOS or not same_sign:
        raise InvalidInputError(field, "is not a valid duration")
    return value.seconds + value.nanos / 1e9


def _enum(enum: Any, value: int, field: str) -> None:
    # Proto3 enums are open: a number this version does not know arrives as such.
    if value == 0:
        names = ", ".join(name for name, number in enum.items() if number)
        raise InvalidInputError(field, f"must be one of {names}")
    if value not in enum.values():
        raise InvalidInputError(field, f"{value} is not a known value")


def _percent(value: int, field: str) -> None:
    if value > 100:
        raise InvalidInputError(field, f"{value} is not between 0 and 100")


def _required(value: str, field: str) -> None:
    if not value:
        raise InvalidInputError(field, "must not be empty")
    if len(value.encode()) > MAX_ID_BYTES * 2:
        raise InvalidInputError(field, f"longer than {MAX_ID_BYTES * 2} bytes")


def _text(value: str, field: str) -> None:
    if len(value.encode()) > MAX_TEXT_BYTES:
        raise InvalidInputError(field, f"longer than {MAX_TEXT_BYTES} bytes")


def _unique(values: Sequence[str], field: str) -> Iterable[tuple[str, str]]:
    """Each value with what errors call it. Raises when a value comes twice or there are too many."""
    if len(values) > MAX_ITEMS:
        raise InvalidInputError(field, f"more than {MAX_ITEMS}")
    seen: set[str] = set()
    for index, value in enumerate(values):
        if value in seen:
            raise InvalidInputError(f"{field}[{index}]", f"{value!r} is given twice")
        seen.add(value)
        yield f"{field}[{index}]", value


def _unique_messages(messages: Sequence[Any], field: str, key: str) -> Iterable[tuple[str, Any]]:
    """Like _unique, for messages told apart by one field."""
    pairs = _unique([getattr(message, key) for message in messages], field)
    for (where, _), message in zip(pairs, messages, strict=True):
        yield where, message
