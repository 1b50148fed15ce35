"""`sidestep audit`: what is listed, that an export proves itself, and that no change to either goes unseen."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.admin import AdminServer
from tests.fakes.operators import OperatorFiles
from tests.unit.cli.conftest import Sidestep

FINDINGS = 13


@pytest.fixture
def written(sidestep: Sidestep) -> Sidestep:
    """Three entries done, one refused, one done."""
    sidestep("subject", "put", "alice", "--role", "staff", "--actor", "ann")
    sidestep("posture", "set", "high", "--reason", "fraud wave", "--actor", "ben")
    sidestep("subject", "put", "bob", "--actor", "ann")
    sidestep("key", "add", "k1", "--kind", "tenant", "--starts", "+2d", "--expires", "+1d", "--actor", "ben", code=1)
    sidestep("subject", "delete", "bob", "--actor", "ann")
    return sidestep


def change(tmp_path: Path, statement: str, *values: Any) -> None:
    with sqlite3.connect(tmp_path / "admin.db") as database:
        database.execute(statement, values)


def test_the_newest_entries_come_first(written: Sidestep) -> None:
    listed = written.json("audit", "list")
    assert [line["entry"]["number"] for line in listed] == ["5", "4", "3", "2", "1"]
    assert listed[0]["entry"]["action"] == "delete"
    assert listed[1]["entry"]["outcome"] == "AUDIT_OUTCOME_REFUSED"
    assert listed[3]["entry"]["reason"] == "fraud wave"
    assert [line["entry"]["actor"] for line in listed] == ["ann", "ben", "ann", "ben", "ann"]


def test_entries_are_filtered(written: Sidestep) -> None:
    def numbers(*options: str) -> list[str]:
        return [line["entry"]["number"] for line in written.json("audit", "list", "--oldest-first", *options)]

    assert numbers("--actor", "ben") == ["2", "4"]
    assert numbers("--refused") == ["4"]
    assert numbers("--action", "delete") == ["5"]
    assert numbers("--name", "tenants/acme/subjects/b") == ["3", "5"]
    assert numbers("--limit", "2") == ["1", "2"]


def test_the_table_tells_who_did_what(written: Sidestep) -> None:
    table = written("audit", "list")
    assert "ben (asserted)" in table
    assert "tenants/acme/postures/default" in table
    assert "refused" in table


def test_a_whole_log_is_called_so_with_its_head(written: Sidestep) -> None:
    said = written("audit", "verify")
    assert said.startswith("acme: 5 entries, whole; head 5:")
    head = said.split()[-1]
    written("subject", "delete", "alice")
    assert "6 entries" in written("audit", "verify", "--head", head)


@pytest.mark.parametrize(
    ("statement", "finding"),
    [
        ("UPDATE audit SET entry = replace(entry, 'ben', 'eve') WHERE number = 2", "entry 2 was edited"),
        ("UPDATE audit SET entry = x'ff' WHERE number = 3", "entry 3 was edited"),
        ("DELETE FROM audit WHERE number = 3", "entry 3 is missing"),
        ("DELETE FROM audit WHERE number IN (3, 4)", "entry 3 is missing, and all up to 4"),
        ("DELETE FROM audit WHERE number = 5", "entry 5 is missing: the tail was cut"),
        ("DELETE FROM audit_heads", "entry 1 is one the head that came along knows nothing of"),
        ("UPDATE audit_heads SET number = 3", "entry 3 is not the entry that the given head tells of"),
        ("DELETE FROM audit", "entry 1 is missing, and all up to 5: the tail was cut"),
    ],
)
def test_a_change_in_the_database_is_found(written: Sidestep, tmp_path: Path, statement: str, finding: str) -> None:
    # SQLite's replace makes text of what it is given.
    statement = statement.replace("replace(entry, 'ben', 'eve')", "CAST(replace(entry, 'ben', 'eve') AS BLOB)")
    change(tmp_path, statement)
    said = written("audit", "verify", code=FINDINGS, out=True)
    assert said.splitlines()[0].startswith(finding)
    found = written.json("audit", "verify", code=FINDINGS, out=True)["findings"]
    assert found[0]["number"] == int(finding.split()[1])
    # Whoever lists it sees it too, or at least is not kept from seeing the rest.
    written("audit", "list")


def test_a_tail_that_was_cut_with_its_head_is_found_by_a_head_from_elsewhere(written: Sidestep, tmp_path: Path) -> None:
    head = written("audit", "verify").split()[-1]
    change(tmp_path, "DELETE FROM audit WHERE number = 5")
    change(
        tmp_path,
        "UPDATE audit_heads SET number = 4, hash = (SELECT hash FROM audit WHERE number = 4)",
    )
    assert "4 entries, whole" in written("audit", "verify")
    said = written("audit", "verify", "--head", head, code=FINDINGS, out=True)
    assert said.startswith("entry 5 is missing: the tail was cut")


def test_an_exported_file_proves_itself_without_a_server(written: Sidestep, server: AdminServer) -> None:
    path = str(written.folder / "export.jsonl")
    written("audit", "export", "--file", path)
    head = written("audit", "verify").split()[-1]
    server.down()
    assert written("audit", "verify", path).startswith("acme: 5 entries, whole; head 5:")
    assert written("audit", "verify", "-", stdin=Path(path).read_text()).split()[-1] == head
    server.up()


@pytest.mark.parametrize(
    ("at", "old", "new", "finding"),
    [
        (2, "fraud wave", "nothing", "entry 2 was edited: its readable part"),
        (3, '"hash":"', '"hash":"00', "entry 3 was edited"),
        (4, '{"entry"', '{"', "entry 4 was edited: it is no entry"),
        (0, '"number":5', '"number":6', "entry 6 is missing: the tail was cut"),
    ],
)
def test_a_changed_line_of_an_exported_file_is_found(
    written: Sidestep, at: int, old: str, new: str, finding: str
) -> None:
    lines = written("audit", "export").splitlines()
    assert old in lines[at]
    lines[at] = lines[at].replace(old, new)
    said = written("audit", "verify", "-", stdin="\n".join(lines), code=FINDINGS, out=True)
    assert said.splitlines()[0].startswith(finding)


def test_a_removed_line_of_an_exported_file_is_found(written: Sidestep) -> None:
    lines = written("audit", "export").splitlines()
    for at in range(1, len(lines)):
        left = "\n".join(lines[:at] + lines[at + 1 :])
        said = written("audit", "verify", "-", stdin=left, code=FINDINGS, out=True)
        assert said.startswith(f"entry {at} is missing")


def test_what_is_no_export_is_refused(written: Sidestep) -> None:
    assert "first line" in written("audit", "verify", "-", stdin="{}\n", code=2)
    assert "first line" in written("audit", "verify", "-", stdin="", code=2)
    for head in ("5", "x:y", "5:zz", "5:" + "zz" * 32):
        assert "--head: must be NUMBER:HASH" in written("audit", "verify", "--head", head, code=2)


def test_a_tenant_nobody_wrote_to_has_an_empty_log(sidestep: Sidestep) -> None:
    assert sidestep("audit", "verify").startswith("acme: 0 entries, whole")
    assert json.loads(sidestep("-o", "json", "audit", "list")) == []


def test_commands_carry_the_operators_token(tmp_path: Path) -> None:
    files = OperatorFiles(tmp_path / "operators")
    with AdminServer(tmp_path, files.path) as server:
        sidestep = Sidestep(server, tmp_path)
        alice = ("--operator-token-file", files.token_file("alice"))
        assert "an operator's token is needed" in sidestep("subject", "list", code=1)
        sidestep("subject", "put", "bob", *alice)
        sidestep(*alice, "subject", "put", "carl")
        carol = ("--operator-token-file", files.token_file("carol"))
        assert "carol has no permission to write" in sidestep("subject", "delete", "carl", *carol, code=1)
        assert sidestep("audit", "verify", *carol).startswith("acme: 3 entries, whole")
        listed = sidestep("audit", "list", *carol)
        assert "asserted" not in listed
        missing = str(tmp_path / "missing")
        said = sidestep("audit", "list", "--operator-token-file", missing, code=2)
        assert said.startswith(f"error: {missing}: No such file")
        elsewhere = sidestep("audit", "list", *alice, "--server", "control.example:9190", code=2)
        assert elsewhere.startswith("error: --server: control.example:9190 is not on this machine")
