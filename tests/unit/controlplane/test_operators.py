"""The operators' file: what it says, what is refused by which name, and what becomes of a file that changes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from controlplane.actor import ANONYMOUS, Actor, Permission, asserted, check_second_person, system
from controlplane.errors import RefusedError
from controlplane.operators import Operators
from engine.tokenfiles import TokenFilesError
from tests.fakes.operators import OPERATORS, TOKENS, OperatorFiles


@pytest.fixture
def files(tmp_path: Path) -> OperatorFiles:
    return OperatorFiles(tmp_path / "operators")


def whose(operators: Operators, token: str) -> Actor | None:
    return operators.actor(f"Bearer {token}")


def test_operators_are_found_by_their_tokens(files: OperatorFiles) -> None:
    operators = Operators(files.path)
    alice, carol = whose(operators, TOKENS["alice"]), whose(operators, TOKENS["carol"])
    assert alice == Actor("alice", True, frozenset({"acme"}), frozenset(Permission))
    assert carol == Actor("carol", True, None, frozenset({Permission.READ}))
    assert whose(operators, "nobodys-token-0123456789") is None
    assert operators.actor("") is None
    assert operators.actor(TOKENS["alice"]) is None
    assert operators.describe() == {"operators": 4, "operators_unusable": False}


def test_permissions_hold_for_their_tenants() -> None:
    approver = Actor("bob", True, frozenset({"acme"}), frozenset({Permission.APPROVE}))
    assert approver.may(Permission.READ, "acme")
    assert approver.may(Permission.APPROVE, "acme")
    assert not approver.may(Permission.WRITE, "acme")
    assert not approver.may(Permission.READ, "globex")
    assert not approver.may(Permission.READ, None)
    assert Actor("carol", True, None, frozenset({Permission.READ})).may(Permission.READ, None)
    assert not Actor("nobody", True, None, frozenset()).may(Permission.READ, "acme")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"name": "Alice"}, "operators[0].name: not a name"),
        ({"name": "controlplane"}, "operators[0].name: is the name of nobody in particular"),
        ({"name": "anonymous"}, "operators[0].name: is the name of nobody in particular"),
        ({"tokens": []}, "operators[0].tokens: "),
        ({"tokens": ["a-token-0123456789"]}, "operators[0].tokens[0]: not an absolute path"),
        ({"tenants": []}, "operators[0].tenants"),
        ({"tenants": ["Acme"]}, "operators[0].tenants"),
        ({"tenants": "acme"}, "operators[0].tenants"),
        ({"permissions": []}, "operators[0].permissions: "),
        ({"permissions": ["admin"]}, "operators[0].permissions[0]: "),
        ({"permission": ["read"]}, "operators[0].permission: unknown key"),
    ],
)
def test_a_bad_entry_is_refused_by_file_and_field(files: OperatorFiles, change: dict[str, Any], problem: str) -> None:
    files.write([{"tokens": [files.token_file("alice")], **OPERATORS[0], **change}, OPERATORS[1]])
    with pytest.raises(TokenFilesError) as refused:
        Operators(files.path)
    assert problem in str(refused.value)
    assert "a-token" not in str(refused.value)


def test_what_must_be_said_is_named(files: OperatorFiles) -> None:
    files.put("operators.yaml", "operators: [{name: alice, tokens: [/nowhere]}]")
    with pytest.raises(TokenFilesError, match=r"operators\[0\].tenants: is required"):
        Operators(files.path)


def test_a_new_token_counts_and_a_removed_one_does_not_without_a_restart(files: OperatorFiles) -> None:
    operators = Operators(files.path)
    files.put("alice", "another-token-0123456789\n")
    asyncio.run(operators.look())
    assert whose(operators, TOKENS["alice"]) is None
    found = whose(operators, "another-token-0123456789")
    assert found is not None
    assert found.name == "alice"


def test_a_bad_file_keeps_the_old_one_and_says_so(files: OperatorFiles) -> None:
    operators = Operators(files.path)
    files.put("operators.yaml", "operators: [")
    asyncio.run(operators.look())
    assert whose(operators, TOKENS["alice"]) is not None
    assert operators.describe()["operators_unusable"] is True
    files.write(OPERATORS[1:])
    asyncio.run(operators.look())
    assert whose(operators, TOKENS["alice"]) is None
    assert operators.describe() == {"operators": 3, "operators_unusable": False}


@pytest.mark.parametrize(("name", "other"), [("bob", "bob"), ("bob", "BOB"), ("Bob", "bob")])
def test_nobody_is_a_second_person_beside_themselves(name: str, other: str) -> None:
    check_second_person(asserted("alice"), [other], "it")
    with pytest.raises(RefusedError, match="needs a second person, not"):
        check_second_person(asserted(name), ["alice", other], "it")


def test_nobody_in_particular_is_no_second_person() -> None:
    assert asserted("").name == ANONYMOUS
    with pytest.raises(RefusedError, match="nobody knows who you are"):
        check_second_person(asserted(""), ["alice"], "it")


def test_the_control_plane_acts_in_its_own_name() -> None:
    assert (system().name, system().verified) == ("controlplane", True)
