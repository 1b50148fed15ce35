"""The question, and its way into a request message."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Context, Decimal
from typing import NamedTuple, TypeAlias, TypedDict

from google.protobuf.timestamp_pb2 import Timestamp
from sidestep.client._errors import InvalidQuestionError
from sidestep.v1 import decision_pb2, resources_pb2

MAX_BATCH = 100

Time: TypeAlias = datetime | float
"""A datetime with a time zone, or seconds since the Unix epoch."""
Money: TypeAlias = tuple[str, Decimal | str | int]
"""ISO 4217 currency and exact value with at most 9 decimals: `("EUR", "120.50")`. Floats are not exact and refused."""
AttributeValue: TypeAlias = str | bool | int | float

_CURRENCY = re.compile(r"[A-Z]{3}")
_NUMBER = re.compile(r"-?[0-9]{1,19}(\.[0-9]{1,30})?")
_EXACT = Context(prec=80)
_NANOS = 10**9
_MAX_UNITS = 2**63 - 1
_MAX_EXACT_INT = 2**53
_FIRST_SECOND, _LAST_SECOND = -62_135_596_800, 253_402_300_799  # years 1 to 9999, what a Timestamp holds


class Revision(NamedTuple):
    """A point in the control plane's history of a tenant, as its admin API returns it for a write."""

    epoch: int
    revision: int


class Dpop(NamedTuple):
    """The user's `DPoP` header (RFC 9449), and the method and absolute URI of the request it came with."""

    proof: str
    http_method: str
    http_uri: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Authentication:
    """One past authentication as the caller asserts it. Counts only where a policy accepts asserted evidence."""

    acr: str = ""
    amr: Sequence[str] = ()
    at: Time | None = None
    issuer: str = ""


class QuestionFields(TypedDict, total=False):
    """The fields of a Question as keyword arguments of `evaluate`."""

    subject: str
    action: str
    tenant: str
    subject_type: str
    resource_type: str
    resource_id: str
    ip: str
    asn: int | None
    country: str
    amount: Money | None
    attributes: Mapping[str, AttributeValue]
    token: str
    dpop: Dpop | None
    session_id: str
    session_started_at: Time | None
    session_last_active_at: Time | None
    authentications: Sequence[Authentication]
    device_id: str
    fingerprint: Mapping[str, str]
    request_id: str
    min_revision: Revision | None
    explain: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """May `subject` do `action` now without step-up? What is left out is unknown, which never helps.

    `ip`, `asn`, `country`: of the user's client. `token`: the session token as the user's client sent it, verified by
    the sidecar. `fingerprint`: raw component values. `attributes`: further values the policies read. `request_id`:
    makes a repeat spend nothing twice. `min_revision`: decide on data at least this new. `explain`: ask for every
    step (needs permission).
    """

    subject: str
    action: str
    tenant: str = ""
    subject_type: str = ""
    resource_type: str = ""
    resource_id: str = ""
    ip: str = ""
    asn: int | None = None
    country: str = ""
    amount: Money | None = None
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)
    # Secrets and raw device values stay out of reprs, and so out of logs.
    token: str = field(default="", repr=False)
    dpop: Dpop | None = field(default=None, repr=False)
    session_id: str = ""
    session_started_at: Time | None = None
    session_last_active_at: Time | None = None
    authentications: Sequence[Authentication] = ()
    device_id: str = ""
    fingerprint: Mapping[str, str] = field(default_factory=dict, repr=False)
    request_id: str = ""
    min_revision: Revision | None = None
    explain: bool = False


def to_request(question: Question) -> decision_pb2.EvaluateRequest:
    """The message that asks a question.

    Raises TypeError for a value of the wrong type and InvalidQuestionError for one that cannot be expressed. All
    other checks are the sidecar's.
    """
    try:
        return _to_request(question)
    except InvalidQuestionError:
        raise
    except UnicodeError:
        raise InvalidQuestionError("a text is not valid Unicode") from None
    except ValueError as error:  # protobuf's, for a number out of its field's range
        raise InvalidQuestionError(str(error)) from None


def to_batch_request(questions: Sequence[Question]) -> decision_pb2.EvaluateBatchRequest:
    """The message that asks several questions. Errors as to_request, with the question's index; over 100 is one too."""
    if len(questions) > MAX_BATCH:
        raise InvalidQuestionError(f"{len(questions)} questions, at most {MAX_BATCH} per batch")
    batch = decision_pb2.EvaluateBatchRequest()
    for index, question in enumerate(questions):
        try:
            batch.requests.append(to_request(question))
        except InvalidQuestionError as error:
            raise InvalidQuestionError(error.problem, index) from None
    return batch


def _to_request(question: Question) -> decision_pb2.EvaluateRequest:
    _check_required(question)
    request = decision_pb2.EvaluateRequest(
        tenant=question.tenant,
        request_id=question.request_id,
        subject=decision_pb2.SubjectRef(id=question.subject, type=question.subject_type),
        action=decision_pb2.Action(name=question.action),
        context=_context(question),
        explain=question.explain,
    )
    if question.resource_type or question.resource_id:
        request.resource.type = question.resource_type
        request.resource.id = question.resource_id
    _fill_session(question, request)
    if question.device_id or question.fingerprint:
        request.device.id = question.device_id
        request.device.fingerprint.update(question.fingerprint)
    if question.min_revision is not None:
        request.min_revision.epoch, request.min_revision.revision = question.min_revision
    return request


def _check_required(question: Question) -> None:
    for name, value in (("subject", question.subject), ("action", question.action)):
        if not isinstance(value, str):
            raise TypeError(f"{name}: str needed, not {type(value).__name__}")
        if not value:
            raise InvalidQuestionError(f"{name}: must not be empty")


def _context(question: Question) -> decision_pb2.Context:
    context = decision_pb2.Context(ip=question.ip, asn=question.asn, country=question.country)
    if question.amount is not None:
        context.amount.CopyFrom(_amount(question.amount))
    for name, value in question.attributes.items():
        context.attributes[name] = _attribute(name, value)
    return context


def _fill_session(question: Question, request: decision_pb2.EvaluateRequest) -> None:
    session = decision_pb2.SessionEvidence(id=question.session_id, token=question.token)
    if question.session_started_at is not None:
        session.start_time.CopyFrom(_timestamp(question.session_started_at, "session_started_at"))
    if question.session_last_active_at is not None:
        session.last_active_time.CopyFrom(_timestamp(question.session_last_active_at, "session_last_active_at"))
    for index, event in enumerate(question.authentications):
        message = resources_pb2.Authentication(acr=event.acr, amr=event.amr, issuer=event.issuer)
        if event.at is not None:
            message.auth_time.CopyFrom(_timestamp(event.at, f"authentications[{index}].at"))
        session.authentications.append(message)
    if question.dpop is not None:
        proof, method, uri = question.dpop
        session.dpop.CopyFrom(decision_pb2.DpopProof(proof=proof, http_method=method, http_uri=uri))
    if session != decision_pb2.SessionEvidence():
        request.session.CopyFrom(session)


def _amount(amount: Money) -> resources_pb2.Amount:
    if not isinstance(amount, tuple) or len(amount) != 2:
        raise TypeError("amount: (currency, value) needed, as in ('EUR', '120.50')")
    currency, value = amount
    if isinstance(value, bool) or not isinstance(value, Decimal | str | int):
        raise TypeError(f"amount: the value must be exact (Decimal, str or int), not {type(value).__name__}")
    if not isinstance(currency, str) or not _CURRENCY.fullmatch(currency):
        raise InvalidQuestionError("amount: the currency is three capital letters (ISO 4217)")
    if isinstance(value, str) and not _NUMBER.fullmatch(value):
        raise InvalidQuestionError("amount: the value is no plain decimal number such as '120.50'")
    number = Decimal(value)
    if not number.is_finite():
        raise InvalidQuestionError("amount: the value is not finite")
    # adjusted() is the power of ten of the first digit: bounds the number before anything is computed with it.
    if number and not -9 <= number.adjusted() <= 18:
        raise InvalidQuestionError("amount: the value is out of range or has more than 9 decimals")
    nanos = number.scaleb(9, _EXACT) if number else Decimal(0)
    if len(number.as_tuple().digits) > _EXACT.prec or nanos != nanos.to_integral_value(context=_EXACT):
        raise InvalidQuestionError("amount: the value has more than 9 decimals")
    units, rest = divmod(abs(int(nanos)), _NANOS)
    if units > _MAX_UNITS:
        raise InvalidQuestionError("amount: the value is out of range")
    sign = -1 if nanos < 0 else 1
    return resources_pb2.Amount(currency=currency, units=sign * units, nanos=sign * rest)


def _attribute(name: str, value: AttributeValue) -> AttributeValue:
    if not isinstance(value, str | bool | int | float):
        raise TypeError(f"attributes[{name!r}]: str, bool, int or float needed, not {type(value).__name__}")
    if isinstance(value, int) and abs(value) > _MAX_EXACT_INT:
        raise InvalidQuestionError(f"attributes[{name!r}]: over 2^53, send it as text")
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidQuestionError(f"attributes[{name!r}]: not a finite number")
    return value


def _timestamp(value: Time, name: str) -> Timestamp:
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise TypeError(f"{name}: the datetime needs a time zone")
        stamp = Timestamp()
        stamp.FromDatetime(value.astimezone(UTC))
        return stamp
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: a datetime or seconds since the epoch needed, not {type(value).__name__}")
    if not _FIRST_SECOND <= value <= _LAST_SECOND:
        raise InvalidQuestionError(f"{name}: not a time")
    seconds = math.floor(value)
    return Timestamp(seconds=seconds, nanos=int((value - seconds) * _NANOS))
