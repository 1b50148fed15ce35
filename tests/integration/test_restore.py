"""Backup and restore of the control plane from end to end: the program's commands, a sidecar that follows, answers meanwhile."""

from __future__ import annotations

import argparse
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from sidestep.client import Basis, Client, Outcome

from controlplane.config import Settings
from controlplane.errors import SettingsError
from controlplane.maintenance import add_commands, run_command
from engine.errors import SidestepError
from tests.chaos import world
from tests.chaos.pod import Plane, Pod
from tests.fakes.stock import RECORDS, TENANT
from tests.integration.test_budgets import question
from tests.processes import environment, until

PROGRAM = Path(sys.executable).with_name("sidestep-controlplane")


def command(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PROGRAM, *arguments],
        env=environment(SIDESTEP_CP_DATABASE_URL=url),
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.e2e
def test_a_restored_backup_is_a_new_epoch_that_the_fleet_follows(tmp_path: Path) -> None:
    backup = tmp_path / "backup.db"
    with Plane(tmp_path / "plane") as plane:
        url = f"sqlite+aiosqlite:///{plane.database}"
        for resource in world.resources():
            plane.put(resource)
        plain = RECORDS["grants/g1"] | {"actions": ["payments.transfer1"]}
        plane.put(world.resource("grants/plain", plain))
        spent = RECORDS["grants/g1"] | {"actions": ["payments.transfer2"], "budget": {"max_count": 1}}
        plane.put(world.resource("grants/spent", spent))
        with Pod(tmp_path / "pod" / "data", plane.address) as pod, Client(pod.address) as client:

            def is_exempted(number: int) -> bool:
                return client.evaluate(**question(number)).basis is Basis.EXEMPTION_GRANT

            until(lambda: is_exempted(1), "the grant")
            made = command(url, "backup", str(backup))
            assert made.returncode == 0, made.stderr
            assert "epoch 1, acme/1 at" in made.stdout
            assert backup.stat().st_mode & 0o077 == 0
            assert "exists already" in command(url, "backup", str(backup)).stderr
            # After it: all of a budget is spent, and a grant revoked.
            until(lambda: is_exempted(2), "the budget")
            assert client.evaluate(**question(2)).outcome is Outcome.STEP_UP
            plane.put(world.resource("grants/plain", plain | {"state": "GRANT_STATE_REVOKED"}))
            until(lambda: client.evaluate(**question(1)).outcome is Outcome.STEP_UP, "the revocation")
            assert "a control plane serves it" in command(url, "restore", str(backup)).stderr
            head = plane.heads(TENANT)[TENANT, 1]
            plane.kill()

            wrong: list[object] = []
            ended = threading.Event()

            def ask() -> None:
                # The budget was spent: whatever the control plane forgot, nothing of it comes back.
                while not ended.is_set():
                    answer = client.evaluate(**question(2))
                    if answer.allowed:
                        wrong.append(answer)

            asking = threading.Thread(target=ask)
            asking.start()
            try:
                done = command(url, "restore", str(backup))
                assert done.returncode == 0, done.stderr
                for said in ("(the backup had 1)", "grants revoked since are in force again", "back from revision"):
                    assert said in done.stdout
                plane.start()
                epoch, revision, _ = plane.heads(TENANT)[TENANT, 1]
                assert epoch > head[0]
                assert revision < head[1]
                # The sidecar follows: what was revoked after the backup is in force again, as the command said.
                until(lambda: is_exempted(1), "the restored data")
                # And it follows what is written from then on.
                plane.put(world.resource("grants/plain", plain | {"state": "GRANT_STATE_REVOKED"}))
                until(lambda: client.evaluate(**question(1)).outcome is Outcome.STEP_UP, "the revocation again")
            finally:
                ended.set()
                asking.join()
            assert wrong == []
    (replaced,) = plane.database.parent.glob("sidestep.db.replaced-*")
    with closing(sqlite3.connect(replaced)) as connection:
        assert connection.execute("SELECT max(revision) FROM heads").fetchone()[0] >= head[1]


def run(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The same, without a process of its own."""
    parser = argparse.ArgumentParser()
    add_commands(parser)
    try:
        said = run_command(parser.parse_args(arguments), Settings(database_url=url))
    except SidestepError as error:
        return subprocess.CompletedProcess(arguments, 2 if isinstance(error, SettingsError) else 1, "", str(error))
    return subprocess.CompletedProcess(arguments, 0, f"{said}\n", "")


def test_an_older_backup_still_gets_a_greater_epoch(tmp_path: Path) -> None:
    url, backup = f"sqlite+aiosqlite:///{tmp_path}/cp.db", str(tmp_path / "backup.db")
    assert run(url, "migrate").stdout == "schema version 4: made\n"
    assert run(url, "migrate").stdout == "schema version 4: up to date\n"
    assert run(url, "backup", backup).returncode == 0
    epochs = []
    for _ in range(2):
        assert run(url, "restore", backup).returncode == 0
        with closing(sqlite3.connect(tmp_path / "cp.db")) as connection:
            epochs += [row[0] for row in connection.execute("SELECT epoch FROM schema")]
    assert run(url, "raise-epoch", "--at-least", str(2**40)).stdout.startswith(f"epoch {2**40} (was {epochs[1]})")
    assert run(url, "restore", backup).stdout.splitlines()[0].endswith(f"epoch {2**40 + 1} (the backup had 1)")
    assert time.time() - 120 < epochs[0] < epochs[1] < 2**40


def test_what_cannot_be_restored_leaves_everything_as_it_is(tmp_path: Path) -> None:
    url, database = f"sqlite+aiosqlite:///{tmp_path}/cp.db", tmp_path / "cp.db"
    assert run(url, "migrate").returncode == 0
    before = database.read_bytes()
    broken = tmp_path / "broken"
    broken.write_bytes(b"no database" * 1000)
    foreign = tmp_path / "foreign"
    with closing(sqlite3.connect(foreign)) as connection:
        connection.execute("CREATE TABLE users (id)")
    newer = tmp_path / "newer"
    assert run(url, "backup", str(newer)).returncode == 0
    with closing(sqlite3.connect(newer)) as connection, connection:
        connection.execute("UPDATE schema SET version = 99")
    for file, said in (
        (broken, "not a database"),
        (foreign, "no such table"),
        (newer, "99"),
        (tmp_path / "no", "no such file"),
    ):
        done = run(url, "restore", str(file))
        assert (done.returncode, said in done.stderr) == (1, True), done.stderr
    assert run("postgresql+asyncpg://h/d", "restore", str(newer)).returncode == 2
    assert database.read_bytes() == before
    assert [path.name for path in tmp_path.glob(".*")] == []


@pytest.mark.parametrize("damage", ["truncated", "gone"])
def test_a_database_that_cannot_be_read_is_replaced_and_kept(tmp_path: Path, damage: str) -> None:
    url, database, backup = f"sqlite+aiosqlite:///{tmp_path}/cp.db", tmp_path / "cp.db", str(tmp_path / "backup.db")
    assert run(url, "migrate").returncode == 0
    assert run(url, "backup", backup).returncode == 0
    if damage == "gone":
        database.unlink()
    else:
        database.write_bytes(b"x" * 100)
    done = run(url, "restore", backup)
    assert done.returncode == 0, done.stderr
    assert ("could not be read" in done.stdout) == (damage == "truncated")
    assert run(url, "migrate").stdout == "schema version 4: up to date\n"
