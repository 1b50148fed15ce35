"""`sidestep budget show`, and the options that give a grant a budget."""

from __future__ import annotations

import json

import pytest
from sidestep.v1 import lease_pb2

from tests.fakes.admin import AdminServer
from tests.unit.cli.conftest import Sidestep

BOUNDS = ("--role", "staff", "--action", "payments.*", "--acr", "nist-aal2", "--max-age", "1h", "--expires", "+30d")


def stored(sidestep: Sidestep) -> dict[str, object]:
    found: dict[str, object] = json.loads(sidestep("grant", "get", "g", "-o", "json"))["budget"]
    return found


def test_a_preset_holds_to_both_limits_of_article_16(sidestep: Sidestep) -> None:
    sidestep("grant", "put", "g", *BOUNDS, "--budget", "psd2")
    budget = stored(sidestep)
    assert budget["maxCount"] == "5"
    assert budget["maxAmount"] == {"currency": "EUR", "units": "100", "nanos": 0}
    assert budget["maxPerUse"] == {"currency": "EUR", "units": "30", "nanos": 0}


def test_an_option_counts_before_the_preset(sidestep: Sidestep) -> None:
    sidestep("grant", "put", "g", *BOUNDS, "--budget", "psd2-count", "--max-uses", "3", "--max-elapsed", "90d")
    budget = stored(sidestep)
    assert (budget["maxCount"], budget["maxElapsed"]) == ("3", "7776000s")
    assert "maxAmount" not in budget


def test_amounts_are_read_exactly(sidestep: Sidestep) -> None:
    sidestep("grant", "put", "g", *BOUNDS, "--max-amount", "0.1EUR", "--max-per-use", "0.000000001 EUR")
    budget = stored(sidestep)
    assert budget["maxAmount"] == {"currency": "EUR", "units": "0", "nanos": 100_000_000}
    assert budget["maxPerUse"] == {"currency": "EUR", "units": "0", "nanos": 1}


@pytest.mark.parametrize("amount", ["5", "EUR", "5eur", "1e3EUR", "-5EUR", "0.0000000001EUR"])
def test_what_is_no_amount_is_refused(sidestep: Sidestep, amount: str) -> None:
    assert "30.50EUR" in sidestep("grant", "put", "g", *BOUNDS, f"--max-amount={amount}", code=2)


def test_a_budget_that_cannot_be_is_refused_by_its_field(sidestep: Sidestep) -> None:
    told = sidestep("grant", "put", "g", *BOUNDS, "--max-amount", "5EUR", "--max-per-use", "6EUR", code=1)
    assert "grant.budget.max_per_use" in told


def test_what_was_used_is_shown(sidestep: Sidestep, server: AdminServer) -> None:
    sidestep("grant", "put", "g", *BOUNDS, "--max-uses", "5", "--max-amount", "100EUR")
    request = lease_pb2.LeaseRequest(tenant="acme", holder="0" * 32, sidecar="pod", sequence=1)
    line = request.asks.add(grant="g", subject="ada")
    line.least.count = line.want.count = 1
    line.want.amount.units = 20
    server.leases.Lease(request)
    told = sidestep("budget", "show", "g")
    assert "1 use, 20.00 EUR" in told
    assert "4 uses, 80.00 EUR" in told
    (account,) = json.loads(sidestep("budget", "show", "g", "--subject", "ada", "-o", "json"))
    assert (account["subject"], account["held"]["count"], account["current"]) == ("ada", "1", True)
    assert json.loads(sidestep("budget", "show", "g", "--subject", "bob", "-o", "json")) == []


def test_earlier_periods_are_shown_on_demand(sidestep: Sidestep, server: AdminServer) -> None:
    sidestep("grant", "put", "g", *BOUNDS, "--max-uses", "5")
    request = lease_pb2.LeaseRequest(tenant="acme", holder="0" * 32, sidecar="pod", sequence=1)
    line = request.asks.add(grant="g", subject="ada")
    line.least.count = line.want.count = 1
    server.leases.Lease(request)
    server.run(server.store.budgets.begin_period("acme", "ada", 100.0))
    assert json.loads(sidestep("budget", "show", "g", "-o", "json")) == []
    (account,) = json.loads(sidestep("budget", "show", "g", "--all", "-o", "json"))
    assert (account["period"], account["current"]) == ("1", False)


def test_the_budget_of_no_grant_is_not_found(sidestep: Sidestep) -> None:
    sidestep("budget", "show", "none", code=4)
