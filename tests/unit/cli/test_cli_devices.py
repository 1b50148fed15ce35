"""`sidestep device register|validate|release`: what a person vouches for, told in the audit log."""

from __future__ import annotations

import time
from datetime import datetime

import pytest

from tests.unit.cli.conftest import Sidestep

WHY = ("--why", "seen at the desk")
KEY = "x" * 43


def at(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


@pytest.fixture
def alice(sidestep: Sidestep) -> Sidestep:
    sidestep("subject", "put", "alice")
    return sidestep


def test_a_device_that_a_person_registers_is_due_until_a_login_or_a_person_confirms_it(alice: Sidestep) -> None:
    alice("device", "register", "d1", "--subject", "alice", "--jkt", KEY, *WHY)
    device = alice.json("device", "get", "d1")
    assert (device["subject"], device["jkt"]) == ("alice", KEY)
    assert abs(at(device["createTime"]) - time.time()) < 60
    assert "validateTime" not in device
    alice("device", "validate", "d1", *WHY)
    confirmed = alice.json("device", "get", "d1")
    assert abs(at(confirmed.pop("validateTime")) - time.time()) < 60
    assert confirmed == device
    log = alice.json("audit", "list")
    told = [each["entry"] for each in log if each["entry"]["name"] == "tenants/acme/devices/d1"]
    assert [entry["reason"] for entry in told] == [WHY[1]] * 2


def test_it_may_be_confirmed_at_once(alice: Sidestep) -> None:
    alice("device", "register", "d1", "--subject", "alice", "--jkt", KEY, "--validated", *WHY)
    assert "validateTime" in alice.json("device", "get", "d1")


def test_nobody_vouches_without_a_reason(alice: Sidestep) -> None:
    assert "--why" in alice("device", "register", "d1", "--subject", "alice", "--jkt", KEY, code=2)
    alice("device", "register", "d1", "--subject", "alice", "--jkt", KEY, *WHY)
    assert "--why" in alice("device", "validate", "d1", code=2)
    assert "--why" in alice("device", "validate", "d1", "--why", " ", code=2)


def test_what_cannot_be_registered_is_said_clearly(alice: Sidestep) -> None:
    register = ("device", "register", "d1", "--subject", "alice")
    assert "--fingerprint or --jkt" in alice(*register, *WHY, code=2)
    assert "subjects/bob" in alice("device", "register", "d1", "--subject", "bob", "--jkt", KEY, *WHY, code=4)
    alice(*register, "--jkt", KEY, *WHY)
    assert "is registered already" in alice(*register, "--jkt", "y" * 43, *WHY, code=1)
    assert alice.json("device", "get", "d1")["jkt"] == KEY


def test_what_cannot_be_validated_is_said_clearly(alice: Sidestep) -> None:
    assert "devices/d1" in alice("device", "validate", "d1", *WHY, code=4)
    alice("device", "register", "d1", "--subject", "alice", "--jkt", KEY, "--validated", *WHY)
    assert "was validated later" in alice("device", "validate", "d1", "--at", "-1d", *WHY, code=1)
    assert "in the future" in alice("device", "validate", "d1", "--at", "+1d", *WHY, code=2)
    alice("device", "quarantine", "d1")
    assert "is blocked" in alice("device", "validate", "d1", *WHY, code=1)
    alice("device", "release", "d1")
    alice("device", "validate", "d1", *WHY)


def test_a_second_person_may_be_asked(alice: Sidestep) -> None:
    register = ("device", "register", "d1", "--subject", "alice", "--jkt", KEY, *WHY)
    (proposal,) = [alice.json("--actor", "ann", *register, "--propose")["proposal"]["name"].rpartition("/")[2]]
    assert "not found" in alice("device", "get", "d1", code=4)
    assert "ann" in alice("--actor", "ann", "proposal", "approve", proposal, code=1)
    alice("--actor", "ben", "proposal", "approve", proposal)
    assert alice.json("device", "get", "d1")["jkt"] == KEY


def test_releasing_a_device_takes_two_where_blocks_are_guarded(alice: Sidestep) -> None:
    alice("device", "register", "d1", "--subject", "alice", "--jkt", KEY, *WHY)
    alice("device", "quarantine", "d1")
    settings = "apiVersion: sidestep.dev/v1\nkind: Settings\nmetadata: {name: default}\nspec: {changeControl: {blocks: true}}\n"
    alice("apply", "-f", alice.file("settings.yaml", settings))
    assert "change_control.blocks" in alice("device", "release", "d1", code=1)
