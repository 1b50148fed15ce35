"""What a stored budget must be, and which changes of one let more pass."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from sidestep.v1 import resources_pb2 as pb

from controlplane.api.budgets import check_budget
from controlplane.budgets import widens
from engine.errors import InvalidInputError

EUR100 = {"currency": "EUR", "units": "100"}
EUR30 = {"currency": "EUR", "units": "30"}


def budget(**fields: Any) -> pb.Budget:
    return ParseDict(fields, pb.Budget())


def granted(**fields: Any) -> pb.Grant:
    return pb.Grant(budget=budget(**fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"max_count": "5"},
        {"max_amount": EUR100},
        {"max_per_use": EUR30},
        {"max_elapsed": "604800s"},
        {"max_count": "5", "max_amount": EUR100, "max_per_use": EUR30, "max_elapsed": "0.5s"},
        {"max_amount": {"currency": "JPY", "units": "1000000000"}},
    ],
)
def test_a_budget_that_limits_something_may_be_stored(fields: dict[str, Any]) -> None:
    check_budget(budget(**fields), "grant.budget")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "budget"),
        ({"max_count": "1000000001"}, "budget.max_count"),
        ({"max_amount": {"units": "5"}}, "budget.max_amount.currency"),
        ({"max_amount": {"currency": "eur", "units": "5"}}, "budget.max_amount.currency"),
        ({"max_amount": {"currency": "EUR"}}, "budget.max_amount"),
        ({"max_amount": {"currency": "EUR", "units": "-5"}}, "budget.max_amount"),
        ({"max_amount": {"currency": "EUR", "units": "5", "nanos": -1}}, "budget.max_amount"),
        ({"max_amount": {"currency": "EUR", "units": "5", "nanos": 1_000_000_000}}, "budget.max_amount"),
        ({"max_amount": {"currency": "EUR", "units": "1000000000", "nanos": 1}}, "budget.max_amount"),
        ({"max_per_use": {"currency": "EUR"}}, "budget.max_per_use"),
        ({"max_amount": EUR100, "max_per_use": {"currency": "USD", "units": "5"}}, "budget.max_per_use.currency"),
        ({"max_amount": EUR30, "max_per_use": EUR100}, "budget.max_per_use"),
        ({"max_elapsed": "0s"}, "budget.max_elapsed"),
        ({"max_elapsed": "-1s"}, "budget.max_elapsed"),
        ({"max_elapsed": "400000000s"}, "budget.max_elapsed"),
    ],
)
def test_another_is_refused_by_its_field(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        check_budget(budget(**fields), "budget")
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"max_count": "5"}, {"max_count": "6"}),
        ({"max_count": "5"}, {"max_elapsed": "5s"}),
        ({"max_amount": EUR30}, {"max_amount": EUR100}),
        ({"max_amount": EUR30}, {"max_amount": {"currency": "USD", "units": "30"}}),
        ({"max_amount": EUR30, "max_count": "5"}, {"max_count": "5"}),
        ({"max_per_use": EUR30}, {"max_per_use": {"currency": "EUR", "units": "30", "nanos": 1}}),
        ({"max_count": "5", "max_elapsed": "5s"}, {"max_count": "5"}),
        ({"max_elapsed": "5s"}, {"max_elapsed": "6s"}),
    ],
)
def test_a_budget_is_widened_by_more_of_anything(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert widens(granted(**before), granted(**after))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"max_count": "5"}, {"max_count": "5"}),
        ({"max_count": "5"}, {"max_count": "4", "max_amount": EUR100}),
        ({"max_amount": EUR100}, {"max_amount": EUR30, "max_per_use": EUR30}),
        ({"max_elapsed": "6s"}, {"max_elapsed": "5s", "max_count": "1"}),
    ],
)
def test_less_of_something_widens_nothing(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert not widens(granted(**before), granted(**after))


def test_taking_the_budget_away_widens_and_giving_one_does_not() -> None:
    assert widens(granted(max_count="5"), pb.Grant())
    assert not widens(pb.Grant(), granted(max_count="5"))
    assert not widens(pb.Grant(), pb.Grant())
