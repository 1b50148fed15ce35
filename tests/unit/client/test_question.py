from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sidestep.client import Authentication, Dpop, InvalidQuestionError, Question, QuestionFields, Revision
from sidestep.client._question import to_batch_request, to_request
from sidestep.v1 import decision_pb2


def request(**fields: Any) -> decision_pb2.EvaluateRequest:
    return to_request(Question(**{"subject": "alice", "action": "payments.transfer", **fields}))


def test_keyword_arguments_are_exactly_the_fields_of_a_question() -> None:
    assert get_type_hints(QuestionFields) == get_type_hints(Question)


def test_every_field_arrives_in_the_message() -> None:
    at = datetime(2027, 1, 15, 8, 0, 0, 250_000, tzinfo=UTC)
    message = request(
        tenant="acme",
        subject_type="user",
        resource_type="account",
        resource_id="a1",
        ip="203.0.113.9",
        asn=0,
        country="DE",
        amount=("EUR", "120.50"),
        attributes={"channel": "web", "retries": 2, "trusted": False, "ratio": 0.5},
        token="t.t.t",
        dpop=Dpop("p.p.p", "POST", "https://pay.acme.example/"),
        session_id="s1",
        session_started_at=at,
        session_last_active_at=1_800_000_000.5,
        authentications=[Authentication(acr="phr", amr=["hwk"], at=at, issuer="i"), Authentication()],
        device_id="d1",
        fingerprint={"os": "macOS"},
        request_id="r1",
        min_revision=Revision(3, 42),
        explain=True,
    )
    assert (message.tenant, message.request_id, message.explain) == ("acme", "r1", True)
    assert (message.subject.id, message.subject.type, message.action.name) == ("alice", "user", "payments.transfer")
    assert (message.resource.type, message.resource.id) == ("account", "a1")
    assert (message.context.ip, message.context.country) == ("203.0.113.9", "DE")
    assert message.context.HasField("asn")
    assert (message.context.amount.currency, message.context.amount.units) == ("EUR", 120)
    assert message.context.amount.nanos == 500_000_000
    assert dict(message.context.attributes) == {"channel": "web", "retries": 2.0, "trusted": False, "ratio": 0.5}
    session = message.session
    assert (session.id, session.token) == ("s1", "t.t.t")
    assert (session.dpop.proof, session.dpop.http_method) == ("p.p.p", "POST")
    assert session.dpop.http_uri == "https://pay.acme.example/"
    assert session.start_time.ToDatetime(UTC) == at
    assert (session.last_active_time.seconds, session.last_active_time.nanos) == (1_800_000_000, 500_000_000)
    assert [event.acr for event in session.authentications] == ["phr", ""]
    assert session.authentications[0].auth_time.ToDatetime(UTC) == at
    assert not session.authentications[1].HasField("auth_time")
    assert (message.device.id, dict(message.device.fingerprint)) == ("d1", {"os": "macOS"})
    assert (message.min_revision.epoch, message.min_revision.revision) == (3, 42)


def test_what_is_left_out_stays_absent() -> None:
    message = request()
    for name in ("resource", "session", "device", "min_revision"):
        assert not message.HasField(name)
    assert not message.context.HasField("asn")
    assert not message.context.HasField("amount")


@pytest.mark.parametrize(
    ("value", "units", "nanos"),
    [
        ("0", 0, 0),
        ("-0.5", 0, -500_000_000),
        ("-1.25", -1, -250_000_000),
        (Decimal("1E+3"), 1000, 0),
        (Decimal("0E-1000000"), 0, 0),
        ("0.000000001", 0, 1),
        ("1.500000000000000000", 1, 500_000_000),
        (2**63 - 1, 2**63 - 1, 0),
        ("9223372036854775807.999999999", 2**63 - 1, 999_999_999),
    ],
)
def test_amounts_are_exact(value: Any, units: int, nanos: int) -> None:
    amount = request(amount=("EUR", value)).context.amount
    assert (amount.units, amount.nanos) == (units, nanos)


@given(units=st.integers(-(2**63) + 1, 2**63 - 1), nanos=st.integers(0, 10**9 - 1))
def test_any_amount_survives(units: int, nanos: int) -> None:
    sign = -1 if units < 0 else 1
    text = f"{units}.{nanos:09d}"
    amount = request(amount=("EUR", text)).context.amount
    assert (amount.units, amount.nanos) == (units, sign * nanos)
    assert request(amount=("EUR", Decimal(text))).context.amount == amount


@pytest.mark.parametrize("value", [120.5, True, None, b"1", [1]])
def test_inexact_or_untyped_amount_is_a_type_error(value: Any) -> None:
    with pytest.raises(TypeError, match="amount"):
        request(amount=("EUR", value))


@pytest.mark.parametrize("amount", [Decimal(5), "5", 5.0, ["EUR", 5], ("EUR",), ("EUR", 1, 2)])
def test_amount_needs_currency_and_value(amount: Any) -> None:
    with pytest.raises(TypeError, match="amount"):
        request(amount=amount)


@pytest.mark.parametrize(
    ("currency", "value"),
    [
        ("eur", "1"),
        ("EURO", "1"),
        ("", "1"),
        ("EUR", ""),
        ("EUR", "1,5"),
        ("EUR", "1_000"),
        ("EUR", " 1"),
        ("EUR", "٣"),
        ("EUR", "NaN"),
        ("EUR", "1e3"),
        ("EUR", Decimal("NaN")),
        ("EUR", Decimal("Infinity")),
        ("EUR", Decimal("1E+1000000")),
        ("EUR", Decimal("1E-1000000")),
        ("EUR", "0.0000000001"),
        ("EUR", "1.0000000001"),
        ("EUR", Decimal("1." + "0" * 90 + "1")),
        ("EUR", 2**63),
        ("EUR", 10**4000),
    ],
)
def test_amount_that_cannot_be_expressed_is_refused(currency: str, value: Any) -> None:
    with pytest.raises(InvalidQuestionError, match="amount"):
        request(amount=(currency, value))


def test_datetimes_need_a_time_zone() -> None:
    zone = timezone(timedelta(hours=2))
    message = request(session_started_at=datetime(2027, 1, 15, 10, tzinfo=zone))
    assert message.session.start_time.ToDatetime(UTC) == datetime(2027, 1, 15, 8, tzinfo=UTC)
    with pytest.raises(TypeError, match="session_started_at: the datetime needs a time zone"):
        request(session_started_at=datetime(2027, 1, 15))  # noqa: DTZ001
    with pytest.raises(TypeError, match=r"authentications\[0\]\.at"):
        request(authentications=[Authentication(at="now")])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="session_last_active_at"):
        request(session_last_active_at=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e18, -1e18])
def test_impossible_time_is_refused(value: float) -> None:
    with pytest.raises(InvalidQuestionError, match="session_started_at"):
        request(session_started_at=value)


def test_time_before_the_epoch_is_expressed() -> None:
    stamp = request(session_started_at=-0.25).session.start_time
    assert (stamp.seconds, stamp.nanos) == (-1, 750_000_000)


@pytest.mark.parametrize("value", [None, [1], {"a": 1}, b"x"])
def test_attribute_of_another_type_is_a_type_error(value: Any) -> None:
    with pytest.raises(TypeError, match=r"attributes\['x'\]"):
        request(attributes={"x": value})


@pytest.mark.parametrize("value", [2**53 + 1, float("nan"), float("inf")])
def test_attribute_that_would_change_on_the_way_is_refused(value: Any) -> None:
    with pytest.raises(InvalidQuestionError, match=r"attributes\['x'\]"):
        request(attributes={"x": value})


@pytest.mark.parametrize("field", ["subject", "action"])
def test_subject_and_action_are_needed(field: str) -> None:
    with pytest.raises(InvalidQuestionError, match=field):
        request(**{field: ""})
    with pytest.raises(TypeError, match=field):
        request(**{field: None})


@pytest.mark.parametrize("field", ["subject", "ip", "token", "device_id"])
def test_text_that_is_not_unicode_is_refused_without_repeating_it(field: str) -> None:
    with pytest.raises(InvalidQuestionError, match="Unicode") as caught:
        request(**{field: "secret\ud800"})
    assert "secret" not in str(caught.value)


def test_number_out_of_its_fields_range_is_refused() -> None:
    with pytest.raises(InvalidQuestionError):
        request(asn=2**32)
    with pytest.raises(InvalidQuestionError):
        request(min_revision=Revision(-1, 0))


def test_batch_error_names_the_question() -> None:
    good = Question(subject="a", action="b")
    with pytest.raises(InvalidQuestionError, match="question 1: subject") as caught:
        to_batch_request([good, dataclasses.replace(good, subject="")])
    assert caught.value.index == 1
    with pytest.raises(InvalidQuestionError, match="101 questions"):
        to_batch_request([good] * 101)


def test_secrets_stay_out_of_the_repr() -> None:
    shown = repr(
        Question(subject="a", action="b", token="SECRET", dpop=Dpop("SECRET", "GET", "u"), fingerprint={"os": "SECRET"})
    )
    assert "SECRET" not in shown
